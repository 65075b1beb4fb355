"""Which files to work on, given the files and folders that a user names."""

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from clearsr.errors import ClearSRError, display_name

logger = logging.getLogger(__name__)

_MOST_SUFFIXES = 8  # that are counted one by one in a message
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
        others: how many other files there are, by suffix.
    """

    images: list[str]
    folders: list[str]
    versions: dict[str, str]
    others: Counter[str]


def list_images(inputs: Sequence[Path], recursive: bool = True) -> list[ListedImage]:
    """All images that files and folders stand for, each once, in the order of `inputs`.

    Inside folders, which are sorted, only files with a suffix of `IMAGE_SUFFIXES` count, and hidden ones are
    passed over; a file named directly is always listed. Links to folders are followed, and each folder is
    entered once. How many other files there are in them is said in one line.

    Raises:
        ClearSRError: an input is missing, a folder cannot be read, or a folder holds no image.
    """
    found: dict[str, ListedImage] = {}
    others: Counter[str] = Counter()
    for given in inputs:
        try:
            is_folder, exists = given.is_dir(), given.exists()
        except (OSError, ValueError) as error:
            raise ClearSRError(f"{display_name(given)}: cannot be read: {error}") from None
        if not exists:
            raise ClearSRError(f"{display_name(given)}: does not exist; expected an image file or a folder")
        single = [ListedImage(given, Path(given.name))]
        listed = list(_below(given, recursive, others)) if is_folder else single
        if not listed:
            raise no_images_in(display_name(given), others)
        for image in listed:
            found.setdefault(os.path.abspath(image.file), image)
    tell_of_others(others)
    return list(found.values())


def no_images_in(name: str, others: Counter[str]) -> ClearSRError:
    """What to raise where a folder holds no image, but maybe other files."""
    accepted = " ".join(sorted(IMAGE_SUFFIXES))
    beside = f" but {_counted(others)}" if others else ""
    return ClearSRError(f"{name}: holds no images{beside} (accepted suffixes: {accepted})")


def tell_of_others(others: Counter[str]) -> None:
    """Say in one line how many files in folders were passed over, if there were any."""
    if others:
        what = "1 file in a folder is passed over, as by its name it is no picture"
        if others.total() > 1:
            what = (
                f"{others.total()} files in folders are passed over, as by their names they are no pictures"
            )
        logger.warning("%s that can be read: %s", what, _counted(others))


def _counted(others: Counter[str]) -> str:
    """The suffixes with their numbers, those that are most first."""
    ordered = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count} {suffix or 'without suffix'}" for suffix, count in ordered[:_MOST_SUFFIXES]]
    rest = sum(count for _, count in ordered[_MOST_SUFFIXES:])
    return ", ".join([*parts, *([f"{rest} of other kinds"] if rest else [])])


def _below(root: Path, recursive: bool, others: Counter[str]) -> Iterator[ListedImage]:
    """Images in a folder: its own files by name, then those of its folders by name; counts other files."""
    for folder, relative, listing in walk(str(root), once_each(os.path.realpath)):
        others.update(listing.others)
        for name in listing.images:
            yield ListedImage(Path(folder, name), Path(*relative, name))
        if not recursive:
            return


def is_image(name: str) -> bool:
    """Whether a file's name says that it is an image that can be read here."""
    suffix = suffix_of(name)
    return suffix in IMAGE_SUFFIXES or (suffix == ".jxl" and _reads_jxl())


def suffix_of(name: str) -> str:
    """What a file's name ends in, such as `.jpg`; in small letters, at most 20 of them."""
    return os.path.splitext(name)[1].lower()[:20]


@functools.cache
def _reads_jxl() -> bool:
    return find_spec("pillow_jxl") is not None


def list_folder(folder: str) -> Listing:
    """The images and folders in a folder.

    Raises:
        ClearSRError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        folders = sorted(entry.name for entry in visible if entry.is_dir())
        files = [entry.name for entry in visible if entry.is_file()]
        images = sorted(name for name in files if is_image(name))
        others = Counter(suffix_of(name) for name in files if not is_image(name))
        return Listing(images, folders, {}, others)
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
