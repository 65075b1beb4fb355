"""Structure Preserving Module (paper: SPM, called GSPM in its first version): ResBlocks only (section 3.2).

No attention, no middle block and no time: its features depend on x_lr alone and are computed once per image.
They are added to the Detail Preserving Module's before the zero convolutions that both share.
"""

import copy
from typing import Any

import torch
from torch import nn

from clearsr.models.unet import Recomputing


class StructurePreservingModule(Recomputing):
    """z_lr -> features at every level of the U-Net's encoder."""

    def __init__(self, unet: Any) -> None:
        """ResBlocks and downsamplers of the U-Net's encoder, weights copied, time projections left out."""
        super().__init__()
        self.conv_in = _copy_of(unet.conv_in)
        self.levels = nn.ModuleList()
        for block in unet.down_blocks:
            layers: list[nn.Module] = [_without_time(resnet) for resnet in block.resnets]
            layers.extend(_copy_of(downsampler) for downsampler in block.downsamplers or [])
            self.levels.append(nn.ModuleList(layers))

    def forward(self, z_lr: torch.Tensor) -> list[torch.Tensor]:
        """One feature map per skip connection of the U-Net; z_lr is B×c×h×w."""
        hidden = self.conv_in(z_lr)
        features = [hidden]
        for level in self.levels:
            for layer in level:  # type: ignore[attr-defined]
                takes_time = hasattr(layer, "time_emb_proj")  # the ResBlocks; downsamplers do not
                hidden = self.recompute(layer, hidden, None) if takes_time else self.recompute(layer, hidden)
                features.append(hidden)
        return features


def _without_time(resnet: nn.Module) -> nn.Module:
    """A trainable copy of a ResBlock that takes no time embedding."""
    clone = _copy_of(resnet)
    clone.time_emb_proj = None  # type: ignore[assignment]
    return clone


def _copy_of(module: nn.Module) -> nn.Module:
    """A trainable deep copy."""
    return copy.deepcopy(module).requires_grad_(True)
