"""The transformer of the compact preset's U-Net: self-attention, attention to the prompt, gated feed-forward.

What diffusers' `Transformer2DModel` with linear projections computes, tensor names included.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Transformer(nn.Module):
    """One transformer block on the cells of a feature map, with a residual connection."""

    def __init__(self, width: int, heads: int, prompt_width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, heads, prompt_width)])
        self.proj_out = nn.Linear(width, width)

    def forward(
        self,
        hidden: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """B×C×h×w, prompt tokens B×T×D and which of them count, B×T of bool (None: all) -> B×C×h×w."""
        height, width = hidden.shape[-2:]
        cells = self.proj_in(self.norm(hidden).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            cells = block(
                cells,
                encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask,
                cross_attention_kwargs=cross_attention_kwargs,
            )
        return hidden + self.proj_out(cells).transpose(1, 2).unflatten(2, (height, width))


class TransformerBlock(nn.Module):
    """Three residual layers on B×L×C: attention among the cells, attention to the prompt, feed-forward."""

    def __init__(self, width: int, heads: int, prompt_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, width)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, prompt_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(
        self,
        hidden: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """`cross_attention_kwargs` is for the Detail Preserving Module's block, which can stand here."""
        hidden = hidden + self.attn1(self.norm1(hidden))
        hidden = hidden + self.attn2(
            self.norm2(hidden),
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
        )
        return hidden + self.ff(self.norm3(hidden))


class Attention(nn.Module):
    """Multi-head attention; queries from B×L×C, keys and values from B×T×D or from the same cells."""

    def __init__(self, width: int, heads: int, source_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.takes_short_cut = True  # the benchmarks' naive way has it off
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(source_width, width, bias=False)
        self.to_v = nn.Linear(source_width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(
        self,
        hidden: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        source = hidden if encoder_hidden_states is None else encoder_hidden_states
        if self.takes_short_cut and source.shape[1] == 1 and not torch.is_grad_enabled():
            # As in `one_token_attention`, which is for diffusers' attention.
            return self.to_out[0](self.to_v(source)).expand(-1, hidden.shape[1], -1)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(hidden), self.to_k(source), self.to_v(source))
        )
        mask = None if encoder_attention_mask is None else encoder_attention_mask[:, None, None]
        attended = F.scaled_dot_product_attention(q, k, v, mask)
        return self.to_out[0](attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers, the first of them gated by GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [GatedProjection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)]
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.net[2](self.net[0](hidden))


class GatedProjection(nn.Module):
    """B×L×C -> B×L×width: one half of a projection times the GELU of the other."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(hidden).chunk(2, dim=-1)
        return value * F.gelu(gate)


# Cross-attention to a single token is a constant, exactly: the softmax over one key is 1.
# Whatever the query, the output is to_out(to_v(token)); queries, keys and the attention itself need not be
# computed. So it is in the U-Net's decoder, which attends to one image prompt token p.
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
