"""`clearsr ablate`: Tables 2, 3, 6, 7 and 8, a network trained and evaluated for each row."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearsr.cli.flags import Overrides, add_config_flags, build, collect
from clearsr.cli.measuring import EVALUATION_FLAGS, add_pair_arguments, find_pairs, numbers_of
from clearsr.cli.parser import UsageError
from clearsr.cli.terminal import show_information, write_line
from clearsr.config.base import merge, parse_override
from clearsr.config.evaluation import EvaluationConfig
from clearsr.config.sampling import SamplingConfig

if TYPE_CHECKING:
    from clearsr.evaluation.evaluate import Evaluation
    from clearsr.paper.tables.tables_2_3_6_7_8_ablation import AblationPlan

_TABLES = "2,3,6,7,8"
_EPILOG = """\
OVERLAYS is a folder with an overlay for each row, such as configs/ablations. As they stand they are the
paper's runs on Stable Diffusion 2.1: 50,000 steps each. --recipe lays their switches over a recipe of one's
own instead, and --from takes VAE, E', U-Net and image encoder from a model of ours, in the place of Stable
Diffusion, with fresh control. Tables 3 and 7 are about E' as a LoRA on the VAE encoder; with --recipe an E'
of its own gives way to one there.

OUT/ROW has each row's run and result.json; OUT/tables.md the tables. A run that was stopped goes on where it
was; rows that are measured under the same settings are not run again, and the full model is trained once.
--also controlnet trains what Figures 2 and 8 compare with: analyze --against OUT/controlnet/run/export.

examples:
  clearsr ablate configs/ablations --testset DrealSRVal_crop128 --data data/train.txt -o runs/ablations
  clearsr ablate configs/ablations --recipe configs/compact-ablations.yaml --from compact --testset testset \\
    --data photographs/ --tables 2,6 -o runs/compact-ablations
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    parser.add_argument("overlays", type=Path, metavar="OVERLAYS", help="the folder of the overlays")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the results"
    )
    parser.add_argument("--tables", default=_TABLES, metavar="N,N,...", help=f"(default: {_TABLES})")
    parser.add_argument(
        "--also",
        default="",
        metavar="NAME,...",
        help="further overlays of the folder that no table has, such as controlnet",
    )
    training = parser.add_argument_group("training")
    training.add_argument("--recipe", type=Path, metavar="FILE", help="in place of what the overlays extend")
    training.add_argument("--from", dest="source", metavar="MODEL", help="a model of ours as the base")
    training.add_argument("--data", nargs="+", type=Path, metavar="PATH", help="photographs to train on")
    training.add_argument("--steps", type=int, metavar="N", help="of each row, in place of the recipe's")
    training.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of the recipes"
    )
    measuring = parser.add_argument_group("evaluation")
    measuring.add_argument("--seeds", default="0", metavar="N,N,...", help="run with each (default: 0)")
    measuring.add_argument(
        "--sampling",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="such as steps=50 or lsa.preset=off",
    )
    add_pair_arguments(parser)
    add_config_flags(measuring, EVALUATION_FLAGS, EvaluationConfig())


def run(args: Namespace) -> int:
    """Check every row first, then train and measure them one by one."""
    config = build(EvaluationConfig, collect(Namespace(**(vars(args) | {"set": []})), EVALUATION_FLAGS))
    seeds = numbers_of(args.seeds, "--seeds", int)
    tables = numbers_of(args.tables, "--tables", int)
    if args.testset is None and (args.lr is None or args.hr is None):
        raise UsageError("ablate: needs --testset DIR, or --lr DIR and --hr DIR, to measure on")
    if args.source is not None and args.recipe is None:
        raise UsageError("--from: needs --recipe FILE; the overlays extend a recipe on Stable Diffusion")
    if not args.overlays.is_dir():
        raise UsageError(f"{args.overlays}: expected the folder of the overlays, such as configs/ablations")

    show_information()
    from clearsr.evaluation.measures import Scorer
    from clearsr.hardware import choose_device
    from clearsr.paper.tables.tables_2_3_6_7_8_ablation import (
        AblationRow,
        row_config,
        rows_of,
        run_ablations,
        run_row,
    )

    rows = rows_of(tables) + [AblationRow(0, name, ()) for name in args.also.split(",") if name]
    plan = _plan(args)
    for row in rows:
        row_config(row, plan)
    pairs = find_pairs(args)
    scorer = Scorer(config, device=choose_device("auto"))
    measured = run_ablations(
        rows, lambda row: run_row(row, plan, pairs, scorer, seeds), lambda row: row_config(row, plan)
    )
    first = row_config(rows[0], plan)
    note = (
        f"Measured: {len(pairs)} images; each row trained for {first.steps} steps of {first.batch_size} "
        f"crops of {first.data.crop_size} pixels"
        + (f" on the parts of {args.source}." if args.source else ".")
    )
    _write(args, tables, measured, note)
    return 0


def _plan(args: Namespace) -> "AblationPlan":
    """What all rows share, from the flags."""
    from clearsr.models.checkpoint import locate, read_description
    from clearsr.paper.tables.tables_2_3_6_7_8_ablation import AblationPlan

    changes: dict[str, Any] = {}
    for text in args.set:
        changes = merge(changes, parse_override(text))
    if args.data is not None:
        changes = merge(changes, {"data": {"train": [str(path) for path in args.data]}})
    if args.steps is not None:
        changes = merge(changes, {"steps": args.steps})
    given: dict[str, Any] = {}
    origins = {}
    for text in args.sampling:
        given = merge(given, parse_override(text))
        origins[text.partition("=")[0]] = f"--sampling {text.partition('=')[0]}"
    sampling = None
    if args.source is not None or given:
        base = {} if args.source is None else read_description(locate(args.source))["sampling"]
        sampling = build(SamplingConfig, Overrides(given, origins), base)
    return AblationPlan(args.overlays, args.output, args.recipe, args.source, changes, sampling)


def _write(args: Namespace, tables: list[int], measured: "dict[Any, Evaluation]", note: str) -> None:
    """The tables, to OUT/tables.md and to stdout."""
    from clearsr.atomic import write_text
    from clearsr.evaluation.table import render
    from clearsr.paper.tables.tables_2_3_6_7_8_ablation import ablation_table

    text = "\n".join(render(ablation_table(number, measured, note)) for number in tables)
    write_text(args.output / "tables.md", text)
    write_line(text)
    write_line(f"written to {args.output}")
