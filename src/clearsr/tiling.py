"""Windows that cover a grid, and weights that blend them. Knows nothing of diffusion.

Two ways: `blend_tiles` averages overlapping results with symmetric weights (for the denoising network, whose
output depends on the whole input); `map_exactly` cuts away a margin as wide as the receptive field (for
networks where it is bounded), so that the result is the untiled one.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch


class ReadGrid(Protocol):
    """What tiles are cut from: a tensor ...×H×W, or something that is read alike."""

    @property
    def shape(self) -> Any:
        """Sizes, height and width last."""
        ...

    def __getitem__(self, index: Any, /) -> torch.Tensor:
        """The part at `Window.cells`."""
        ...


class Grid(ReadGrid, Protocol):
    """What tiles are put into as well."""

    def __setitem__(self, index: Any, value: Any, /) -> None:
        """Write the part at `Window.cells`."""
        ...

    def new_zeros(self, size: Any, /) -> Any:
        """Another grid of the same kind."""
        ...


class Window(NamedTuple):
    """A rectangle of a grid: rows top..bottom, columns left..right, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def cells(self) -> tuple[Any, slice, slice]:
        """What this part of ...×H×W is written with: `grid[window.cells] = part`."""
        return ..., slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left

    def of(self, grid: ReadGrid) -> torch.Tensor:
        """This part of ...×H×W."""
        return grid[self.cells]

    def grown(self, margin: int, height: int, width: int) -> "Window":
        """With `margin` more cells on each side, as far as a grid of that size has them."""
        return Window(
            max(0, self.top - margin),
            max(0, self.left - margin),
            min(height, self.bottom + margin),
            min(width, self.right + margin),
        )

    def shared(self, other: "Window") -> "Window":
        """The cells that both have."""
        return Window(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def seen_from(self, outer: "Window") -> "Window":
        """The same cells, counted from the corner of a window around them."""
        return Window(
            self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left
        )

    def times(self, cells: int) -> "Window":
        """The same part of a grid that is `cells` times finer."""
        return Window(*(cells * edge for edge in self))

    def over(self, cells: int) -> "Window":
        """The part of a grid `cells` times coarser that covers this one."""
        return Window(
            self.top // cells, self.left // cells, -(-self.bottom // cells), -(-self.right // cells)
        )


def tile_windows(height: int, width: int, size: int, overlap: int) -> list[Window]:
    """Windows of side `size` (or the grid's own side, if smaller) that cover the grid.

    All are of one size. Neighbours share at least `overlap` cells; starts are spread evenly, the last window
    ends at the edge.
    """
    return [
        Window(top, left, top + min(size, height), left + min(size, width))
        for top in _starts(height, size, overlap)
        for left in _starts(width, size, overlap)
    ]


def stack_windows(grid: ReadGrid, windows: Sequence[Window]) -> torch.Tensor:
    """Parts of equal size as one batch, (n·B)×C×h×w: every row of B×C×H×W at the first window, and so on."""
    return torch.cat([window.of(grid) for window in windows])


def blend_tiles(tiles: Iterable[torch.Tensor], like: Grid, windows: list[Window]) -> Any:
    """Weighted mean of a tile for each window, a grid as `like`; of one window, just that tile.

    Args:
        tiles: B×C×h×w each, in the order of the windows; taken one by one.
        like: B×C×H×W; the result is of its kind.
        windows: as `tile_windows` gives them: every combination of a range of rows and one of columns.
    """
    if len(windows) == 1:
        return next(iter(tiles))
    height, width = like.shape[-2:]
    rows = _shares({(w.top, w.bottom) for w in windows}, height)
    columns = _shares({(w.left, w.right) for w in windows}, width)
    total = like.new_zeros(like.shape)
    for window, tile in zip(windows, tiles, strict=True):
        share = rows[window.top, window.bottom][:, None] * columns[window.left, window.right][None, :]
        total[window.cells] += tile * share.to(tile)
    return total


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
    whole: torch.Tensor | None = None
    for inner in pieces(height, width, size):
        outer = inner.grown(margin, height, width)
        result = apply(outer.of(grid))

        def scaled(cells: int, rows: int = result.shape[-2], of: int = outer.size[0]) -> int:
            return cells * rows // of

        part = Window(*(scaled(edge) for edge in inner.seen_from(outer))).of(result)
        if whole is None:
            whole = part.new_empty(*part.shape[:-2], scaled(height), scaled(width))
        whole[Window(*(scaled(edge) for edge in inner)).cells] = part
    assert whole is not None, "a grid has cells"
    return whole


def pieces(height: int, width: int, size: int) -> Iterator[Window]:
    """Windows of side `size` side by side, row by row; the last of each axis may be smaller."""
    for top in range(0, height, size):
        for left in range(0, width, size):
            yield Window(top, left, min(top + size, height), min(left + size, width))


def _starts(length: int, size: int, overlap: int) -> list[int]:
    """First cells of the windows along one axis."""
    if length <= size:
        return [0]
    count = -(-(length - overlap) // (size - overlap))
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def _shares(ranges: set[tuple[int, int]], length: int) -> dict[tuple[int, int], torch.Tensor]:
    """For each range of one axis, its share of the mean at each of its cells: weights that add up to one.

    Weights of windows are products over the axes, and so are their sums: each axis is normalised alone.
    """
    total = torch.zeros(length)
    for first, last in ranges:
        total[first:last] += _ramp(last - first)
    return {(first, last): _ramp(last - first) / total[first:last] for first, last in ranges}


def _ramp(length: int) -> torch.Tensor:
    """Hann-like weights of one axis, symmetric and above zero: sin² at the cells' centres."""
    centres = (torch.arange(length, dtype=torch.float32) + 0.5) / length
    return torch.sin(torch.pi * centres) ** 2 + 1e-3
