"""The course of sampling (Figure 5): what each step predicts, decoded and measured.

A step's picture is the z_0 that it predicts, decoded, cropped and colour-matched as a result would be, on the
levels of 8 bits.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError
from clearsr.evaluation.measures import Scorer
from clearsr.evaluation.pairs import to_8_bit
from clearsr.paper.figures.figure_pairs import Pair
from clearsr.paper.figures.figures_2_8_control import visited_timesteps
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.seeds import file_seed


@dataclass(frozen=True)
class Course:
    """One image's way through the steps.

    Attributes:
        values: per measure, one value per step.
        of_hr: what the measures give for the HR image itself.
        pictures: 3×H×W in [0, 1] after every step; empty unless they were to be kept.
        lr: the bicubic-upsampled LR image, 3×H×W.
        hr: the HR image.
    """

    image: str
    values: dict[str, list[float]]
    of_hr: dict[str, float]
    pictures: list[torch.Tensor]
    lr: torch.Tensor
    hr: torch.Tensor


@dataclass
class TrajectoryStudy:
    """The ways of several images through the same steps; curves are means over the images."""

    timesteps: list[int]
    sampling: SamplingConfig
    courses: list[Course] = field(default_factory=list)

    @property
    def measures(self) -> list[str]:
        """The names of what was measured, keys of `MEASURES`."""
        return list(self.courses[0].values)

    def defined(self, measure: str) -> list[Course]:
        """The images for which a measure has a value at every step and for the original.

        PSNR of the original with itself is infinite, which does no harm here.
        """
        return [
            course
            for course in self.courses
            if not any(math.isnan(v) for v in (*course.values[measure], course.of_hr[measure]))
        ]

    def curves(self, measure: str) -> torch.Tensor:
        """One row per image of `defined`, one column per step, float64."""
        return torch.tensor([course.values[measure] for course in self.defined(measure)], dtype=torch.float64)

    def mean(self, measure: str) -> list[float]:
        """The curve of Figure 5; empty if no image has the measure."""
        curves = self.curves(measure)
        return curves.mean(dim=0).tolist() if len(curves) else []

    def error(self, measure: str) -> list[float]:
        """Standard error of the curve's course; zeros for a single image, empty for none.

        What the images differ in at all steps alike is taken off before: it moves the curve, but bends it
        nowhere.
        """
        curves = self.curves(measure)
        if len(curves) < 2:
            return [0.0] * (len(self.timesteps) if len(curves) else 0)
        course = curves - curves.mean(dim=1, keepdim=True)
        return (course.std(dim=0) / len(curves) ** 0.5).tolist()

    def of_hr(self, measure: str) -> float:
        """The HR images' mean; NaN if no image has the measure."""
        values = [course.of_hr[measure] for course in self.defined(measure)]
        return sum(values) / len(values) if values else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """Everything measured, in JSON's types."""
        return {
            "timesteps": self.timesteps,
            "sampling": self.sampling.model_dump(mode="json"),
            "images": [course.image for course in self.courses],
            "mean": {measure: self.mean(measure) for measure in self.measures},
            "standard_error": {measure: self.error(measure) for measure in self.measures},
            "mean_of_hr": {measure: self.of_hr(measure) for measure in self.measures},
            "per_image": {course.image: course.values for course in self.courses},
            "of_hr": {course.image: course.of_hr for course in self.courses},
        }


def study_trajectory(
    pipeline: ClearSRPipeline,
    pairs: Iterable[Pair],
    sampling: SamplingConfig,
    scorer: Scorer,
    kept: int = 0,
    on_image: Callable[[str], None] | None = None,
) -> TrajectoryStudy:
    """Follow every image through the run that `sampling` describes.

    Args:
        kept: keep the pictures of so many images.
        on_image: called with the name of each image before it is worked on.
    """
    study = TrajectoryStudy(visited_timesteps(sampling, sampling.steps), sampling)
    for index, pair in enumerate(pairs):
        if on_image is not None:
            on_image(pair.name)
        study.courses.append(follow(pipeline, pair, sampling, scorer, keep=index < kept))
    return study


@torch.no_grad()
def follow(
    pipeline: ClearSRPipeline, pair: Pair, sampling: SamplingConfig, scorer: Scorer, keep: bool
) -> Course:
    """One image's course; the pipeline's own steps, with a look at what each predicts."""
    sampling = sampling.model_copy(update={"seed": file_seed(sampling.seed, pair.name)})
    reference = pipeline.steps.prepare(pair.lr, sampling)
    pixels = reference[None].to(pipeline.device)
    conditioning = pipeline.steps.condition(pixels, sampling)
    lr = to_8_bit(pair.lr.color)
    of_hr = scorer.score(pair.hr, pair.hr, lr)
    values: dict[str, list[float]] = {measure: [] for measure in of_hr}
    pictures: list[torch.Tensor] = []

    def look(_step: int, _steps: int, z_0: torch.Tensor) -> None:
        drawn = pipeline.steps.picture(pixels, z_0, sampling)[0]
        color = pipeline.steps.finish(drawn, reference, pair.lr, sampling).color
        picture = to_8_bit(color)
        for measure, value in scorer.score(picture, pair.hr, lr).items():
            values[measure].append(value)
        if keep:
            pictures.append(picture)

    pipeline.sample(conditioning, sampling, look)
    height, width = pair.hr.shape[1:]
    return Course(pair.name, values, of_hr, pictures, reference[:, :height, :width], pair.hr)


# The paper's rule for the split points of Latent Space Adjustment (section 3.3, Figure 5a).
# "We statistically select the highest point of the NIQE curve and the point where NIQE starts to fall below
# the HR image to split the inference stage into three parts": structure refinement (ELA), content generation,
# detail enhancement (LLA). The curves are means over a folder of images, sampled without LSA.
MINIMUM_STEPS = 4  # three parts, and a step that shows where one ends
DEFAULT_STEPS = 20  # for a model whose own number of steps is less than that


@dataclass(frozen=True)
class SplitPoints:
    """What the rule finds on one NIQE curve. Steps count from 1.

    Attributes:
        steps: length of the curve.
        peak: the step with the highest NIQE, the first of equals.
        below: the first step after it with NIQE below the HR images'; None if there is none.
        ela_end: share of the steps that ELA acts on; None if the curve has no peak before its end.
        lla_start: share of the steps after which LLA acts; None if `below` is.
    """

    steps: int
    peak: int
    below: int | None
    ela_end: float | None
    lla_start: float | None

    @property
    def settings(self) -> dict[str, float]:
        """The fields of `LSAConfig` that were found."""
        found = {"ela_end": self.ela_end, "lla_start": self.lla_start}
        return {name: value for name, value in found.items() if value is not None}

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "steps": self.steps,
            "peak_step": self.peak,
            "below_hr_step": self.below,
            "ela_end": self.ela_end,
            "lla_start": self.lla_start,
        }


def split_points(niqe: Sequence[float], hr_niqe: float) -> SplitPoints:
    """The rule on a mean NIQE curve, one value per step, and the HR images' mean.

    ELA acts up to and including the step of the peak, LLA from the step on whose picture is below HR.

    Raises:
        ClearSRError: the curve is too short, or NIQE is not defined.
    """
    steps = len(niqe)
    require_steps(steps)
    if not all(map(math.isfinite, (*niqe, hr_niqe))):
        raise ClearSRError(
            "calibrate: NIQE is not defined on these images; give some of at least 96x96 pixels"
        )
    peak = max(range(steps), key=lambda step: niqe[step]) + 1  # max takes the first of equals
    below = next((step + 1 for step in range(peak, steps) if niqe[step] < hr_niqe), None)
    ela_end = peak / steps if peak < steps else None
    lla_start = None if below is None else (below - 1) / steps
    return SplitPoints(steps, peak, below, ela_end, lla_start)


def require_steps(steps: int) -> None:
    """Refuse a run that is too short to have three parts.

    Raises:
        ClearSRError: says how many steps are needed.
    """
    if steps < MINIMUM_STEPS:
        raise ClearSRError(
            f"--steps {steps}: too few to split a run into three parts; give {MINIMUM_STEPS} or more, "
            f"such as {DEFAULT_STEPS}"
        )
