"""Layers of a network done in windows, each with the result of the whole feature map.

As a layer writes its result it gathers the statistics of the norm that follows; attention takes the queries
of a window and all keys, part by part. The whole feature maps between layers lie wherever `new_map` puts
them. `vae.py` makes the layers of Stable Diffusion's VAE.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clearsr.tiling import Grid, ReadGrid, Window, pieces

Function = Callable[[torch.Tensor], torch.Tensor]
NewMap = Callable[[Sequence[int], torch.dtype], Grid]  # B×C×H×W and a type -> a grid, whatever is in it


def beside(grid: torch.Tensor) -> NewMap:
    """Feature maps on the same device."""
    return lambda shape, dtype: torch.empty(shape, dtype=dtype, device=grid.device)


class FeatureMap:
    """A grid B×C×H×W with its channels' means and variances, gathered as windows are written."""

    def __init__(self, grid: Any, device: torch.device, is_normalised: bool = False) -> None:
        """What is read arrives on `device`, wherever the grid is. Statistics only if it `is_normalised`."""
        self.grid, self._device, self._is_normalised = grid, device, is_normalised
        self._counts: list[int] = []
        self._moments: list[torch.Tensor] = []  # of each window 2×B×C

    def read(self, window: Window) -> torch.Tensor:
        """A part of it."""
        return window.of(self.grid).to(self._device)

    def write(self, window: Window, values: torch.Tensor) -> None:
        """A part of it; each is to be written once."""
        self.grid[window.cells] = values
        if not self._is_normalised:
            return
        deviations = values if values.dtype == torch.float64 else values.float()
        means = deviations.mean((2, 3), keepdim=True)
        deviations = deviations - means
        self._counts.append(window.size[0] * window.size[1])
        self._moments.append(torch.stack([means[:, :, 0, 0], deviations.square_().mean((2, 3))]))

    def normalised(self, norm: nn.GroupNorm | None) -> Function:
        """The norm as a function of windows, with the statistics of the whole map; None changes nothing."""
        if norm is None:
            return lambda values: values
        counts = torch.tensor(self._counts, dtype=torch.float64)
        means, variances = (
            torch.stack(self._moments, dim=1).cpu().double().unflatten(-1, (norm.num_groups, -1))
        )
        shares = (counts / counts.sum() / means.shape[-1])[:, None, None, None]
        mean = (shares * means).sum((0, 3))
        variance = (shares * (variances + (means - mean[..., None]) ** 2)).sum((0, 3))
        each = means.shape[-1]
        scale = (variance + norm.eps).rsqrt().repeat_interleave(each, dim=1)
        shift = -mean.repeat_interleave(each, dim=1) * scale
        if norm.affine:
            weight, bias = norm.weight.cpu().double(), norm.bias.cpu().double()
            scale, shift = scale * weight, shift * weight + bias
        dtype = torch.float64 if self._moments[0].dtype == torch.float64 else torch.float32
        factor, summand = (v[:, :, None, None].to(dtype).to(self._device) for v in (scale, shift))
        return lambda values: torch.addcmul(summand, values.to(dtype), factor)


@dataclass(frozen=True)
class Convolution:
    """Norm, activation and a convolution, or any other function of a bounded neighbourhood.

    Its windows are made of units: squares of cells of its input, with the cells of its result that they make.

    Attributes:
        apply: pads with zeros itself, so that the edges of an image come out right.
        channels: the most that its input or result has, at each cell.
        margin: units around a window that its result depends on.
        norm: of the whole input.
        cells: along the side of a unit, of the input and of the result.
        starts_residual: its input is kept, to be added to the result of a later layer.
        shortcut: what the kept map goes through before it is added; None where nothing is added.
        divisor: of the sum.
    """

    apply: Function
    channels: int
    margin: int = 1
    norm: nn.GroupNorm | None = None
    activation: Function | None = None
    cells: tuple[int, int] = (1, 1)
    starts_residual: bool = False
    shortcut: Function | None = None
    divisor: float = 1.0

    @property
    def adds_residual(self) -> bool:
        """Whether it is that later layer, and may write its result over what was kept."""
        return self.shortcut is not None

    def side(self, area: int) -> int:
        """Units along a window in which no tensor has more than `area` elements, or one if even that has."""
        return max(1, int((area / self.channels) ** 0.5) // max(self.cells) - 2 * self.margin)

    def on(self, inputs: FeatureMap, kept: FeatureMap | None, area: int) -> Callable[[Window], torch.Tensor]:
        """What gives the result in a window of units."""
        normalised = inputs.normalised(self.norm)
        before, after = self.cells
        height, width = (length // before for length in inputs.grid.shape[-2:])

        def compute(inner: Window) -> torch.Tensor:
            outer = inner.grown(self.margin, height, width)
            hidden = normalised(inputs.read(outer.times(before)))
            if self.activation is not None:
                hidden = self.activation(hidden)
            hidden = inner.seen_from(outer).times(after).of(self.apply(hidden))
            if self.shortcut is None:
                return _dense(hidden)
            assert kept is not None, "a residual was started"
            total = self.shortcut(kept.read(inner)) + hidden
            return total if self.divisor == 1 else total / self.divisor

        return compute


@dataclass(frozen=True)
class SelfAttention:
    """The queries of a window against all keys and values, which are this layer's input.

    Attributes:
        attn: diffusers' `Attention`, with a residual.
        channels: of the kept map that the queries are made of.
    """

    attn: Any
    channels: int
    cells: tuple[int, int] = (1, 1)
    norm: None = None
    starts_residual: bool = False
    adds_residual: bool = True

    def side(self, area: int) -> int:
        """Cells along a window, as above."""
        scores = (area / self.attn.heads) ** 0.25  # n×n for n = side²
        return max(1, int(min(scores, (area / (2 * self.channels)) ** 0.5)))

    def on(self, inputs: FeatureMap, kept: FeatureMap | None, area: int) -> Callable[[Window], torch.Tensor]:
        """What gives the result in a window."""
        assert kept is not None, "the keys' layer keeps its input"
        attn, hidden_map = self.attn, kept
        normalised = hidden_map.normalised(attn.group_norm)
        height, width = inputs.grid.shape[-2:]
        parts = list(pieces(height, width, self.side(area)))

        def compute(window: Window) -> torch.Tensor:
            hidden = hidden_map.read(window)
            (query,) = _heads(per_cell(attn.to_q)(normalised(hidden)), attn.heads, 1)
            keys = (_heads(inputs.read(part), attn.heads, 2) for part in parts)
            found = attend(query, keys).transpose(2, 3).flatten(1, 2).unflatten(2, window.size)
            projected = per_cell(attn.to_out[0])(found.to(hidden.dtype))
            return (projected + hidden) / attn.rescale_output_factor

        return compute


Layer = Convolution | SelfAttention


@torch.no_grad()
def run_in_windows(
    layers: Sequence[Layer],
    source: ReadGrid,
    area: int,
    device: torch.device,
    new_map: NewMap,
    on_window: Callable[[], None] | None = None,
) -> Grid:
    """What the layers make of `source`, B×C×H×W: a grid from `new_map`.

    Args:
        layers: as `encoder_layers` and `decoder_layers` give them.
        source: sides are multiples of what the layers fold.
        area: elements that a tensor may have while a window is worked on.
        device: where the work is done.
        on_window: called after each window of each layer; may raise to stop.
    """
    area = max(1, area // source.shape[0])
    current, kept = FeatureMap(source, device), None
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        kept = current if layer.starts_residual else kept
        compute = layer.on(current, kept, area)
        height, width = (length // layer.cells[0] for length in current.grid.shape[-2:])
        is_normalised = following is not None and following.norm is not None
        result: FeatureMap | None = None
        for window in pieces(height, width, layer.side(area)):
            values = compute(window)
            if result is None:
                shape = (*values.shape[:2], height * layer.cells[1], width * layer.cells[1])
                is_over = layer.adds_residual and kept is not None and kept.grid.shape == shape
                grid = kept.grid if kept is not None and is_over else new_map(shape, values.dtype)
                result = FeatureMap(grid, device, is_normalised)
            result.write(window.times(layer.cells[1]), values)
            if on_window is not None:
                on_window()
        assert result is not None, "a grid has cells"
        current, kept = result, None if layer.adds_residual else kept
    return current.grid


def count_windows(layers: Sequence[Layer], height: int, width: int, area: int) -> int:
    """How often `run_in_windows` calls `on_window` for a single image of that many cells."""
    count = 0
    for layer in layers:
        before, after = layer.cells
        rows, columns = height // before, width // before
        count += sum(1 for _ in pieces(rows, columns, layer.side(area)))
        height, width = rows * after, columns * after
    return count


def attend(query: torch.Tensor, parts: Iterable[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    """Softmax attention of B×heads×n×d to keys and values that come in parts, each B×heads×m×d.

    Each part's sum is kept relative to the largest score so far (Milakov & Gimelshein 2018), in fp32 or more.
    """
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    with torch.autocast(query.device.type, enabled=False):
        query = query.to(exact) * query.shape[-1] ** -0.5
        largest = query.new_full((*query.shape[:-1], 1), -torch.inf)
        weights, total = torch.zeros_like(largest), torch.zeros_like(query)
        for key, value in parts:
            scores = query @ key.to(exact).transpose(-1, -2)
            now = torch.maximum(largest, scores.amax(-1, keepdim=True))
            scores = scores.sub_(now).exp_()
            fading = (largest - now).exp_()
            weights = weights * fading + scores.sum(-1, keepdim=True)
            total = total.mul_(fading).add_(scores @ value.to(exact))
            largest = now
        return total / weights


def per_cell(linear: Function) -> Function:
    """A linear layer on the channels of B×C×h×w."""
    return lambda values: linear(values.movedim(1, -1)).movedim(-1, 1)


def _heads(values: torch.Tensor, heads: int, count: int) -> tuple[torch.Tensor, ...]:
    """B×(count·heads·d)×h×w as `count` tensors B×heads×(h·w)×d."""
    return values.flatten(2).unflatten(1, (count, heads, -1)).transpose(3, 4).unbind(1)


def _dense(values: torch.Tensor) -> torch.Tensor:
    """Without the margins that were cut away; channels last, as statistics are fastest."""
    return values.contiguous(memory_format=torch.channels_last)
