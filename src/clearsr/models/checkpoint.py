"""A trained network on disk, and whether it is whole: a folder with `config.json` and `model.safetensors`.

Nothing is pickled. With our own base (compact) the file holds every tensor; with a Stable Diffusion base only
what was trained, and config.json names the base, its revision, and the SHA-256 of its parts.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from clearsr.atomic import written_aside
from clearsr.config.base import build_config, merge, parse_json
from clearsr.config.model import ModelConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError, first_line, optional
from clearsr.models.base_model import base_digests, sha256_of
from clearsr.models.build import build_network
from clearsr.models.clearsr import ClearSRNetwork, set_scaling_factor

logger = logging.getLogger(__name__)

FORMAT = 1
EMBEDDED_MODELS = ("compact",)
CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
Shape = tuple[int, ...]
BASE_KEY = "base_sha256"  # in config.json, by part: what the model was trained on
DIGEST_KEY = "weights_sha256"  # in config.json; `clearsr doctor` compares it, models without it are read too

# The training stages that fill a tensor, by the beginning of its name; all else is clearsr's.
_FILLED_BY = {
    "latents.vae.decoder.overlap.": ("decoder",),
    "latents.vae.": ("autoencoder",),
    "latents.lr_encoder.": ("lr_encoder",),
    "painter.": ("painter",),
    "unet.": ("prior", "clearsr"),
    "null_prompt": ("prior", "clearsr"),
}


def save_network(
    network: ClearSRNetwork,
    folder: Path,
    stages: Iterable[str],
    sampling: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write `config.json` and `model.safetensors`, aside first and then renamed into place.

    Args:
        stages: training stages that the weights have been through.
        sampling: defaults of `SamplingConfig` that suit this model.
        dtype: precision of the stored tensors; unset: as they are. They are computed with in fp32.

    Raises:
        ClearSRError: the folder cannot be written, or a value does not fit the precision.
    """
    description = {
        "format": FORMAT,
        "model": network.config.model_dump(mode="json"),
        "stages": sorted(set(stages)),
        "sampling": sampling or {},
    }
    if network.base_files:
        description[BASE_KEY] = base_digests(network.base_files)
    tensors = {n: value for n, value in network.state_dict().items() if is_stored(n, network.config)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        description[DIGEST_KEY] = _write_weights(tensors, folder, dtype)
        _write_description(description, folder)
    except (OSError, SafetensorError) as error:
        raise ClearSRError(f"{folder}: the model cannot be written ({error})") from error


def store_sampling(
    source: Path, folder: Path, changes: Mapping[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Lay `changes` over the sampling defaults of the model in `source`, and keep it in `folder`.

    Where `folder` is another, the weights are copied; else only `config.json` is written anew.

    Args:
        dtype: also rewrite the weights in this precision; unset: they stay as they are.

    Raises:
        ClearSRError: the settings are not accepted, a value does not fit the precision, or the folder cannot
            be written.
    """
    in_place = folder.is_dir() and folder.samefile(source)
    description = _read_description(source) if in_place else read_description(source)
    description["sampling"] = merge(description["sampling"], changes)
    build_config(SamplingConfig, description["sampling"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if dtype is not None:
            description[DIGEST_KEY] = _write_weights(read_tensors(source), folder, dtype)
        elif not in_place:
            with written_aside(folder / WEIGHTS_NAME) as aside:
                shutil.copyfile(source / WEIGHTS_NAME, aside)
        _write_description(description, folder)
    except OSError as error:
        reason = error.strerror or error
        raise ClearSRError(
            f"{folder}: the model cannot be written ({reason}); name another with -o"
        ) from None


def _write_weights(tensors: Mapping[str, torch.Tensor], folder: Path, dtype: torch.dtype | None) -> str:
    """model.safetensors, in a precision or as they are; returns its SHA-256.

    Raises:
        ClearSRError: a value is larger than any of the precision.
    """
    stored = {}
    for name, value in tensors.items():
        kept = value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
        if dtype is not None and not torch.equal(kept.isfinite(), value.cpu().isfinite()):
            raise ClearSRError(
                f"{folder}: {name} has values up to {value.abs().max():.3g}, too large for {dtype}; keep fp32"
            )
        stored[name] = kept
    with written_aside(folder / WEIGHTS_NAME) as aside:
        save_file(stored, aside, metadata={"format": "pt"})
        aside.chmod(0o666 & ~_umask())  # safetensors makes files that only their owner can read
        return sha256_of(aside)


def _write_description(description: Mapping[str, Any], folder: Path) -> None:
    """config.json."""
    with written_aside(folder / CONFIG_NAME) as aside:
        aside.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


class LoadedNetwork(NamedTuple):
    """What a model folder holds."""

    network: ClearSRNetwork  # in evaluation mode, without gradients
    sampling: dict[str, Any]  # defaults of `SamplingConfig` that suit it
    stages: list[str]  # training stages that it has been through


def load_network(source: str | Path, base_model: str | None = None) -> LoadedNetwork:
    """A network from a folder, the hub, or the package.

    Args:
        source: `compact`, a folder, or a hub id.
        base_model: used in place of the base that the checkpoint names.

    Raises:
        ClearSRError: no such model, a damaged file, or tensors that are missing, unknown or of another shape.
    """
    folder = locate(source)
    description = read_description(folder)
    config = build_config(ModelConfig, description["model"])
    if base_model is not None:
        if config.base_model is None:
            raise ClearSRError(f"--base-model {base_model}: model {source} has no base; leave it out")
        config = config.model_copy(update={"base_model": base_model, "base_revision": None})
    stored = read_tensors(folder)
    network = build_network(config, null_prompt=stored.get("null_prompt"))
    load_tensors(network, stored, folder, set(network.state_dict()))
    if base_model is not None and (trained_on := description.get(BASE_KEY)):
        given = base_digests(network.base_files)
        if other := [part for part in given if given[part] != trained_on.get(part)]:
            logger.warning(
                "--base-model %s: %s was trained on another %s; what it draws may be worse",
                base_model, source, ", ".join(other),
            )  # fmt: skip
    return LoadedNetwork(
        network.requires_grad_(False).eval(), description["sampling"], list(description["stages"])
    )


def start_from(network: ClearSRNetwork, source: Path) -> list[str]:
    """Load what an earlier training stage left in `source`; returns the stages that it has been through.

    A part that had no LoRA in `source` may have one in `network`, and the other way round if it is untrained.
    What has been through no stage (`clearsr init`) is taken whole.

    Raises:
        ClearSRError: as `load_network`; or the U-Net in `source` predicts something else than this one.
    """
    description = read_description(source)
    stages = list(description["stages"])
    predicts = description["model"].get("prediction")
    if {"prior", "clearsr"} & set(stages) and predicts != network.config.prediction:
        raise ClearSRError(
            f"model.prediction: {network.config.prediction}, but the U-Net of {source} predicts {predicts}; "
            f"set it to {predicts}"
        )
    if not stages:
        load_tensors(network, read_tensors(source), source, set(network.state_dict()), "the recipe's model")
        return []
    filled = {name for name in network.state_dict() if set(stages_of(name)) & set(stages)}
    names = {_without_lora(name): name for name in filled}
    tensors = {
        names.get(_without_lora(name), name): value
        for name, value in read_tensors(source).items()
        if set(stages_of(name)) & set(stages)
    }
    load_tensors(network, tensors, source, filled, "the recipe's model")
    if "autoencoder" in stages:
        set_scaling_factor(network, description["model"]["autoencoder"]["scaling_factor"])
    return stages


def stages_of(name: str) -> tuple[str, ...]:
    """The training stages that fill a tensor; every LoRA, the VAE encoder's too, only `clearsr` does."""
    if "lora_" in name:
        return ("clearsr",)
    return next((stages for prefix, stages in _FILLED_BY.items() if name.startswith(prefix)), ("clearsr",))


def _without_lora(name: str) -> str:
    """What a tensor is called where no LoRA is wrapped around its layer."""
    return name.replace(".base_layer.", ".")


def is_stored(name: str, config: ModelConfig) -> bool:
    """Whether a tensor is part of a checkpoint: all that does not come from the frozen base."""
    if config.base_model is None:
        return True
    own = ["detail_preserving.", "structure_preserving.", "null_prompt", "latents.lr_encoder.", "painter."]
    if config.train_unet == "full":
        own += ["unet.", "image_prompt."]
    return name.startswith(tuple(own)) or "lora_" in name


def locate(source: str | Path) -> Path:
    """The folder of a model: embedded, local, or downloaded from the hub.

    Raises:
        ClearSRError: none of these.
    """
    if str(source) in EMBEDDED_MODELS:
        folder = Path(str(files("clearsr") / "weights" / str(source)))
        if not (folder / WEIGHTS_NAME).is_file():
            raise ClearSRError(f"--model {source}: its weights are missing from this installation ({folder})")
        return folder
    folder = Path(source)
    if folder.is_dir():
        if not (folder / CONFIG_NAME).is_file() or not (folder / WEIGHTS_NAME).is_file():
            raise ClearSRError(f"--model {source}: the folder needs {CONFIG_NAME} and {WEIGHTS_NAME}")
        return folder
    with optional(f"--model {source}: a hub id"):  # slow to import, and needed for hub ids alone
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=[CONFIG_NAME, WEIGHTS_NAME]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise ClearSRError(
            f"--model {source}: is neither an embedded model ({', '.join(EMBEDDED_MODELS)}), nor a folder, "
            f"nor a hub id that can be reached ({reason})"
        ) from None


def read_description(folder: Path) -> dict[str, Any]:
    """config.json of a model folder; a base that is named relative to it is found from anywhere."""
    description = _read_description(folder)
    model = description["model"]
    for key in ("base_model", "image_encoder"):
        if isinstance(named := model.get(key), str) and os.path.isdir(folder / named):  # of any text
            model[key] = str((folder / named).resolve())
    return description


def _read_description(folder: Path) -> dict[str, Any]:
    """config.json as it stands."""
    path = folder / CONFIG_NAME
    try:
        description = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClearSRError(f"{path}: is not a description of a ClearSR model ({error})") from None
    if not isinstance(description, dict) or "format" not in description:
        raise ClearSRError(f"{path}: is not a description of a ClearSR model (it names no format)")
    if description["format"] != FORMAT:
        version = description["format"]
        raise ClearSRError(f"{path}: has format {version!r}; this version reads format {FORMAT}")
    for key, kind in (("model", dict), ("stages", list), ("sampling", dict)):
        if not isinstance(description.get(key), kind):
            raise ClearSRError(f"{path}: needs {key!r}, a {'list' if kind is list else 'mapping'}")
    return description


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """model.safetensors of a model folder, in fp32."""
    path = folder / WEIGHTS_NAME
    try:
        return {name: value.float() for name, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise ClearSRError(f"{path}: cannot be read as safetensors ({error})") from None


def load_tensors(
    network: ClearSRNetwork,
    tensors: dict[str, torch.Tensor],
    source: Path,
    expected: set[str],
    described_by: str = f"its {CONFIG_NAME}",
) -> None:
    """Copy tensors into the network, which `described_by` describes; names and shapes must match exactly."""
    state = network.state_dict()
    check_shapes(
        {name: tuple(state[name].shape) for name in expected if is_stored(name, network.config)},
        {name: tuple(value.shape) for name, value in tensors.items()},
        source,
        described_by,
    )
    network.load_state_dict(tensors, strict=False)


def check_shapes(
    expected: Mapping[str, Shape],
    found: Mapping[str, Shape],
    source: Path,
    described_by: str = f"its {CONFIG_NAME}",
) -> None:
    """See that tensors have exactly the names and shapes that are expected.

    Raises:
        ClearSRError: some are missing, unknown or of another shape.
    """
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    other_shape = sorted(n for n in expected.keys() & found.keys() if expected[n] != found[n])
    for problem, names in (
        ("lacks", missing),
        ("has unknown", unknown),
        ("has another shape of", other_shape),
    ):
        if names:
            listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ClearSRError(f"{source / WEIGHTS_NAME}: does not fit {described_by}: it {problem} {listed}")


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


# Whether a model folder is whole: the weights' SHA-256, and that their names and shapes fit config.json.
# Only the file's header is read for names and shapes; the digest reads all of it once.


class Weights(NamedTuple):
    """The weights of a model folder, found whole.

    Attributes:
        tensors: how many the file holds.
        sha256: of the file.
        is_recorded: config.json states that digest; if not, it states none.
    """

    folder: Path
    bytes: int
    tensors: int
    sha256: str
    is_recorded: bool


def check_weights(folder: Path) -> Weights:
    """What a model folder holds, after a look at all of it.

    Names and shapes are checked for a model without a base; what a base adds is not known here.

    Raises:
        ClearSRError: the file is damaged, is another than config.json states, or does not fit it.
    """
    from clearsr.models.build import meta_network

    description = read_description(folder)
    config = build_config(ModelConfig, description["model"])
    path = folder / WEIGHTS_NAME
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        digest = sha256_of(path)
    except (OSError, SafetensorError) as error:
        raise ClearSRError(f"{path}: cannot be read as safetensors ({error})") from None
    if config.base_model is None:
        state = meta_network(config).state_dict()
        check_shapes({name: tuple(value.shape) for name, value in state.items()}, shapes, folder)
    stated = description.get(DIGEST_KEY)
    if stated not in (None, digest):
        raise ClearSRError(
            f"{path}: is another file than its config.json states (SHA-256 {digest[:12]}..., expected "
            f"{str(stated)[:12]}...); install or download the model again"
        )
    return Weights(folder, path.stat().st_size, len(shapes), digest, stated is not None)
