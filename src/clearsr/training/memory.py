"""Less memory: recomputing activations, and storing the frozen base in 16 bits."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from clearsr.config.training import TrainConfig
from clearsr.models.clearsr import ClearSRNetwork

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def save_memory(network: ClearSRNetwork, config: TrainConfig) -> None:
    """Apply `gradient_checkpointing` and `frozen_precision`; after the stage has set what is trained."""
    if config.gradient_checkpointing:
        recompute_activations(network)
    if config.frozen_precision != "fp32":
        shrink_frozen(network, DTYPES[config.frozen_precision])


def recompute_activations(network: ClearSRNetwork) -> None:
    """Have the blocks of U-Net, DPM, SPM and VAE compute activations again for gradients, not keep them.

    The blocks are diffusers'; they look at `gradient_checkpointing` and call `_gradient_checkpointing_func`.
    """
    function = partial(checkpoint, use_reentrant=False)
    parts = (network.unet, network.detail_preserving, network.structure_preserving, network.latents.vae)
    for part in parts:
        modules: list[Any] = [] if part is None else list(part.modules())
        for module in modules:
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = True
                module._gradient_checkpointing_func = function


def shrink_frozen(network: nn.Module, dtype: torch.dtype) -> None:
    """Store the weights of frozen convolutions and linear layers in 16 bits, for use under autocast.

    They are nearly all of a base. Norms, embeddings and all that is trained stay in fp32.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.requires_grad:
            module.to(dtype)
