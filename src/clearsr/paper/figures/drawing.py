"""Figures 2, 4, 5, 8 and 9 as drawings.

5: measures over the steps of sampling, the parts that they split the run into, and the pictures. 4 and 9:
power spectra around a cross-attention and of DPM and SPM, and their radial profiles. 2 and 8: control signals
as pictures with their divergence from x_lr; the differences as bars.
"""

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from clearsr.evaluation.measures import MEASURES
from clearsr.paper.figures.figure_5_trajectory import Course, SplitPoints, TrajectoryStudy
from clearsr.paper.figures.figures_2_8_control import AGAINST, ControlStudy
from clearsr.paper.figures.figures_4_9_spectra import ROLES, SpectraStudy
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


_TITLES = {
    "before": "before\ncross-attention",
    "after": "after\ncross-attention",
    "detail": "DPM",
    "structure": "SPM",
}
_COLORS = {
    "before": COLORS["gray"],
    "after": COLORS["blue"],
    "detail": COLORS["blue"],
    "structure": COLORS["orange"],
}
_STYLES = {"before": "--", "after": "-", "detail": "-", "structure": "--"}
_PAIRS = (ROLES[:2], ROLES[2:])


def draw_spectra(study: SpectraStudy, folder: Path, rows: int) -> list[Path]:
    """A row of four spectra for each of the first images, zero frequency in the middle, and the profiles."""
    rows = min(rows, len(study.spectra))
    side = 1.05  # of a spectrum with what is between them, in inches
    with paper_style():
        figure = new_figure(rows * side + 0.35 + 1.9)
        above, below = figure.subfigures(2, 1, height_ratios=[rows * side + 0.35, 1.9], squeeze=False)[:, 0]
        axes = above.subplots(rows, 4, squeeze=False)
        for row in range(rows):
            for pair in _PAIRS:
                _draw_pair(above, axes[row], study, row, pair)
            axes[row][0].set_ylabel(study.images[row])
        for axis, role in zip(axes[0], ROLES, strict=True):
            axis.set_title(_TITLES[role])
        _draw_profiles(below, study)
        return save_figure(figure, folder, "spectra", study.as_dict())


def _draw_pair(figure: Any, axes: Any, study: SpectraStudy, row: int, pair: tuple[str, ...]) -> None:
    """Two spectra in one range of colours, in dB relative to a flat spectrum, with a scale beside them."""
    decibels = {}
    for role in pair:
        spectrum = study.spectra[row][role]
        decibels[role] = 10 * (spectrum / spectrum.mean()).clamp_min(1e-12).log10()
    low = min(float(values.quantile(0.01)) for values in decibels.values())
    high = max(float(values.max()) for values in decibels.values())
    shown = [axes[ROLES.index(role)] for role in pair]
    for axis, values in zip(shown, decibels.values(), strict=True):
        image = axis.imshow(values.numpy(), cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(image, ax=shown, shrink=0.85, aspect=18, pad=0.02, label="dB")


def _draw_profiles(figure: Any, study: SpectraStudy) -> None:
    """Mean profiles of all images, with one standard deviation between the images where there are several."""
    share = study.mean_shares()
    places = {
        "before": study.layer,
        "after": study.layer,
        "detail": str(study.signal),
        "structure": str(study.signal),
    }
    titles = (f"cross-attention {study.layer}", f"control signal {study.signal}")
    for axis, pair, title in zip(figure.subplots(1, 2), _PAIRS, titles, strict=True):
        for role in pair:
            grid, rows = study.profiles(role)
            level = 10 * rows.clamp_min(1e-12).log10()
            mean = level.mean(dim=0)
            label = f"{_TITLES[role].splitlines()[0]} ({100 * share[role][places[role]]:.1f} % high)"
            axis.plot(grid, mean, _STYLES[role], color=_COLORS[role], label=label)
            if len(rows) > 1:
                spread = level.std(dim=0)
                axis.fill_between(
                    grid, mean - spread, mean + spread, color=_COLORS[role], alpha=0.15, linewidth=0
                )
        axis.set_title(title)
        axis.set_xlabel("spatial frequency (share of Nyquist)")
        axis.set_xlim(0, 1)
        axis.legend()
    figure.axes[0].set_ylabel("power (dB)")


_CONTROL_TITLES = {
    "controlnet": "without constraint\n(its ControlNet alone)",
    AGAINST: "without constraint\n(second model)",
}
_MAX_LABELS = 24  # with more images the bars carry no names


def draw_pictures(study: ControlStudy, folder: Path, definition: str) -> list[Path]:
    """Figure 2: a row per image with LR, x_lr and the control signals without and with the constraint."""
    rows = len(study.pictures)
    side = TEXT_WIDTH / 4 - 0.08  # what stays between two pictures
    aspect = study.pictures[0].lr.shape[1] / study.pictures[0].lr.shape[2]
    with paper_style():
        figure = new_figure(rows * (side * aspect + 0.22) + 0.3)
        axes = figure.subplots(rows, 4, squeeze=False)
        without, full = study.means(study.without, definition), study.means("full", definition)
        for row, picture in enumerate(study.pictures):
            shown = (picture.lr, picture.embedding, picture.signals[study.without], picture.signals["full"])
            notes = (study.images[row], "", _divergence(without[row]), _divergence(full[row]))
            for axis, pixels, note in zip(axes[row], shown, notes, strict=True):
                axis.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
                axis.set_xlabel(note, labelpad=2)
                _bare(axis)
        titles = (
            "LR image\n(bicubic)",
            "latent LR\nembedding",
            _CONTROL_TITLES[study.without],
            "with constraint\n(ClearSR)",
        )
        for axis, title in zip(axes[0], titles, strict=True):
            axis.set_title(title)
        return save_figure(figure, folder, "control-signals", study.as_dict())


def draw_differences(study: ControlStudy, folder: Path, definition: str) -> list[Path]:
    """Figure 8: Diff of every image (Eq. 5), largest first."""
    values = study.differences(definition)
    order = sorted(range(len(values)), key=lambda i: -values[i])
    names = [study.images[i] for i in order]
    heights = [values[i] for i in order]
    mean = sum(values) / len(values)
    with paper_style():
        named = len(names) <= _MAX_LABELS
        figure = new_figure(2.3 if named else 1.9)
        axis = figure.add_subplot()
        colors = [COLORS["blue"] if value > 0 else COLORS["red"] for value in heights]
        axis.bar(range(len(heights)), heights, width=min(0.7, 0.07 * len(heights)), color=colors)
        axis.axhline(0, color="black", linewidth=0.6)
        mark_level(axis, mean, f"mean {mean:.3g}", at_left=mean < 0, below=mean < 0)  # where no bars are
        axis.set_ylabel(f"Diff of {definition} $D_{{kl}}$ (nats)")
        if named:
            is_long = max(map(len, names)) > 4
            turned: dict[str, Any] = (
                {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
            )
            axis.set_xticks(range(len(names)), names, **turned)
        else:
            axis.set_xticks([])
            axis.set_xlabel(f"{len(names)} images")
        numbers = {"definition": definition, "images": names, "difference": heights, "mean": mean}
        return save_figure(figure, folder, "divergence-differences", numbers)


def _divergence(value: float) -> str:
    return f"$D_{{kl}}$ = {value:.3f}"


def _bare(axis: Any) -> None:
    """A picture needs no axes."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
