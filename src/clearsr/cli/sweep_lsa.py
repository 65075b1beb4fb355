"""`clearsr sweep-lsa`: Table 4 and Figure 7, Latent Space Adjustment over a grid of alpha and beta."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from clearsr.cli.flags import add_config_flags
from clearsr.cli.measuring import (
    EVALUATION_FLAGS,
    add_model_arguments,
    add_pair_arguments,
    collect_measuring,
    dataset_name,
    find_pairs,
    numbers_of,
)
from clearsr.cli.model import load_pipeline, resolve_sampling
from clearsr.cli.parser import UsageError
from clearsr.cli.terminal import busy, write_line
from clearsr.config.evaluation import EvaluationConfig

if TYPE_CHECKING:
    from clearsr.evaluation.measures import Scorer
    from clearsr.paper.tables.table_4_lsa import Sweep

_GRID = "0,0.01,0.02,0.03"
_EPILOG = """\
writes to OUT: sweep.json (every row), table4.md (the paper's Table 4 with ours, and the whole grid),
figure7.png, figure7.pdf and figure7.json (curves and their numbers), figure7-pictures.png (one photograph at
every setting; a row per alpha).
alpha pulls the early steps to the LR image (fidelity), beta pushes the late ones away from it (detail).

examples:
  clearsr sweep-lsa --testset testset -o sweep
  clearsr sweep-lsa --testset DrealSRVal_crop128 --model sd21-clearsr --alphas 0,0.01 --betas 0,0.01 -o sweep
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    add_pair_arguments(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the results"
    )
    parser.add_argument("--alphas", default=_GRID, metavar="X,X,...", help=f"(default: {_GRID})")
    parser.add_argument("--betas", default=_GRID, metavar="X,X,...", help=f"(default: {_GRID})")
    parser.add_argument("--example", metavar="NAME", help="the photograph to show (default: the first)")
    parser.add_argument("--table-only", action="store_true", help="draw nothing (needs no matplotlib)")
    add_config_flags(parser, EVALUATION_FLAGS, EvaluationConfig())
    add_model_arguments(parser)


def run(args: Namespace) -> int:
    """Run the grid, write, and print Table 4."""
    own, config, seeds = collect_measuring(args)
    if own.given("lsa.alpha") or own.given("lsa.beta"):
        raise UsageError("--alpha, --beta: sweep-lsa sets them itself; give --alphas and --betas")
    alphas, betas = _strengths(args.alphas, "--alphas"), _strengths(args.betas, "--betas")
    if args.testset is None and (args.lr is None or args.hr is None):
        raise UsageError("sweep-lsa: needs --testset DIR, or --lr DIR and --hr DIR")

    with busy("starting", args.quiet):
        from rich.progress import Progress

        from clearsr.evaluation.measures import Scorer
        from clearsr.paper.figures.plots import require_matplotlib
        from clearsr.paper.tables.table_4_lsa import SweepPlan, sweep_lsa

    if not args.table_only:
        require_matplotlib()
    pairs = find_pairs(args)
    example = pairs[0].name if args.example is None else args.example
    if example not in (pair.name for pair in pairs):
        raise UsageError(f"--example {example}: is none of the pictures, such as {pairs[0].name}")
    sampling = resolve_sampling(args, own)
    pipeline = load_pipeline(args)
    scorer = Scorer(config, has_hr=pairs[0].hr is not None, device=pipeline.device)
    with Progress(transient=True, disable=args.quiet) as progress:
        task = progress.add_task("sweeping", total=len(pairs) * len(seeds) * len(alphas) * len(betas))
        plan = SweepPlan(alphas, betas, seeds, example)
        sweep = sweep_lsa(
            pipeline, sampling, pairs, scorer, plan,
            lambda name: progress.update(task, advance=1, description=name),
        )  # fmt: skip
    for measured in sweep.evaluations.values():
        measured.dataset, measured.settings = dataset_name(args), sampling.model_dump(mode="json")
    _write(sweep, scorer, args)
    return 0


def _write(sweep: "Sweep", scorer: "Scorer", args: Namespace) -> None:
    """The files, and Table 4 on stdout."""
    from clearsr.atomic import write_text
    from clearsr.evaluation.results import as_document, to_json
    from clearsr.evaluation.table import render
    from clearsr.paper.figures.figure_7_lsa import draw_curves, draw_pictures
    from clearsr.paper.tables.table_4_lsa import grid_table, table_4

    table = render(table_4(sweep))
    grids = "\n".join(grid_table(sweep, name) for name in sweep.names)
    write_text(args.output / "sweep.json", to_json(as_document(list(sweep.evaluations.values()), scorer)))
    write_text(args.output / "table4.md", f"{table}\n{grids}")
    if not args.table_only:
        draw_curves(sweep, args.output)
        draw_pictures(sweep, args.output / "figure7-pictures.png")
    write_line(table)
    write_line(grids.rstrip("\n"))
    write_line(f"\nwritten to {args.output}")


def _strengths(text: str, flag: str) -> list[float]:
    values = numbers_of(text, flag, float)
    if any(not 0 <= value <= 1 for value in values):
        raise UsageError(f"{flag} {text}: must be from 0 to 1")
    return values
