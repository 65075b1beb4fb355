"""What all targets check: bytes are read, or refused by a `ClearSRError` of one line; nothing is left."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from clearsr.errors import ClearSRError

ROOT = Path(__file__).resolve().parent.parent


class BrokenWordError(AssertionError):
    """ClearSR did what it must not do."""


@contextmanager
def refusing() -> Iterator[None]:
    """Within the block a `ClearSRError` is an answer; it must be one line."""
    try:
        yield
    except ClearSRError as error:
        if not str(error) or "\n" in str(error) or len(str(error)) > 4000:
            raise BrokenWordError(f"an error that is not one line: {str(error)[:400]!r}") from error


@contextmanager
def file(path: Path, data: bytes) -> Iterator[Path]:
    """Within the block the bytes are a file; afterwards the folder must hold what it held before."""
    before = {entry.name for entry in path.parent.iterdir()}
    content = path.read_bytes() if path.exists() else None
    path.write_bytes(data)
    try:
        yield path
    finally:
        path.unlink() if content is None else path.write_bytes(content)
        left = {entry.name for entry in path.parent.iterdir()} ^ before
    if left:
        raise BrokenWordError(f"left behind or gone: {sorted(left)}")


def tests_module(name: str) -> ModuleType:
    """A helper of the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(f"_fuzz_{Path(name).stem}", ROOT / "tests" / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
