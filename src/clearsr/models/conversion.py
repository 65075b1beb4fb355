"""Published weights into a ClearSR that training starts from: `clearsr convert`.

A U-Net becomes that of the base, from which DPM and SPM are copied as always; a ControlNet is laid over DPM,
SPM and the zero convolutions. A tensor is taken if its name has a place (`published_layouts.py`) and its
shape is that of the place; what was taken, what was not and why is written down name by name.
"""

import json
import pickle
import re
import secrets
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from clearsr.config.model import ModelConfig, Place
from clearsr.errors import ClearSRError, first_line, optional
from clearsr.models.base_model import (
    PART_NAMES,
    has_part,
    locate_base,
    read_part_config,
    sha256_of,
    weights_files,
    weights_stem,
)
from clearsr.models.build import build_network
from clearsr.models.checkpoint import is_stored, save_network
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.models.published_layouts import CONTROL, LAYOUTS, Layout, moved, reason_passed
from clearsr.models.sd21 import PAPER_SAMPLING

Tensors = dict[str, torch.Tensor]
PLACES: tuple[Place, ...] = get_args(Place)
REPORT_NAME = "conversion.json"
BASE_NAME = "base"  # in what is written, where the base is not the one that was given
_PICKLED = (".bin", ".ckpt", ".pth", ".pt")
_ACCEPTED = "safetensors, or .bin, .ckpt, .pth or .pt of tensors alone"
_LEFT_OUT = "left out by --into"


class Piece(NamedTuple):
    """The tensors of one layout in one source, by their names there."""

    layout: Layout
    source: str
    tensors: Tensors


@dataclass
class Report:
    """What became of every tensor.

    Attributes:
        sources: path and SHA-256 of each file, and the layouts found in it with where their names are from.
        taken: our name (`unet.` is the base's U-Net) -> theirs.
        not_taken: their name -> why.
        as_initialised: our name, of what is stored -> why none of theirs is there.
    """

    sources: list[dict[str, Any]] = field(default_factory=list)
    taken: dict[str, str] = field(default_factory=dict)
    not_taken: dict[str, str] = field(default_factory=dict)
    as_initialised: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people: what was read, how much went where, and every reason with an example."""
        lines = [f"{source['path']}: {', '.join(source['layouts'])}" for source in self.sources]
        places = [_place_of(name) for name in self.taken]
        lines += [f"taken into {place}: {places.count(place)} tensors" for place in dict.fromkeys(places)]
        for heading, fates in (("not taken", self.not_taken), ("as initialised", self.as_initialised)):
            for reason in dict.fromkeys(fates.values()):
                names = [name for name, why in fates.items() if why == reason]
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                lines.append(f"{heading}: {names[0]}{more}: {reason}")
        return lines


def convert(
    sources: Iterable[Path],
    config: ModelConfig,
    folder: Path,
    into: Sequence[Place] = PLACES,
    seed: int = 0,
) -> Report:
    """Write what `clearsr init` would, with the weights of `sources` where they fit.

    A U-Net among them, or a base with pickled parts, makes a base of its own in `folder`/base.

    Args:
        config: as `resolve_base` gives it.
        into: the places that may be filled.
        seed: of what is fresh.

    Raises:
        ClearSRError: a source cannot be read, nothing of it fits, a U-Net is not whole, or `folder` is there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ClearSRError(f"-o {folder}: is there already; name a new folder")
    report = Report()
    pieces = [piece for source in sources for piece in read_published(source, report)]
    aside = folder.with_name(f".clearsr-{folder.name}-{secrets.token_hex(4)}")
    try:
        aside.mkdir(parents=True)
        _write(pieces, config, aside, into, seed, report)
        if folder.is_dir():
            folder.rmdir()
        aside.rename(folder)
    except OSError as error:
        raise ClearSRError(f"-o {folder}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return report


def _write(
    pieces: list[Piece], config: ModelConfig, folder: Path, into: Sequence[Place], seed: int, report: Report
) -> None:
    """Base, model and report in an empty folder."""
    if base := _write_base(config, pieces, into, folder / BASE_NAME, report):
        config = config.model_copy(update={"base_model": str(base), "base_revision": None})
    network = build_network(config, seed)
    refused: dict[str, str] = {}
    for piece in pieces:
        if piece.layout.holds != "unet":
            _lay_over(network, piece, into, report, refused)
    if not report.taken:
        name, reason = next(iter(report.not_taken.items()))
        raise ClearSRError(f"{pieces[0].source}: nothing of it was taken (such as {name}: {reason})")
    for name in network.state_dict():
        if is_stored(name, network.config) and name not in report.taken:
            report.as_initialised[name] = refused.get(name) or _reason_initialised(name)
    is_trained = any(piece.layout.holds == "network" for piece in pieces)
    if is_trained:
        _require_whole(report)
    if base:
        network.config = network.config.model_copy(update={"base_model": BASE_NAME})
    save_network(network, folder, ["clearsr"] if is_trained else [], PAPER_SAMPLING)
    (folder / REPORT_NAME).write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")


def _require_whole(report: Report) -> None:
    """Refuse ClearSR's own weights unless every tensor found its place, and every place its tensor."""
    missing = [name for name in report.as_initialised if name != "null_prompt"]
    if report.not_taken or missing:
        raise ClearSRError(
            f"{report.sources[0]['path']}: ClearSR's own weights must fit whole, but {len(report.not_taken)} "
            f"of its tensors have no place ({', '.join([*report.not_taken][:2])}) and {len(missing)} places "
            f"no tensor ({', '.join(missing[:2])}); see `PAPER` in clearsr/models/published_layouts.py"
        )


# Reading.


def read_published(source: Path, report: Report) -> list[Piece]:
    """What lies in a file, or a folder, its `unet/` and its `controlnet/`; `report` is told what is no use.

    Raises:
        ClearSRError: there are no weights, they cannot be read, or are in no known layout.
    """
    pieces: list[Piece] = []
    for files in _weights_of(source):
        tensors = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
        layouts = [layout for layout in LAYOUTS if any(re.match(layout.sign, name) for name in tensors)]
        if not layouts:
            known = "; ".join(layout.title for layout in LAYOUTS)
            raise ClearSRError(f"{files[0]}: {next(iter(tensors))} is of no known layout; accepted: {known}")
        held: dict[str, Tensors] = {layout.prefix: {} for layout in layouts}
        for name, tensor in tensors.items():
            prefix = max((each for each in held if name.startswith(each)), key=len, default=None)
            if prefix is None:
                report.not_taken[name] = reason_passed(name)
            else:
                held[prefix][name] = tensor
        pieces += [Piece(layout, str(files[0]), held[layout.prefix]) for layout in layouts]
        titles = {layout.title: f"names by {layout.seen}" for layout in layouts}
        report.sources += [
            {"path": str(file), "sha256": sha256_of(file), "layouts": titles} for file in files
        ]
    return pieces


def _weights_of(source: Path) -> list[list[Path]]:
    """The file, or those of a folder, which may be several for one network."""
    if source.is_file():
        return [[source]]
    folders = [source, source / "unet", source / "controlnet"]
    if found := [files for files in map(_stored_weights, folders) if files]:
        return found
    what = "holds no weights" if source.is_dir() else "is neither a file nor a folder"
    name = weights_stem("unet")
    raise ClearSRError(
        f"{source}: {what}; accepted: a file ({_ACCEPTED}), or a folder with {name}.safetensors or .bin in "
        "it, in unet/ or in controlnet/"
    )


def _stored_weights(folder: Path, part: str = "unet") -> list[Path]:
    """The files of one part: safetensors, or else pickled ones."""
    stem = weights_stem(part) if part in ("unet", "vae") else "pytorch_model"
    pickled = sorted(folder.glob(f"{stem}*.bin"))
    return weights_files(folder, part) or [file for file in pickled if ".fp16" not in file.name] or pickled


def read_tensors(file: Path) -> Tensors:
    """The tensors of a file by name; of a pickle nothing else than tensors and plain values is ever built.

    Raises:
        ClearSRError: it cannot be read, or holds what could run code.
    """
    if file.suffix not in (".safetensors", *_PICKLED):
        raise ClearSRError(f"{file}: accepted: {_ACCEPTED}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ClearSRError(
            f"{file}: holds more than tensors, which could run code; refused ({first_line(error)[:99]})"
        ) from None
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ClearSRError(f"{file}: cannot be read ({first_line(error)})") from None
    inner = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    tensors = {
        str(name).removeprefix("module."): value
        for name, value in inner.items()
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise ClearSRError(f"{file}: holds no tensors by name")
    return tensors


# The base: a U-Net must be whole, as a base is.


def _write_base(
    config: ModelConfig, pieces: list[Piece], into: Sequence[Place], target: Path, report: Report
) -> Path | None:
    """The given base with another U-Net, all in safetensors; None if it is fine as it lies."""
    unets = [piece for piece in pieces if piece.layout.holds == "unet"]
    if "unet" not in into:
        report.not_taken |= {name: _LEFT_OUT for piece in unets for name in piece.tensors}
        unets = []
    if len(unets) > 1:
        raise ClearSRError(f"{unets[1].source}: a second U-Net, after that of {unets[0].source}; give one")
    assert config.base_model is not None, "it is resolved"
    wanted = (*PART_NAMES, "tokenizer", "scheduler")
    base = locate_base(config.base_model, config.base_revision, wanted).folder
    parts = [part for part in PART_NAMES if has_part(base, part)]
    if not unets and all(weights_files(base / part, part) for part in parts):
        return None
    for folder in ("tokenizer", "scheduler"):
        if (base / folder).is_dir():
            shutil.copytree(base / folder, target / folder)
    for part in parts:
        (target / part).mkdir(parents=True)
        shutil.copyfile(base / part / "config.json", target / part / "config.json")
        if part == "unet" and unets:
            _save_part(_whole_unet(unets[0], base, report), target, part)
        elif files := weights_files(base / part, part):
            for file in (*files, *(base / part).glob("*.safetensors.index*.json")):
                shutil.copyfile(file, target / part / file.name)
        elif files := _stored_weights(base / part, part):
            _save_part({n: t for file in files for n, t in read_tensors(file).items()}, target, part)
    return target.resolve()


def _save_part(tensors: Tensors, base: Path, part: str) -> None:
    own = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}  # pickles may share memory
    save_file(own, base / part / f"{weights_stem(part)}.safetensors", metadata={"format": "pt"})


def _whole_unet(piece: Piece, base: Path, report: Report) -> Tensors:
    """A U-Net by diffusers' names, in the shapes of the base's `config.json`."""
    with optional("a base of Stable Diffusion"):
        from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_part_config(base / "unet"))
    expected = unet.state_dict()
    found: Tensors = {}
    for theirs, name, tensor in _in_diffusers_words(piece, unet.config.layers_per_block, report):
        if name not in expected:
            report.not_taken[theirs] = reason_passed(name)
        elif tensor.shape != expected[name].shape:
            report.not_taken[theirs] = _misfit(tensor, expected[name])
        else:
            found[name] = tensor
            report.taken[f"unet.{name}"] = theirs
    if missing := sorted(expected.keys() - found.keys()):
        reasons = [report.not_taken[name] for name in report.not_taken if name in piece.tensors]
        raise ClearSRError(
            f"{piece.source}: its U-Net does not fill that of {base}: {len(missing)} of {len(expected)} "
            f"tensors are missing, such as {missing[0]}" + (f" ({reasons[0]})" if reasons else "")
        )
    return found


def _in_diffusers_words(piece: Piece, layers: int, report: Report) -> list[tuple[str, str, torch.Tensor]]:
    """(their name, diffusers' name, tensor) of all that has one."""
    renamed = []
    for theirs, tensor in piece.tensors.items():
        name = theirs.removeprefix(piece.layout.prefix)
        places = moved(name, tensor, piece.layout.rows, layers) if piece.layout.rows else [(name, tensor)]
        renamed += [(theirs, *place) for place in places]
        if not places:
            report.not_taken[theirs] = reason_passed(theirs)
    return renamed


# DPM, SPM and what joins them to the U-Net.


def _lay_over(
    network: ClearSRNetwork, piece: Piece, into: Sequence[Place], report: Report, refused: dict[str, str]
) -> None:
    """Copy what fits; `refused` are our names for which theirs had another shape."""
    state = network.state_dict()
    layers = network.unet.config.layers_per_block
    inner = "block." if network.config.control.cross_attention else ""
    if piece.layout.holds == "network":
        candidates = [(name, name, tensor) for name, tensor in piece.tensors.items()]
        rows = piece.layout.rows
    else:
        candidates, rows = _in_diffusers_words(piece, layers, report), CONTROL
    for theirs, name, tensor in candidates:
        reasons = []
        for ours, part in moved(name, tensor, rows, layers, inner):
            if ours not in state:  # the SPM knows no time, and a recipe may leave it out
                continue
            if (place := _place_of(ours)) in PLACES and place not in into:
                reasons.append(_LEFT_OUT)
            elif part.shape != state[ours].shape:
                reasons.insert(0, _misfit(part, state[ours]))  # before that another place is left out
                refused[ours] = f"{theirs} of {piece.source}: {reasons[0]}"
            else:
                with torch.no_grad():
                    state[ours].copy_(part)
                report.taken[ours] = theirs
                reasons.append("")
        if "" not in reasons:
            report.not_taken[theirs] = reasons[0] if reasons else reason_passed(theirs)


def _place_of(ours: str) -> str:
    """What a tensor of ours belongs to: one of `PLACES`, or `lora`."""
    if ".lora_" in ours:
        return "lora"
    if ".zero_convs." in ours or ".mid_zero_conv." in ours:
        return "zero_convolutions"
    return ours.partition(".")[0]


def _misfit(theirs: torch.Tensor, ours: torch.Tensor) -> str:
    """Two shapes that differ."""
    there, here = ("x".join(map(str, tensor.shape)) or "scalar" for tensor in (theirs, ours))
    return f"its shape is {there}, here {here}"


def _reason_initialised(ours: str) -> str:
    """Why a tensor of ours has none of theirs."""
    if ".lr_attention." in ours:
        return "window attention, which no published ControlNet has"
    if ".lora_" in ours:
        return "LoRA, which none of these has"
    if ours == "null_prompt":
        return "what the base's text encoder makes of no prompt"
    if _place_of(ours) == "zero_convolutions":
        return "zero, as no source has it"
    return "copied from the base's U-Net, as no source has it"
