"""Stable Diffusion's VAE in windows, with the result of one pass over the whole image.

diffusers' `AutoencoderKL` looks at all of an image in two places, its GroupNorms and its attention, so that
its tiles cannot simply be put together. Here it is taken apart into layers that can (`windowed_layers.py`).
"""

from typing import Any

import torch
from torch import nn

from clearsr.models.windowed_layers import Convolution, Function, Layer, SelfAttention, per_cell


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
