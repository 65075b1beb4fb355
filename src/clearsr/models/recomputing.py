"""A module that can compute its layers again for gradients rather than keep their activations."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


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
