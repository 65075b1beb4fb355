"""Pixels -> latents and back: E' for LR images, E for HR images, the frozen decoder D (paper, section 3.1).

The only file that knows the VAE's scaling factor. E and E' are one network with a LoRA switched off and on
(the paper's way), or, in the compact preset, E' is a restoring encoder of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from clearsr.errors import ClearSRError
from clearsr.models.lora import lora_enabled, lora_layers, merge_lora
from clearsr.models.patch_autoencoder import PatchAutoencoderKL
from clearsr.models.vae import DiffusersVae, OwnVae, VaeAdapter
from clearsr.models.windowed_layers import NewMap
from clearsr.tiling import Grid, ReadGrid

PIECE_PIXELS = 1024  # side of what is encoded or decoded at once; larger images go in pieces


class LatentLR(NamedTuple):
    """The latent LR embedding x_lr, and how far the HR latent is expected to lie from it.

    `mean` is x_lr itself, B×C×h×w. `std` is the standard deviation of E''s posterior, same shape: where it
    was trained to (`lr_encoder` stage) it is that of z_hr - x_lr, small in flat areas and large in texture.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "LatentLR":
        """The function of both."""
        return LatentLR(*(function(part) for part in self))


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

    @property
    def adapter(self) -> VaeAdapter:
        """What this kind of VAE can do, and how."""
        is_own = isinstance(self.vae, PatchAutoencoderKL)
        return OwnVae(self.vae, self.lr_encoder) if is_own else self._theirs

    @property
    def _theirs(self) -> DiffusersVae:
        return DiffusersVae(self.vae)

    def pixels_per_latent(self) -> int:
        """Pixels along a side of what one latent stands for: 8."""
        return self.adapter.pixels_per_latent

    def decoder_overlap(self) -> nn.Module | None:
        """The last convolutions of our own VAE's decoder, which join its patches, where it has them."""
        return self.adapter.decoder_overlap

    def encoding_windows(self, height: int, width: int, piece: int) -> int:
        """How often `embed_in_windows` calls `on_window`, for latents h×w."""
        return self._theirs.encoding_windows(height, width, piece)

    def decoding_windows(self, height: int, width: int, piece: int) -> int:
        """How often `decode_in_windows` calls `on_window`, for latents h×w."""
        return self._theirs.decoding_windows(height, width, piece)

    def embed_lr(
        self, pixels: torch.Tensor, piece: int = PIECE_PIXELS, new_map: NewMap | None = None
    ) -> LatentLR:
        """x_lr of the bicubic-upsampled LR image, B×3×H×W in [-1, 1]: the mode of E''s posterior.

        Args:
            piece: side in pixels of what is encoded at once, for images larger than that; the result is the
                same but for rounding.
            new_map: where feature maps of such images lie, if E' is not local; unset: with the image.
        """
        with lora_enabled(self.vae, True):
            found = LatentLR(*self.adapter.posterior(pixels, piece, new_map))
        return found.map(lambda part: part * self.scaling_factor)

    def embed_in_windows(
        self,
        pixels: ReadGrid,
        piece: int,
        device: torch.device,
        new_map: NewMap,
        on_window: Callable[[], None] | None = None,
    ) -> Grid:
        """`embed_lr` by diffusers' VAE for an image and feature maps of which windows are in memory.

        Returns:
            Mean and standard deviation as one grid, B×2C×h×w.
        """
        with lora_enabled(self.vae, True):
            return self._theirs.posterior_in_windows(
                pixels, piece, device, new_map, self.scaling_factor, on_window
            )

    def merge_adapter(self) -> None:
        """Make the VAE's encoder E' for good, where E' is E with a LoRA; else nothing changes."""
        self.is_merged = self.is_merged or bool(lora_layers(self.vae))
        merge_lora(self.vae)

    def encode_hr(self, pixels: torch.Tensor) -> torch.Tensor:
        """z_hr of pixels B×3×H×W in [-1, 1] by the pretrained encoder E (LoRA off): the posterior's mode.

        Raises:
            ClearSRError: the LoRA of E' was merged into E.
        """
        if self.is_merged:
            raise ClearSRError("encode_hr: E is gone, the LoRA is merged; load with merge_adapters=False")
        with lora_enabled(self.vae, False):
            latent: torch.Tensor = self.vae.encode(pixels).latent_dist.mode()
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

    def decode(
        self, latents: torch.Tensor, piece: int = PIECE_PIXELS, new_map: NewMap | None = None
    ) -> torch.Tensor:
        """Pixels B×3×H×W, about [-1, 1], of scaled latents; `piece` and `new_map` as in `embed_lr`."""
        return self.adapter.decode(latents / self.scaling_factor, piece, new_map)

    def decode_in_windows(
        self,
        latents: ReadGrid,
        piece: int,
        device: torch.device,
        new_map: NewMap,
        on_window: Callable[[], None] | None = None,
    ) -> Grid:
        """`decode` by diffusers' VAE for latents, feature maps and pixels of which windows are in memory."""
        return self._theirs.decode_in_windows(latents, piece, device, new_map, self.scaling_factor, on_window)

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
            # The weight is a yardstick here: trained by what it measures it would only shrink.
            return F.conv_transpose2d(unscaled, linear.weight.detach(), stride=linear.stride)
