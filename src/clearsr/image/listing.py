"""Which files to work on, given the files and folders that a user names."""

import os
from collections.abc import Callable, Iterator, Sequence
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


class Listing(NamedTuple):
    """What lies in a folder, by name and sorted, hidden things left out.

    Attributes:
        images: files with a suffix of `IMAGE_SUFFIXES`.
        folders: folders.
        versions: of the images, where listing them told it (see `files.storage.version_of`).
    """

    images: list[str]
    folders: list[str]
    versions: dict[str, str]


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
            raise no_images_in(display_name(given))
        for image in listed:
            found.setdefault(os.path.abspath(image.file), image)
    return list(found.values())


def no_images_in(name: str) -> ClearSRError:
    """What to raise where a folder holds no image."""
    accepted = " ".join(sorted(IMAGE_SUFFIXES))
    return ClearSRError(f"{name}: holds no images (accepted suffixes: {accepted})")


def _below(root: Path, recursive: bool) -> Iterator[ListedImage]:
    """Images in a folder: its own files by name, then those of its folders by name."""
    for folder, relative, listing in walk(str(root), once_each(os.path.realpath)):
        for name in listing.images:
            yield ListedImage(Path(folder, name), Path(*relative, name))
        if not recursive:
            return


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def list_folder(folder: str) -> Listing:
    """The images and folders in a folder.

    Raises:
        ClearSRError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        images = [entry.name for entry in visible if is_image(entry.name) and entry.is_file()]
        return Listing(sorted(images), sorted(entry.name for entry in visible if entry.is_dir()), {})
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ClearSRError(f"{display_name(Path(folder))}: the folder cannot be read: {reason}") from None


def walk(
    root: str,
    enters: Callable[[str], bool],
    list_folder: Callable[[str], Listing] = list_folder,
    join: Callable[..., str] = os.path.join,
) -> Iterator[tuple[str, tuple[str, ...], Listing]]:
    """A folder and those below it, by name: each with its path below `root`, in parts, and what it holds.

    Args:
        enters: whether to go into a folder that was come to.
        list_folder: what lists one, for `root` that is no local path.
        join: what makes locations, likewise.
    """
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        relative = waiting.pop()
        folder = join(root, *relative)
        if enters(folder):
            listing = list_folder(folder)
            yield folder, relative, listing
            waiting.extend((*relative, name) for name in reversed(listing.folders))


def once_each(identify: Callable[[str], str]) -> Callable[[str], bool]:
    """Says of a folder whether it is asked about for the first time, under any of its names."""
    entered: set[str] = set()

    def is_new(folder: str) -> bool:
        before = len(entered)
        entered.add(identify(folder))
        return len(entered) > before

    return is_new
