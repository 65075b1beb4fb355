"""Which pictures belong together: folders matched by stem, and the layouts that test sets come in."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from clearsr.errors import ClearSRError
from clearsr.image import ImageData, list_images, read_image

logger = logging.getLogger(__name__)

# Folders of a test set: StableSR's own, then what others call them (the last three: SwinIR, BasicSR, DIV2K).
LAYOUTS = (
    ("test_LR", "test_HR"),
    ("LR", "HR"),
    ("lr", "hr"),
    ("lq", "gt"),
    ("LR_x4", "HR"),
    ("LR_bicubic/X4", "HR"),
    ("LRbicx4", "GTmod12"),
    ("DIV2K_valid_LR_bicubic/X4", "DIV2K_valid_HR"),
)
_TAG = re.compile(
    r"([-_.](lr(x?\d)?|hr|sr|lq|gt|out|clearsr|srf[-_]?\d|x\d+(\.\d+)?)|(?<=[a-z\d])x[2-8])$", re.IGNORECASE
)
_NAMED = 5  # names that a message lists


@dataclass(frozen=True)
class ImagePair:
    """The files of one picture; what an evaluation does not need is None."""

    name: str
    lr: Path | None = None
    sr: Path | None = None
    hr: Path | None = None


def match_folders(folders: Mapping[str, Path | None]) -> list[ImagePair]:
    """The pictures of several folders, matched by stem (and the folders below, if there are any).

    Where stems differ, they are matched without a last tag (`a_LR4` and `a_HR`, `b` and `bx4`), without all
    tags (`c_SRF_4_HR` and `c`), or without what all names of a folder end in (`d_SwinIR` and `d`).

    Args:
        folders: any of `lr`, `sr`, `hr` -> folder; None is left out.

    Raises:
        ClearSRError: a folder is missing or holds no images, or a picture has no counterpart; names them.
    """
    given = {role: folder for role, folder in folders.items() if folder is not None}
    found = {role: _by_stem(folder) for role, folder in given.items()}
    for shorten in (dict, _without_last_tag, _without_tags, _without_ending):
        matched = {role: shorten(files) for role, files in found.items()}
        if len({frozenset(files) for files in matched.values()}) == 1 and all(
            len(matched[role]) == len(files) for role, files in found.items()
        ):
            break
    else:
        raise ClearSRError(_mismatch(found, given))
    if shorten is not dict:
        example = next(iter(next(iter(matched.values()))))
        names = " and ".join(files[example].name for files in matched.values())
        level = logging.WARNING if shorten is _without_ending else logging.INFO
        logger.log(level, "names differ; pictures are matched without their ends, such as %s", names)
    found = matched
    first = next(iter(found.values()))
    return [ImagePair(name, **{role: files[name] for role, files in found.items()}) for name in first]


def bare_stem(name: str) -> str:
    """A stem without any of the tags that it ends in: `img_001` of `img_001_SRF_4_LR`."""
    shorter = _TAG.sub("", name)
    return name if shorter == name else bare_stem(shorter)


def find_testset(folder: Path) -> tuple[Path, Path | None]:
    """The folders of LR and HR images of a test set, such as StableSR's `test_LR` and `test_HR`.

    Raises:
        ClearSRError: it has neither of the known layouts.
    """
    for lr, hr in LAYOUTS:
        if (folder / lr).is_dir():
            return folder / lr, folder / hr if (folder / hr).is_dir() else None
    known = ", ".join(f"{lr} and {hr}" for lr, hr in LAYOUTS)
    raise ClearSRError(
        f"--testset {folder}: expected a folder that holds {known}; or name them: --lr and --hr"
    )


def read_8_bit(path: Path) -> torch.Tensor:
    """3×H×W in [0, 1] on the levels of 8 bits, as the measures are defined; transparency is dropped."""
    return to_8_bit(read_image(path).color)


def to_8_bit(color: torch.Tensor) -> torch.Tensor:
    """What an 8-bit file would hold of ...×H×W in [0, 1]."""
    return color.clamp(0, 1).mul(255).round() / 255


def fitting_hr(hr: torch.Tensor, lr: ImageData, name: str) -> torch.Tensor:
    """The part of `hr` that the LR image shows: all, or without the last rows and columns that x N drops.

    Raises:
        ClearSRError: the sizes cannot belong together.
    """
    height, width = hr.shape[-2:]
    whole = max(1, height // lr.height)
    spare = (height - whole * lr.height, width - whole * lr.width)
    if all(0 <= rest < whole for rest in spare):
        return hr[..., : whole * lr.height, : whole * lr.width]
    if round(lr.width * height / lr.height) == width:
        return hr
    raise ClearSRError(
        f"{name}: the original is {width}x{height}, the LR image {lr.width}x{lr.height}; "
        "the sides must be in one and the same ratio"
    )


def cut_to_output(hr: torch.Tensor, sr: torch.Tensor, upscale: float, file: Path) -> torch.Tensor:
    """The part of `hr` that an output shows: all, or without the last rows and columns that x N drops.

    Raises:
        ClearSRError: the sizes cannot belong together.
    """
    height, width = sr.shape[-2:]
    spare = (hr.shape[-2] - height, hr.shape[-1] - width)
    if all(0 <= rest < max(1, upscale) for rest in spare):
        return hr[..., :height, :width]
    larger = "; the output is the larger one: cut it as the original was cut" if min(spare) < 0 else ""
    raise ClearSRError(
        f"{file}: is {width}x{height}, its original {hr.shape[-1]}x{hr.shape[-2]}; the sizes must be equal, "
        f"or the original's larger by fewer than {max(1, upscale):g} rows and columns (--upscale), which are "
        f"then left out at the bottom and on the right{larger}"
    )


def _by_stem(folder: Path) -> dict[str, Path]:
    """Images of a folder by their path below it, without suffix."""
    if not folder.is_dir():
        raise ClearSRError(f"{folder}: must be a folder of images")
    files: dict[str, Path] = {}
    for image in list_images([folder]):
        name = image.relative.with_suffix("").as_posix()
        if name in files:
            raise ClearSRError(f"{folder}: {files[name].name} and {image.file.name} have the same stem")
        files[name] = image.file
    return files


def _without_last_tag(files: Mapping[str, Path]) -> dict[str, Path]:
    """The files by stems without a last tag such as `_LR4`, `_x4` or `_out`."""
    return {_TAG.sub("", name): file for name, file in files.items()}


def _without_tags(files: Mapping[str, Path]) -> dict[str, Path]:
    """The files by stems without any of the tags that they end in."""
    return {bare_stem(name): file for name, file in files.items()}


def _without_ending(files: Mapping[str, Path]) -> dict[str, Path]:
    """The files by stems without what all of them end in, from a separator on, and without tags.

    An ending of digits alone may be a number, and that of a single file could be anything: they stay.
    """
    shared = os.path.commonprefix([name[::-1] for name in files])[::-1] if len(files) > 1 else ""
    start = re.search(r"[-_.]", shared)
    ending = shared[start.start() :] if start and re.search(r"[^\W\d_]", shared[start.start() :]) else ""
    return _without_tags({name.removesuffix(ending): file for name, file in files.items()})


def _mismatch(found: Mapping[str, Mapping[str, Path]], folders: Mapping[str, Path]) -> str:
    """What has no counterpart, by name."""
    everything = {name for files in found.values() for name in files}
    parts = []
    for role, files in found.items():
        absent = sorted(everything - files.keys())
        if absent:
            more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
            parts.append(f"--{role} {folders[role]} has no {', '.join(absent[:_NAMED])}{more}")
    return f"pictures are matched by stem, and some have no counterpart: {'; '.join(parts)}"
