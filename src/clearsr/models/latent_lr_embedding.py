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
from clearsr.tiling import map_exactly

PIECE_PIXELS = 1024  # side of what is encoded or decoded at once; larger images go in pieces


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

    def embed_lr(self, pixels: torch.Tensor) -> LatentLR:
        """x_lr of the bicubic-upsampled LR image, B×3×H×W in [-1, 1]: the mode of E''s posterior."""
        if self.lr_encoder is not None:
            moments = _in_pieces(self.lr_encoder, pixels, PIECE_PIXELS)
            mean, log_variance = moments.chunk(2, dim=1)
            std = torch.exp(0.5 * log_variance)
        else:
            with lora_enabled(self.vae, True):
                posterior = self.vae.encode(pixels).latent_dist
            mean, std = posterior.mode(), posterior.std
        return LatentLR(mean * self.scaling_factor, std * self.scaling_factor)

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

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels B×3×H×W, about [-1, 1], of scaled latents."""
        unscaled = latents / self.scaling_factor
        if hasattr(self.vae.decoder, "margin"):
            return _in_pieces(self.vae.decoder, unscaled, PIECE_PIXELS // self.pixels_per_latent())
        return self.vae.decode(unscaled).sample

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
