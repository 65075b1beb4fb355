"""`clearsr convert`: published weights of Stable Diffusion, ControlNet, DiffBIR or SeeSR, to train from."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import get_args

from clearsr.cli.flags import add_config_files, add_config_flags, build, collect
from clearsr.cli.init import FLAGS
from clearsr.cli.parser import UsageError
from clearsr.cli.terminal import busy, write_line
from clearsr.config.model import ModelConfig, Place

_EPILOG = """\
WEIGHTS are files (safetensors; .bin, .ckpt, .pth, .pt of tensors alone), or folders with such files in them,
in unet/ or in controlnet/. A U-Net becomes that of the base, which is then written to OUT/base; a ControlNet
is laid over DPM, SPM and zero convolutions. What is not taken stays as `clearsr init` makes it;
OUT/conversion.json has every name, and why. A folder with a whole Stable Diffusion is its own base.

examples:
  clearsr convert seesr/ --base-model models/stable-diffusion-2-1-base --into detail_preserving -o start/
  clearsr convert v2.pth --base-model models/stable-diffusion-2-1-base -o models/from-diffbir
  clearsr convert old-pickled-stable-diffusion-2-1-base/ -o models/clearsr-untrained
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    parser.add_argument("weights", nargs="+", type=Path, metavar="WEIGHTS", help="published files or folders")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="new folder to write")
    parser.add_argument(
        "--into",
        action="append",
        choices=get_args(Place),
        help="fill this place alone; may be given again (default: all)",
    )
    add_config_flags(parser, FLAGS, ModelConfig())
    add_config_files(parser, "control.window_size=8")
    parser.add_argument("--seed", type=int, default=0, help="seed of what is fresh (default: 0)")


def run(args: Namespace) -> int:
    """Convert, and say what was taken and what was not."""
    overrides = collect(args, FLAGS)
    config = build(ModelConfig, overrides)
    if not overrides.given("base_model"):
        bases = [folder for folder in args.weights if (folder / "vae" / "config.json").is_file()]
        if not bases:
            raise UsageError(
                "convert: needs --base-model, a Stable Diffusion 2.x folder or hub id, as WEIGHTS are none"
            )
        config = config.model_copy(update={"base_model": str(bases[0])})

    with busy("starting", args.quiet):
        from clearsr.models.build import resolve_base
        from clearsr.models.conversion import convert

        resolved = resolve_base(config, keep_image_encoder=overrides.given("image_encoder"))
        report = convert(args.weights, resolved, args.output, args.into or get_args(Place), args.seed)
    for line in report.lines():
        write_line(line)
    write_line(f"{args.output}: ready for `clearsr train ... --set init_from=[{args.output}]`")
    return 0
