"""The compact preset's VAE: pixel-unshuffle, residual convolutions at 1/4 and 1/8 resolution, pixel-shuffle.

No convolution runs at full resolution, which is what makes it fast on a CPU. It has no normalisation and no
attention either, so that an output pixel depends on a bounded neighbourhood only: a tiled pass equals the
untiled one exactly, once tiles overlap by the receptive field. Encoder and decoder each have a linear path
beside the convolutions, which starts as a truncated DCT: 30 dB before the first step, where training from
random weights needs minutes to get to 22 dB. It is asked as diffusers' `AutoencoderKL` is.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from clearsr.config.model import AutoencoderConfig
from clearsr.hardware import full_precision

MIN_LOG_VARIANCE = -12.0  # keeps the posterior's standard deviation above 0.0025
INITIAL_LOG_VARIANCE = -6.0


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), the last convolution starting at zero in place of a normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        _set_to_zero(self.conv2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.conv2(F.silu(self.conv1(F.silu(hidden))))


class PatchEncoder(nn.Module):
    """Pixels B×3×H×W in [-1, 1] -> moments (mean, log variance) B×2C×h×w.

    Attributes:
        side: pixels along the side of a latent's patch; H and W must be multiples of it.
        margin: pixels around a patch that its moments depend on.
    """

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        patch_size: int,
        block_out_channels: Sequence[int],
        layers_per_block: Sequence[int],
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, block_out_channels[0], 3, padding=1)
        blocks: list[nn.Module] = []
        previous = block_out_channels[0]
        for level, (width, layers) in enumerate(zip(block_out_channels, layers_per_block, strict=True)):
            if level > 0:
                blocks.append(nn.Conv2d(previous, width, 2, stride=2))
            blocks.extend(ResidualBlock(width) for _ in range(layers))
            previous = width
        self.blocks = nn.Sequential(*blocks)
        self.conv_out = nn.Conv2d(previous, 2 * latent_channels, 3, padding=1)
        self.side = patch_size * 2 ** (len(block_out_channels) - 1)
        self.margin = self.side * _reach(layers_per_block)
        self.linear = nn.Conv2d(in_channels, latent_channels, self.side, stride=self.side)
        _set_to_zero(self.linear)
        basis, gains = dct_basis(latent_channels, self.side)
        moments = torch.tensor([0.0, INITIAL_LOG_VARIANCE]).repeat_interleave(latent_channels)
        self.conv_out.bias = nn.Parameter(moments)
        with torch.no_grad():
            self.conv_out.weight.mul_(0.1)
            self.linear.weight.copy_(basis * gains)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden = self.conv_in(F.pixel_unshuffle(pixels, self.patch_size))
        moments = self.conv_out(F.silu(self.blocks(hidden)))
        mean, log_variance = moments.chunk(2, dim=1)
        with full_precision(pixels.device):  # 8 bits of mantissa would show as banding
            mean = mean.float() + self.linear(pixels.float())
        return torch.cat([mean, log_variance.clamp(min=MIN_LOG_VARIANCE, max=10.0)], dim=1)


class PatchOverlap(nn.Module):
    """Pixels -> pixels, across the borders of the decoder's patches; starts as the identity.

    Its convolutions are at half resolution.
    Latents of photographs decode without seams, predicted ones do not: what one patch says of its edge, its
    neighbour does not know.
    """

    def __init__(self, channels: int, width: int, layers: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(layers)))
        self.conv_out = nn.Conv2d(width, 4 * channels, 3, padding=1)
        _set_to_zero(self.conv_out)
        self.reach = 2 * (2 + 2 * layers)  # pixels around a pair of pixels that it depends on

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden = self.blocks(self.conv_in(F.pixel_unshuffle(pixels, 2)))
        return pixels + F.pixel_shuffle(self.conv_out(F.silu(hidden)), 2).float()


class PatchDecoder(nn.Module):
    """Latents B×C×h×w -> pixels B×3×H×W, about [-1, 1].

    Attributes:
        side: pixels along the side of a latent's patch.
        margin: latents around a patch that its pixels depend on.
    """

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        patch_size: int,
        block_out_channels: Sequence[int],
        layers_per_block: Sequence[int],
        overlap: PatchOverlap | None = None,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv_in = nn.Conv2d(latent_channels, block_out_channels[-1], 3, padding=1)
        blocks: list[nn.Module] = []
        previous = block_out_channels[-1]
        for level in reversed(range(len(block_out_channels))):
            width = block_out_channels[level]
            if level < len(block_out_channels) - 1:
                blocks.extend([nn.Conv2d(previous, 4 * width, 1), nn.PixelShuffle(2)])
            blocks.extend(ResidualBlock(width) for _ in range(layers_per_block[level]))
            previous = width
        self.blocks = nn.Sequential(*blocks)
        self.conv_out = nn.Conv2d(previous, out_channels * patch_size**2, 3, padding=1)
        _set_to_zero(self.conv_out)
        self.side = patch_size * 2 ** (len(block_out_channels) - 1)
        self.overlap = overlap
        self.margin = _reach(layers_per_block) + (0 if overlap is None else -(-overlap.reach // self.side))
        self.linear = nn.ConvTranspose2d(latent_channels, out_channels, self.side, stride=self.side)
        _set_to_zero(self.linear)
        basis, gains = dct_basis(latent_channels, self.side)
        with torch.no_grad():
            self.linear.weight.copy_(basis / gains)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        hidden = self.blocks(self.conv_in(latents))
        detail = F.pixel_shuffle(self.conv_out(F.silu(hidden)), self.patch_size)
        with full_precision(latents.device):
            pixels = detail.float() + self.linear(latents.float())
        return pixels if self.overlap is None else self.overlap(pixels)


def dct_basis(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` lowest-frequency DCT patterns of an RGB patch, count×3×side×side, and a gain for each.

    The patterns are orthonormal, of luma first and of two colour differences. The gains, count×1×1×1, grow
    with the frequency as the spectrum of photographs falls, so that the latent channels come out about
    equally strong.
    """
    n = torch.arange(side, dtype=torch.float32) + 0.5
    waves = torch.stack(
        [torch.cos(math.pi * n * k / side) * math.sqrt((2 if k else 1) / side) for k in range(side)]
    )
    colours = F.normalize(torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, 2.0], [1.0, -1.0, 0.0]]), dim=1)
    ranked = sorted(
        ((1 + math.hypot(u, v)) * penalty, colour, u, v)
        for colour, penalty in enumerate((1.0, 2.2, 2.2))
        for u in range(side)
        for v in range(side)
    )[:count]
    patterns = [colours[c][:, None, None] * waves[u][:, None] * waves[v][None, :] for _, c, u, v in ranked]
    gains = torch.tensor([rank for rank, *_ in ranked]) / 5
    return torch.stack(patterns), gains.view(-1, 1, 1, 1)


class Posterior(NamedTuple):
    """A Gaussian over latents, B×C×h×w each; named as in diffusers."""

    mean: torch.Tensor
    logvar: torch.Tensor

    @property
    def std(self) -> torch.Tensor:
        """The standard deviation."""
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> torch.Tensor:
        """The variance."""
        return self.logvar.exp()

    def mode(self) -> torch.Tensor:
        """The most likely latent."""
        return self.mean


class Encoded(NamedTuple):
    """What `encode` returns, as in diffusers."""

    latent_dist: Posterior


class Decoded(NamedTuple):
    """What `decode` returns, as in diffusers."""

    sample: torch.Tensor


class PatchAutoencoderKL(nn.Module):
    """A small Kullback-Leibler autoencoder on pixel-unshuffled images.

    `config.scaling_factor` plays the part it has in diffusers: latents times it have about unit variance.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        sizes = (3, config.latent_channels, config.patch_size)
        self.encoder = PatchEncoder(*sizes, config.encoder_channels, config.encoder_layers)
        width = config.overlap_channels
        overlap = PatchOverlap(3, width, config.overlap_layers) if width else None
        self.decoder = PatchDecoder(*sizes, config.decoder_channels, config.decoder_layers, overlap)

    def encode(self, pixels: torch.Tensor) -> Encoded:
        """The posterior over latents of pixels B×3×H×W in [-1, 1] (unscaled, as in diffusers)."""
        mean, log_variance = self.encoder(pixels).chunk(2, dim=1)
        return Encoded(Posterior(mean, log_variance))

    def decode(self, latents: torch.Tensor) -> Decoded:
        """Pixels B×3×H×W, about [-1, 1], of unscaled latents B×C×h×w."""
        return Decoded(self.decoder(latents))


def _set_to_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _reach(layers_per_block: Sequence[int]) -> int:
    """Cells of the coarsest level that a cell of it depends on to each side; encoder and decoder are alike.

    From the finest level on: two cells per residual block, one each for the first and the last convolution,
    and half of it all, rounded up, at each change of level.
    """
    reach, last = 0, len(layers_per_block) - 1
    for level, layers in enumerate(layers_per_block):
        reach = -(-reach // 2) + 2 * layers + (level == 0) + (level == last)
    return reach
