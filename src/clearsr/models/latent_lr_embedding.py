"""Pixels -> latents and back: E' for LR images, E for HR images, the frozen decoder D (paper, section 3.1).

The only file that knows the VAE's scaling factor. E and E' are one network with a LoRA switched off and on
(the paper's way), or, in the compact preset, E' is a restoring encoder of its own.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from clearsr.errors import ClearSRError
from clearsr.models.lora import lora_enabled, lora_layers, merge_lora
from clearsr.tiling import Window, blend_tiles, map_exactly, tile_windows

PIECE_PIXELS = 1024  # side of what is encoded or decoded at once; larger images go in pieces
OVERLAP = 32  # latents that pieces share where they are blended


class LatentLR(NamedTuple):
    """The latent LR embedding x_lr and how far the HR latent is expected to lie from it.

    `mean` is x_lr itself, B×C×h×w. `std` is the standard deviation of E''s posterior, same shape: where it
    was trained to (`lr_encoder` stage) it is that of z_hr - x_lr, small in flat areas and large in texture.
    """

    mean: torch.Tensor
    std: torch.Tensor


class LatentLREmbedding(nn.Module):
    """Holds the VAE and, where E' is a network of its own, that encoder.

    `vae` needs `encode(x).latent_dist`, `decode(z).sample` and `config.scaling_factor`, as diffusers'
    `AutoencoderKL` has; `lr_encoder` maps pixels to the same moments as `vae.encoder`.
    """

    def __init__(self, vae: nn.Module, lr_encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.vae: Any = vae
        self.lr_encoder = lr_encoder
        self.is_merged = False

    @property
    def scaling_factor(self) -> float:
        """Latents times this factor have about unit variance."""
        return float(self.vae.config.scaling_factor)

    def pixels_per_latent(self) -> int:
        """Pixels along a side of what one latent stands for: 8."""
        config = self.vae.config
        if hasattr(config, "patch_size"):
            return int(config.patch_size) * 2 ** (len(config.encoder_channels) - 1)
        return int(2 ** (len(config.block_out_channels) - 1))

    @property
    def is_local(self) -> bool:
        """Whether E' and D depend on a bounded neighbourhood, so that pieces give exactly the whole's result.

        diffusers' `AutoencoderKL` does not: its GroupNorms and its attention look at all of the image.
        """
        return self.lr_encoder is not None and hasattr(self.vae.decoder, "margin")

    def encoder_margin(self) -> int:
        """Pixels around a piece that its x_lr depends on, where `is_local`."""
        assert self.lr_encoder is not None, "asked of a local E' only"
        return int(self.lr_encoder.margin)  # type: ignore[arg-type]

    def decoder_margin(self) -> int:
        """Latents around a piece that its pixels depend on, where `is_local`."""
        return int(self.vae.decoder.margin)

    def bytes_per_pixel(self) -> float:
        """Of one activation at the finest level, the largest there is, in fp32."""
        config = self.vae.config
        if not hasattr(config, "patch_size"):
            return 4.0 * config.block_out_channels[0]
        widths = [config.encoder_channels[0], config.decoder_channels[0]]
        if self.lr_encoder is not None:
            widths.append(int(self.lr_encoder.conv_in.out_channels))  # type: ignore[union-attr, arg-type]
        return 4.0 * max(widths) / config.patch_size**2

    def embed_lr(self, pixels: torch.Tensor, piece: int = PIECE_PIXELS) -> LatentLR:
        """x_lr of the bicubic-upsampled LR image, B×3×H×W in [-1, 1]: the mode of E''s posterior.

        `piece` is the side in pixels of what is encoded at once, for images larger than that.
        """
        if self.lr_encoder is not None:
            moments = _in_pieces(self.lr_encoder, pixels, piece)
            mean, log_variance = moments.chunk(2, dim=1)
            std = torch.exp(0.5 * log_variance)
        else:
            mean, std = self._encode_blended(pixels, piece).chunk(2, dim=1)
        return LatentLR(mean * self.scaling_factor, std * self.scaling_factor)

    def _encode_blended(self, pixels: torch.Tensor, piece: int) -> torch.Tensor:
        """Mean and standard deviation by the VAE's encoder with its LoRA, B×2C×h×w."""
        fold = self.pixels_per_latent()

        def encode(window: Window) -> torch.Tensor:
            with lora_enabled(self.vae, True):
                posterior = self.vae.encode(window.times(fold).of(pixels)).latent_dist
            return torch.cat([posterior.mode(), posterior.std], dim=1)

        height, width = (side // fold for side in pixels.shape[-2:])
        windows = vae_windows(height, width, piece, fold)
        if len(windows) == 1:
            return encode(windows[0])
        like = pixels.new_empty(len(pixels), 2 * self.vae.config.latent_channels, height, width)
        return blend_tiles(encode, like, windows)

    def merge_adapter(self) -> None:
        """Make the VAE's encoder E' for good, where E' is E with a LoRA; else nothing changes."""
        self.is_merged = self.is_merged or bool(lora_layers(self.vae))
        merge_lora(self.vae)

    def encode_hr(self, pixels: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """z_hr of pixels B×3×H×W in [-1, 1] by the pretrained encoder E (LoRA off).

        The mode of the posterior, or a draw from it where a CPU generator is given.

        Raises:
            ClearSRError: the LoRA of E' was merged into E.
        """
        if self.is_merged:
            raise ClearSRError("encode_hr: E is gone, the LoRA is merged; load with merge_adapters=False")
        with lora_enabled(self.vae, False):
            posterior = self.vae.encode(pixels).latent_dist
        latent = posterior.mode()
        if generator is not None:
            noise = torch.randn(latent.shape, generator=generator, dtype=torch.float32)
            latent = latent + posterior.std * noise.to(latent)
        return latent * self.scaling_factor

    def own_lr_encoder(self) -> nn.Module:
        """E' where it is a network of its own.

        Raises:
            ClearSRError: E' is the VAE encoder with LoRA.
        """
        if self.lr_encoder is None:
            raise ClearSRError(
                "model.lr_encoder.kind: the lr_encoder stage needs `separate`; LoRA trains with clearsr"
            )
        return self.lr_encoder

    def decode(self, latents: torch.Tensor, piece: int = PIECE_PIXELS) -> torch.Tensor:
        """Pixels B×3×H×W, about [-1, 1], of scaled latents; `piece` as in `embed_lr`."""
        fold = self.pixels_per_latent()
        if hasattr(self.vae.decoder, "margin"):
            return _in_pieces(self.vae.decoder, latents / self.scaling_factor, piece // fold)
        height, width = latents.shape[-2:]
        windows = vae_windows(height, width, piece, fold)

        def decode(window: Window) -> torch.Tensor:
            unscaled = Window(*(edge // fold for edge in window)).of(latents) / self.scaling_factor
            return self.vae.decode(unscaled).sample

        like = latents.new_empty(len(latents), 3, height * fold, width * fold)
        return blend_tiles(decode, like, [window.times(fold) for window in windows])

    def decode_linearly(self, difference: torch.Tensor) -> torch.Tensor:
        """What a difference of scaled latents comes to in pixels, by the linear path of the decoder.

        Raises:
            ClearSRError: the decoder has no such path.
        """
        linear = getattr(self.vae.decoder, "linear", None)
        if linear is None:
            raise ClearSRError("loss.linear_pixel: only the compact model's VAE has a linear path; set 0")
        with torch.autocast(difference.device.type, enabled=False):
            unscaled = difference.float() / self.scaling_factor
            return F.conv_transpose2d(unscaled, linear.weight, stride=linear.stride)


def _in_pieces(network: Any, grid: torch.Tensor, size: int) -> torch.Tensor:
    """`network(grid)`, in pieces where the grid is large: the same result in bounded memory.

    For networks that state their receptive field (`margin` cells) and folding (`side`), as our own VAE does.
    """
    step = network.side if grid.shape[1] == 3 else 1
    return map_exactly(network, grid, size, network.margin, step)


def vae_windows(height: int, width: int, piece: int, fold: int) -> list[Window]:
    """The latents that a VAE which is not local takes at once, for pieces of side `piece` pixels."""
    return tile_windows(height, width, piece // fold, min(OVERLAP, piece // fold // 2))
