"""Test sets of one's own: pairs in StableSR's layout, made from any photographs with a fixed seed.

A pair depends on the photograph, its path below the folder that was named, the settings and the seed alone,
and nothing of the machine is written down, so a second run gives the same bytes. The manifest lists the
places of crops, and can be read back.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError, model_validator

from clearsr.atomic import remove_unfinished, write_text
from clearsr.config.base import FrozenConfig, parse_json
from clearsr.config.degradation import DegradationConfig
from clearsr.data.sources import ImageItem, decode, list_items, refuse_inside
from clearsr.degradation import crop_to_multiple, degrade_pair
from clearsr.errors import ClearSRError, one_line
from clearsr.image import ImageData, fill_transparent, read_image, write_image
from clearsr.seeds import make_generator

LR_FOLDER, HR_FOLDER, MANIFEST = "test_LR", "test_HR", "manifest.json"


class TestsetConfig(FrozenConfig):
    """How the pairs are made."""

    __test__ = False  # its name makes pytest think that it is one

    upscale: Annotated[int, Field(ge=1, le=64)] = Field(4, description="HR size over LR size")
    crop: Annotated[int, Field(ge=1)] | None = Field(
        None, description="side of the square that is taken of each; unset: the whole picture"
    )
    crops: Annotated[int, Field(ge=1)] | None = Field(
        None, description="squares at random places that are taken of each; unset: the central one"
    )
    seed: int = Field(0, description="seed of every draw")
    degradation: DegradationConfig = DegradationConfig()

    @model_validator(mode="after")
    def _crop_fits(self) -> "TestsetConfig":
        if self.crop is not None and self.crop % self.upscale:
            raise ValueError(f"crop must be a multiple of upscale, {self.upscale}")
        if self.crops is not None and self.crop is None:
            raise ValueError("crops needs crop, the side of the squares")
        return self


class Crop(BaseModel):
    """A pair of a manifest: its name, the photograph, and how far from left and top its square lies."""

    name: str
    source: str
    crop: tuple[NonNegativeInt, NonNegativeInt] | None = None
    test_LR: dict[str, Any] = {}  # noqa: N815 - a folder's name
    test_HR: dict[str, Any] = {}  # noqa: N815

    def digests(self) -> list[str | None]:
        """SHA-256 of both files; None where it is not said."""
        return [part.get("sha256") for part in (self.test_LR, self.test_HR)]


class Manifest(NamedTuple):
    """What `make_testset` wrote down, or somebody else in the same form."""

    config: TestsetConfig
    crops: list[Crop]


def read_manifest(path: Path) -> Manifest:
    """The settings and the pairs that a manifest names.

    Raises:
        ClearSRError: it cannot be read, is none, or names a pair twice or outside of the set's folder.
    """
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
        config = TestsetConfig.model_validate(document["settings"])
        crops = [Crop.model_validate(image) for image in document["images"]]
    except ValidationError as error:
        what = error.errors()[0]
        place = ".".join(map(str, what["loc"]))
        raise ClearSRError(f"{path}: is no manifest of a test set ({place}: {what['msg']})") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClearSRError(
            f"{path}: cannot be read as the manifest of a test set ({one_line(error)})"
        ) from None
    names = [crop.name for crop in crops]
    for name in names:
        if not name or PurePosixPath(name).is_absolute() or ".." in name.replace("\\", "/").split("/"):
            raise ClearSRError(
                f"{path}: {name!r} is no name of a pair; expected a path below the set's folder"
            )
    if not names or len(set(names)) < len(names):
        raise ClearSRError(f"{path}: names {'a pair twice' if names else 'no pairs'}")
    return Manifest(config, crops)


@dataclass(frozen=True)
class Testset:
    """What was made.

    Attributes:
        names: of the pairs.
        different: those whose files are not those that the manifest names by their SHA-256.
        left_out: photographs smaller than the crop.
        failed: one line for each photograph that cannot be read.
    """

    __test__ = False

    names: tuple[str, ...]
    left_out: tuple[str, ...]
    failed: tuple[str, ...]
    different: tuple[str, ...] = ()


def make_testset(
    inputs: Sequence[Path],
    folder: Path,
    config: TestsetConfig,
    on_image: Callable[[int, int], None] | None = None,
    listed: Sequence[Crop] | None = None,
) -> Testset:
    """Write `test_LR/NAME.png`, `test_HR/NAME.png` and `manifest.json` below `folder`.

    Args:
        inputs: photographs, folders of them (recursive), `.txt` lists and `.tar` shards.
        on_image: called with (done, total) after each.
        listed: the pairs to make, of a manifest that has these settings; unset: those of all photographs.

    Raises:
        ClearSRError: there are no photographs, one that is listed is not among them, two would get the same
            name, the folder is among the inputs, holds another set or cannot be written, or nothing was made.
    """
    refuse_inside("-o", folder, inputs, "the input")
    items = _named(list_items(inputs))
    wanted = _wanted(items, config) if listed is None else _by_photograph(items, listed)
    names = {crop.name for crops in wanted.values() for crop in crops}
    _refuse_others(folder, names, config)
    remove_unfinished((folder / part / name).parent for part in (LR_FOLDER, HR_FOLDER) for name in names)
    records: list[dict[str, Any]] = []
    left_out, failed = [], []
    for done, (key, crops) in enumerate(wanted.items(), start=1):
        try:
            squares = _squares(_read(items[key]), crops, config)
        except ClearSRError as error:
            failed.append(str(error))
        else:
            if not squares:
                left_out.append(items[key].name)
            records += [_write_pair(crop, hr, folder, config) for crop, hr in squares]
        if on_image is not None:
            on_image(done, len(wanted))
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
    stated = {crop.name: crop for crop in listed or ()}
    different = [
        made.name for made in map(Crop.model_validate, records) if _is_other(made, stated.get(made.name))
    ]
    names_made = tuple(record["name"] for record in records)
    return Testset(names_made, tuple(left_out), tuple(failed), tuple(different))


def _is_other(made: Crop, stated: Crop | None) -> bool:
    digests = [] if stated is None else stated.digests()
    return any(said not in (None, own) for said, own in zip(digests, made.digests(), strict=False))


def _wanted(items: dict[str, ImageItem], config: TestsetConfig) -> dict[str, list[Crop]]:
    """The pairs of all photographs, by these; the places of squares are still to be found."""
    if config.crops is None:
        return {name: [Crop(name=name, source=item.name)] for name, item in items.items()}
    digits = len(str(config.crops - 1))
    return {
        name: [Crop(name=f"{name}_{k:0{digits}}", source=item.name) for k in range(config.crops)]
        for name, item in items.items()
    }


def _by_photograph(items: dict[str, ImageItem], listed: Sequence[Crop]) -> dict[str, list[Crop]]:
    """The pairs that are listed, by the names of their photographs here.

    Raises:
        ClearSRError: some of these are not there.
    """
    names = {item.name: name for name, item in items.items()}
    if lacking := [crop.source for crop in listed if crop.source not in names]:
        distinct = list(dict.fromkeys(lacking))
        more = f" and {len(distinct) - 3} more" if len(distinct) > 3 else ""
        raise ClearSRError(
            f"the inputs lack {', '.join(distinct[:3])}{more}, of which there are pairs in --like"
        )
    found: dict[str, list[Crop]] = defaultdict(list)
    for crop in listed:
        found[names[crop.source]].append(crop)
    return dict(found)


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


def _refuse_others(folder: Path, names: set[str], config: TestsetConfig) -> None:
    """A test set must not be a mixture of two, nor be replaced by one of other settings."""
    if (folder / MANIFEST).is_file():
        before, now = read_manifest(folder / MANIFEST).config.model_dump(), config.model_dump()
        if changed := [name for name in now if now[name] != before[name]]:
            raise ClearSRError(f"-o {folder}: holds a set of another {changed[0]}; choose another folder")
    for part in (LR_FOLDER, HR_FOLDER):
        for path in sorted((folder / part).rglob("*.png")):
            if path.relative_to(folder / part).with_suffix("").as_posix() not in names:
                raise ClearSRError(f"-o {folder}: holds pictures of another set, such as {path}")


def _squares(
    image: ImageData, crops: Sequence[Crop], config: TestsetConfig
) -> list[tuple[Crop, torch.Tensor]]:
    """The parts of a photograph that become HR, 3×H×W, with their places; none if it is smaller than a crop.

    Raises:
        ClearSRError: a place that is given is outside of it.
    """
    color = fill_transparent(image.color, image.alpha)
    side = config.crop
    if side is None:
        whole = crop_to_multiple(color, config.upscale).contiguous()
        return [(crop, whole) for crop in crops]
    spare = (image.width - side, image.height - side)
    if min(spare) < 0 and crops[0].crop is None:
        return []
    squares = []
    for number, crop in enumerate(crops):
        left, top = crop.crop or _place_of(crop.source, number, spare, config)
        if left > spare[0] or top > spare[1]:
            raise ClearSRError(
                f"{crop.source}: is {image.width}x{image.height}, and {side} pixels at {left},{top} leave it"
            )
        square = color[:, top : top + side, left : left + side].contiguous()
        squares.append((crop.model_copy(update={"crop": (left, top)}), square))
    return squares


def _place_of(source: str, number: int, spare: tuple[int, int], config: TestsetConfig) -> tuple[int, int]:
    """Where the square of that number lies: in the middle, or anywhere by chance."""
    if config.crops is None:
        return spare[0] // 2, spare[1] // 2
    generator = make_generator("testset place", config.seed, source, number)
    left, top = (int(torch.randint(most + 1, (), generator=generator)) for most in spare)
    return left, top


def _write_pair(crop: Crop, hr: torch.Tensor, folder: Path, config: TestsetConfig) -> dict[str, Any]:
    """Write one pair; returns what the manifest says of it."""
    hr = hr.mul(255).round() / 255  # what the file will hold, also of 16-bit photographs
    # By its place and not its number, so that a list of some of the crops gives the same pairs.
    place = () if config.crops is None or crop.crop is None else crop.crop
    generator = make_generator("testset", config.seed, crop.source, *place)
    hr, lr = degrade_pair(hr, config.degradation, generator, config.upscale)
    record: dict[str, Any] = {"name": crop.name, "source": crop.source}
    if crop.crop is not None:
        record["crop"] = list(crop.crop)
    for part, color in ((LR_FOLDER, lr), (HR_FOLDER, hr)):
        path = folder / part / f"{crop.name}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ClearSRError(f"-o {folder}: cannot be written ({error.strerror})") from None
        write_image(ImageData(color), path)
        size = [color.shape[2], color.shape[1]]
        record[part] = {"size": size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return record
