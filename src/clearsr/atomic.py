"""Files that appear whole: written under another name in the same folder, then renamed.

Whoever reads them sees the old file or the new one, and a run that fails leaves the old. What a killed run
was writing stays under the other name until a later run removes it (`remove_unfinished`).
"""

import hashlib
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clearsr.errors import ClearSRError

logger = logging.getLogger(__name__)

_ASIDE = re.compile(r"\.clearsr-(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{12}\.tmp")
_YOUNG = 60.0  # seconds


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Within the block, the name to write under; afterwards the file is at `path`, or nowhere if it failed.

    Raises:
        OSError: it cannot be made or renamed.
    """
    aside = path.with_name(f".clearsr-{_host()}-{os.getpid()}-{secrets.token_hex(6)}.tmp")
    try:  # around all of it: a signal may come as soon as the file is made
        with _held(aside):
            yield aside
            os.replace(aside, path)
    finally:
        with suppress(OSError):  # a disk that fails keeps it; what went wrong is being raised
            aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, with its folder made if need be.

    Raises:
        ClearSRError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ClearSRError(f"{path}: cannot be written ({error.strerror or error})") from None


def remove_unfinished(folders: Iterable[Path | str]) -> int:
    """Remove from folders what killed runs on this machine were writing there; returns how many files.

    Files stay that are younger than a minute, of a living process, or of another machine (on a shared
    filesystem neither its processes nor, with some, its locks can be seen); so does what cannot be removed.
    """
    removed = 0
    for folder in folders:
        with suppress(OSError), os.scandir(folder) as entries:
            dead = [Path(entry.path) for entry in entries if _is_dead(entry)]
            for path in dead:
                path.unlink(missing_ok=True)
                removed += 1
                logger.info("%s: removed, a run that was killed left it", path)
    return removed


def _is_dead(entry: os.DirEntry[str]) -> bool:
    """Whether nobody writes a file any more that was being written."""
    match = _ASIDE.fullmatch(entry.name)
    if not match or match["host"] != _host() or not entry.is_file(follow_symlinks=False):
        return False
    if time.time() - entry.stat(follow_symlinks=False).st_mtime < _YOUNG or os.name == "nt":
        return False
    process = int(match["process"])
    if process != os.getpid() and _is_alive(process):
        return False  # or a later one of the same number; then the file goes another time
    file = os.open(entry.path, os.O_RDWR)
    try:
        return lock(file) is True
    finally:
        os.close(file)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Make the file, and lock it within the block: the lock ends with the process, however that ends."""
    if os.name == "nt":  # where an open file cannot be renamed
        yield
        return
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        lock(file)
        yield
    finally:
        os.close(file)


def lock(file: int) -> bool | None:
    """Keep others out of an open file until this process ends: True; False, another has it.

    None: there are no such locks, on Windows and on some network filesystems.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _host() -> str:
    """This machine, as file names say it."""
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
