"""The painter (our own, not in the paper): what a photograph would be, from the enlarged LR image.

What predicts latents of 8x8 pixels draws no edge as sharp as what predicts pixels (docs/experiments.md). So a
model may have a painter beside the loop: Real-ESRGAN's generator with fewer of its blocks, which can start
from that network's weights. Latent Space Adjustment then says how much of its picture is in the result.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from clearsr.image import resize, to_signed
from clearsr.image.geometry import mirrored
from clearsr.models.patch_autoencoder import full_precision
from clearsr.models.realesrgan import CONVOLUTIONS_OF_A_BLOCK, ResidualOfDense, RRDBNet
from clearsr.seeds import make_generator
from clearsr.tiling import map_exactly

_FOLD = 4  # pixels along a side of what one feature of the trunk stands for
_WIDTH, _GROWTH = 64, 32
# Mirrored pixels on each side, or the borders of a flat picture would be off by up to 50 levels in 255 (8: 6
# levels; 16: 4; 40, which Real-ESRGAN's authors take: 3).
_FRAME = 16
_TAIL_TILE = 64  # features a side that are enlarged at once: their pixels have 64 channels
_TAIL_MARGIN = 2  # features that a pixel depends on to each side: four convolutions, of which one at half


class Painter(nn.Module):
    """Pixels B×3×H×W, about [-1, 1], of the enlarged LR image, B×3×H×W in [-1, 1].

    Attributes:
        side: what H and W must be a multiple of.
        margin: pixels around a part that its pixels depend on.
    """

    def __init__(self, blocks: int) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, padding=1)

        self.conv_in = conv(3 * _FOLD**2, _WIDTH)
        self.body = nn.Sequential(*(ResidualOfDense(_WIDTH, _GROWTH) for _ in range(blocks)))
        self.after_body = conv(_WIDTH, _WIDTH)
        self.enlarging = nn.ModuleList(conv(_WIDTH, _WIDTH) for _ in range(2))
        self.before_last, self.conv_out = conv(_WIDTH, _WIDTH), conv(_WIDTH, 3)
        self.side = _FOLD
        self.margin = _FOLD * (CONVOLUTIONS_OF_A_BLOCK * blocks + 2 + _TAIL_MARGIN)

    @property
    def bytes_per_pixel(self) -> float:
        """Of the largest activation, what the last convolution of a dense block reads, in fp32."""
        return 4.0 * (_WIDTH + 4 * _GROWTH) / _FOLD**2

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        framed = pixels
        for axis in (2, 3):
            size = framed.shape[axis]
            framed = framed.index_select(axis, mirrored(size, -_FRAME, size + _FRAME, framed.device))
        painted = self._painted(framed.contiguous(memory_format=torch.channels_last))
        return painted[..., _FRAME:-_FRAME, _FRAME:-_FRAME]

    def _painted(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden = self.conv_in(F.pixel_unshuffle(pixels, _FOLD))
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
        folded: the first convolution is the one nearest to the teacher's by least squares, on noise.
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
        self.conv_in.weight.copy_(found[:-1].T.reshape(self.conv_in.weight.shape))
        self.conv_in.bias.copy_(found[-1])
        for ours, number in zip(self.body, blocks, strict=True):
            ours.load_state_dict(teacher.body[number].state_dict())
        for name in ("after_body", "enlarging", "before_last"):
            self.get_submodule(name).load_state_dict(teacher.get_submodule(name).state_dict())
        assert teacher.last.bias is not None and self.conv_out.bias is not None
        self.conv_out.weight.copy_(2 * teacher.last.weight)
        self.conv_out.bias.copy_(2 * teacher.last.bias - 1)
