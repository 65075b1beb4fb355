"""Files that appear whole: written under another name in the same folder, then renamed.

Whoever reads them sees the old file or the new one, and a run that fails or is killed leaves the old.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clearsr.errors import ClearSRError


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Within the block, the name to write under; afterwards the file is at `path`, or nowhere if it failed.

    Raises:
        OSError: it cannot be renamed.
    """
    aside = path.with_name(f".clearsr-{os.getpid()}-{secrets.token_hex(6)}.tmp")
    try:
        yield aside
        os.replace(aside, path)
    finally:
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
