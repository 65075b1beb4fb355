"""The manifest as a Parquet table, for those who would rather ask it questions than read lines."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from clearsr.batch.chunks import in_chunks
from clearsr.batch.manifest import Row, read_rows
from clearsr.errors import ClearSRError
from clearsr.files.storage import normalise, split, store

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
    schema = pa.schema([(field.name, kinds.get(field.name, text)) for field in dataclasses.fields(Row)])
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
        raise ClearSRError('--parquet: needs pyarrow; pip install "clearsr[batch]"') from None
    return pyarrow, parquet
