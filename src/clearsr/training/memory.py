"""Less memory: recomputing activations, and storing the frozen base in 16 bits."""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from clearsr.config.training import TrainConfig
from clearsr.hardware import store_in
from clearsr.models.clearsr import ClearSRNetwork

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def save_memory(network: ClearSRNetwork, config: TrainConfig) -> None:
    """Apply `gradient_checkpointing` and `frozen_precision`; after the stage has set what is trained."""
    if config.gradient_checkpointing:
        recompute_activations(network)
    if config.frozen_precision != "fp32":
        store_in(network, DTYPES[config.frozen_precision])


def recompute_activations(network: ClearSRNetwork) -> None:
    """Have the blocks of U-Net, DPM, SPM and VAE compute activations again for gradients, not keep them.

    diffusers' blocks, and ours after them (`models.recomputing`), look at `gradient_checkpointing` and call
    `_gradient_checkpointing_func`.
    """
    function = partial(checkpoint, use_reentrant=False)
    parts = (network.unet, network.detail_preserving, network.structure_preserving, network.latents.vae)
    for part in parts:
        modules: list[Any] = [] if part is None else list(part.modules())
        for module in modules:
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = True
                module._gradient_checkpointing_func = function
