"""The CLIP image feature p, which replaces the null text in the U-Net decoder (paper, section 3.1)."""

from typing import Any, Literal

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
