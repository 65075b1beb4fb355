"""`clearsr fit-niqe`: the pristine model of our NIQE, from photographs that are to count as perfect."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from clearsr.cli.parser import UsageError
from clearsr.cli.terminal import write_line

_EPILOG = """\
NIQE measures how far a picture's statistics lie from those of good photographs. The model in the package was
fitted on 346 free photographs; with another one the scores are on another scale. Take photographs that are
sharp at the pixel level, without noise, strong compression or upscaling, of many subjects: some hundred.

examples:
  clearsr fit-niqe photographs/ -o niqe.safetensors
  clearsr fit-niqe a/ b/ -o niqe.safetensors --source "with free licences"
  clearsr evaluate --sr results/ --niqe-model niqe.safetensors
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="photographs and folders")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the model, a .safetensors file"
    )
    parser.add_argument("--source", default="", metavar="TEXT", help="what to note about the photographs")


def run(args: Namespace) -> int:
    """Fit, write, and say what the model stands on."""
    if args.output.suffix != ".safetensors":
        raise UsageError(f"-o {args.output}: expected the name of a .safetensors file")
    if not args.output.absolute().parent.is_dir():
        raise UsageError(f"-o {args.output}: lies in a folder that does not exist")

    from rich.progress import Progress

    from clearsr.evaluation.niqe import fit_niqe_from_files

    with Progress(transient=True, disable=args.quiet) as progress:
        task = progress.add_task("fitting", total=None)

        def on_progress(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        model = fit_niqe_from_files(args.inputs, args.source, on_progress)
    model.save(args.output)
    write_line(f"{args.output}: {model.meta['blocks']} sharp blocks of {model.meta['images']} photographs")
    return 0
