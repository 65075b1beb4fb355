"""Figure 7: curves of the measures over alpha and beta, and one photograph at every setting."""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from clearsr.evaluation.measures import labels
from clearsr.files.comparison import side_by_side
from clearsr.image import ImageData, from_pil, to_pil, write_image
from clearsr.paper.figures.plots import COLORS, new_figure, paper_style, save_figure
from clearsr.paper.tables.table_4_lsa import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHT = 4.0
_DETAIL = 160  # pixels a side that the picture grid shows


def draw_curves(sweep: Sweep, folder: Path, name: str = "figure7") -> list[Path]:
    """Write the curves as `name.png`, `name.pdf` and `name.json`; returns the paths.

    Left over alpha with a line per beta, right over beta with a line per alpha; above PSNR (or the first
    measure there is), below the measure that shows generation.
    """
    fidelity = "psnr" if "psnr" in sweep.names else sweep.names[0]
    with paper_style():
        figure = new_figure(_HEIGHT)
        axes = figure.subplots(2, 2, sharex="col", sharey="row")
        for row, measure in enumerate((fidelity, sweep.quality)):
            _curves(axes[row][0], sweep, measure, over_alpha=True)
            _curves(axes[row][1], sweep, measure, over_alpha=False)
            axes[row][0].set_ylabel(labels([measure])[measure].replace("↑", "(higher is better)").replace(
                "↓", "(lower is better)"
            ))  # fmt: skip
        for column, (strength, other) in enumerate((("α (ELA)", "β"), ("β (LLA)", "α"))):
            axes[1][column].set_xlabel(strength)
            # Above the curves: between them there is no place that is always free.
            place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 4, "columnspacing": 1}
            axes[0][column].legend(title=other, handlelength=1, **place)
        return save_figure(figure, folder, name, _numbers(sweep))


def draw_pictures(sweep: Sweep, path: Path) -> None:
    """Write the example at every setting, a row per alpha: the most textured detail of 160 pixels."""
    first = next(iter(sweep.pictures.values()))
    top, left, side = _busiest(first)
    shown = []
    for alpha in sweep.alphas:
        for beta in sweep.betas:
            detail = sweep.pictures[alpha, beta][:, top : top + side, left : left + side].contiguous()
            shown.append((f"alpha {alpha:g} beta {beta:g}", to_pil(ImageData(detail))))
    write_image(from_pil(side_by_side(shown, columns=len(sweep.betas))), path)


def _curves(axes: "Axes", sweep: Sweep, name: str, over_alpha: bool) -> None:
    along, others = (sweep.alphas, sweep.betas) if over_alpha else (sweep.betas, sweep.alphas)
    palette = list(COLORS.values())
    for index, other in enumerate(others):
        values = [sweep.mean(name, s, other) if over_alpha else sweep.mean(name, other, s) for s in along]
        color = palette[index % len(palette)]
        axes.plot(along, values, color=color, marker="o", markersize=2.5, label=f"{other:g}")


def _numbers(sweep: Sweep) -> dict[str, Any]:
    """Every number that is drawn."""
    return {
        "alphas": list(sweep.alphas),
        "betas": list(sweep.betas),
        "images": len(next(iter(sweep.evaluations.values())).images),
        **{
            name: [[sweep.mean(name, a, b) for b in sweep.betas] for a in sweep.alphas]
            for name in sweep.names
        },
    }


def _busiest(picture: torch.Tensor) -> tuple[int, int, int]:
    """Top, left and side of the square with the most texture, of those on a coarse grid."""
    height, width = picture.shape[-2:]
    side = min(_DETAIL, height, width)
    step = max(1, side // 4)
    gray = picture.mean(dim=0)
    # Of the root, because one strong edge is no texture.
    texture = F.pad((gray[1:, 1:] - gray[:-1, :-1]).abs().sqrt(), (0, 1, 0, 1))
    places = product(range(0, height - side + 1, step), range(0, width - side + 1, step))
    top, left = max(places, key=lambda p: float(texture[p[0] : p[0] + side, p[1] : p[1] + side].sum()))
    return top, left, side
