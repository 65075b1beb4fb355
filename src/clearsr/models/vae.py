"""The two kinds of VAE behind one `Protocol`: our own and diffusers'. What each can do is data.

Our own looks at a bounded neighbourhood, so that it can be asked for any part of an image. diffusers'
`AutoencoderKL` does not: its GroupNorms and its attention look at all of the image, so it is done for the
whole of it: where it is large taken apart into layers that can be done in windows (`windowed_layers.py`),
with the result of one pass. Neither knows of scaling factors.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from clearsr.models.windowed_layers import (
    Convolution,
    Function,
    Layer,
    NewMap,
    SelfAttention,
    beside,
    count_windows,
    per_cell,
    run_in_windows,
)
from clearsr.tiling import Grid, ReadGrid, map_exactly

Moments = tuple[torch.Tensor, torch.Tensor]  # mean and standard deviation


class VaeAdapter(Protocol):
    """A VAE with E' as `LatentLREmbedding` uses it."""

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along a side of what one latent stands for."""
        ...

    @property
    def encoder_margin(self) -> int | None:
        """Pixels around a part that its x_lr depends on; None: E' looks at all of the image."""
        ...

    @property
    def decoder_margin(self) -> int | None:
        """Latents around a part that its pixels depend on; None: D looks at all of the image."""
        ...

    @property
    def bytes_per_pixel(self) -> float:
        """Of one activation at the finest level, the largest there is, in fp32."""
        ...

    @property
    def map_bytes_per_pixel(self) -> float:
        """Of the feature maps that exist at a time where an image larger than a piece goes layer by layer."""
        ...

    @property
    def decoder_overlap(self) -> nn.Module | None:
        """The last convolutions of a decoder of patches, which join them, where it has them."""
        ...

    def posterior(self, pixels: torch.Tensor, piece: int, new_map: NewMap | None) -> Moments:
        """Of E', B×C×h×w each, for pixels B×3×H×W in [-1, 1], `piece` pixels a side at once."""
        ...

    def decode(self, z: torch.Tensor, piece: int, new_map: NewMap | None) -> torch.Tensor:
        """Pixels of unscaled latents, of `piece` pixels a side at once."""
        ...


class OwnVae(NamedTuple):
    """A `PatchAutoencoderKL`; E' is its encoder with a LoRA, or an encoder of its own."""

    vae: Any
    lr_encoder: Any = None

    @property
    def e_prime(self) -> Any:
        """The encoder that is E', once the VAE's LoRA is on."""
        return self.vae.encoder if self.lr_encoder is None else self.lr_encoder

    @property
    def pixels_per_latent(self) -> int:
        """See `VaeAdapter`."""
        config = self.vae.config
        return int(config.patch_size) * 2 ** (len(config.encoder_channels) - 1)

    @property
    def encoder_margin(self) -> int:
        """See `VaeAdapter`."""
        return int(self.e_prime.margin)

    @property
    def decoder_margin(self) -> int:
        """See `VaeAdapter`."""
        return int(self.vae.decoder.margin)

    @property
    def bytes_per_pixel(self) -> float:
        """See `VaeAdapter`."""
        config = self.vae.config
        widths = [config.encoder_channels[0], config.decoder_channels[0]]
        if self.lr_encoder is not None:
            widths.append(int(self.lr_encoder.conv_in.out_channels))
        return 4.0 * max(max(widths) / config.patch_size**2, config.overlap_channels / 4)

    @property
    def map_bytes_per_pixel(self) -> float:
        """None are kept."""
        return 0.0

    @property
    def decoder_overlap(self) -> nn.Module | None:
        """See `VaeAdapter`."""
        overlap: nn.Module | None = self.vae.decoder.overlap
        return overlap

    def posterior(self, pixels: torch.Tensor, piece: int, new_map: NewMap | None) -> Moments:
        """See `VaeAdapter`; pieces give the untiled result."""
        e_prime = self.e_prime
        moments = map_exactly(e_prime, pixels, piece, e_prime.margin, e_prime.side)
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, torch.exp(0.5 * log_variance)

    def decode(self, z: torch.Tensor, piece: int, new_map: NewMap | None) -> torch.Tensor:
        """See `VaeAdapter`; pieces give the untiled result."""
        return map_exactly(self.vae.decoder, z, piece // self.pixels_per_latent, self.decoder_margin)


class DiffusersVae(NamedTuple):
    """An `AutoencoderKL`; E' is its encoder with a LoRA."""

    vae: Any

    @property
    def pixels_per_latent(self) -> int:
        """See `VaeAdapter`."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def encoder_margin(self) -> None:
        """See `VaeAdapter`."""
        return None

    @property
    def decoder_margin(self) -> None:
        """See `VaeAdapter`."""
        return None

    @property
    def bytes_per_pixel(self) -> float:
        """See `VaeAdapter`."""
        return 4.0 * max(self.vae.config.block_out_channels[:2])  # the decoder's come with the level below

    @property
    def map_bytes_per_pixel(self) -> float:
        """A residual, what is added to it, and the sum."""
        finest, *others = self.vae.config.block_out_channels
        return 4.0 * (max([finest, *others[:1]]) + 2 * finest)

    @property
    def decoder_overlap(self) -> None:
        """There are no patches."""
        return None

    def posterior(self, pixels: torch.Tensor, piece: int, new_map: NewMap | None) -> Moments:
        """See `VaeAdapter`."""
        if _is_done_whole(pixels, piece):
            found = self.vae.encode(pixels).latent_dist
            return found.mode(), found.std
        both = self.posterior_in_windows(pixels, piece, pixels.device, new_map or beside(pixels))
        mean, std = both[..., :, :].to(pixels.device).chunk(2, dim=1)
        return mean, std

    def posterior_in_windows(
        self,
        pixels: ReadGrid,
        piece: int,
        device: torch.device,
        new_map: NewMap,
        factor: float = 1.0,
        on_window: Callable[[], None] | None = None,
    ) -> Grid:
        """Mean and standard deviation, times `factor`, as one grid B×2C×h×w, of an image and feature maps of
        which windows are in memory.
        """

        def finish(moments: torch.Tensor) -> torch.Tensor:
            mean, log_variance = moments.chunk(2, dim=1)
            std = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))  # as in diffusers
            return torch.cat([mean, std], dim=1) * factor

        layers = encoder_layers(self.vae, finish)
        return run_in_windows(layers, pixels, self._area(piece), device, new_map, on_window)

    def decode(self, z: torch.Tensor, piece: int, new_map: NewMap | None) -> torch.Tensor:
        """See `VaeAdapter`."""
        if _is_done_whole(z, piece // self.pixels_per_latent):
            return self.vae.decode(z).sample
        pixels = self.decode_in_windows(z, piece, z.device, new_map or beside(z))
        return pixels[..., :, :].to(z.device)

    def decode_in_windows(
        self,
        z: ReadGrid,
        piece: int,
        device: torch.device,
        new_map: NewMap,
        divisor: float = 1.0,
        on_window: Callable[[], None] | None = None,
    ) -> Grid:
        """`decode` of z over `divisor`, for maps and pixels of which windows are in memory."""
        layers = decoder_layers(self.vae, lambda values: values / divisor)
        return run_in_windows(layers, z, self._area(piece), device, new_map, on_window)

    def encoding_windows(self, height: int, width: int, piece: int) -> int:
        """How often `posterior_in_windows` calls `on_window`, for latents h×w."""
        layers, fold = encoder_layers(self.vae, nn.Identity()), self.pixels_per_latent
        return count_windows(layers, fold * height, fold * width, self._area(piece))

    def decoding_windows(self, height: int, width: int, piece: int) -> int:
        """How often `decode_in_windows` calls `on_window`, for latents h×w."""
        return count_windows(decoder_layers(self.vae, nn.Identity()), height, width, self._area(piece))

    def _area(self, piece: int) -> int:
        """Elements of the largest tensor that a piece has, which is what windows are made for."""
        return int(piece**2 * self.bytes_per_pixel / 4)


def _is_done_whole(grid: torch.Tensor, side: int) -> bool:
    """Whether diffusers' VAE runs as it is: on what is small, for gradients, and for shapes alone."""
    return max(grid.shape[-2:]) <= side or torch.is_grad_enabled() or grid.is_meta


def encoder_layers(vae: Any, finish: Function) -> list[Layer]:
    """`vae.encode` of diffusers' `AutoencoderKL` up to the moments B×2C×h×w, which `finish` then changes."""
    encoder = vae.encoder
    layers: list[Layer] = [_convolution(encoder.conv_in)]
    for block in encoder.down_blocks:
        layers += _block(block)
    layers += [*_middle(encoder.mid_block), _last(encoder)]
    return [*layers, _per_window(vae.quant_conv, 2 * vae.config.latent_channels, after=finish)]


def decoder_layers(vae: Any, prepare: Function) -> list[Layer]:
    """`vae.decode` of diffusers' `AutoencoderKL`, of latents that `prepare` changes first."""
    decoder = vae.decoder
    layers: list[Layer] = [_per_window(vae.post_quant_conv, vae.config.latent_channels, before=prepare)]
    layers += [_convolution(decoder.conv_in), *_middle(decoder.mid_block)]
    for block in decoder.up_blocks:
        layers += _block(block)
    return [*layers, _last(decoder)]


def _block(block: Any) -> list[Layer]:
    """A down- or up-block: ResNet blocks, each with an attention in some architectures, and a resampling."""
    layers: list[Layer] = []
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    for resnet, attn in zip(block.resnets, attentions, strict=True):
        layers += [*_resnet(resnet), *_attention(attn)]
    for sampler in getattr(block, "downsamplers", None) or ():
        layers.append(_convolution(sampler, sampler.conv, cells=(2, 1)))
    for sampler in getattr(block, "upsamplers", None) or ():
        layers.append(_convolution(sampler, sampler.conv, cells=(1, 2)))
    return layers


def _middle(block: Any) -> list[Layer]:
    """The block at the coarsest level: a ResNet block, then pairs of attention (if any) and ResNet block."""
    layers = _resnet(block.resnets[0])
    for attn, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        layers += [*_attention(attn), *_resnet(resnet)]
    return layers


def _resnet(block: Any) -> list[Layer]:
    channels = max(block.conv1.weight.shape[:2])
    act, factor = block.nonlinearity, block.output_scale_factor
    shortcut = block.conv_shortcut or nn.Identity()
    return [
        Convolution(block.conv1, channels, norm=block.norm1, activation=act, starts_residual=True),
        Convolution(
            block.conv2, channels, norm=block.norm2, activation=act, shortcut=shortcut, divisor=factor
        ),
    ]


def _attention(attn: Any) -> list[Layer]:
    """Keys and values of all cells, then the queries; nothing for None."""
    if attn is None:
        return []
    channels = attn.to_q.weight.shape[1]

    def keys_and_values(hidden: torch.Tensor) -> torch.Tensor:
        return torch.cat([per_cell(attn.to_k)(hidden), per_cell(attn.to_v)(hidden)], dim=1)

    first = Convolution(keys_and_values, 2 * channels, 0, norm=attn.group_norm, starts_residual=True)
    return [first, SelfAttention(attn, channels)]


def _last(network: Any) -> Layer:
    return _convolution(network.conv_out, norm=network.conv_norm_out, activation=network.conv_act)


def _convolution(module: Any, conv: Any = None, **settings: Any) -> Layer:
    """A module around a 3×3 convolution `conv`; without it, that convolution itself."""
    return Convolution(module, max((conv or module).weight.shape[:2]), **settings)


def _per_window(
    module: Function | None, channels: int, before: Function | None = None, after: Function | None = None
) -> Layer:
    """A function of single cells, made of up to three."""
    functions = [function for function in (before, module, after) if function is not None]

    def apply(values: torch.Tensor) -> torch.Tensor:
        for function in functions:
            values = function(values)
        return values

    return Convolution(apply, channels, 0)
