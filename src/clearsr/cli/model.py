"""What the commands share that run a model: the flags for it and its settings, and what these lead to."""

import json
from argparse import Namespace, _ActionsContainer
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from clearsr.cli.flags import Overrides, build
from clearsr.cli.parser import UsageError
from clearsr.cli.terminal import busy
from clearsr.config.base import build_config
from clearsr.config.sampling import SamplingConfig, check_negative_prompt
from clearsr.errors import ClearSRError

if TYPE_CHECKING:
    from clearsr.pipeline.pipeline import ClearSRPipeline

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


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
