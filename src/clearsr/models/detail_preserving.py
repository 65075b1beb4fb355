"""Detail Preserving Module (paper: DPM): a ControlNet on x_lr that attends to it in windows (section 3.2).

x_lr goes straight into conv_in (there is no hint convolution); after each text cross-attention of the
ControlNet a window cross-attention to x_lr is added.
"""

import copy
from typing import Any

import torch
from torch import nn

from clearsr.config.model import ControlConfig
from clearsr.models.unet import run_encoder
from clearsr.models.window_attention import WindowCrossAttention


class DetailPreservingModule(nn.Module):
    """z_lr, timestep and null text -> features at every level of the U-Net's encoder, and its middle."""

    def __init__(self, unet: Any, control: ControlConfig, head_dim: int) -> None:
        """A copy of the U-Net's encoder and middle, so that it starts with the base's prior."""
        super().__init__()
        names = ("conv_in", "time_proj", "time_embedding", "down_blocks", "mid_block")
        copies = {name: copy.deepcopy(getattr(unet, name)).requires_grad_(True) for name in names}
        self.conv_in, self.time_proj, self.time_embedding = (copies[name] for name in names[:3])
        self.down_blocks, self.mid_block = copies["down_blocks"], copies["mid_block"]
        # The zero convolutions, which the Structure Preserving Module shares.
        widths = unet.config.block_out_channels
        skip_widths = [widths[0]]  # of conv_in, then of each ResBlock and downsampler
        for block, width in zip(self.down_blocks, widths, strict=True):
            skip_widths += [width] * (len(block.resnets) + len(block.downsamplers or []))
        self.zero_convs: Any = nn.ModuleList(_zero_convolution(width) for width in skip_widths)
        self.mid_zero_conv = _zero_convolution(widths[-1])
        if control.cross_attention:
            latent_channels = unet.config.in_channels
            levels = [(block, 2**level) for level, block in enumerate(self.down_blocks)]
            levels.append((self.mid_block, 2 ** (len(self.down_blocks) - 1)))
            for block, ratio in levels:
                for transformer in getattr(block, "attentions", None) or []:
                    transformer.transformer_blocks = nn.ModuleList(
                        LRTransformerBlock(
                            inner,
                            WindowCrossAttention(
                                inner.norm1.normalized_shape[0],
                                latent_channels,
                                head_dim,
                                control.window_size,
                                ratio,
                            ),
                        )
                        for inner in transformer.transformer_blocks
                    )

    def forward(
        self, z_lr: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Features before the zero convolutions: one per skip connection of the U-Net, and the middle.

        Args:
            z_lr: x_lr, B×c×h×w.
            timestep: B, int64.
            text: B×tokens×D, the null prompt.
        """
        features, middle, _ = run_encoder(self, z_lr, timestep, text, {"z_lr": z_lr})
        return features, middle

    def project(
        self, features: list[torch.Tensor], middle: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The zero convolutions: features -> control signals x_c."""
        signals = [conv(feature) for conv, feature in zip(self.zero_convs, features, strict=True)]
        return signals, self.mid_zero_conv(middle)


class LRTransformerBlock(nn.Module):
    """A transformer block of the base with a window cross-attention to x_lr after its text cross-attention.

    x_lr arrives in `cross_attention_kwargs["z_lr"]`, which the block's parents hand down unchanged.
    """

    def __init__(self, block: Any, lr_attention: WindowCrossAttention) -> None:
        super().__init__()
        self.block, self.lr_attention = block, lr_attention

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """B×L×C -> B×L×C; the arguments are those of diffusers' block, of which the masks are never given."""
        assert cross_attention_kwargs is not None, "z_lr must be given"
        block = self.block
        hidden = hidden_states + block.attn1(block.norm1(hidden_states))
        hidden = hidden + block.attn2(block.norm2(hidden), encoder_hidden_states=encoder_hidden_states)
        hidden = hidden + self.lr_attention(hidden, cross_attention_kwargs["z_lr"])
        return hidden + block.ff(block.norm3(hidden))


def _zero_convolution(width: int) -> nn.Conv2d:
    """A 1x1 convolution that gives zero until it is trained."""
    convolution = nn.Conv2d(width, width, 1)
    nn.init.zeros_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution
