"""LoRA (Hu et al. 2021) through peft: which layers, how it is switched, merged and stripped; only here.

alpha always equals the rank, so that the adapter's scale is 1 and nothing but the tensors has to be stored.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from clearsr.errors import optional

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

# Every convolution and attention projection of the VAE encoder (section 3.1). A string is matched whole.
VAE_ENCODER_TARGETS = (
    r"encoder\.(?:conv_in|conv_out|.*\.(?:conv1|conv2|conv_shortcut|conv|to_q|to_k|to_v|to_out\.0))"
)
# The attention projections of the U-Net decoder (paper, section 3.1 and appendix A).
UNET_DECODER_TARGETS = r"up_blocks\..*\.attn[12]\.(?:to_q|to_k|to_v|to_out\.0)"

ADAPTER = "clearsr"


def add_lora(module: nn.Module, targets: str, rank: int) -> None:
    """Put LoRA layers of the given rank on the layers of `module` whose full name matches `targets`.

    The output does not change until the adapter is trained (B starts at zero). The LoRA tensors are fp32 and
    the only parameters of `module` left trainable.

    Raises:
        ValueError: no layer matches.
    """
    with optional("a LoRA"):  # slow to import, and few models have one
        from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights="gaussian")
    inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    for name, parameter in module.named_parameters():
        is_lora = "lora_" in name
        parameter.requires_grad_(is_lora)
        if is_lora and not parameter.is_meta:
            parameter.data = parameter.data.float()


def lora_layers(module: nn.Module) -> "list[BaseTunerLayer]":
    """The LoRA layers inside `module`; empty if none were added or all were merged."""
    layers: list[Any] = [layer for layer in module.modules() if _is_lora(layer)]
    return layers


@contextmanager
def lora_enabled(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Within the block the LoRA of `module` is on (E') or off (E); off is bit-identical to the base.

    Only the layers' flag is flipped: peft's own `disable_adapters` would also clear `requires_grad`, after
    which a backward pass silently leaves the LoRA without gradient.
    """
    layers = lora_layers(module)
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = not enabled
        yield
    finally:
        for layer, flag in zip(layers, before, strict=True):
            layer._disable_adapters = flag


def merge_lora(module: nn.Module) -> None:
    """Fold every LoRA into its base weight, W + BA, in fp32, and strip the wrappers. Idempotent."""
    for name, child in list(module.named_children()):
        if _is_lora(child):
            layer: Any = child
            base, delta = layer.get_base_layer(), layer.get_delta_weight(ADAPTER)
            with torch.no_grad():
                base.weight.copy_((base.weight.float() + delta.float()).to(base.weight.dtype))
            setattr(module, name, base)
        else:
            merge_lora(child)


def _is_lora(module: nn.Module) -> bool:
    """Whether this is one of peft's layers around a layer (told without importing peft)."""
    return hasattr(module, "lora_A") and hasattr(module, "get_base_layer")
