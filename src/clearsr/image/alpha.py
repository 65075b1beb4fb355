"""Transparency beside a network that knows only colour.

Colour under fully transparent pixels is arbitrary (often black) and would bleed over the edge when upscaled,
so it is replaced by visible colour from nearby first; alpha itself is resized, never shown to the network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from clearsr.image.geometry import crop, resize


def resize_alpha(alpha: Tensor, size: tuple[int, int]) -> Tensor:
    """Alpha at another size, by `resize`; a constant alpha stays exactly that constant.

    Args:
        alpha: 1×H×W in [0, 1].
        size: height and width to arrive at.
    """
    lowest = alpha.amin()
    if lowest == alpha.amax():
        return lowest.expand(1, *size).clone()
    return resize(alpha[None], size)[0]


def fill_transparent(color: Tensor, alpha: Tensor | None) -> Tensor:
    """Colour in which every pixel of alpha 0 carries the visible colour around it.

    A push-pull pyramid: colours are averaged, weighted by alpha, over ever larger squares until each square
    holds something visible, then handed back down to the pixels that had nothing. Other pixels are left
    alone, and so is an image that is transparent everywhere.

    Args:
        color: 3×H×W in [0, 1], not premultiplied.
        alpha: 1×H×W in [0, 1], or None for opaque.
    """
    if alpha is None or bool((alpha > 0).all()) or not bool((alpha > 0).any()):
        return color
    filled = _push_pull((color * alpha)[None], alpha[None])[0]
    return torch.where(alpha > 0, color, filled.clamp(0, 1))


def _push_pull(premultiplied: Tensor, weight: Tensor) -> Tensor:
    """1×3×H×W colour, known wherever `weight` (1×1×H×W) is positive and spread from there to everywhere."""
    known = premultiplied / weight.clamp_min(torch.finfo(weight.dtype).tiny)
    if bool((weight > 0).all()):
        return known
    height, width = weight.shape[-2:]
    even = [_padded_with_zeros(x) for x in (premultiplied, weight)]
    coarse = _push_pull(*(F.avg_pool2d(x, 2) for x in even))
    spread = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    return torch.where(weight > 0, known, crop(spread, height, width))


def _padded_with_zeros(planes: Tensor) -> Tensor:
    """Even sides, where the added row or column has weight 0."""
    height, width = planes.shape[-2:]
    return F.pad(planes, (0, width % 2, 0, height % 2))
