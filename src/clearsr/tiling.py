"""Windows that cover a grid, and weights that blend them. Knows nothing of diffusion.

Two ways: `blend_tiles` averages overlapping results with symmetric weights (for networks whose output depends
on the whole input); `map_exactly` cuts away a margin as wide as the receptive field (for networks where it is
bounded), so that the result is the untiled one.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch


class Window(NamedTuple):
    """A rectangle of a grid: rows top..bottom, columns left..right, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    def of(self, grid: torch.Tensor) -> torch.Tensor:
        """This part of ...×H×W."""
        return grid[..., self.top : self.bottom, self.left : self.right]


def tile_windows(height: int, width: int, size: int, overlap: int) -> list[Window]:
    """Windows of side `size` (or the grid's own side, if smaller) that cover the grid.

    Neighbours share at least `overlap` cells; starts are spread evenly, the last window ends at the edge.
    """
    return [
        Window(top, left, top + min(size, height), left + min(size, width))
        for top in _starts(height, size, overlap)
        for left in _starts(width, size, overlap)
    ]


def blend_weights(height: int, width: int) -> torch.Tensor:
    """Weights height×width, positive, symmetric about the centre (L-1)/2 of both axes, least at the edges."""
    return _ramp(height)[:, None] * _ramp(width)[None, :]


def blend_tiles(
    apply: Callable[[Window], torch.Tensor], like: torch.Tensor, windows: list[Window]
) -> torch.Tensor:
    """Weighted mean of what `apply` gives for each window, B×C×H×W as `like`; of one window, just that."""
    if len(windows) == 1:
        return apply(windows[0])
    total = torch.zeros_like(like)
    weight = like.new_zeros(like.shape[-2:])
    for window in windows:
        weights = blend_weights(window.bottom - window.top, window.right - window.left).to(like)
        window.of(total).add_(apply(window) * weights)
        window.of(weight).add_(weights)
    return total / weight


def map_exactly(
    apply: Callable[[torch.Tensor], torch.Tensor], grid: torch.Tensor, size: int, margin: int, step: int = 1
) -> torch.Tensor:
    """`apply(grid)` computed piece by piece, for an `apply` whose receptive field is at most `margin` cells.

    Args:
        apply: ...×h×w -> ...×(f·h)×(f·w) with one factor f (a fraction where it shrinks).
        grid: B×C×H×W.
        size: side of a piece without its margin.
        margin: cells of context on each side.
        step: what pieces start and end on a multiple of (the cells that `apply` folds into one).
    """
    height, width = grid.shape[-2:]
    if height <= size + 2 * margin and width <= size + 2 * margin:
        return apply(grid)
    size, margin = max(step, size // step * step), -(-margin // step) * step
    rows = []
    for top in range(0, height, size):
        row = []
        for left in range(0, width, size):
            inner = Window(top, left, min(top + size, height), min(left + size, width))
            outer = Window(
                max(0, inner.top - margin),
                max(0, inner.left - margin),
                min(height, inner.bottom + margin),
                min(width, inner.right + margin),
            )
            result = apply(outer.of(grid))
            row.append(_inner_part(result, inner, outer))
        rows.append(torch.cat(row, dim=-1))
    return torch.cat(rows, dim=-2)


def _inner_part(result: torch.Tensor, inner: Window, outer: Window) -> torch.Tensor:
    """The part of an outer window's result that belongs to its inner window."""

    def scaled(cells: int) -> int:
        return cells * result.shape[-2] // (outer.bottom - outer.top)

    part = Window(
        scaled(inner.top - outer.top),
        scaled(inner.left - outer.left),
        scaled(inner.bottom - outer.top),
        scaled(inner.right - outer.left),
    )
    return part.of(result)


def _starts(length: int, size: int, overlap: int) -> list[int]:
    """First cells of the windows along one axis."""
    if length <= size:
        return [0]
    count = -(-(length - overlap) // (size - overlap))
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def _ramp(length: int) -> torch.Tensor:
    """Hann-like weights of one axis, symmetric and above zero: sin² at the cells' centres."""
    centres = (torch.arange(length, dtype=torch.float32) + 0.5) / length
    return torch.sin(torch.pi * centres) ** 2 + 1e-3
