"""Evaluations as files: JSON with means, medians, intervals and per-image rows; CSV with the rows alone."""

import csv
import io
import json
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clearsr.config.evaluation import EvaluationConfig
from clearsr.config.parsing import parse_json
from clearsr.errors import ClearSRError
from clearsr.evaluation.evaluate import Evaluation, Interval, Row
from clearsr.evaluation.measures import MEASURES, Scorer


def as_document(evaluations: Sequence[Evaluation], scorer: Scorer) -> dict[str, Any]:
    """The first evaluation at the top (`mean`, `images`, ...), the others under `others`; NaN is null."""
    first, *others = evaluations
    return {
        **_described(first),
        "others": [_described(other) for other in others],
        "evaluation": scorer.config.model_dump(mode="json"),
        "labels": {name: MEASURES[name].label for name in scorer.names},
        "missing": scorer.missing,
        "versions": {"clearsr": version("clearsr"), **scorer.versions},
    }


def from_document(document: dict[str, Any], source: str) -> list[Evaluation]:
    """The evaluations that `as_document` described.

    Raises:
        ClearSRError: it is no such document.
    """
    try:
        config = EvaluationConfig.model_validate(document["evaluation"])
        return [_restored(part, config) for part in (document, *document["others"])]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ClearSRError(f"{source}: is no result of clearsr evaluate --json ({error!r})") from None


def read_results(path: Path) -> list[Evaluation]:
    """The evaluations of a file that `clearsr evaluate --json` wrote.

    Raises:
        ClearSRError: it cannot be read, or is no such file.
    """
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClearSRError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(document, dict):
        raise ClearSRError(f"{path}: is no result of clearsr evaluate --json")
    return from_document(document, str(path))


def to_json(document: Any) -> str:
    """JSON text in which infinity (PSNR of equal pictures) is a number too large for a float, so that it
    stays JSON and is read back as infinity.
    """
    chunks = json.JSONEncoder(indent=1, ensure_ascii=False).iterencode(_without_nan(document))
    numbers = {"Infinity": "1e999", "-Infinity": "-1e999"}
    return "".join(numbers.get(chunk, chunk) for chunk in chunks) + "\n"


def to_csv(evaluations: Sequence[Evaluation]) -> str:
    """A row per method, seed and picture; empty where a measure is not defined."""
    names = list(dict.fromkeys(name for e in evaluations for row in e.rows for name in row.values))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "seed", "image", *names])
    for evaluation in evaluations:
        for row in evaluation.rows:
            values = [row.values.get(name, math.nan) for name in names]
            cells = ["" if math.isnan(value) else repr(value) for value in values]
            writer.writerow([evaluation.method, "" if row.seed is None else row.seed, row.image, *cells])
    return text.getvalue()


def _described(evaluation: Evaluation) -> dict[str, Any]:
    over_images = {name: evaluation.over_images(name) for name in evaluation.names}
    over_seeds = {name: evaluation.over_seeds(name) for name in evaluation.names}
    return {
        "method": evaluation.method,
        "dataset": evaluation.dataset,
        "count": len(evaluation.images),
        "mean": evaluation.means(),
        "median": evaluation.medians(),
        "interval": {name: _bounds(found) for name, found in over_images.items()},
        "seeds": [seed for seed in evaluation.seeds if seed is not None],
        "over_seeds": {n: {"mean": f.mean, "interval": _bounds(f)} for n, f in over_seeds.items() if f},
        "undefined": {n: evaluation.undefined(n) for n in evaluation.names if evaluation.undefined(n)},
        "of_folders": [{"seed": seed, **values} for seed, values in evaluation.of_folders.items()],
        "settings": evaluation.settings,
        "images": [
            {"image": row.image, **({} if row.seed is None else {"seed": row.seed}), **row.values}
            for row in evaluation.rows
        ],
    }


def _bounds(interval: Interval | None) -> list[float]:
    return [math.nan, math.nan] if interval is None else [interval.low, interval.high]


def _restored(part: dict[str, Any], config: EvaluationConfig) -> Evaluation:
    rows = [
        Row(
            str(row["image"]),
            row.get("seed"),
            {
                name: math.nan if value is None else float(value)
                for name, value in row.items()
                if name in MEASURES
            },
        )
        for row in part["images"]
    ]
    of_folders = {
        values["seed"]: {name: float(value) for name, value in values.items() if name != "seed"}
        for values in part["of_folders"]
    }
    names = tuple(name for name in part["mean"] if name in MEASURES)
    return Evaluation(part["method"], names, config, part["dataset"], rows, of_folders, part["settings"])


def _without_nan(value: Any) -> Any:
    """The same with null for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
