"""Figures 2 and 8: control signals as pictures with their divergence from x_lr; the differences as bars."""

from pathlib import Path
from typing import Any

from clearsr.paper.figures.figures_2_8_control import AGAINST, ControlStudy
from clearsr.paper.figures.plots import (
    COLORS,
    TEXT_WIDTH,
    mark_level,
    new_figure,
    paper_style,
    save_figure,
)

_TITLES = {
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
            _TITLES[study.without],
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
