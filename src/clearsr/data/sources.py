"""Where images come from: files, folders, `.txt` lists of these, and WebDataset-style `.tar` shards.

A member of a shard is read by its position in the file, so that a shard is as random-access as a folder: no
unpacking and no streaming order. Only uncompressed tar files can be read so.
"""

import io
import json
import os
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from clearsr.atomic import written_aside
from clearsr.config.base import parse_json
from clearsr.errors import ClearSRError
from clearsr.image import IMAGE_SUFFIXES, ChooseWindow, list_images, read_levels

INDEX_SUFFIX = ".index.json"  # photographs.tar.index.json: where the members of a shard begin
_HEADER_BYTES = 2**18


class ImageItem(NamedTuple):
    """One image, not yet read.

    Attributes:
        name: path below the folder, list or shard that was named; the same wherever that lies.
        path: the file, or the shard.
        offset: first byte in the shard; None for a file of its own.
        size: bytes in the shard.
    """

    name: str
    path: Path
    offset: int | None = None
    size: int = 0

    def label(self) -> str:
        """What a message calls it."""
        return str(self.path) if self.offset is None else f"{self.path}/{self.name}"

    def byte_count(self) -> int:
        """Size of the encoded image."""
        return self.path.stat().st_size if self.offset is None else self.size

    def read_bytes(self, limit: int | None = None) -> bytes:
        """The encoded image, or its first `limit` bytes.

        Raises:
            ClearSRError: the file cannot be read, or the shard ends too early.
        """
        wanted = -1 if limit is None else limit
        if self.offset is not None:
            wanted = self.size if limit is None else min(limit, self.size)
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset or 0)
                content = file.read(wanted)
        except OSError as error:
            raise ClearSRError(f"{self.label()}: cannot be read: {error.strerror or error}") from None
        if self.offset is not None and len(content) < wanted:
            raise ClearSRError(f"{self.label()}: the shard ends within it")
        return content


def refuse_inside(flag: str, folder: Path, inputs: Iterable[Path], what: str) -> None:
    """See that a folder to be written is no part of what is read: what lies there would be read, too.

    Args:
        what: the inputs are called.

    Raises:
        ClearSRError: it is one of the folders among the inputs, or below it.
    """
    target = folder.resolve()
    for given in inputs:
        if given.is_dir() and given.resolve() in (target, *target.parents):
            raise ClearSRError(
                f"{flag} {folder}: is or lies in {what} {given}, and would be read with it; choose another"
            )


def list_items(inputs: Sequence[Path], problems: list[str] | None = None) -> list[ImageItem]:
    """The images that files, folders, `.txt` lists and `.tar` shards stand for, each once, in their order.

    A folder stands for its images (recursive) followed by the shards that lie in it. A list has one path per
    line, relative to the list; empty lines and lines that begin with # are passed over.

    Args:
        problems: takes what is wrong with single shards, lines of lists and links, which are then left out;
            unset: the first such thing is an error.

    Raises:
        ClearSRError: something named is missing, empty or no list or shard.
    """
    found: dict[tuple[str, int | None], ImageItem] = {}
    for given in inputs:
        for item in _expand(Path(given), problems):
            found.setdefault((os.path.abspath(item.path), item.offset), item)
    return list(found.values())


def decode(item: ImageItem, choose: ChooseWindow | None = None) -> torch.Tensor:
    """The image as uint8 RGB 3×H×W, upright; transparency is dropped.

    Args:
        choose: given its height and width, says which part is wanted; may raise.

    Raises:
        ClearSRError: it cannot be read or decoded whole; names it.
    """
    if item.offset is None:
        return read_levels(item.path, choose)
    return read_levels(Path(item.label()), choose, item.read_bytes())


def pixel_size(item: ImageItem) -> tuple[int, int]:
    """Width and height as the header says, before any EXIF rotation.

    Raises:
        ClearSRError: the header cannot be read.
    """
    for limit in (_HEADER_BYTES, None):  # a large profile or preview may push the size further in
        if (size := _header_size(item.read_bytes(limit))) is not None:
            return size
    pixels = decode(item)  # kinds that Pillow does not know, or the reason why not
    return pixels.shape[2], pixels.shape[1]


class KnownSizes:
    """What `pixel_size` said, kept in a file between starts; a file that has changed since is asked again.

    It is JSON: by path, the stamp of the file, and width and height by where in it an image begins.
    """

    def __init__(self, file: Path | None, items: Iterable[ImageItem]) -> None:
        """`file` need not be there, nor be whole; what it says of others than `items` is forgotten."""
        self._file = file
        self._looked_up: set[str] = set()
        self._known: dict[str, _FileSizes] = {}
        if file is None:
            return
        with suppress(OSError, ValueError, TypeError, AttributeError):
            rows = parse_json(file.read_text(encoding="utf-8"))
            self._known = {name: _FileSizes.of(row) for name, row in rows.items()}
        gone = self._known.keys() - {os.path.abspath(item.path) for item in items}
        self._is_new = bool(gone)
        for name in gone:
            del self._known[name]

    def of(self, item: ImageItem) -> tuple[int, int]:
        """Width and height of an image.

        Raises:
            ClearSRError: its header cannot be read.
        """
        if self._file is None:
            return pixel_size(item)
        sizes, begin = self._sizes(item.path), str(item.offset or 0)
        if begin not in sizes:
            sizes[begin], self._is_new = pixel_size(item), True
        return sizes[begin]

    def keep(self) -> None:
        """Write down what is known; where that cannot be, the next start reads headers again."""
        if self._file is not None and self._is_new:
            with suppress(OSError), written_aside(self._file) as aside:
                aside.write_text(json.dumps(self._known), encoding="utf-8")

    def _sizes(self, path: Path) -> dict[str, tuple[int, int]]:
        """What is known of the images in a file as it is now, which is looked up once: a shard has many."""
        name = os.path.abspath(path)
        if name not in self._looked_up:
            try:
                status = path.stat()
            except OSError as error:
                raise ClearSRError(f"{path}: cannot be read: {error.strerror or error}") from None
            # ctime, too: what is copied over a file may bring the same time and length along.
            stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
            if name not in self._known or self._known[name].stamp != stamp:
                self._known[name] = _FileSizes(stamp, {})
            self._looked_up.add(name)
        return self._known[name].sizes


class _FileSizes(NamedTuple):
    """The sizes of the images in a file, and what changes when it does; a list of the two in JSON."""

    stamp: tuple[int, ...]
    sizes: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, row: Any) -> "_FileSizes":
        stamp, sizes = row
        read = {begin: (int(width), int(height)) for begin, (width, height) in sizes.items()}
        return cls(tuple(map(int, stamp)), read)


def _header_size(content: bytes) -> tuple[int, int] | None:
    """Width and height as Pillow reads them off an encoded image's beginning; None where it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                return image.size
    except Exception:  # decoders raise anything
        return None


def write_index(shard: Path) -> None:
    """Write where the members of a shard begin beside it, so that opening it needs no walk through it."""
    members = [[item.name, item.offset, item.size] for item in _scan(shard)]
    index = {"bytes": shard.stat().st_size, "members": members}
    with written_aside(shard.with_name(shard.name + INDEX_SUFFIX)) as aside:
        aside.write_text(json.dumps(index), encoding="utf-8")


def other_files(inputs: Sequence[Path], items: Sequence[ImageItem]) -> list[Path]:
    """What lies in the folders among `inputs`, is not hidden and stands for none of the items."""
    known = {os.path.abspath(item.path) for item in items}
    files = [path for given in inputs if given.is_dir() for path in sorted(given.rglob("*"))]
    return [
        path
        for path in dict.fromkeys(files)
        if not (path.is_dir() or path.name.startswith(".") or os.path.abspath(path) in known)
        and not path.name.endswith((".tar", INDEX_SUFFIX))
    ]


def _expand(given: Path, problems: list[str] | None) -> Iterator[ImageItem]:
    suffix = given.suffix.lower()
    if suffix == ".txt" and given.is_file():
        for line in _read_list(given):
            yield from _tolerated(lambda line=line: _expand(given.parent / line, problems), problems)
    elif suffix == ".tar" and given.is_file():
        yield from _tolerated(lambda: _shard_items(given), problems)
    elif given.is_dir():
        shards = sorted(path for path in given.rglob("*.tar") if path.is_file())
        try:
            yield from _file_items(given)
        except ClearSRError:
            if not shards:
                raise
        for shard in shards:
            yield from _tolerated(lambda shard=shard: _shard_items(shard), problems)
    else:
        yield from _file_items(given)


def _tolerated(find: Callable[..., Iterable[ImageItem]], problems: list[str] | None) -> list[ImageItem]:
    """What is found; nothing and a line more in `problems`, if there are such, where that fails."""
    try:
        return list(find())
    except ClearSRError as error:
        if problems is None:
            raise
        problems.append(str(error))
        return []


def _file_items(given: Path) -> Iterator[ImageItem]:
    for file, relative in list_images([given]):
        yield ImageItem(relative.as_posix(), file)


def _read_list(path: Path) -> list[str]:
    """The lines of a list that name something.

    Raises:
        ClearSRError: it cannot be read, is empty, or names another list.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ClearSRError(f"{path}: cannot be read as a list of images ({error})") from None
    named = [line for line in lines if line and not line.startswith("#")]
    if not named:
        raise ClearSRError(f"{path}: names no image; expected one path per line")
    nested = [line for line in named if line.lower().endswith(".txt")]
    if nested:
        raise ClearSRError(f"{path}: names another list, {nested[0]}; expected images, folders and shards")
    return named


def _shard_items(shard: Path) -> list[ImageItem]:
    """The images in a shard, in its order.

    Raises:
        ClearSRError: it is no uncompressed tar file, or holds no image.
    """
    items = _from_index(shard)
    if items is None:
        items = list(_scan(shard))
    if not items:
        raise ClearSRError(
            f"{shard}: holds no images (accepted suffixes: {' '.join(sorted(IMAGE_SUFFIXES))})"
        )
    return items


def _from_index(shard: Path) -> list[ImageItem] | None:
    """What the index beside a shard says; None where there is none or it belongs to another file."""
    try:
        index = parse_json(shard.with_name(shard.name + INDEX_SUFFIX).read_text(encoding="utf-8"))
        if index["bytes"] != shard.stat().st_size:
            return None
        return [ImageItem(str(n), shard, int(offset), int(size)) for n, offset, size in index["members"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _scan(shard: Path) -> Iterable[ImageItem]:
    try:
        with tarfile.open(shard, "r:") as archive:
            members = list(archive)
    except (tarfile.TarError, OSError) as error:
        raise ClearSRError(f"{shard}: cannot be read as an uncompressed tar file ({error})") from None
    for member in members:
        hidden = Path(member.name).name.startswith(".")
        if member.isfile() and not hidden and Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
            yield ImageItem(member.name, shard, member.offset_data, member.size)
