"""Figures 4 and 9: power spectra around a cross-attention and of DPM and SPM, and their radial profiles."""

from pathlib import Path
from typing import Any

from clearsr.paper.figures.figures_4_9_spectra import ROLES, SpectraStudy
from clearsr.paper.figures.plots import COLORS, new_figure, paper_style, save_figure

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
