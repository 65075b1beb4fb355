"""`clearsr info`: this installation, a preset's parameters beside the paper's, or what a model holds."""

import platform
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearsr.cli.flags import add_config_files, build, collect
from clearsr.cli.parser import UsageError, check_json, write_json
from clearsr.config.base import flat, merge
from clearsr.config.model import ModelConfig
from clearsr.errors import ClearSRError

if TYPE_CHECKING:
    from rich.console import Console

    from clearsr.models.parameters import ParameterTable

EPILOG = """examples:
  clearsr info
  clearsr info --preset sd21
  clearsr info --preset sd21 --set control.structure_preserving=false
  clearsr info --model runs/clearsr --json model.json
"""
# Settings of parts of our own, which a model on a base has not.
OWN_PARTS = (
    "autoencoder.",
    "unet.",
    "lr_encoder.channels",
    "lr_encoder.layers",
    "image_prompt.image_size",
    "image_prompt.patch_size",
    "image_prompt.hidden_size",
    "image_prompt.layers",
)
EMBEDDED_DESCRIPTIONS = {
    "compact": "our own small network, its painter from Real-ESRGAN's weights on; made for laptop CPUs"
}


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the flags."""
    parser.epilog = EPILOG
    subject = parser.add_mutually_exclusive_group()
    subject.add_argument("--preset", choices=("sd21", "compact"), help="count the parameters of a preset")
    subject.add_argument("--model", metavar="MODEL", help="embedded model, folder or hub id to describe")
    add_config_files(parser, "control.window_size=8")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same to a JSON file")


def run(args: Namespace) -> int:
    """Print what was asked for, and write it to --json."""
    from rich.console import Console

    if args.json is not None:
        check_json(args.json)
    console = Console()  # on stdout: this is the result
    overrides = collect(args, {})
    if args.model is not None:
        if overrides.origins:
            raise UsageError("--config, --set: belong to --preset; a --model has its own configuration")
        report = _describe_model(args.model, console)
    elif args.preset is not None or overrides.origins:
        preset = {} if args.preset is None else {"preset": args.preset}
        config = build(ModelConfig, overrides._replace(values=merge(overrides.values, preset)))
        report = _describe_config(config, console)
    else:
        report = _describe_installation(console)
    if args.json is not None:
        write_json(report, args.json)
    return 0


def _describe_installation(console: "Console") -> dict[str, Any]:
    """Versions, devices and embedded models."""
    from importlib.metadata import version

    from clearsr.hardware import choose_device, choose_precision, describe_devices

    packages = ("torch", "diffusers", "transformers", "peft", "safetensors")
    versions = {"clearsr": version("clearsr"), "python": platform.python_version()}
    versions |= {name: version(name) for name in packages}
    devices = {device.name: device.text for device in describe_devices()}
    chosen = choose_device("auto")
    default = f"{chosen}, {str(choose_precision('auto', chosen)).removeprefix('torch.')}"
    models = _embedded_models()
    for title, rows in (
        ("versions", versions),
        ("devices", {**devices, "default": default}),
        ("embedded models", models),
    ):
        _print_pairs(console, title, rows)
    return {"versions": versions, "devices": devices, "default_device": default, "models": models}


def _embedded_models() -> dict[str, str]:
    """What ships in the package, by name."""
    from clearsr.models.checkpoint import EMBEDDED_MODELS, WEIGHTS_NAME, locate
    from clearsr.models.parameters import stored_parts

    described = {}
    for name in EMBEDDED_MODELS:
        try:
            weights = locate(name) / WEIGHTS_NAME
            count, size = sum(stored_parts(weights).values()), weights.stat().st_size
            state = f"{count / 1e6:.1f} M parameters, {size / 1e6:.1f} MB"
        except ClearSRError:
            state = "its weights are missing from this installation"
        described[name] = f"{EMBEDDED_DESCRIPTIONS[name]} ({state})"
    return described


def _describe_config(config: ModelConfig, console: "Console") -> dict[str, Any]:
    """The parameter table of a configuration, for the paper's network beside Table 5."""
    from clearsr.config.model import preset_model_config
    from clearsr.models.parameters import PAPER_TABLE_5, parameter_table

    table = parameter_table(config)
    is_the_papers = config == preset_model_config("sd21")
    _print_table(console, f"{config.preset}: parameters", table, PAPER_TABLE_5 if is_the_papers else {})
    return table.as_dict()


def _describe_model(source: str, console: "Console") -> dict[str, Any]:
    """Configuration, stages, sampling defaults and parameters of a model on disk."""
    from clearsr.config.base import build_config
    from clearsr.models.checkpoint import BASE_KEY, WEIGHTS_NAME, locate, read_description
    from clearsr.models.parameters import ParameterTable, parameter_table, stored_parts, stored_precision

    folder = locate(source)
    description = read_description(folder)
    config = build_config(ModelConfig, description["model"])
    stored = stored_parts(folder / WEIGHTS_NAME)
    note = None
    try:
        table = parameter_table(config)
    except ClearSRError as error:  # the base is elsewhere: what the file holds can still be told
        table = ParameterTable(stored, frozenset(stored) - {"null_prompt"})
        note = f"without the base, which cannot be read here: {error}"
    size = (folder / WEIGHTS_NAME).stat().st_size
    precision, count = stored_precision(folder / WEIGHTS_NAME), sum(stored.values())
    facts = {
        "folder": str(folder),
        "weights": f"{size / 1e6:.1f} MB, {count / 1e6:.2f} M parameters stored in {precision}",
        "stages": ", ".join(description["stages"]) or "none: untrained",
    }
    if trained_on := description.get(BASE_KEY):
        facts["base"] = ", ".join(f"{part} SHA-256 {digest[:12]}..." for part, digest in trained_on.items())
    _print_pairs(console, f"model {source}", facts)
    settings = flat(config.model_dump(mode="json"))
    if config.base_model is not None:
        settings = {name: value for name, value in settings.items() if not name.startswith(OWN_PARTS)}
    _print_pairs(console, "configuration", settings)
    _print_pairs(console, "sampling defaults", flat(description["sampling"]) or {"": "none of its own"})
    _print_table(console, "parameters", table, {})
    if note is not None:
        console.print(note, highlight=False, markup=False)
    return {
        "folder": str(folder),
        "bytes": size,
        "stored_in": precision,
        "model": config.model_dump(mode="json"),
        "stages": description["stages"],
        "sampling": description["sampling"],
        **table.as_dict(),
    }


def _print_table(console: "Console", title: str, table: "ParameterTable", paper: dict[str, int]) -> None:
    """Part by part, then the sums; `paper` holds millions beside the sums."""
    from rich.table import Table

    from clearsr.models.parameters import PART_LABELS

    view = Table(title=title, title_justify="left")
    view.add_column("part")
    view.add_column("trained")
    view.add_column("parameters", justify="right")
    view.add_column("M", justify="right")
    if paper:
        view.add_column("paper, M", justify="right")
    for part, count in table.parts.items():
        view.add_row(PART_LABELS[part], "yes" if part in table.trained else "", *_figures(count))
    view.add_section()
    for label, key, count in (("trainable", "trainable", table.trainable), ("total", "total", table.total)):
        stated = [str(paper[key])] if paper else []
        view.add_row(label, "", *_figures(count), *stated, style="bold")
    console.print(view)
    notes = ["trained: by stage clearsr"]
    if paper:
        notes.append("paper: ClearSR (ICLR 2025), Table 5, which does not list what its total counts")
    console.print("\n".join(notes), highlight=False, soft_wrap=True)


def _figures(count: int) -> tuple[str, str]:
    return f"{count:,}", f"{count / 1e6:.2f}"


def _print_pairs(console: "Console", title: str, rows: dict[str, Any]) -> None:
    """A heading with names and values beneath."""
    from rich.table import Table
    from rich.text import Text

    view = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        view.add_row(Text(name), Text("" if value is None else str(value)))
    console.print(view)
    console.print()
