"""Cross-attention to a single token is a constant, exactly: the softmax over one key is 1.

Whatever the query, the output is to_out(to_v(token)); queries, keys and the attention itself need not be
computed. So it is in the U-Net's decoder, which attends to one image prompt token p.
"""

from typing import Any

import torch
from torch import nn


class OneTokenProcessor:
    """A processor of diffusers' `Attention` with the short cut for one token where no gradients are wanted.

    With gradients the long way is kept: queries and keys then get their gradients, which are zero but must be
    there for data-parallel training.
    """

    def __init__(self, stock: Any) -> None:
        """`stock` is the processor that does all else."""
        self.stock = stock

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """B×L×C of queries `hidden_states`, B×L×C, and tokens `encoder_hidden_states`, B×T×D."""
        is_constant = (
            encoder_hidden_states is not None
            and encoder_hidden_states.shape[1] == 1
            and attention_mask is None
            and not torch.is_grad_enabled()
        )
        if not is_constant:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        projection, dropout = attn.to_out
        constant = dropout(projection(attn.to_v(encoder_hidden_states)))  # B×1×C
        return constant.expand(-1, hidden_states.shape[1], -1)


def shorten_attention(module: nn.Module) -> None:
    """Give the text cross-attentions of diffusers' transformer blocks inside `module` the short cut."""
    for name, child in module.named_modules():
        if name.endswith("attn2") and hasattr(child, "set_processor"):
            attention: Any = child
            attention.set_processor(OneTokenProcessor(attention.processor))
