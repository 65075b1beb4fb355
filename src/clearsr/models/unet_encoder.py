"""The way through the encoder and the middle of a U-Net, or of the Detail Preserving Module that copies them.

The parts are diffusers' `UNet2DConditionModel`'s or those of a `UNet` of our own, which are called alike.
"""

from typing import Any, NamedTuple

import torch


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
