"""Figure 5: measures over the steps of sampling, the parts that they split the run into, and the pictures."""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from clearsr.evaluation.measures import MEASURES
from clearsr.paper.figures.calibration import SplitPoints
from clearsr.paper.figures.figure_5_trajectory import Course, TrajectoryStudy
from clearsr.paper.figures.plots import (
    COLORS,
    TEXT_WIDTH,
    mark_level,
    new_figure,
    paper_style,
    save_figure,
)

_COLUMNS = 6  # pictures in a row
_NARROW = 0.12  # share of an axis that the name of a part takes
_UNITS = {"psnr": " (dB)", "sharpness": " (HR = 1)"}
_CURVE_COLORS = (COLORS["blue"], COLORS["red"], COLORS["green"], COLORS["purple"])


def draw_trajectory(
    study: TrajectoryStudy, folder: Path, name: str, points: SplitPoints | None = None
) -> list[Path]:
    """Curves in a row, and beneath them the kept pictures at some steps.

    Args:
        points: the split points to draw; unset: none.
    """
    kept = [course for course in study.courses if course.pictures]
    side = TEXT_WIDTH / _COLUMNS
    heights = [1.75, *(side * course.hr.shape[1] / course.hr.shape[2] + 0.16 for course in kept)]
    numbers = study.as_dict() | ({} if points is None else {"split": points.as_dict()})
    with paper_style():
        figure = new_figure(sum(heights))
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _draw_curves(parts[0], study, points)
        for part, course in zip(parts[1:], kept, strict=True):
            _draw_pictures(part, course)
        return save_figure(figure, folder, name, numbers)


def shown_steps(steps: int, count: int) -> list[int]:
    """At most `count` of the steps 1 to `steps`, the first and the last among them."""
    count = min(count, steps)
    return sorted({1 + round(i * (steps - 1) / max(1, count - 1)) for i in range(count)})


def _draw_curves(figure: Any, study: TrajectoryStudy, points: SplitPoints | None) -> None:
    """One panel per measure: mean curve, its standard error, the originals' level."""
    drawn = [measure for measure in study.measures if study.defined(measure)]
    steps = range(1, len(study.timesteps) + 1)
    axes = figure.subplots(1, len(drawn), squeeze=False)[0]
    for axis, measure, color in zip(axes, drawn, cycle(_CURVE_COLORS), strict=False):
        mean, error = np.array(study.mean(measure)), np.array(study.error(measure))
        axis.plot(steps, mean, color=color, marker="o" if len(steps) <= 12 else "", markersize=2.5)
        axis.fill_between(steps, mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
        if not MEASURES[measure].needs_hr:
            of_hr = study.of_hr(measure)
            is_left_free = abs(mean[0] - of_hr) > abs(mean[-1] - of_hr)
            mark_level(axis, of_hr, "HR", at_left=is_left_free)
        if points is not None:
            _draw_split(axis, points)
        axis.set_title(MEASURES[measure].label + _UNITS.get(measure, ""))
        axis.set_xlabel("step")
        axis.locator_params(axis="x", integer=True, nbins=6)


def _draw_split(axis: Any, points: SplitPoints) -> None:
    """The parts in which ELA and LLA act, shaded, between the steps."""
    ela_end = None if points.ela_end is None else points.peak + 0.5
    lla_start = None if points.below is None else points.below - 0.5
    low, high = axis.get_xlim()
    bottom, top = axis.get_ylim()
    axis.set_ylim(bottom, top + 0.12 * (top - bottom))  # room for the names of the parts
    narrow = _NARROW * (high - low)  # a part that its name does not fit into has it beside it
    if ela_end is not None:
        axis.axvspan(low, ela_end, color=COLORS["sky"], alpha=0.18, linewidth=0)
        _name(axis, ela_end, "ELA", at_left=ela_end - low > narrow)
    if lla_start is not None:
        axis.axvspan(lla_start, high, color=COLORS["orange"], alpha=0.18, linewidth=0)
        _name(axis, lla_start, "LLA", at_left=high - lla_start < narrow)
    axis.set_xlim(low, high)


def _name(axis: Any, place: float, text: str, at_left: bool) -> None:
    """A word at the upper edge, on one side of a step."""
    side = "right" if at_left else "left"
    axis.text(
        place, 0.98, f" {text} ", ha=side, va="top", transform=axis.get_xaxis_transform(), fontsize=6
    )  # fmt: skip


def _draw_pictures(figure: Any, course: Course) -> None:
    """LR, some steps, HR."""
    steps = shown_steps(len(course.pictures), _COLUMNS - 2)
    pictures = [("LR", course.lr), *((f"step {s}", course.pictures[s - 1]) for s in steps), ("HR", course.hr)]
    axes = figure.subplots(1, _COLUMNS)
    for axis in axes:
        axis.set_axis_off()
    for axis, (caption, pixels) in zip(axes, pictures, strict=False):
        axis.imshow(pixels.permute(1, 2, 0).clamp(0, 1).numpy())
        axis.set_title(caption, fontsize=7, pad=2)
