"""Figures as they stand in a paper: one look for all, written as PNG and PDF with their numbers as JSON.

Matplotlib (extra `plots`) is imported where it is used; pyplot, which holds global state, is not used at all.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearsr.atomic import write_text, written_aside
from clearsr.errors import ClearSRError, installing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEXT_WIDTH = 5.5  # inches: the text of an ICLR paper
# Okabe and Ito's colours, which are told apart with any kind of colour vision.
COLORS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "red": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "gray": "#666666",
}
PNG_DPI = 200
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": PNG_DPI,
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Within the block figures are made and saved in the look above.

    Raises:
        ClearSRError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def require_matplotlib() -> None:
    """Refuse before the work if there will be nothing to draw with.

    Raises:
        ClearSRError: matplotlib is not installed; names the extra.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ClearSRError(f"figures need matplotlib, which is missing; {installing('plots')}") from None


def new_figure(height: float, width: float = TEXT_WIDTH) -> "Figure":
    """An empty figure of that size in inches; to be called, and saved, within `paper_style`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def mark_level(axis: Any, value: float, label: str, at_left: bool = False, below: bool = False) -> None:
    """A dashed line across an axis at a value, named at its right end or its left, above or below it."""
    axis.axhline(value, color=COLORS["gray"], linewidth=0.8, linestyle=(0, (4, 2)))
    axis.annotate(
        label,
        (0 if at_left else 1, value),
        xycoords=("axes fraction", "data"),
        xytext=(2 if at_left else 0, -2 if below else 2),
        textcoords="offset points",
        ha="left" if at_left else "right",
        va="top" if below else "bottom",
        color=COLORS["gray"],
        fontsize=7,
    )


def save_figure(figure: "Figure", folder: Path, name: str, numbers: Mapping[str, Any]) -> list[Path]:
    """Write `name.png`, `name.pdf` and `name.json` (every number drawn), aside first; returns their paths.

    Raises:
        ClearSRError: the folder cannot be written.
    """
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "pdf", "json")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths[:2]:
            # Without a date the same numbers give the same file.
            dateless = {"CreationDate": None} if path.suffix == ".pdf" else None
            with written_aside(path) as aside:
                figure.savefig(aside, format=path.suffix[1:], metadata=dateless)
    except OSError as error:
        raise ClearSRError(f"{folder}: figures cannot be written ({error.strerror or error})") from None
    write_numbers(numbers, paths[2])
    return paths


def write_numbers(numbers: Mapping[str, Any], path: Path) -> None:
    """Write numbers as JSON with five significant digits; what is not finite becomes null.

    Raises:
        ClearSRError: the file cannot be written.
    """
    write_text(path, json.dumps(_rounded(numbers), indent=1, allow_nan=False) + "\n")


def _rounded(value: Any) -> Any:
    """Nested numbers as JSON takes them."""
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
