"""Models of the commands: the flags for one and its settings, and what these lead to.

And `clearsr model set`: the settings that a model brings along, chosen anew.
"""

import json
from argparse import ArgumentParser, Namespace, _ActionsContainer
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearsr.cli.flags import Overrides, add_config_files, add_config_flags, build, collect
from clearsr.cli.parser import UsageError
from clearsr.cli.terminal import busy, write_line
from clearsr.config.base import build_config, flat
from clearsr.config.sampling import SAMPLING_FLAGS, SamplingConfig, check_negative_prompt
from clearsr.errors import ClearSRError

if TYPE_CHECKING:
    from clearsr.pipeline.pipeline import ClearSRPipeline

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_OF_A_RUN = ("--seed", "--max-memory")  # of which no model has any of its own
_SETTINGS = {flag: path for flag, path in SAMPLING_FLAGS.items() if flag not in _OF_A_RUN}
_EPILOG = """\
The settings go over those that the model has, into its config.json; its weights stay as they are, unless
--weights rewrites them: fp16 is half the size, and is computed with in fp32 or as --precision says.
`clearsr info --model` shows them.

examples:
  clearsr model set runs/compact-5-together/export --steps 2 --noise-scale 0.5
  clearsr model set compact -o mine/ --lsa fidelity
  clearsr model set runs/sd21/export -o published/ --weights fp16
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    parser.add_argument("action", choices=("set",), help="what to do")
    parser.add_argument("model", type=Path, metavar="MODEL", help="a folder; compact or a hub id with -o")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="change a copy that is kept here")
    parser.add_argument("--weights", choices=("fp32", "fp16"), help="store the weights in this precision")
    add_config_flags(parser, _SETTINGS, SamplingConfig())
    add_config_files(parser, "lsa.ela_end=0.3")


def run(args: Namespace) -> int:
    """Check the settings, keep them, and say what the model has now."""
    given = collect(args, _SETTINGS)
    if not given.origins and args.weights is None:
        raise UsageError(
            "model set: needs a setting, such as --steps 2 or --set lsa.ela_end=0.3, or --weights"
        )
    if args.output is None and not args.model.is_dir():
        raise UsageError(f"{args.model}: is not a folder; say with -o where to keep the changed model")

    from torch import float16, float32

    from clearsr.models.checkpoint import WEIGHTS_NAME, locate, read_description, store_sampling

    resolve_sampling(Namespace(model=args.model, base_model=None), given)
    folder = args.output or args.model
    dtype = {None: None, "fp16": float16, "fp32": float32}[args.weights]
    store_sampling(locate(args.model), folder, given.values, dtype)
    said = [f"{name} {value}" for name, value in flat(read_description(folder)["sampling"]).items()]
    if dtype is not None:
        said.append(f"weights in {args.weights}, {(folder / WEIGHTS_NAME).stat().st_size / 1e6:.1f} MB")
    write_line(f"{folder}: " + ", ".join(said))
    return 0


def add_model_flags(parser: _ActionsContainer, with_model: bool = True) -> None:
    """Declare which model runs where; without `with_model` the command says otherwise which."""
    if with_model:
        parser.add_argument(
            "--model", default="compact", help="compact (in the package), a folder or a hub id"
        )
    parser.add_argument("--base-model", metavar="DIR|ID", help="use this base, not the one the model names")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, xpu, mps (default: auto)")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS, help="of the network")


def resolve_sampling(args: Namespace, given: Overrides) -> SamplingConfig:
    """The model's own settings with the user's over them.

    Raises:
        ClearSRError: there is no such model, or it cannot do what is asked.
    """
    from clearsr.models.checkpoint import locate, read_description

    description = read_description(locate(args.model))
    sampling = build(SamplingConfig, given, description["sampling"])
    try:
        check_negative_prompt(sampling, args.base_model or description["model"].get("base_model"))
    except ClearSRError as error:
        raise UsageError(str(error)) from None
    return sampling


def pipeline_options(args: Namespace) -> dict[str, Any]:
    """What `ClearSRPipeline.from_pretrained` takes beside the model."""
    names = ("device", "precision", "base_model", "compile", "offload")
    return {name: getattr(args, name) for name in names if name in args}


def load_pipeline(args: Namespace, model: str | None = None) -> "ClearSRPipeline":
    """The pipeline that the flags name, or that of another `model` run as they say.

    Raises:
        ClearSRError: it cannot be loaded.
    """
    source = args.model if model is None else model
    with busy(f"loading {source}", args.quiet):
        from clearsr.pipeline.pipeline import ClearSRPipeline

        return ClearSRPipeline.from_pretrained(source, **pipeline_options(args))


def embedded_defaults() -> SamplingConfig:
    """The settings that the model in the package brings, without reading its weights."""
    path = files("clearsr") / "weights" / "compact" / "config.json"
    sampling = json.loads(path.read_text("utf-8"))["sampling"] if path.is_file() else {}
    return build_config(SamplingConfig, sampling)
