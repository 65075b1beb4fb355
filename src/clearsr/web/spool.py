"""The folder that uploads and results lie in: one of this server's own, bounded, gone with the server.

It is in the system's temporary folder, for its owner alone (mode 700). A lock, which the system lets go when
a process ends in whatever way, tells a living server's folder from a dead one's: the next server to start
deletes those.
"""

import asyncio
import os
import secrets
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from clearsr.atomic import lock
from clearsr.config.serving import ServingConfig
from clearsr.web.errors import RequestError

_PREFIX, _LOCK, _LOCKED = "clearsr-serve-", "lock", b"locked\n"
_LOCKLESS_SECONDS = 60  # a folder without a lock that is older was left between its making and its locking


class Spool:
    """A temporary folder with a limit.

    Attributes:
        root: its path.
        examples: a folder in it whose files stay.
    """

    def __init__(self, limits: ServingConfig) -> None:
        delete_dead()
        self.root = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock_file = (self.root / _LOCK).open("wb")
        lock(self._lock_file.fileno())
        self._lock_file.write(_LOCKED)  # before that, the others leave it alone
        self._lock_file.flush()
        self.examples = self.root / "examples"
        self._limit = limits.max_disk_mb * 1e6
        self._age = limits.keep_minutes * 60
        self._lock = threading.Lock()
        self._kept: dict[Path, float | None] = {}  # folder -> since when nothing works in it

    def folder(self) -> Path:
        """A new folder for one picture, its name not to be guessed. It stays until it is released.

        Raises:
            RequestError: 507, there is no room.
        """
        self.make_room()
        path = self.root / secrets.token_hex(16)
        path.mkdir(mode=0o700)
        with self._lock:
            self._kept[path] = None
        return path

    def release(self, folder: Path) -> None:
        """Nothing works in the folder any more, or it was asked for once more: its age counts from here."""
        with self._lock:
            if folder in self._kept:
                self._kept[folder] = time.monotonic()

    def delete(self, folder: Path) -> None:
        """Delete a folder now."""
        with self._lock:
            self._kept.pop(folder, None)
        shutil.rmtree(folder, ignore_errors=True)

    def make_room(self) -> None:
        """Delete what is older than allowed.

        Raises:
            RequestError: 507, what is left is too much even so.
        """
        self.delete_old()
        if self.size() > self._limit:
            message = "the server holds too many pictures at the moment; try again later"
            raise RequestError(507, "no_storage", message, {"Retry-After": "60"})

    async def keep_tidy(self) -> None:
        """Delete what is older than allowed, also if nobody comes; until it is cancelled."""
        while True:
            await asyncio.sleep(min(60.0, max(1.0, self._age / 2)))
            await asyncio.to_thread(self.delete_old)

    def delete_old(self) -> None:
        """Delete what is older than allowed."""
        oldest = time.monotonic() - self._age
        with self._lock:
            old = [path for path, since in self._kept.items() if since is not None and since < oldest]
        for path in old:
            self.delete(path)

    def size(self) -> int:
        """Bytes of all pictures."""
        total = 0
        for folder, _, names in os.walk(self.root):  # passes over folders that are deleted meanwhile
            for name in names if Path(folder) != self.examples else ():
                with suppress(OSError):
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total

    def close(self) -> None:
        """Delete everything."""
        self._lock_file.close()
        # A picture that is being ended may still write: what it adds meanwhile goes in the second pass.
        for _ in range(3):
            shutil.rmtree(self.root, ignore_errors=True)
            if not self.root.exists():
                return
            time.sleep(0.05)


def delete_dead() -> None:
    """Delete the folders of this user's servers that are no more."""
    for root in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            status = root.lstat()
            is_own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
            if root.is_dir() and not root.is_symlink() and is_own and _is_dead(root, status.st_mtime):
                shutil.rmtree(root, ignore_errors=True)


def _is_dead(root: Path, changed: float) -> bool:
    try:
        file = (root / _LOCK).open("r+b")
    except FileNotFoundError:
        return time.time() - changed > _LOCKLESS_SECONDS
    with file:
        if not file.read(1):
            return time.time() - changed > _LOCKLESS_SECONDS
        is_free = lock(file.fileno())
    if os.name != "nt":
        return is_free is True
    try:  # there are no such locks, but an open file cannot be deleted, which says the same
        (root / _LOCK).unlink()
    except PermissionError:
        return False
    return True
