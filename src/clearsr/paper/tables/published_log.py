"""Per-image logs of other harnesses, and how far what was measured here is from them.

Logs have no common format, but a line for each picture, with its name and `PSNR: 29.26` or `ssim=0.89` in it.
Whose conventions a log follows it seldom says, so each of its numbers is compared with every variant of the
measure that was taken.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clearsr.errors import ClearSRError
from clearsr.evaluation.evaluate import Evaluation
from clearsr.evaluation.measures import MEASURES
from clearsr.evaluation.pairs import bare_stem

Log = dict[str, dict[str, float]]  # picture -> name in the log -> value

_NUMBER = re.compile(r"([a-z][a-z_-]*)\s*[:=]\s*(inf|nan|-?\d+(?:\.\d+)?(?:e-?\d+)?)", re.IGNORECASE)
_FAMILIES = {name.split("_")[0] for name in MEASURES} - {"features", "lr", "grid"}  # in nobody's log


@dataclass(frozen=True)
class Agreement:
    """One number of a log beside one measure.

    Attributes:
        in_log: what the log calls it.
        images: so many were compared.
        mean: difference of the means over them, ours less the log's.
        largest: absolute difference of the picture `at`.
    """

    in_log: str
    measure: str
    images: int
    mean: float
    largest: float
    at: str


def read_log(path: Path, images: Sequence[str]) -> Log:
    """What a log says of these pictures; names match with or without tags such as `_LR4`.

    Raises:
        ClearSRError: it cannot be read, or names none of them beside a measure.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ClearSRError(f"--log {path}: cannot be read ({error.strerror or error})") from None
    known = set(images)
    found: Log = {}
    for line in text.splitlines():
        values = {key.lower(): float(number) for key, number in _NUMBER.findall(line)}
        values = {key: value for key, value in values.items() if _family(key) in _FAMILIES}
        name = _picture(line, known)
        if values and name is not None:
            found.setdefault(name, {}).update(values)
    if not found:
        raise ClearSRError(
            f"--log {path}: names none of the pictures beside a measure; expected lines such as "
            f"`{next(iter(images), 'a')}.png | PSNR: 25.10; SSIM: 0.7421`"
        )
    return found


def compare(evaluation: Evaluation, log: Log) -> list[Agreement]:
    """Every number of the log beside every variant of it that was measured; means over the seeds."""
    found = []
    for key in dict.fromkeys(key for values in log.values() for key in values):
        for measure in evaluation.names:
            if _family(measure) == _family(key):
                found += _compared(evaluation, log, key, measure)
    return found


def _compared(evaluation: Evaluation, log: Log, key: str, measure: str) -> list[Agreement]:
    """One entry, or none where no picture has both."""
    ours: dict[str, list[float]] = {}
    for row in evaluation.rows:
        if key in log.get(row.image, {}) and measure in row.values:
            ours.setdefault(row.image, []).append(row.values[measure])
    differences = {image: sum(v) / len(v) - log[image][key] for image, v in ours.items()}
    differences = {image: value for image, value in differences.items() if math.isfinite(value)}
    if not differences:
        return []
    at = max(differences, key=lambda image: abs(differences[image]))
    mean = math.fsum(differences.values()) / len(differences)
    return [Agreement(key, measure, len(differences), mean, abs(differences[at]), at)]


def _family(name: str) -> str:
    """`psnr` of `psnr_rgb`, `PSNR_Y` and `psnr-y`."""
    return re.split(r"[_-]", name.lower())[0]


def _picture(line: str, known: set[str]) -> str | None:
    """The first word of a line that names one of the pictures."""
    for word in re.split(r"[\s|;,:'\"()\[\]]+", line):
        stem = Path(word).stem if Path(word).suffix else Path(word).name
        for name in (word, stem, bare_stem(stem)):
            if name in known:
                return name
    return None
