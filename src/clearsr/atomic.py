"""Files that appear whole: written under another name in the same folder, then renamed.

Whoever reads them sees the old file or the new one, and a run that fails leaves the old. What a killed run
was writing stays under the other name until a later run removes it (`remove_unfinished`): that it is locked
no more, as the lock ends with the process, tells it from what another run is writing. The name holds the
machine, since on a shared filesystem another one's locks may not be seen.
"""

import errno
import hashlib
import logging
import os
import re
import secrets
import socket
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clearsr.errors import ClearSRError

logger = logging.getLogger(__name__)

_YOUNG = 60.0  # seconds; just made, or put there by a library in place of ours, a file is not locked


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Within the block, the name to write under; afterwards the file is at `path`, or nowhere if it failed.

    Raises:
        OSError: it cannot be made or renamed, or a device or pipe is there.
    """
    if _is_special(path, follow_links=False):
        raise OSError(errno.EINVAL, "it is a device or pipe; expected the name of a file")
    aside = path.with_name(f".clearsr-{_host()}-{secrets.token_hex(6)}.tmp")
    try:  # around all of it: a signal may come as soon as the file is made
        with _held(aside):
            yield aside
            os.replace(aside, path)
    finally:
        with suppress(OSError):  # a disk that fails keeps it; what went wrong is being raised
            aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, with its folder made if need be.

    Through a link the file behind it is replaced. What goes to a device or pipe, or to standard output by a
    name such as /dev/stdout, goes straight there.

    Raises:
        ClearSRError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _is_stdout(path):
            sys.stdout.write(text)
        elif _is_special(path):
            path.write_text(text, encoding="utf-8")
        else:
            with written_aside(Path(os.path.realpath(path))) as aside:
                aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ClearSRError(f"{path}: cannot be written ({error.strerror or error})") from None


def _is_special(path: Path, follow_links: bool = True) -> bool:
    """Whether something is there that is no file, folder or link."""
    try:
        mode = path.stat(follow_symlinks=follow_links).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))


def _is_stdout(path: Path) -> bool:
    """Whether a path leads to this process's own standard output."""
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError, AttributeError):  # nothing is there, or there is no standard output
        return False


def remove_unfinished(folders: Iterable[Path | str]) -> int:
    """Remove from folders what killed runs on this machine were writing there; returns how many files.

    Files stay that are younger than a minute, in use, or another machine's; so does what cannot be removed.
    """
    removed = 0
    for folder in folders:
        with suppress(OSError):
            removed += remove_unfinished_among(os.listdir(folder), folder)
    return removed


def remove_unfinished_among(names: Iterable[str], folder: Path | str) -> int:
    """`remove_unfinished` for one folder, which is not listed again."""
    ours = re.compile(rf"\.clearsr-{_host()}-[0-9a-f]{{12}}\.tmp")
    removed = 0
    for path in (Path(folder, name) for name in names if ours.fullmatch(name)):
        with suppress(OSError):
            if not path.is_symlink() and time.time() - path.stat().st_mtime > _YOUNG and not _is_held(path):
                path.unlink()
                removed += 1
                logger.info("%s: removed, a run that was killed left it", path)
    return removed


def _is_held(path: Path) -> bool:
    """Whether a process has a file locked, or that cannot be told."""
    file = os.open(path, os.O_RDWR)
    try:
        return lock(file) is not True
    finally:
        os.close(file)


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

    None: it cannot be locked, as on some network filesystems, or on Windows, where nobody could read it.
    """
    if os.name == "nt":
        return None
    from filelock import lock_descriptor  # here, since starting does not lock

    try:
        return lock_descriptor(file, blocking=False)
    except OSError:
        return None


def _host() -> str:
    """This machine, as file names say it."""
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
