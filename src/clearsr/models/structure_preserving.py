"""Structure Preserving Module (paper: SPM, called GSPM in its first version): ResBlocks only (section 3.2).

No attention, no middle block and no time: its features depend on x_lr alone and are computed once per image.
They are added to the Detail Preserving Module's before the zero convolutions that both share.
"""

import copy
from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import Downsample2D, ResnetBlock2D
from torch import nn


class StructurePreservingModule(nn.Module):
    """z_lr -> features at every level of the U-Net's encoder."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """ResBlocks and downsamplers of the U-Net's encoder, weights copied, time projections left out."""
        super().__init__()
        self.gradient_checkpointing = False  # these two as in diffusers' blocks
        self._gradient_checkpointing_func: Callable[..., torch.Tensor] | None = None
        self.conv_in = _copy_of(unet.conv_in)
        self.levels = nn.ModuleList()
        for block in unet.down_blocks:
            layers: list[nn.Module] = [_without_time(resnet, unet) for resnet in block.resnets]
            layers.extend(_copy_of(downsampler) for downsampler in block.downsamplers or [])
            self.levels.append(nn.ModuleList(layers))

    def forward(self, z_lr: torch.Tensor) -> list[torch.Tensor]:
        """One feature map per skip connection of the U-Net; z_lr is B×c×h×w."""
        hidden = self.conv_in(z_lr)
        features = [hidden]
        for level in self.levels:
            for layer in level:  # type: ignore[attr-defined]
                inputs = (hidden,) if isinstance(layer, Downsample2D) else (hidden, None)
                if self.gradient_checkpointing and torch.is_grad_enabled():
                    assert self._gradient_checkpointing_func is not None, "it is set with the switch"
                    hidden = self._gradient_checkpointing_func(layer, *inputs)
                else:
                    hidden = layer(*inputs)
                features.append(hidden)
        return features


def _without_time(resnet: ResnetBlock2D, unet: UNet2DConditionModel) -> ResnetBlock2D:
    """A ResBlock of the same shape and weights that takes no time embedding."""
    clone = ResnetBlock2D(
        in_channels=resnet.in_channels,
        out_channels=resnet.out_channels,
        temb_channels=None,
        groups=unet.config.norm_num_groups,
        eps=unet.config.norm_eps,
        non_linearity=unet.config.act_fn,
    )
    state = {k: v for k, v in resnet.state_dict().items() if not k.startswith("time_emb_proj")}
    clone.load_state_dict(state, assign=_is_meta(resnet))
    return clone.requires_grad_(True)


def _copy_of(module: nn.Module) -> nn.Module:
    """A trainable deep copy."""
    return copy.deepcopy(module).requires_grad_(True)


def _is_meta(module: nn.Module) -> bool:
    """Whether the weights are shapes only (parameter counts without memory)."""
    return next(module.parameters()).is_meta
