"""Evaluation: every method on every pair and seed, scored as an 8-bit file would be, one row per picture.

Nothing is kept in memory but numbers; the pictures go to a folder if wanted, or through a temporary one where
a measure (FID) judges folders.
"""

import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from clearsr.config.evaluation import EvaluationConfig
from clearsr.errors import ClearSRError
from clearsr.evaluation.measures import Scorer
from clearsr.evaluation.methods import Method
from clearsr.evaluation.pairs import ImagePair, cut_to_output, fitting_hr, read_8_bit, to_8_bit
from clearsr.image import ImageData, read_image, write_image
from clearsr.seeds import file_seed


class Interval(NamedTuple):
    """A mean and the interval that covers the true one with the chosen confidence."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """What is written behind ±."""
        return (self.high - self.low) / 2


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Mean and t interval of the values that are not NaN; None if there are none.

    With one value, or an infinite one (PSNR of equal pictures), the interval is not defined: NaN.
    """
    kept = [value for value in values if not math.isnan(value)]
    if not kept:
        return None
    count = len(kept)
    mean = math.fsum(kept) / count if all(map(math.isfinite, kept)) else sum(kept) / count
    if count < 2 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan)
    variance = math.fsum((value - mean) ** 2 for value in kept) / (count - 1)
    half = student_quantile((1 + confidence) / 2, count - 1) * math.sqrt(variance / count)
    return Interval(mean, mean - half, mean + half)


def student_quantile(probability: float, degrees: int) -> float:
    """Where Student's distribution with whole degrees of freedom reaches a probability above one half."""
    low, high = 0.0, 1.0
    while student_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def student_cdf(t: float, degrees: int) -> float:
    """The distribution function at t >= 0, by the finite sums of Abramowitz & Stegun 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(theta), math.sin(theta)
    is_odd = degrees % 2 == 1
    term, total = (cosine, 0.0) if is_odd else (1.0, 0.0)
    for power in range(1 if is_odd else 0, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    inside = 2 / math.pi * (theta + sine * total) if is_odd else sine * total
    return 0.5 + inside / 2


logger = logging.getLogger(__name__)

OnImage = Callable[[str, str], None]  # called after each picture with the method and the picture's name
Mean = dict[str, float]


@dataclass(frozen=True)
class Row:
    """The values of one picture by one method under one seed (None: it draws nothing)."""

    image: str
    seed: int | None
    values: dict[str, float]


@dataclass
class Evaluation:
    """All rows of one method on one set of pictures.

    Attributes:
        of_folders: per seed, the measures that judge all pictures together.
        settings: of the method, to note beside the results.
    """

    method: str
    names: tuple[str, ...]
    config: EvaluationConfig
    dataset: str = ""
    rows: list[Row] = field(default_factory=list)
    of_folders: dict[int | None, Mean] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int | None]:
        """The seeds that were run."""
        return list(dict.fromkeys(row.seed for row in self.rows))

    @property
    def images(self) -> list[str]:
        """The pictures, each once."""
        return list(dict.fromkeys(row.image for row in self.rows))

    def means(self) -> Mean:
        """Mean of each measure over pictures and seeds, over those for which it is defined (NaN: none)."""
        over_images = {name: self.over_images(name) for name in self.names}
        return {name: math.nan if found is None else found.mean for name, found in over_images.items()}

    def medians(self) -> Mean:
        """Median of each measure over the pictures, each the mean over its seeds (NaN: defined for none)."""
        found = {}
        for name in self.names:
            means = [_mean(values) for values in self._grouped(name, lambda row: row.image).values()]
            found[name] = median([m for m in means if not math.isnan(m)] or [math.nan])
        return found

    def over_images(self, name: str) -> Interval | None:
        """Mean and confidence interval over the pictures, each the mean over its seeds."""
        if all(name not in row.values for row in self.rows):
            values = [means[name] for means in self.of_folders.values() if name in means]
            return Interval(sum(values) / len(values), math.nan, math.nan) if values else None
        per_image = self._grouped(name, lambda row: row.image)
        return mean_interval([_mean(values) for values in per_image.values()], self.config.confidence)

    def over_seeds(self, name: str) -> Interval | None:
        """Mean and confidence interval over the seeds, each the mean over its pictures; None for one seed."""
        if len(self.seeds) < 2:
            return None
        per_seed = {seed: _mean(values) for seed, values in self._grouped(name, lambda r: r.seed).items()}
        per_seed |= {seed: means[name] for seed, means in self.of_folders.items() if name in means}
        return mean_interval(list(per_seed.values()), self.config.confidence)

    def less(self, other: "Evaluation", name: str) -> Interval | None:
        """Mean and confidence interval of the differences from another method, picture by picture.

        Far narrower than those of the two means, since what makes a picture hard is the same for both; None
        if no picture has both values.
        """
        ours, theirs = (e._grouped(name, lambda row: row.image) for e in (self, other))
        differences = [
            _mean(values) - _mean(theirs[image]) for image, values in ours.items() if image in theirs
        ]
        return mean_interval([d for d in differences if math.isfinite(d)], self.config.confidence)

    def _grouped(self, name: str, key: Callable[[Row], Any]) -> dict[Any, list[float]]:
        """The values of a measure by picture, or by seed."""
        groups: dict[Any, list[float]] = {}
        for row in self.rows:
            if name in row.values:
                groups.setdefault(key(row), []).append(row.values[name])
        return groups

    def undefined(self, name: str) -> int:
        """Rows for which the measure is not defined."""
        return sum(name in row.values and math.isnan(row.values[name]) for row in self.rows)


def evaluate_outputs(
    name: str,
    pairs: Sequence[ImagePair],
    scorer: Scorer,
    on_image: OnImage | None = None,
    upscale: float = 4,
) -> Evaluation:
    """Score pictures that are there already (`sr` of every pair) against their originals and LR images.

    Args:
        upscale: the factor; an original may have so many rows and columns more, less one, that are cut off.

    Raises:
        ClearSRError: a picture cannot be read, or its size is not that of its original.
    """
    result = Evaluation(name, tuple(scorer.names), scorer.config)
    cut = []
    for pair in pairs:
        assert pair.sr is not None, "pairs to score have pictures"
        sr = read_8_bit(pair.sr)
        hr = None if pair.hr is None else read_8_bit(pair.hr)
        if hr is not None and hr.shape != sr.shape:
            hr = cut_to_output(hr, sr, upscale, pair.sr)
            cut.append(pair.name)
        lr = None if pair.lr is None else read_8_bit(pair.lr)
        result.rows.append(Row(pair.name, None, _scored(scorer, sr, hr, lr, pair.sr)))
        if on_image is not None:
            on_image(name, pair.name)
    if cut:
        logger.warning(
            "%d originals are larger than the outputs and were cut at the bottom and on the right, as BasicSR"
            " does: %s", len(cut), cut[0] if len(cut) == 1 else f"{cut[0]} and others",
        )  # fmt: skip
    if scorer.of_folders:
        result.of_folders[None] = _folders_scored(scorer, [pair.sr for pair in pairs], pairs)
    return result


def evaluate_method(
    method: Method,
    pairs: Sequence[ImagePair],
    scorer: Scorer,
    seeds: Sequence[int] = (0,),
    keep: Path | None = None,
    upscale: float = 4,
    on_image: OnImage | None = None,
) -> Evaluation:
    """Upscale the LR image of every pair under every seed, and score the results.

    Args:
        seeds: a method that draws nothing is run once, whatever they are.
        keep: folder for the pictures, as `NAME.png`, or `seed-N/NAME.png` where there are several seeds.
        upscale: the factor where there are no originals; else it follows from the sizes.

    Raises:
        ClearSRError: a picture cannot be read or written, or the sizes of a pair do not fit.
    """
    result = Evaluation(method.name, tuple(scorer.names), scorer.config, settings=method.settings or {})
    runs: list[int | None] = list(seeds) if method.draws else [None]
    with _folder(keep, needed=bool(scorer.of_folders)) as root:
        for seed in runs:
            folder = root if root is None or len(runs) == 1 else root / f"seed-{seed}"
            for pair in pairs:
                sr, hr, lr = _upscaled(method, pair, seed, upscale)
                result.rows.append(Row(pair.name, seed, _scored(scorer, sr, hr, lr, pair.lr)))
                if folder is not None:
                    _write(sr, folder / f"{pair.name}.png")
                if on_image is not None:
                    on_image(method.name, pair.name)
            if scorer.of_folders and folder is not None:
                outputs = [folder / f"{pair.name}.png" for pair in pairs]
                result.of_folders[seed] = _folders_scored(scorer, outputs, pairs)
    return result


def _upscaled(
    method: Method, pair: ImagePair, seed: int | None, upscale: float
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """The method's picture as an 8-bit file would hold it, the original cut to it, and the LR image."""
    assert pair.lr is not None, "pairs to upscale have LR images"
    lr = read_image(pair.lr)
    hr = None if pair.hr is None else fitting_hr(read_8_bit(pair.hr), lr, pair.name)
    size = (round(lr.height * upscale), round(lr.width * upscale)) if hr is None else tuple(hr.shape[-2:])
    own_seed = file_seed(seed or 0, pair.lr.name)  # as `clearsr upscale` has it
    return to_8_bit(method.upscale(lr, (size[0], size[1]), own_seed)), hr, to_8_bit(lr.color)


def _scored(
    scorer: Scorer, sr: torch.Tensor, hr: torch.Tensor | None, lr: torch.Tensor | None, file: Path | None
) -> Mean:
    try:
        return scorer.score(sr, hr, lr)
    except ClearSRError as error:
        raise ClearSRError(f"{file}: {error}") from None


def _mean(values: list[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan


def _write(color: torch.Tensor, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClearSRError(f"{path.parent}: cannot be made a folder ({error.strerror})") from None
    write_image(ImageData(color), path)


@contextmanager
def _folder(keep: Path | None, needed: bool) -> Iterator[Path | None]:
    """The folder to keep pictures in; a temporary one if only a measure needs it."""
    if keep is not None or not needed:
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="clearsr-") as folder:
        yield Path(folder)


def _folders_scored(
    scorer: Scorer, outputs: Sequence[Path | None], pairs: Sequence[ImagePair]
) -> dict[str, float]:
    """What compares the outputs as a whole with the originals as a whole."""
    with _linked(outputs) as ours, _linked([pair.hr for pair in pairs]) as originals:
        return scorer.score_folders(ours, originals)


@contextmanager
def _linked(files: Sequence[Path | None]) -> Iterator[Path]:
    """A temporary folder that holds exactly these files, for measures that take whatever a folder holds."""
    with tempfile.TemporaryDirectory(prefix="clearsr-") as folder:
        for index, file in enumerate(files):
            assert file is not None, "measures of folders are taken where there are originals"
            link = Path(folder) / f"{index:06d}{file.suffix}"
            try:
                link.symlink_to(file.resolve())
            except OSError:  # Windows may not allow it
                shutil.copyfile(file, link)
        yield Path(folder)
