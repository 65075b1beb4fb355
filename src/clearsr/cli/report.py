"""`clearsr report`: the paper's tables, with what was measured here beside the published rows."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from clearsr.cli.flags import add_config_flags, build, collect
from clearsr.cli.measuring import EVALUATION_FLAGS
from clearsr.cli.parser import UsageError, refuse_folder, refuse_inputs
from clearsr.cli.terminal import write_line
from clearsr.config.evaluation import EvaluationConfig

if TYPE_CHECKING:
    from rich.progress import TaskID

    from clearsr.evaluation.evaluate import Evaluation

FORMATS = ("markdown", "latex", "html")
_EPILOG = """\
RESULT is a file that `clearsr evaluate --json` wrote; its data set follows from the name of the folder that
was measured (RealSRVal_crop128 is RealSR), or from --dataset. --outputs measures a folder of another method's
pictures on the spot. Without either, Table 1 is printed as published.

examples:
  clearsr report
  clearsr report ours.json --format latex -o table1.tex
  clearsr report ours.json --outputs SeeSR=seesr/ --hr RealSRVal_crop128/test_HR --dataset RealSR
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT", help="of clearsr evaluate --json")
    parser.add_argument(
        "--outputs", action="append", default=[], metavar="NAME=DIR", help="another method's pictures"
    )
    parser.add_argument("--hr", type=Path, metavar="DIR", help="their originals")
    parser.add_argument("--dataset", metavar="NAME", help="DRealSR, RealSR, DIV2K-Val or a name of your own")
    parser.add_argument("--format", choices=FORMATS, default="markdown", help="(default: markdown)")
    parser.add_argument(
        "--mark",
        choices=("dataset", "group"),
        default="dataset",
        help="best of all methods, or within the paper's two groups (default: dataset)",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write here, not to stdout")
    add_config_flags(parser, EVALUATION_FLAGS, EvaluationConfig())


def run(args: Namespace) -> int:
    """Collect, measure what is to be measured, and print."""
    config = build(EvaluationConfig, collect(args, EVALUATION_FLAGS))
    outputs = [_named(text) for text in args.outputs]
    if outputs and args.hr is None:
        raise UsageError("--outputs: needs --hr DIR, the originals")
    refuse_folder("-o", args.output)
    refuse_inputs("-o", args.output, args.results)

    from clearsr.atomic import write_text
    from clearsr.evaluation.results import read_results
    from clearsr.evaluation.table import render_all
    from clearsr.paper.tables.table_1_benchmarks import benchmark_tables

    measured = [evaluation for path in args.results for evaluation in read_results(path)]
    measured += _measured(outputs, args, config)
    for evaluation in measured:
        evaluation.dataset = _known(args.dataset) if args.dataset else evaluation.dataset
    chosen = [_known(args.dataset)] if args.dataset else []
    text = render_all(benchmark_tables(measured, chosen, args.mark), args.format)
    if args.output is None:
        write_line(text.rstrip("\n"))
    else:
        write_text(args.output, text)
    return 0


def _named(text: str) -> tuple[str, Path]:
    name, separator, folder = text.partition("=")
    if not (name and separator and folder):
        raise UsageError(f"--outputs {text}: expected NAME=DIR, such as SeeSR=results/seesr")
    return name, Path(folder)


def _known(dataset: str) -> str:
    """The benchmark of that name whatever its case, else the name itself."""
    from clearsr.paper.tables.published import DATASETS

    return next((name for name in DATASETS if name.lower() == dataset.lower()), dataset)


def _measured(
    outputs: list[tuple[str, Path]], args: Namespace, config: EvaluationConfig
) -> "list[Evaluation]":
    """Folders of outputs, measured now."""
    if not outputs:
        return []
    from rich.progress import Progress

    from clearsr.evaluation.evaluate import evaluate_outputs
    from clearsr.evaluation.measures import Scorer
    from clearsr.evaluation.pairs import match_folders
    from clearsr.paper.tables.published import dataset_of

    scorer = Scorer(config, has_lr=False)
    measured = []
    with Progress(transient=True, disable=args.quiet) as progress:
        for name, folder in outputs:
            pairs = match_folders({"sr": folder, "hr": args.hr})
            task = progress.add_task(name, total=len(pairs))

            def on_image(method: str, image: str, task: "TaskID" = task) -> None:
                progress.update(task, advance=1, description=f"{method}: {image}")

            evaluation = evaluate_outputs(name, pairs, scorer, on_image)
            place = args.hr.resolve()
            evaluation.dataset = dataset_of(place.name) or dataset_of(place.parent.name) or place.parent.name
            measured.append(evaluation)
    return measured
