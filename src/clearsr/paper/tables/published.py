"""The paper's Tables 1 to 8 and rows of newer methods, as shipped in `published.json` with their sources."""

import functools
import importlib.resources
import json
from collections.abc import Mapping
from datetime import date
from typing import Any

from clearsr.errors import ClearSRError

# How many pairs the published rows of Table 1 are means over (StableSR's test sets, 128 -> 512 pixels).
DATASETS = {"DRealSR": 93, "RealSR": 100, "DIV2K-Val": 3000}


@functools.cache
def _document() -> dict[str, Any]:
    text = importlib.resources.files("clearsr.paper.tables").joinpath("published.json").read_text("utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


def published_table(number: int) -> dict[str, Any]:
    """A table of the paper: `title`, `source`, `measures` and `rows`, each row with its `values`.

    Raises:
        ClearSRError: the paper has no such table.
    """
    tables = _document()["tables"]
    if str(number) not in tables:
        raise ClearSRError(f"table {number}: the paper has Tables {', '.join(tables)}")
    table: dict[str, Any] = tables[str(number)]
    return table


def newer_rows(dataset: str) -> list[dict[str, Any]]:
    """Rows of methods that the paper does not have, each with its `source` and when it was `read`."""
    return [row for row in map(sourced, _document()["newer"]["rows"]) if row["dataset"] == dataset]


def newer_methods() -> list[dict[str, Any]]:
    """Methods with `source` and `read`, and where stated `million_parameters`, `steps` and `licence`."""
    return [sourced(method) for method in _document()["newer"]["methods"]]


def sourced(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row, if it says where it is from and when it was read there.

    Raises:
        ValueError: it does not; what nobody can look up is not shipped.
    """
    if not str(row.get("source", "")).strip():
        raise ValueError(f"{row.get('method')}: a published row needs its source")
    date.fromisoformat(row.get("read", ""))
    return dict(row)


def note() -> str:
    """What to know when reading the published numbers."""
    return str(_document()["note"])


def dataset_of(name: str) -> str | None:
    """The benchmark of Table 1 that the name of a folder stands for, such as RealSRVal_crop128; or None."""
    plain = name.lower().replace("-", "").replace("_", "")
    return next((known for known in DATASETS if known.lower().removesuffix("-val") in plain), None)
