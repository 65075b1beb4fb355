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
from clearsr.models.tiled_autoencoder import decoder_layers, encoder_layers
from clearsr.models.windowed_layers import NewMap, count_windows, run_in_windows
from clearsr.tiling import Grid, ReadGrid, map_exactly

PIECE_PIXELS = 1024  # side of what is encoded or decoded at once; larger images go in pieces


class LatentLR(NamedTuple):
    """The latent LR embedding x_lr, how far the HR latent is expected to lie from it, what is drawn on it.

    `mean` is x_lr itself, B×C×h×w. `std` is the standard deviation of E''s posterior, same shape: where it
    was trained to (`lr_encoder` stage) it is that of z_hr - x_lr, small in flat areas and large in texture.
    `drawn` is x_lr with what a photograph would have there, where E' draws (our own); None where it does not.
    """

    mean: torch.Tensor
    std: torch.Tensor
    drawn: torch.Tensor | None = None

    @property
    def start(self) -> torch.Tensor:
        """Where a run starts, and what the network's output is read against: `drawn`, or else x_lr."""
        return self.mean if self.drawn is None else self.drawn

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "LatentLR":
        """The function of each of them."""
        return LatentLR(*(None if part is None else function(part) for part in self))  # type: ignore[arg-type]


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
    def encodes_locally(self) -> bool:
        """Whether E' looks at a bounded neighbourhood, so that it can be asked for any part of an image.

        diffusers' `AutoencoderKL` does not: its GroupNorms and its attention look at all of the image, so it
        is done for the whole of it, layer by layer.
        """
        return self.lr_encoder is not None or hasattr(self.vae.encoder, "margin")

    @property
    def decodes_locally(self) -> bool:
        """Whether D does."""
        return hasattr(self.vae.decoder, "margin")

    def encoder_margin(self) -> int:
        """Pixels around a piece that its x_lr depends on, where E' `encodes_locally`."""
        return int(self._e_prime.margin)

    def decoder_margin(self) -> int:
        """Latents around a piece that its pixels depend on, where D `decodes_locally`."""
        return int(self.vae.decoder.margin)

    @property
    def _e_prime(self) -> Any:
        """The encoder that is E', once the VAE's LoRA is on."""
        return self.vae.encoder if self.lr_encoder is None else self.lr_encoder

    def bytes_per_pixel(self) -> float:
        """Of one activation at the finest level, the largest there is, in fp32."""
        config = self.vae.config
        if not hasattr(config, "patch_size"):
            return 4.0 * max(
                config.block_out_channels[:2]
            )  # the decoder's come with those of the level below
        widths = [config.encoder_channels[0], config.decoder_channels[0]]
        if self.lr_encoder is not None:
            widths.append(int(self.lr_encoder.conv_in.out_channels))  # type: ignore[union-attr, arg-type]
        return 4.0 * max(max(widths) / config.patch_size**2, config.overlap_channels / 4)

    def map_bytes_per_pixel(self) -> float:
        """Of the feature maps that exist at a time where an image larger than a piece goes layer by layer."""
        if self.decodes_locally:
            return 0.0
        finest, *others = self.vae.config.block_out_channels
        return 4.0 * (max([finest, *others[:1]]) + 2 * finest)  # a residual, what is added to it, and the sum

    def embed_lr(
        self, pixels: torch.Tensor, piece: int = PIECE_PIXELS, new_map: NewMap | None = None
    ) -> LatentLR:
        """x_lr of the bicubic-upsampled LR image, B×3×H×W in [-1, 1]: the mode of E''s posterior.

        Args:
            piece: side in pixels of what is encoded at once, for images larger than that; the result is the
                same but for rounding.
            new_map: where feature maps of such images lie, if E' is not local; unset: with the image.
        """
        if self.encodes_locally:
            with lora_enabled(self.vae, True):
                moments = _in_pieces(self._e_prime, pixels, piece)
            mean, log_variance, *drawn = moments.split(int(self.vae.config.latent_channels), dim=1)
            found = LatentLR(mean, torch.exp(0.5 * log_variance), *drawn)
            return found.map(lambda part: part * self.scaling_factor)
        if _is_done_whole(pixels, piece):
            with lora_enabled(self.vae, True):
                posterior = self.vae.encode(pixels).latent_dist
            return LatentLR(posterior.mode() * self.scaling_factor, posterior.std * self.scaling_factor)
        both = self.embed_in_windows(pixels, piece, pixels.device, new_map or _beside(pixels))
        return LatentLR(*both[..., :, :].to(pixels.device).chunk(2, dim=1))

    def embed_in_windows(
        self,
        pixels: ReadGrid,
        piece: int,
        device: torch.device,
        new_map: NewMap,
        on_window: Callable[[], None] | None = None,
    ) -> Grid:
        """`embed_lr` by the VAE's encoder for an image and feature maps of which windows are in memory.

        Returns:
            Mean and standard deviation as one grid, B×2C×h×w.
        """

        def scaled(moments: torch.Tensor) -> torch.Tensor:
            mean, log_variance = moments.chunk(2, dim=1)
            std = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))  # as in diffusers
            return torch.cat([mean, std], dim=1) * self.scaling_factor

        with lora_enabled(self.vae, True):
            layers = encoder_layers(self.vae, scaled)
            return run_in_windows(layers, pixels, self._area(piece), device, new_map, on_window)

    def encoding_windows(self, height: int, width: int, piece: int) -> int:
        """How often `embed_in_windows` calls `on_window`, for latents h×w."""
        layers, fold = encoder_layers(self.vae, nn.Identity()), self.pixels_per_latent()
        return count_windows(layers, fold * height, fold * width, self._area(piece))

    def decoding_windows(self, height: int, width: int, piece: int) -> int:
        """How often `decode_in_windows` calls `on_window`, for latents h×w."""
        return count_windows(decoder_layers(self.vae, nn.Identity()), height, width, self._area(piece))

    def _area(self, piece: int) -> int:
        """Elements of the largest tensor that a piece has, which is what windows are made for."""
        return int(piece**2 * self.bytes_per_pixel() / 4)

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

    def decoder_overlap(self) -> nn.Module | None:
        """The last convolutions of our own VAE's decoder, which join its patches, where it has them."""
        return getattr(self.vae.decoder, "overlap", None)

    def decode(
        self, latents: torch.Tensor, piece: int = PIECE_PIXELS, new_map: NewMap | None = None
    ) -> torch.Tensor:
        """Pixels B×3×H×W, about [-1, 1], of scaled latents; `piece` and `new_map` as in `embed_lr`."""
        cells = piece // self.pixels_per_latent()
        if self.decodes_locally:
            return _in_pieces(self.vae.decoder, latents / self.scaling_factor, cells)
        if _is_done_whole(latents, cells):
            return self.vae.decode(latents / self.scaling_factor).sample
        pixels = self.decode_in_windows(latents, piece, latents.device, new_map or _beside(latents))
        return pixels[..., :, :].to(latents.device)

    def decode_in_windows(
        self,
        latents: ReadGrid,
        piece: int,
        device: torch.device,
        new_map: NewMap,
        on_window: Callable[[], None] | None = None,
    ) -> Grid:
        """`decode` by diffusers' VAE for latents, feature maps and pixels of which windows are in memory."""
        layers = decoder_layers(self.vae, lambda values: values / self.scaling_factor)
        return run_in_windows(layers, latents, self._area(piece), device, new_map, on_window)

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


def _in_pieces(network: Any, grid: torch.Tensor, size: int) -> torch.Tensor:
    """`network(grid)`, in pieces where the grid is large: the same result in bounded memory.

    For networks that state their receptive field (`margin` cells) and folding (`side`), as our own VAE does.
    """
    step = network.side if grid.shape[1] == 3 else 1
    return map_exactly(network, grid, size, network.margin, step)


def _is_done_whole(grid: torch.Tensor, side: int) -> bool:
    """Whether diffusers' VAE runs as it is: on what is small, for gradients, and for shapes alone."""
    return max(grid.shape[-2:]) <= side or torch.is_grad_enabled() or grid.is_meta


def _beside(grid: torch.Tensor) -> NewMap:
    """Feature maps on the same device."""
    return lambda shape, dtype: torch.empty(shape, dtype=dtype, device=grid.device)
