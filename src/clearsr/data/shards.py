"""Crops of a set of images as tar shards: what a training run reads fast from any file system.

A large photograph is decoded once here and not again for every crop. The same images give the same bytes.
"""

import io
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from types import TracebackType

import torch
from PIL import Image

from clearsr.data.sources import ImageItem, write_index
from clearsr.errors import ClearSRError

SHARD_BYTES = 2**28  # 256 MiB: large enough for a disk, small enough to copy


class ShardWriter:
    """Writes crops to `FOLDER/crops-00000.tar` and so on, each with its index; use as a context manager.

    A shard appears under its name when it is complete; leaving with an error removes the one in hand.
    """

    def __init__(self, folder: Path, crop: int, shard_bytes: int = SHARD_BYTES) -> None:
        """`crop` is the side of the crops in pixels.

        Raises:
            ClearSRError: the folder cannot be written, or holds shards already.
        """
        self._folder, self._crop, self._limit = folder, crop, shard_bytes
        self._shards = self._written = 0
        self._archive: tarfile.TarFile | None = None
        self._names: set[str] = set()
        self.crops = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ClearSRError(f"--shards {folder}: cannot be made ({error.strerror or error})") from None
        if any(folder.glob("*.tar")):
            raise ClearSRError(f"--shards {folder}: holds shards already; choose an empty folder")

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        elif self._archive is not None:
            with suppress(OSError):  # a full disk cannot take its end either
                self._archive.close()
            self._aside().unlink(missing_ok=True)

    def add(self, item: ImageItem, pixels: torch.Tensor) -> None:
        """Store the crops of an image, uint8 3×H×W with sides of at least `crop`.

        Raises:
            ClearSRError: they cannot be written.
        """
        stem = self._unique_stem(item.name)
        for top, left in crop_grid(pixels.shape[1], pixels.shape[2], self._crop):
            window = pixels[:, top : top + self._crop, left : left + self._crop]
            buffer = io.BytesIO()
            Image.fromarray(window.permute(1, 2, 0).contiguous().numpy()).save(
                buffer, "PNG", compress_level=6
            )
            self._write(f"{stem}_y{top:05d}_x{left:05d}.png", buffer.getvalue())
            self.crops += 1

    def _unique_stem(self, name: str) -> str:
        """The image's name without folders, suffix and dots (which would end a WebDataset key)."""
        plain = re.sub(r"[^\w-]+", "-", str(PurePosixPath(name).with_suffix(""))).strip("-") or "image"
        stem, number = plain, 1
        while stem in self._names:
            number += 1
            stem = f"{plain}-{number}"
        self._names.add(stem)
        return stem

    def _write(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)  # time, owner and mode are fixed
        member.size = len(content)
        try:
            if self._archive is not None and self._written + len(content) > self._limit:
                self._finish()
            if self._archive is None:
                self._archive = tarfile.open(self._aside(), "w")  # noqa: SIM115
            self._archive.addfile(member, io.BytesIO(content))
        except OSError as error:
            raise ClearSRError(
                f"--shards {self._folder}: cannot be written ({error.strerror or error})"
            ) from None
        self._written += len(content)

    def _finish(self) -> None:
        """Close the shard in hand, give it its name and an index."""
        if self._archive is None:
            return
        shard = self._folder / f"crops-{self._shards:05d}.tar"
        try:
            self._archive.close()
            os.replace(self._aside(), shard)
            write_index(shard)
        except OSError as error:
            self._aside().unlink(missing_ok=True)
            raise ClearSRError(f"--shards {shard}: cannot be written ({error.strerror or error})") from None
        self._archive, self._written, self._shards = None, 0, self._shards + 1

    def _aside(self) -> Path:
        return self._folder / f".crops-{self._shards:05d}.tar.{os.getpid()}"


def crop_grid(height: int, width: int, crop: int) -> Iterator[tuple[int, int]]:
    """Top left corners of as many crops as fit side by side, spread evenly from edge to edge."""
    for top in _starts(height, crop):
        for left in _starts(width, crop):
            yield top, left


def _starts(length: int, crop: int) -> list[int]:
    count = length // crop
    if count < 2:
        return [(length - crop) // 2]
    return [round(i * (length - crop) / (count - 1)) for i in range(count)]
