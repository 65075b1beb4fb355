"""Evaluations as files: JSON with means, medians, intervals and per-image rows; CSV with the rows alone.

A run may be done in shards, on many devices: their documents are merged into that of a run in one piece.
"""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from clearsr.config.base import parse_json
from clearsr.config.evaluation import EvaluationConfig
from clearsr.errors import ClearSRError
from clearsr.evaluation.evaluate import Evaluation, Interval, Row
from clearsr.evaluation.measures import MEASURES, Scorer


class Shard(NamedTuple):
    """Every `of`-th picture, from the `number`-th on, which counts from 1."""

    number: int
    of: int

    def of_all(self, count: int) -> range:
        """The places of its pictures among so many."""
        return range(count)[self.number - 1 :: self.of]


def as_document(evaluations: Sequence[Evaluation], scorer: Scorer) -> dict[str, Any]:
    """The first evaluation at the top (`mean`, `images`, ...), the others under `others`; NaN is null."""
    facts = {
        "evaluation": scorer.config.model_dump(mode="json"),
        "labels": {name: MEASURES[name].label for name in scorer.names},
        "missing": scorer.missing,
        "versions": {"clearsr": version("clearsr"), **scorer.versions},
    }
    return _document(evaluations, facts)


def _document(evaluations: Sequence[Evaluation], facts: dict[str, Any]) -> dict[str, Any]:
    first, *others = evaluations
    return {**_described(first), "others": [_described(other) for other in others], **facts}


def as_shard(document: dict[str, Any], shard: Shard, pictures: int) -> dict[str, Any]:
    """A document that says which part of so many pictures it is of."""
    return {**document, "shard": {**shard._asdict(), "pictures": pictures}}


def merge_shards(documents: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The document of the run that shards are of, with its rows in the order of a run in one piece.

    Args:
        documents: each by the name of its file.

    Raises:
        ClearSRError: one is no shard, is of another run or there twice, or some are lacking.
    """
    first, start = next(iter(documents.items()))
    found: dict[int, tuple[str, list[Evaluation]]] = {}
    identity: dict[str, Any] = {}
    for name, document in documents.items():
        evaluations = from_document(document, name)
        shard = _shard_in(document, name)
        own = _identity(document, evaluations)
        identity = identity or own
        if other := [key for key, value in own.items() if value != identity[key]]:
            raise ClearSRError(f"{name}: is of another run than {first}: other {other[0]}")
        if shard.number in found:
            raise ClearSRError(f"{name}: is shard {shard.number}/{shard.of}, as {found[shard.number][0]} is")
        expected = len(shard.of_all(document["shard"]["pictures"]))
        if any(set(Counter(row.seed for row in e.rows).values()) != {expected} for e in evaluations):
            raise ClearSRError(f"{name}: does not have each of its pictures once")
        found[shard.number] = name, evaluations
    of = _shard_in(start, first).of
    if len(found) < of:
        lacking = next(number for number in range(1, of + 1) if number not in found)
        more = f" and {of - len(found) - 1} more" if of - len(found) > 1 else ""
        raise ClearSRError(f"--merge: lacks shard {lacking}/{of}{more}")
    parts = [found[number][1] for number in sorted(found)]
    merged = [_interleaved(shards, start["shard"]["pictures"]) for shards in zip(*parts, strict=True)]
    return _document(merged, {key: start.get(key) for key in ("evaluation", "labels", "missing", "versions")})


def _shard_in(document: dict[str, Any], name: str) -> Shard:
    """Which part a document is of.

    Raises:
        ClearSRError: it does not say.
    """
    match document.get("shard"):
        case {"number": int(number), "of": int(of), "pictures": int(pictures)} if (
            1 <= number <= of <= pictures
        ):
            return Shard(number, of)
    raise ClearSRError(f"{name}: is no result of clearsr evaluate --shard")


def _identity(document: dict[str, Any], evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """What all shards of a run have in common, by how a message calls it."""
    return {
        "number of shards": document["shard"]["of"],
        "number of pictures": document["shard"]["pictures"],
        "measures": (document["evaluation"], document.get("labels"), [e.names for e in evaluations]),
        "packages": document.get("versions"),
        "pictures": [e.dataset for e in evaluations],
        "methods": [e.method for e in evaluations],
        "seeds": [e.seeds for e in evaluations],
        "settings": [e.settings for e in evaluations],
    }


def _interleaved(shards: Sequence[Evaluation], pictures: int) -> Evaluation:
    """One method's rows of all shards: by seeds, then by pictures."""
    rows = []
    for seed in shards[0].seeds:
        of_seed = [[row for row in shard.rows if row.seed == seed] for shard in shards]
        rows += [of_seed[place % len(shards)][place // len(shards)] for place in range(pictures)]
    return replace(shards[0], rows=rows)


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
        ClearSRError: it cannot be read, is no such file, or one of a shard.
    """
    document = read_document(path)
    if "shard" in document:
        raise ClearSRError(
            f"{path}: is of a shard; put them together: clearsr evaluate --merge ... --json FILE"
        )
    return from_document(document, str(path))


def read_document(path: Path) -> dict[str, Any]:
    """What `clearsr evaluate --json` wrote.

    Raises:
        ClearSRError: it cannot be read, or is no such file.
    """
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClearSRError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(document, dict):
        raise ClearSRError(f"{path}: is no result of clearsr evaluate --json")
    return document


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
    if not all(row.seed is None or type(row.seed) is int for row in rows):
        raise ValueError("a seed must be a whole number")
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
