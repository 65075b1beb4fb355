"""The folder that uploads and results lie in: a temporary one, bounded, gone with the server."""

import secrets
import shutil
import tempfile
import threading
import time
from pathlib import Path

from clearsr.config.serving import ServingConfig
from clearsr.web.errors import RequestError


class Storage:
    """A temporary folder with a limit.

    Attributes:
        root: its path.
        examples: a folder in it whose files stay.
    """

    def __init__(self, limits: ServingConfig) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="clearsr-serve-"))
        self.examples = self.root / "page" / "examples"
        self._limit = limits.max_disk_mb * 1e6
        self._age = limits.keep_minutes * 60
        self._lock = threading.Lock()

    def folder(self, kind: str = "work") -> Path:
        """A new folder of its own for one picture, its name not to be guessed.

        Args:
            kind: `page` for what the page shows: Gradio serves what is below there to whom knows the name.

        Raises:
            RequestError: 507, there is no room.
        """
        self.make_room()
        path = self.root / kind / secrets.token_hex(16)
        path.mkdir(parents=True)
        return path

    def make_room(self) -> None:
        """Delete what is older than allowed.

        Raises:
            RequestError: 507, what is left is too much even so.
        """
        with self._lock:
            oldest = time.time() - self._age
            paths = sorted(self.root.rglob("*"), reverse=True)  # what is in a folder comes before it
            total = sum(_bytes_left(path, oldest) for path in paths if not self._is_example(path))
        if total > self._limit:
            message = "the server holds too many pictures at the moment; try again later"
            raise RequestError(507, "no_storage", message, {"Retry-After": "60"})

    def _is_example(self, path: Path) -> bool:
        return path == self.examples or self.examples in path.parents

    def close(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.root, ignore_errors=True)


def _bytes_left(path: Path, oldest: float) -> int:
    """Delete a file or an empty folder that was last changed before `oldest`; returns what it still takes."""
    try:
        status = path.lstat()
        if status.st_mtime >= oldest:
            return status.st_size
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    except OSError:  # gone meanwhile, or a folder with something in it
        pass
    return 0
