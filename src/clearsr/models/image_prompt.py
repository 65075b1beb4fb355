"""The CLIP image feature p, which replaces the null text in the U-Net decoder (paper, section 3.1).

And the compact preset's encoder of it.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

# CLIP's own normalisation of RGB in [0, 1].
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class ImagePrompt(nn.Module):
    """LR image -> prompt tokens B×T×D, D the width of the U-Net's cross-attention."""

    def __init__(self, encoder: Any, mode: Literal["pooled", "tokens"]) -> None:
        """`pooled` gives one token, the projected class embedding; `tokens` every projected patch as well.

        `encoder` is transformers' `CLIPVisionModelWithProjection`, or a `VisionTower` of our own.
        """
        super().__init__()
        self.encoder: Any = encoder
        self.mode = mode

    @property
    def side(self) -> int:
        """Pixels along a side of what the tower sees."""
        return int(self.encoder.config.image_size)

    def forward(self, lr_image: torch.Tensor) -> torch.Tensor:
        """Prompt tokens of B×3×H×W RGB in [-1, 1], any size (it is resized to the tower's)."""
        size = self.side, self.side
        pixels = F.interpolate(
            lr_image.float(), size=size, mode="bicubic", antialias=True, align_corners=False
        )
        return self.of_resized(pixels)

    def of_resized(self, pixels: torch.Tensor) -> torch.Tensor:
        """Prompt tokens of B×3×side×side RGB in about [-1, 1]."""
        mean = pixels.new_tensor(_MEAN).view(1, 3, 1, 1)
        std = pixels.new_tensor(_STD).view(1, 3, 1, 1)
        normalised = ((pixels.clamp(-1, 1) + 1) / 2 - mean) / std
        output = self.encoder(pixel_values=normalised.to(self.encoder.visual_projection.weight.dtype))
        if self.mode == "pooled":
            return output.image_embeds[:, None]
        tokens = self.encoder.vision_model.post_layernorm(output.last_hidden_state)
        return self.encoder.visual_projection(tokens)


def mixed_prompts(
    prompt: torch.Tensor, text: torch.Tensor, dropped: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One batch of prompts of two lengths: `text` for the samples that are dropped, `prompt` for the others.

    Shorter ones are padded by tokens that nothing attends to. Repeating a single token would be the same in
    exact arithmetic only: in 16 bits its weights need not add up to 1, and queries and keys, to which a
    single token gives no gradient, get a spurious one.

    Args:
        prompt: B×T×D.
        text: B×T'×D.
        dropped: B, bool.

    Returns:
        Tokens B×max(T, T')×D, and which of them count, bool of that shape without D; None: all.
    """
    length = max(prompt.shape[1], text.shape[1])
    null, own = (F.pad(tokens, (0, 0, 0, length - tokens.shape[1])) for tokens in (text, prompt))
    tokens = torch.where(dropped[:, None, None], null, own)
    if prompt.shape[1] == text.shape[1]:
        return tokens, None
    counts = torch.where(dropped, text.shape[1], prompt.shape[1])
    return tokens, torch.arange(length, device=counts.device) < counts[:, None]


# The compact preset's image encoder: a small CLIP vision transformer, in plain torch.
# What transformers' `CLIPVisionModelWithProjection` computes, tensor names included (a test compares the
# two); importing that one takes longer than upscaling a small picture. Bases of Stable Diffusion use
# transformers'.
class VisionShape(NamedTuple):
    """What a tower looks like, in the words of transformers' `CLIPVisionConfig`."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    projection_dim: int


class VisionOutput(NamedTuple):
    """The projected class embedding, B×D, and the last layer's tokens, B×T×C, the class token first."""

    image_embeds: torch.Tensor
    last_hidden_state: torch.Tensor


class VisionTower(nn.Module):
    """Normalised pixels B×3×side×side -> an embedding of the picture and tokens of its patches."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.config = shape
        self.vision_model = VisionTransformer(shape)
        self.visual_projection = nn.Linear(shape.hidden_size, shape.projection_dim, bias=False)
        nn.init.normal_(self.visual_projection.weight, std=shape.hidden_size**-0.5)

    def forward(self, pixel_values: torch.Tensor) -> VisionOutput:
        tokens = self.vision_model(pixel_values)
        pooled = self.vision_model.post_layernorm(tokens[:, 0])
        return VisionOutput(self.visual_projection(pooled), tokens)


class VisionTransformer(nn.Module):
    """Pixels -> tokens of the class and the patches, before the last normalisation."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        self.embeddings = Embeddings(shape)
        self.pre_layrnorm = nn.LayerNorm(shape.hidden_size)  # CLIP's own spelling
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(EncoderLayer(shape) for _ in range(shape.num_hidden_layers))}
        )
        self.post_layernorm = nn.LayerNorm(shape.hidden_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]
            tokens = layer(tokens)
        return tokens


class Embeddings(nn.Module):
    """A token per patch and one for the class, with a learned position each."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        width, patch = shape.hidden_size, shape.patch_size
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((shape.image_size // patch) ** 2 + 1, width)
        for layer in (self.patch_embedding, self.position_embedding):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        start = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        return torch.cat([start, patches], dim=1) + self.position_embedding.weight


class EncoderLayer(nn.Module):
    """Self-attention and a two-layer perceptron, each on normalised tokens and added to them."""

    def __init__(self, shape: VisionShape) -> None:
        super().__init__()
        width = shape.hidden_size
        self.self_attn = SelfAttention(width, shape.num_attention_heads)
        self.layer_norm1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.layer_norm2 = nn.LayerNorm(width)
        attention = self.self_attn
        into_sum = (2 * shape.num_hidden_layers * width) ** -0.5  # CLIP's: less where layers add up
        for layers, spread in (
            ((attention.q_proj, attention.k_proj, attention.v_proj, self.mlp["fc2"]), into_sum),
            ((attention.out_proj,), width**-0.5),
            ((self.mlp["fc1"],), (2 * width) ** -0.5),
        ):
            for layer in layers:
                nn.init.normal_(layer.weight, std=spread)  # type: ignore[arg-type]
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.self_attn(self.layer_norm1(tokens))
        inner = self.mlp["fc1"](self.layer_norm2(tokens))
        return tokens + self.mlp["fc2"](inner * torch.sigmoid(1.702 * inner))  # CLIP's approximate GELU


class SelfAttention(nn.Module):
    """Multi-head attention among tokens B×T×C."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            projection(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
