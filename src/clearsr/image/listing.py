"""Which files to work on, given the files and folders that a user names."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from clearsr.errors import ClearSRError, display_name

IMAGE_SUFFIXES = frozenset(
    (
        ".png",
        ".apng",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".webp",
        ".tif",
        ".tiff",
        ".avif",
        ".bmp",
        ".dib",
    )
    + (".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".tga", ".ico", ".pcx", ".qoi", ".dds")
    + (".sgi", ".psd", ".heic", ".heif")
)


class ListedImage(NamedTuple):
    """A file to read, and where its result belongs below an output folder.

    Attributes:
        file: the file.
        relative: its path below the folder that was named, or its bare name if the file itself was.
    """

    file: Path
    relative: Path


def list_images(inputs: Sequence[Path], recursive: bool = True) -> list[ListedImage]:
    """All images that files and folders stand for, each once, in the order of `inputs`.

    Inside folders, which are sorted, only files with a suffix of `IMAGE_SUFFIXES` count, and hidden ones are
    passed over; a file named directly is always listed. Links to folders are followed, and each folder is
    entered once.

    Raises:
        ClearSRError: an input is missing, a folder cannot be read, or a folder holds no image.
    """
    found: dict[str, ListedImage] = {}
    for given in inputs:
        try:
            is_folder, exists = given.is_dir(), given.exists()
        except (OSError, ValueError) as error:
            raise ClearSRError(f"{display_name(given)}: cannot be read: {error}") from None
        if not exists:
            raise ClearSRError(f"{display_name(given)}: does not exist; expected an image file or a folder")
        listed = list(_below(given, recursive)) if is_folder else [ListedImage(given, Path(given.name))]
        if not listed:
            accepted = " ".join(sorted(IMAGE_SUFFIXES))
            raise ClearSRError(f"{display_name(given)}: holds no images (accepted suffixes: {accepted})")
        for image in listed:
            found.setdefault(os.path.abspath(image.file), image)
    return list(found.values())


def _below(root: Path, recursive: bool) -> Iterator[ListedImage]:
    """Images in a folder: its own files by name, then those of its folders by name."""
    entered: set[str] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in entered:
            continue
        entered.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ClearSRError(f"{display_name(folder)}: the folder cannot be read: {reason}") from None
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in visible:
            if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
                yield ListedImage(folder / entry.name, (folder / entry.name).relative_to(root))
        if recursive:
            waiting.extend(folder / entry.name for entry in reversed(visible) if entry.is_dir())
