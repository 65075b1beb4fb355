"""The compact preset's U-Net: Stable Diffusion's layout with widths of our own, in plain torch.

It computes what diffusers' `UNet2DConditionModel` computes, tensor names included (a test compares the two),
but importing diffusers takes longer than upscaling a small picture. Bases of Stable Diffusion stay diffusers'
own class; the two are asked alike: `config`, and blocks that take the same arguments.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from clearsr.models.transformer import Transformer


class Recomputing(nn.Module):
    """The two attributes are those of diffusers' blocks, so that one loop switches all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] | None = None

    def recompute(self, layer: nn.Module, *inputs: torch.Tensor | None, **named: Any) -> torch.Tensor:
        """`layer(*inputs, **named)`, with its activations kept for the backward pass or not, as was set."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            assert self._gradient_checkpointing_func is not None, "it is set with the switch"
            return self._gradient_checkpointing_func(layer, *inputs, **named)
        return layer(*inputs, **named)


class UNetShape(NamedTuple):
    """What a U-Net looks like, in diffusers' words."""

    in_channels: int
    block_out_channels: tuple[int, ...]
    attention: tuple[bool, ...]  # whether each width has transformers
    layers_per_block: int
    attention_head_dim: tuple[int, ...]  # diffusers' misnomer: the number of heads at each width
    cross_attention_dim: int
    norm_num_groups: int
    norm_eps: float = 1e-5


class UNet(nn.Module):
    """The parts of a denoising U-Net; `ClearSRNetwork` runs them, in two halves."""

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        self.config = shape
        widths = shape.block_out_channels
        levels = range(len(widths))
        self.conv_in = nn.Conv2d(shape.in_channels, widths[0], 3, padding=1)
        self.time_proj = TimeProjection(widths[0])
        self.time_embedding = TimeEmbedding(widths[0], 4 * widths[0])
        self.down_blocks = nn.ModuleList(DownBlock(shape, level) for level in levels)
        self.mid_block = MidBlock(shape)
        self.up_blocks = nn.ModuleList(UpBlock(shape, level) for level in reversed(levels))
        self.conv_norm_out = nn.GroupNorm(shape.norm_num_groups, widths[0], shape.norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[0], shape.in_channels, 3, padding=1)


class TimeProjection(nn.Module):
    """Timesteps B -> cosines and sines B×width of frequencies from 1 down to 1/10000."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        half = self.width // 2
        exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half
        angles = timestep[:, None].float() * torch.exp(exponents)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """B×channels -> B×width, by two linear layers."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.silu(self.linear_1(sample)))


class ResBlock(nn.Module):
    """Two convolutions with a residual connection; the time embedding is added between them."""

    def __init__(self, shape: UNetShape, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(shape.norm_num_groups, in_channels, shape.norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        # The Structure Preserving Module takes this layer away.
        self.time_emb_proj: nn.Linear | None = nn.Linear(4 * shape.block_out_channels[0], out_channels)
        self.norm2 = nn.GroupNorm(shape.norm_num_groups, out_channels, shape.norm_eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden: torch.Tensor, temb: torch.Tensor | None) -> torch.Tensor:
        """B×C×h×w and B×width -> B×C'×h×w."""
        inner = self.conv1(F.silu(self.norm1(hidden)))
        if self.time_emb_proj is not None and temb is not None:
            inner = inner + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        inner = self.conv2(F.silu(self.norm2(inner)))
        shortcut = hidden if self.conv_shortcut is None else self.conv_shortcut(hidden)
        return shortcut + inner


class Downsample(nn.Module):
    """Half the size, by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.conv(hidden)


class Upsample(nn.Module):
    """Twice the size or the size given, by nearest neighbours and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        factor = 2.0 if size is None else None
        return self.conv(F.interpolate(hidden, size=size, scale_factor=factor, mode="nearest"))


class Block(Recomputing):
    """ResBlocks, each followed by a transformer where the block has them."""

    def __init__(
        self, shape: UNetShape, level: int, resnet_channels: list[tuple[int, int]], transformers: int
    ) -> None:
        super().__init__()
        self.has_cross_attention = transformers > 0
        self.resnets = nn.ModuleList(ResBlock(shape, *channels) for channels in resnet_channels)
        if transformers:
            width, heads = shape.block_out_channels[level], shape.attention_head_dim[level]
            self.attentions = nn.ModuleList(
                Transformer(width, heads, shape.cross_attention_dim, shape.norm_num_groups)
                for _ in range(transformers)
            )

    def layer(self, index: int, hidden: torch.Tensor, temb: torch.Tensor, **prompt: Any) -> torch.Tensor:
        """A ResBlock and, where the block has them, the transformer behind it, which is given `prompt`."""
        hidden = self.recompute(self.resnets[index], hidden, temb)
        return (
            self.recompute(self.attentions[index], hidden, **prompt) if self.has_cross_attention else hidden
        )


class DownBlock(Block):
    """One level of the encoder; all but the coarsest end with a downsampler."""

    def __init__(self, shape: UNetShape, level: int) -> None:
        widths, layers = shape.block_out_channels, shape.layers_per_block
        channels = [(widths[max(0, level - 1)], widths[level])] + [(widths[level],) * 2] * (layers - 1)
        super().__init__(shape, level, channels, layers if shape.attention[level] else 0)
        is_last = level == len(widths) - 1
        self.downsamplers = None if is_last else nn.ModuleList([Downsample(widths[level])])

    def forward(
        self,
        hidden: torch.Tensor,
        temb: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The features, and those of every layer for the skip connections."""
        outputs = []
        prompt = {
            "encoder_hidden_states": encoder_hidden_states,
            "cross_attention_kwargs": cross_attention_kwargs,
        }
        for index in range(len(self.resnets)):
            hidden = self.layer(index, hidden, temb, **prompt)
            outputs.append(hidden)
        for downsampler in self.downsamplers or ():
            hidden = downsampler(hidden)
            outputs.append(hidden)
        return hidden, tuple(outputs)


class MidBlock(Block):
    """ResBlock, transformer, ResBlock at the coarsest level."""

    def __init__(self, shape: UNetShape) -> None:
        width = shape.block_out_channels[-1]
        super().__init__(shape, -1, [(width, width)] * 2, 1)

    def forward(
        self,
        hidden: torch.Tensor,
        temb: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        prompt = {
            "encoder_hidden_states": encoder_hidden_states,
            "cross_attention_kwargs": cross_attention_kwargs,
        }
        return self.recompute(self.resnets[1], self.layer(0, hidden, temb, **prompt), temb)


class UpBlock(Block):
    """One level of the decoder, with the encoder's features; all but the finest end with an upsampler."""

    def __init__(self, shape: UNetShape, level: int) -> None:
        widths, layers = shape.block_out_channels, shape.layers_per_block
        width, below = widths[level], widths[min(level + 1, len(widths) - 1)]
        skips = [width] * layers + [widths[max(0, level - 1)]]
        channels = [((below if i == 0 else width) + skip, width) for i, skip in enumerate(skips)]
        super().__init__(shape, level, channels, layers + 1 if shape.attention[level] else 0)
        self.upsamplers = nn.ModuleList([Upsample(width)]) if level > 0 else None

    def forward(
        self,
        hidden: torch.Tensor,
        res_hidden_states_tuple: tuple[torch.Tensor, ...],
        temb: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        upsample_size: tuple[int, int] | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        prompt = {
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
        }
        for index in range(len(self.resnets)):
            joined = torch.cat([hidden, res_hidden_states_tuple[-1 - index]], dim=1)
            hidden = self.layer(index, joined, temb, **prompt)
        for upsampler in self.upsamplers or ():
            hidden = upsampler(hidden, upsample_size)
        return hidden


# The way through the encoder and the middle of a U-Net, or of the Detail Preserving Module that copies them.
# The parts are diffusers' `UNet2DConditionModel`'s or those of a `UNet` of our own, which are called alike.
class EncodedLatent(NamedTuple):
    """The first half of a U-Net pass: skip connections, middle and time embedding."""

    skips: list[torch.Tensor]
    middle: torch.Tensor
    time: torch.Tensor


def run_encoder(
    parts: Any,
    latent: torch.Tensor,
    timestep: torch.Tensor,
    text: torch.Tensor,
    attention_arguments: dict[str, Any] | None = None,
) -> EncodedLatent:
    """What comes before the decoder.

    Args:
        parts: has `conv_in`, `time_proj`, `time_embedding`, `down_blocks` and `mid_block`.
        latent: B×c×h×w.
        timestep: B, int64.
        text: B×tokens×D, the null prompt.
        attention_arguments: what the transformer blocks are handed besides.
    """
    given = {"encoder_hidden_states": text, "cross_attention_kwargs": attention_arguments}
    time = parts.time_embedding(parts.time_proj(timestep).to(latent.dtype))
    hidden = parts.conv_in(latent)
    skips = [hidden]
    for block in parts.down_blocks:
        hidden, outputs = block(hidden, temb=time, **(given if _attends(block) else {}))
        skips.extend(outputs)
    middle = parts.mid_block(hidden, time, **(given if _attends(parts.mid_block) else {}))
    return EncodedLatent(skips, middle, time)


def _attends(block: Any) -> bool:
    """Whether a block has transformers, and takes what they need."""
    return bool(getattr(block, "has_cross_attention", False))
