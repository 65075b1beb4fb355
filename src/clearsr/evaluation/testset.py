"""Test sets of one's own: pairs in StableSR's layout, made from any photographs with a fixed seed.

A pair depends on the photograph, its path below the folder that was named, the settings and the seed alone,
and nothing of the machine is written down, so a second run gives the same bytes.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator

from clearsr.atomic import remove_unfinished, write_text
from clearsr.config.base import FrozenConfig
from clearsr.config.degradation import DegradationConfig
from clearsr.data.sources import ImageItem, decode, list_items
from clearsr.degradation import crop_to_multiple, degrade_pair
from clearsr.errors import ClearSRError
from clearsr.image import ImageData, fill_transparent, read_image, write_image
from clearsr.seeds import make_generator

LR_FOLDER, HR_FOLDER, MANIFEST = "test_LR", "test_HR", "manifest.json"


class TestsetConfig(FrozenConfig):
    """How the pairs are made."""

    __test__ = False  # its name makes pytest think that it is one

    upscale: Annotated[int, Field(ge=1, le=64)] = Field(4, description="HR size over LR size")
    crop: Annotated[int, Field(ge=1)] | None = Field(
        None, description="side of the central square that is taken of each; unset: the whole picture"
    )
    seed: int = Field(0, description="seed of every draw")
    degradation: DegradationConfig = DegradationConfig()

    @model_validator(mode="after")
    def _crop_fits(self) -> "TestsetConfig":
        if self.crop is not None and self.crop % self.upscale:
            raise ValueError(f"crop must be a multiple of upscale, {self.upscale}")
        return self


@dataclass(frozen=True)
class Testset:
    """What was made.

    Attributes:
        names: of the pairs.
        left_out: photographs smaller than the crop.
        failed: one line for each photograph that cannot be read.
    """

    __test__ = False

    names: tuple[str, ...]
    left_out: tuple[str, ...]
    failed: tuple[str, ...]


def make_testset(
    inputs: Sequence[Path],
    folder: Path,
    config: TestsetConfig,
    on_image: Callable[[int, int], None] | None = None,
) -> Testset:
    """Write `test_LR/NAME.png`, `test_HR/NAME.png` and `manifest.json` below `folder`.

    Args:
        inputs: photographs, folders of them (recursive), `.txt` lists and `.tar` shards.
        on_image: called with (done, total) after each.

    Raises:
        ClearSRError: there are no photographs, two would get the same name, the folder holds other pictures
            or cannot be written, or nothing was made.
    """
    listed = _named(list_items(inputs))
    _refuse_others(folder, set(listed))
    remove_unfinished((folder / part / name).parent for part in (LR_FOLDER, HR_FOLDER) for name in listed)
    records, left_out, failed = [], [], []
    for done, (name, image) in enumerate(listed.items(), start=1):
        try:
            hr = _square(_read(image), config)
        except ClearSRError as error:
            failed.append(str(error))
        else:
            if hr is None:
                left_out.append(image.name)
            else:
                records.append(_write_pair(name, hr, image, folder, config))
        if on_image is not None:
            on_image(done, len(listed))
    if not records:
        reasons = [*failed, *(f"{name} is smaller than the crop" for name in left_out)]
        raise ClearSRError(f"no pair was made: {'; '.join(reasons[:3])}")
    manifest: dict[str, Any] = {
        "made_by": f"clearsr {version('clearsr')} data make-testset",
        "settings": config.model_dump(mode="json"),
        "count": len(records),
        "left_out": left_out,
        "images": records,
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return Testset(tuple(record["name"] for record in records), tuple(left_out), tuple(failed))


def _named(items: Sequence[ImageItem]) -> dict[str, ImageItem]:
    """The photographs by the names of their pairs: their paths without suffix, below what was named.

    Those that would meet and lie in different folders or shards get these before their names.
    """
    places = defaultdict(list)
    for item in items:
        places[_stem(item.name)].append(_place(item))
    named: dict[str, ImageItem] = {}
    for name, found in ((_stem(item.name), item) for item in items):
        item = found
        if len(places[name]) > 1:
            inner = _place(item).relative_to(os.path.commonpath(places[name]))
            item = item._replace(name=(inner / PurePosixPath(item.name).name).as_posix())
        key = _stem(item.name)
        if key in named:
            raise ClearSRError(
                f"{named[key].label()} and {item.label()} would both become {key}.png; rename one"
            )
        named[key] = item
    return named


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _place(item: ImageItem) -> Path:
    """The folder that a photograph lies in; of one in a shard, the shard without suffix as if it were one."""
    path = Path(os.path.abspath(item.path))
    return path.parent if item.offset is None else path.with_suffix("") / PurePosixPath(item.name).parent


def _read(item: ImageItem) -> ImageData:
    """A photograph, of its own or in a shard (where transparency is dropped)."""
    return read_image(item.path) if item.offset is None else ImageData(decode(item).float() / 255)


def _refuse_others(folder: Path, names: set[str]) -> None:
    """A test set must not be a mixture of two."""
    for part in (LR_FOLDER, HR_FOLDER):
        for path in sorted((folder / part).rglob("*.png")):
            if path.relative_to(folder / part).with_suffix("").as_posix() not in names:
                raise ClearSRError(f"-o {folder}: holds pictures of another set, such as {path}")


def _square(image: ImageData, config: TestsetConfig) -> torch.Tensor | None:
    """The part of a photograph that becomes HR, 3×H×W; None if it is smaller than the crop."""
    color = fill_transparent(image.color, image.alpha)
    if config.crop is None:
        return crop_to_multiple(color, config.upscale).contiguous()
    top, left = (image.height - config.crop) // 2, (image.width - config.crop) // 2
    if min(top, left) < 0:
        return None
    return color[:, top : top + config.crop, left : left + config.crop].contiguous()


def _write_pair(
    name: str, hr: torch.Tensor, image: ImageItem, folder: Path, config: TestsetConfig
) -> dict[str, Any]:
    """Write one pair; returns what the manifest says of it."""
    hr = hr.mul(255).round() / 255  # what the file will hold, also of 16-bit photographs
    generator = make_generator("testset", config.seed, image.name)
    hr, lr = degrade_pair(hr, config.degradation, generator, config.upscale)
    record: dict[str, Any] = {"name": name, "source": image.name}
    for part, color in ((LR_FOLDER, lr), (HR_FOLDER, hr)):
        path = folder / part / f"{name}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ClearSRError(f"-o {folder}: cannot be written ({error.strerror})") from None
        write_image(ImageData(color), path)
        size = [color.shape[2], color.shape[1]]
        record[part] = {"size": size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return record
