"""The manifest: one JSON line per picture, appended and synced, by which a run goes on where it stopped.

A kill at any moment costs at most the lines that were being written; a torn last line is cut off. In memory
a line takes 16 bytes. A later line of the same input replaces the earlier one; `compact` then drops that.
"""

import dataclasses
import json
import logging
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar

import numpy as np

from clearsr.atomic import lock, written_aside
from clearsr.config.base import parse_json
from clearsr.errors import ClearSRError, Notice, display_name, installing
from clearsr.files.storage import hash_of, normalise, split, store
from clearsr.files.upscale import Result

logger = logging.getLogger(__name__)

RowStatus = Literal["ok", "failed", "skipped"]
_STATUSES: tuple[RowStatus, ...] = ("ok", "failed", "skipped")
# What an index entry's low bits stand for: a status, and whether an output belongs to it. (One that a worker
# skipped was large enough, and has none; other skipped ones have somebody else's.)
_KINDS: tuple[tuple[RowStatus, bool], ...] = (
    ("ok", True), ("failed", False), ("skipped", True), ("skipped", False),
)  # fmt: skip
_STATUS_BITS = 3  # the low bits of an index entry; the others are of the input's version
_START = b'{"input": '


def as_line(row: Result) -> str:
    """A row as one line of JSON, without its end."""
    return json.dumps(row.as_dict())


def from_line(line: bytes | str) -> Result:
    """The row of a line.

    Raises:
        ValueError: it is none.
    """
    values = parse_json(line)
    if not isinstance(values, dict) or values.get("status") not in _STATUSES:
        raise ValueError("no row of a manifest")
    try:
        notices = tuple(map(Notice.from_values, values.get("warnings", ())))
        row = Result(**{**values, "warnings": notices})
        hash_of(row.input), hash_of(row.version)
    except (TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None
    return row


class Known(NamedTuple):
    """What the manifest says of an input."""

    status: RowStatus
    has_output: bool
    is_current: bool  # the input is still what it was


class Manifest:
    """A manifest opened for appending. It is locked until `close`, so that two runs do not mix.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file, cut off a torn end, and index its rows.

        Raises:
            ClearSRError: it cannot be opened or locked, or is something else than a manifest.
        """
        self.path = path
        self._file = _open_locked(path)
        try:
            self._keys, self._values = self._index()
        except BaseException:
            self._file.close()
            raise
        self._has_repeats = bool((self._keys[1:] == self._keys[:-1]).any())

    def lookup(self, input: str, version: str) -> Known | None:
        """The last row of an input that was there when the manifest was opened; None if there is none."""
        key = hash_of(input)
        position = int(np.searchsorted(self._keys, key, side="right")) - 1
        if position < 0 or self._keys[position] != key:
            return None
        value = int(self._values[position])
        is_current = value | _STATUS_BITS == hash_of(version) | _STATUS_BITS
        return Known(*_KINDS[value & _STATUS_BITS], is_current)

    def append(self, rows: Sequence[Result]) -> None:
        """Write rows and have the disk hold them.

        Raises:
            ClearSRError: the disk is full, and the like.
        """
        try:
            self._file.write("".join(f"{as_line(row)}\n" for row in rows).encode("ascii"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            name = display_name(self.path)
            raise ClearSRError(f"--manifest {name}: cannot be written: {error.strerror}") from error
        self._has_repeats |= any(self.lookup(row.input, row.version) for row in rows)

    def compact(self) -> None:
        """Drop rows that a later one of the same input replaces, and close."""
        if not self._has_repeats:
            self.close()
            return
        keys = np.fromiter((hash_of(from_line(line).input) for line in self._lines()), dtype=np.uint64)
        last = _last_of_each(keys)
        with written_aside(self.path) as aside:
            with aside.open("wb") as file:
                file.writelines(line for line, stays in zip(self._lines(), last, strict=True) if stays)
                file.flush()
                os.fsync(file.fileno())
            self._file.close()  # Windows replaces no open file

    def clear(self) -> None:
        """Forget all rows."""
        self._file.truncate(0)
        self._keys, self._values = self._index()
        self._has_repeats = False

    def close(self) -> None:
        """Let go of the file, which goes if it is empty."""
        if self._file.closed:
            return
        if os.fstat(self._file.fileno()).st_size == 0:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the inputs, sorted and in the order of the rows where equal, with status and version.

        What stands behind the last whole row is cut off.
        """
        entries = array("Q")
        end = 0
        for number, line in enumerate(self._lines(), start=1):
            if not line.endswith(b"\n") and (end or _START.startswith(line[: len(_START)])):
                logger.info("%s: its last line was torn off and is dropped", display_name(self.path))
                break
            row = _row_or_error(line, self.path, number)
            entries.append(hash_of(row.input))
            kind = row.status, row.status == "ok" or (row.status, row.worker) == ("skipped", None)
            entries.append(hash_of(row.version) & ~_STATUS_BITS | _KINDS.index(kind))
            end += len(line)
        self._file.truncate(end)
        table = np.frombuffer(entries, dtype=np.uint64).reshape(-1, 2)
        order = np.argsort(table[:, 0], kind="stable")
        return table[order, 0], table[order, 1]

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from file


def read_rows(path: Path) -> Iterator[Result]:
    """The rows of a manifest, in the order of writing; a torn last line is passed over.

    Raises:
        ClearSRError: it cannot be read, or a line before the last is no row.
    """
    try:
        with path.open("rb") as file:
            whole = takewhile(lambda line: line.endswith(b"\n"), file)
            yield from (_row_or_error(line, path, number) for number, line in enumerate(whole, start=1))
    except OSError as error:
        raise ClearSRError(f"{display_name(path)}: cannot be read: {error.strerror}") from None


def _row_or_error(line: bytes, path: Path, number: int) -> Result:
    try:
        return from_line(line)
    except ValueError:
        raise ClearSRError(
            f"{display_name(path)}: line {number} is no row of a manifest; repair it or name another file"
        ) from None


def _last_of_each(keys: np.ndarray) -> np.ndarray:
    """Which of the keys no later one equals."""
    _, first_from_behind = np.unique(keys[::-1], return_index=True)
    is_last = np.zeros(len(keys), dtype=bool)
    is_last[len(keys) - 1 - first_from_behind] = True
    return is_last


def _open_locked(path: Path) -> BinaryIO:
    """The file, made if need be, opened for reading and appending, and locked.

    Raises:
        ClearSRError: it cannot be, or another run has it.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        except OSError as error:
            name = display_name(path)
            raise ClearSRError(f"--manifest {name}: cannot be written: {error.strerror}") from None
        try:
            is_ours = lock(file.fileno())
            if is_ours is False:
                raise ClearSRError(
                    f"--manifest {display_name(path)}: another run is writing it; wait for it, "
                    "or name another one"
                )
            if is_ours is None:
                logger.info("%s: cannot be locked", display_name(path))
            # A run that was just ending may have removed or replaced what was opened.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


T = TypeVar("T")


def in_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items in their order; the last may be shorter, and none is empty."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


_ROWS_AT_ONCE = 10_000


def check_parquet(target: str) -> None:
    """Refuse what could not be written in the end.

    Raises:
        ClearSRError: pyarrow is missing, or the name says another format.
    """
    if not target.endswith(".parquet"):
        raise ClearSRError(f"--parquet {target}: expected a name that ends in .parquet")
    _import_pyarrow()


def write_parquet(manifest: Path, target: str) -> None:
    """Write the rows of a manifest to a file or URL, whole or not at all, in the manifest's order.

    Raises:
        ClearSRError: pyarrow is missing, or the target cannot be written.
    """
    pa, parquet = _import_pyarrow()
    text, number = pa.string(), pa.int32()
    kinds = {"seconds": pa.float64(), "width": number, "height": number, "seed": pa.int64()}
    kinds["warnings"] = pa.list_(pa.struct([("kind", text), ("text", text)]))
    schema = pa.schema([(field.name, kinds.get(field.name, text)) for field in dataclasses.fields(Result)])
    target = normalise(target)
    with tempfile.TemporaryDirectory(prefix="clearsr-") as folder:
        file = Path(folder) / split(target)[1]
        with parquet.ParquetWriter(file, schema) as writer:
            for rows in in_chunks(read_rows(manifest), _ROWS_AT_ONCE):
                records = [{key: _valid_text(v) for key, v in row.as_dict().items()} for row in rows]
                writer.write_table(pa.Table.from_pylist(records, schema))
        store(file, target)


def _valid_text(value: Any) -> Any:
    """Parquet holds Unicode only; bytes of a file's name that are none are shown as \\xff."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return value


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ClearSRError(f"--parquet: needs pyarrow; {installing('batch')}") from None
    return pyarrow, parquet
