"""Projected discriminators (Sauer et al. 2021): small heads that tell photographs from drawn pictures.

They see no pixels but what a frozen classifier sees of them, at several scales, and the LR image beside it.
So they need thousands of steps where others need millions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

_WIDTH, _GROUPS = 64, 8


class Head(nn.Module):
    """Features B×C×h×w of one scale and the LR image -> how photographic each place looks, B×1×h×w."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels + 3, _WIDTH, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.GroupNorm(_GROUPS, _WIDTH),
            nn.LeakyReLU(0.2),
            nn.Conv2d(_WIDTH, 1, 3, padding=1),
        )

    def forward(self, features: torch.Tensor, lr_image: torch.Tensor) -> torch.Tensor:
        scaled = F.normalize(features.float(), dim=1) * features.shape[1] ** 0.5
        beside = F.interpolate(lr_image, size=features.shape[-2:], mode="bilinear", antialias=True)
        return self.layers(torch.cat([scaled, beside.to(scaled)], dim=1))


class Discriminator(nn.Module):
    """A head for each of the features that a `Classifier` gives, with hinge losses (Lim & Ye 2017)."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(count) for count in channels)

    def loss(
        self, drawn: Sequence[torch.Tensor], real: Sequence[torch.Tensor], lr_image: torch.Tensor
    ) -> torch.Tensor:
        """What the heads learn from: mean of max(0, 1 - real) + max(0, 1 + drawn), a gradient to them alone.

        Args:
            drawn, real: features by scale, B×C×h×w each.
            lr_image: B×3×H×W in [-1, 1], the part of the picture that the features are of.
        """
        terms = []
        for head, ours, theirs in zip(self.heads, drawn, real, strict=True):
            terms.append(F.relu(1 - head(theirs.detach(), lr_image)).mean())
            terms.append(F.relu(1 + head(ours.detach(), lr_image)).mean())
        return torch.stack(terms).sum() / len(self.heads)

    def reward(self, drawn: Sequence[torch.Tensor], lr_image: torch.Tensor) -> torch.Tensor:
        """How much the pictures look like photographs to the heads; a gradient to the pictures alone."""
        scores = []
        for head, ours in zip(self.heads, drawn, strict=True):
            fixed = {name: parameter.detach() for name, parameter in head.named_parameters()}
            scores.append(functional_call(head, fixed, (ours, lr_image)).mean())
        return torch.stack(scores).mean()
