"""The painter (our own, not in the paper): pixels from the enlarged LR image and what the loop made of it.

What predicts latents of 8x8 pixels draws no edge as sharp as what predicts pixels (docs/experiments.md). So a
model may have a painter behind the loop: Real-ESRGAN's generator with fewer of its blocks, which can start
from that network's weights. Latent Space Adjustment then says how much of its picture is in the result.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from clearsr.hardware import full_precision
from clearsr.image import resize, to_signed
from clearsr.image.geometry import mirrored
from clearsr.models.realesrgan import CONVOLUTIONS_OF_A_BLOCK, ResidualOfDense, RRDBNet
from clearsr.models.windowed_layers import Convolution, Layer, NewMap, count_windows, run_in_windows
from clearsr.seeds import make_generator
from clearsr.tiling import ReadGrid, Window, map_exactly

_FOLD = 4  # pixels along a side of what one feature of the trunk stands for
_WIDTH, _GROWTH = 64, 32
_BLOCK_WIDTH = _WIDTH + 4 * _GROWTH  # of what the last convolution of a dense block reads
# Mirrored pixels on each side, or the borders of a flat picture would be off by up to 50 levels in 255 (8: 6
# levels; 16: 4; 40, which Real-ESRGAN's authors take: 3).
_FRAME = 16
_LEAST_PIECE = 256  # pixels a side
_TAIL_TILE = 64  # features a side that are enlarged at once: their pixels have 64 channels
_TAIL_MARGIN = 2  # features that a pixel depends on to each side: four convolutions, of which one at half


class Painter(nn.Module):
    """Pixels B×3×H×W, about [-1, 1], of the enlarged LR image and, behind it, D(z_0): B×6×H×W in [-1, 1].

    H and W are multiples of 4.
    """

    def __init__(self, blocks: int) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, padding=1)

        self.conv_in = conv(6 * _FOLD**2, _WIDTH)
        self.body = nn.Sequential(*(ResidualOfDense(_WIDTH, _GROWTH) for _ in range(blocks)))
        self.after_body = conv(_WIDTH, _WIDTH)
        self.enlarging = nn.ModuleList(conv(_WIDTH, _WIDTH) for _ in range(2))
        self.before_last, self.conv_out = conv(_WIDTH, _WIDTH), conv(_WIDTH, 3)

    @property
    def bytes_per_pixel(self) -> float:
        """Of the largest activation, a dense block's, in fp32."""
        return 4.0 * _BLOCK_WIDTH / _FOLD**2

    @property
    def map_bytes_per_pixel(self) -> float:
        """Of what exists at a time in windows: the first features, those of two blocks, and the result."""
        return 4.0 * (3 * _WIDTH / _FOLD**2 + 3)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        height, width = pictures.shape[-2:]
        everything = Window(0, 0, height + 2 * _FRAME, width + 2 * _FRAME)
        framed = everything.of(_Framed(pictures)).contiguous(memory_format=torch.channels_last)
        return self._painted(framed)[..., _FRAME:-_FRAME, _FRAME:-_FRAME]

    @torch.no_grad()
    def in_windows(
        self,
        pictures: ReadGrid,
        piece: int,
        device: torch.device,
        new_map: NewMap,
        on_window: Callable[[], None] | None = None,
    ) -> Callable[[Window], torch.Tensor]:
        """`forward` layer by layer, for pictures and feature maps of which windows are in memory.

        A window of all layers would need 500 pixels around it.

        Args:
            pictures: B×6×H×W.
            piece: side in pixels of a picture whose forward pass takes as much memory as a window may.
            device: where the work is done.
            new_map: where feature maps lie, and the result.
            on_window: called after each window of each layer, `windows` times.

        Returns:
            What gives the painted pixels in a window.
        """
        area = self._area(piece)
        framed = run_in_windows(self._layers(), _Framed(pictures), area, device, new_map, on_window)
        return lambda window: Window(*(edge + _FRAME for edge in window)).of(framed)

    def windows(self, height: int, width: int, piece: int) -> int:
        """How often `in_windows` calls `on_window` for a picture of that size."""
        return count_windows(self._layers(), height + 2 * _FRAME, width + 2 * _FRAME, self._area(piece))

    def _layers(self) -> list[Layer]:
        """Of a picture in its frame."""
        return [
            Convolution(self._entered, 6, cells=(_FOLD, 1)),
            *(
                Convolution(block, _BLOCK_WIDTH, CONVOLUTIONS_OF_A_BLOCK, starts_residual=i == 0)
                for i, block in enumerate(self.body)
            ),
            Convolution(self.after_body, _WIDTH, shortcut=nn.Identity()),
            Convolution(self._enlarged, _WIDTH, _TAIL_MARGIN, cells=(1, _FOLD)),
        ]

    def _area(self, piece: int) -> int:
        """Elements of the largest tensor that a piece has; of less, windows would be nearly all margin."""
        return int(max(piece, _LEAST_PIECE) ** 2 * self.bytes_per_pixel / 4)

    def _entered(self, pictures: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.conv_in(F.pixel_unshuffle(pictures, _FOLD))
        return hidden

    def _painted(self, pictures: torch.Tensor) -> torch.Tensor:
        hidden = self._entered(pictures)
        hidden = hidden + self.after_body(self.body(hidden))
        if torch.is_grad_enabled():  # they keep all of it
            return self._enlarged(hidden)
        return map_exactly(self._enlarged, hidden, _TAIL_TILE, _TAIL_MARGIN)

    def _enlarged(self, hidden: torch.Tensor) -> torch.Tensor:
        for conv in self.enlarging:
            hidden = F.leaky_relu(conv(F.interpolate(hidden, scale_factor=2, mode="nearest")), 0.2)
        hidden = F.leaky_relu(self.before_last(hidden), 0.2)
        with full_precision(hidden.device):  # 8 bits of mantissa would show as banding
            painted: torch.Tensor = self.conv_out(hidden.float())
        return painted

    @torch.no_grad()
    def start_from(self, teacher: RRDBNet, blocks: Sequence[int]) -> None:
        """Take over the teacher's weights, of its blocks the given ones.

        The teacher looks at the LR image in [0, 1], the painter at its bicubic enlargement in [-1, 1],
        folded: the first convolution is the one nearest to the teacher's by least squares, on noise. It sees
        nothing of D(z_0) yet.
        """
        side, count = 40, 4
        lr = torch.rand(count, 3, side, side, generator=make_generator("painter"), dtype=torch.float64)
        folded = F.pixel_unshuffle(to_signed(resize(lr, (_FOLD * side, _FOLD * side))), _FOLD)
        rows = F.unfold(folded, 3).transpose(1, 2).flatten(0, 1)
        rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)
        assert teacher.first.bias is not None and self.conv_in.bias is not None
        wanted = F.conv2d(lr, teacher.first.weight.double(), teacher.first.bias.double())
        wanted = wanted.flatten(2).transpose(1, 2).flatten(0, 1)
        found = torch.linalg.lstsq(rows, wanted, driver="gelsd").solution  # columns depend on each other
        of_lr, of_decoded = self.conv_in.weight.chunk(2, dim=1)
        of_lr.copy_(found[:-1].T.reshape(of_lr.shape))
        of_decoded.zero_()
        self.conv_in.bias.copy_(found[-1])
        for ours, number in zip(self.body, blocks, strict=True):
            ours.load_state_dict(teacher.body[number].state_dict())
        for name in ("after_body", "enlarging", "before_last"):
            self.get_submodule(name).load_state_dict(teacher.get_submodule(name).state_dict())
        assert teacher.last.bias is not None and self.conv_out.bias is not None
        self.conv_out.weight.copy_(2 * teacher.last.weight)
        self.conv_out.bias.copy_(2 * teacher.last.bias - 1)


class _Framed:
    """A grid with mirrored cells on each side, as wide as the frame; what is read is a copy."""

    def __init__(self, grid: ReadGrid) -> None:
        self._grid = grid
        self.shape = torch.Size([*grid.shape[:2], *(length + 2 * _FRAME for length in grid.shape[2:])])

    def __getitem__(self, index: Any) -> torch.Tensor:
        window, places = [], []
        for cells, length in zip(index[1:], self._grid.shape[2:], strict=True):
            seen = mirrored(length, cells.start - _FRAME, cells.stop - _FRAME)
            window.append(slice(int(seen.min()), int(seen.max()) + 1))
            places.append(seen - seen.min())
        part = self._grid[(..., *window)]
        rows, columns = (place.to(part.device) for place in places)
        return part.index_select(2, rows).index_select(3, columns)
