"""Files and folders by local path or by any URL that fsspec knows (s3://, gs://, file://, memory://, ...).

Local paths go to the operating system directly. Elsewhere files are fetched and stored whole.
"""

import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from clearsr.errors import ClearSRError, display_name, first_line
from clearsr.image import listing
from clearsr.image.listing import Listing, is_image, suffix_of

# Here an object appears when its upload is complete, so writing aside first would only cost a copy.
_APPEARS_WHOLE = frozenset(
    ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "ocilake", "r2", "b2", "hf", "memory")
)
_VERSION_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "checksum",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)


def is_url(location: str) -> bool:
    """Whether a location is a URL and no local path."""
    return "://" in location


def normalise(location: str) -> str:
    """One spelling of a location: an absolute path, or a URL without a slash at its end.

    Raises:
        ClearSRError: it has no letters.
    """
    if not location:
        raise ClearSRError("a name is empty; expected a file, a folder (. is the one you are in) or a URL")
    if location.startswith("file://"):
        location = location.removeprefix("file://")
    if not is_url(location):
        return os.path.abspath(location)
    protocol, _, rest = location.partition("://")
    return f"{protocol}://{rest.rstrip('/')}"


def join(folder: str, *parts: str) -> str:
    """A location below a folder; empty parts are left out."""
    parts = tuple(part for part in parts if part)
    return "/".join([folder.rstrip("/"), *parts]) if is_url(folder) else os.path.join(folder, *parts)


def split(location: str) -> tuple[str, str]:
    """The folder that a file is in, and its name."""
    if not is_url(location):
        return os.path.split(location)
    folder, _, name = location.rpartition("/")
    return folder, name


def real_location(location: str) -> str:
    """A location by which two names of one folder are known to be the same."""
    return location if is_url(location) else os.path.realpath(location)


def hash_of(text: str) -> int:
    """64 bits of a text; for a million of them, the odds that any two meet are 1 in 30 million."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def contains(folder: str, location: str) -> bool:
    """Whether a location is the folder or lies below it; both as `real_location` gives them."""
    separator = "/" if is_url(folder) else os.sep
    return location == folder or location.startswith(folder.rstrip(separator) + separator)


def kind_of(location: str) -> Literal["file", "folder"] | None:
    """What is there.

    Raises:
        ClearSRError: it cannot be told, as for want of a package or of rights.
    """
    with _explained(location):
        if not is_url(location):
            return "folder" if os.path.isdir(location) else "file" if os.path.exists(location) else None
        fs, path = filesystem(location)
        try:
            return "folder" if fs.info(path)["type"] == "directory" else "file"
        except FileNotFoundError:
            return None


def list_folder(folder: str) -> Listing:
    """The images and folders in a folder.

    Raises:
        ClearSRError: it cannot be read.
    """
    if not is_url(folder):
        return listing.list_folder(folder)
    with _explained(folder):
        fs, path = filesystem(folder)
        found: tuple[list[str], list[str]] = ([], [])
        versions, others = {}, Counter[str]()
        for info in fs.ls(path, detail=True):
            name = info["name"].rstrip("/").rpartition("/")[2]
            if name.startswith(".") or info["name"].strip("/") == path.strip("/"):  # a bucket's folder marker
                continue
            if info["type"] == "directory":
                found[1].append(name)
            elif is_image(name):
                found[0].append(name)
                versions[name] = _version(info)
            else:
                others[suffix_of(name)] += 1
        return Listing(sorted(found[0]), sorted(found[1]), versions, others)


def names_in(folder: str) -> set[str]:
    """Names of all that lies in a folder; nothing if there is none."""
    with _explained(folder), suppress(FileNotFoundError, NotADirectoryError):
        if not is_url(folder):
            return set(os.listdir(folder))
        fs, path = filesystem(folder)
        return {name.rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False)}
    return set()


def version_of(file: str) -> str:
    """A text that changes when the file does: its size with a checksum or the time of its last change."""
    try:
        if not is_url(file):
            status = os.stat(file)
            return f"{status.st_size}-{status.st_mtime_ns}"
        fs, path = filesystem(file)
        return _version(fs.info(path))
    except OSError:
        return "unknown"


def changed_at(file: str) -> float | None:
    """When a file was last written, in seconds since 1970; None where that is not told."""
    try:
        if not is_url(file):
            return os.stat(file).st_mtime
        fs, path = filesystem(file)
        moment: Any = fs.modified(path)
        return moment.timestamp() if isinstance(moment, datetime) else None
    except (OSError, NotImplementedError):
        return None


def fetch(file: str, folder: Path) -> Path:
    """The file as a local one of the same name: itself, or a copy in `folder`.

    Raises:
        ClearSRError: it cannot be fetched.
    """
    if not is_url(file):
        return Path(file)
    target = folder / split(file)[1]
    with _explained(file):
        fs, path = filesystem(file)
        fs.get_file(path, str(target))
    return target


def store(source: Path, target: str) -> None:
    """Put a local file to a URL, so that nobody sees half of it where the filesystem can do that.

    Raises:
        ClearSRError: it cannot be stored.
    """
    with _explained(target):
        fs, path = filesystem(target)
        protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
        if _APPEARS_WHOLE.intersection(protocols):
            fs.put_file(str(source), path)
            return
        folder = path.rpartition("/")[0]
        aside = f"{folder}/.clearsr-{secrets.token_hex(8)}.tmp"
        fs.makedirs(folder, exist_ok=True)
        try:
            fs.put_file(str(source), aside)
            fs.mv(aside, path)
        except BaseException:
            with suppress(Exception):
                fs.rm_file(aside)
            raise


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's filesystem of a URL, which looks anew each time it is asked, and the path on it."""
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(url, use_listings_cache=False)
    return fs, path


def check_writable(folder: str) -> None:
    """Refuse a local folder that cannot be written to or made. (Of a URL, the first write tells.)

    Raises:
        ClearSRError: it cannot.
    """
    if is_url(folder):
        with _explained(folder):
            filesystem(folder)
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ClearSRError(f"-o {shown(folder)}: cannot be made a folder: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ClearSRError(f"-o {shown(folder)}: no permission to write there")


def shown(location: str) -> str:
    """A location for a one-line message."""
    return location if is_url(location) else display_name(Path(location))


@contextmanager
def _explained(location: str) -> Iterator[None]:
    """Turn what filesystems raise into one line; a missing file stays a `FileNotFoundError` inside."""
    try:
        yield
    except ClearSRError:
        raise
    except ImportError as error:
        raise ClearSRError(f"{shown(location)}: needs another package ({first_line(error)})") from None
    except ValueError as error:
        raise ClearSRError(
            f"{shown(location)}: is no location that can be used ({first_line(error)})"
        ) from None
    except FileNotFoundError:
        raise ClearSRError(f"{shown(location)}: does not exist") from None
    except Exception as error:  # each filesystem has errors of its own: botocore's, google.auth's, ...
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise ClearSRError(f"{shown(location)}: cannot be reached: {reason}") from error


def _version(info: dict[str, Any]) -> str:
    mark = next((info[key] for key in _VERSION_KEYS if info.get(key)), "")
    if isinstance(mark, datetime):  # given in listings by some, where info gives a number
        mark = mark.timestamp()
    return f"{info.get('size')}-{str(mark).strip(chr(34))}"
