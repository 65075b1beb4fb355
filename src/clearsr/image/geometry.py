"""Value range, resizing, padding and transparency of B×C×H×W batches; the one place for each.

`resize` is what the package calls "bicubic" everywhere: antialiased, Keys' a = -0.5, as Pillow does it.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clearsr.image.data import ImageData


def to_signed(unit: Tensor) -> Tensor:
    """[0, 1] as [-1, 1]."""
    return unit * 2 - 1


def to_unit(signed: Tensor) -> Tensor:
    """[-1, 1] as [0, 1]; what lies outside is clamped."""
    return ((signed + 1) / 2).clamp(0, 1)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bicubic resize in [0, 1], equal to Pillow's on 8-bit images within a level.

    Args:
        image: B×C×H×W in [0, 1].
        size: height and width to arrive at.

    Returns:
        B×C×size in [0, 1], in the dtype of `image`.
    """
    height, width = size
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1×1, got {height}×{width}")
    if image.shape[-2:] == (height, width):
        return image
    # Two passes with a clamp between, as Pillow has on bytes: one pass over both axes rings differently.
    result = _resize_once(image.float(), (image.shape[-2], width))
    return _resize_once(result, (height, width)).to(image.dtype)


def resize_axis(length: int, target: int, first: int, last: int) -> tuple[int, int, Tensor]:
    """What cells `first` to `last` of an axis of `target` cells are made of, when `length` cells are resized.

    The filter of `resize`, for where only a part is wanted or all of the image is not at hand.

    Returns:
        first and last cell of the original that count, and weights (last - first)×(cells that count).
    """
    stretch = length / target
    support = 2 * max(stretch, 1.0)  # cells to each side; Keys' cubic has two, and more when it shrinks
    centers = stretch * (torch.arange(first, last, dtype=torch.float64) + 0.5)
    start = max(0, int((centers[0] - support + 0.5).floor()))
    stop = min(length, int((centers[-1] + support + 0.5).floor()))
    cells = torch.arange(start, stop, dtype=torch.float64) + 0.5
    weights = _keys_cubic((cells[None, :] - centers[:, None]) / max(stretch, 1.0))
    return start, stop, (weights / weights.sum(1, keepdim=True)).float()


def resize_share(length: int, target: int, first: int, last: int) -> tuple[slice, Tensor]:
    """What cells `first` to `last` of an axis of `length` cells give when it is resized to `target` cells.

    `resize_axis` seen from the other side: the shares of all parts of the axis add up to the whole result.

    Returns:
        the cells of the target that get something, and weights (cells that get something)×(last - first).
    """
    stretch = length / target
    support = 2 * max(stretch, 1.0) + 1  # one more cell than `resize_axis` looks at, against rounding
    low = max(0, math.floor((first - support) / stretch - 0.5))
    high = min(target, math.ceil((last + support) / stretch + 0.5))
    start, stop, weights = resize_axis(length, target, low, high)
    share = weights.new_zeros(high - low, last - first)
    overlap = slice(max(first, start), min(last, stop))
    there, here = (slice(overlap.start - edge, overlap.stop - edge) for edge in (first, start))
    share[:, there] = weights[:, here]
    return slice(low, high), share


def _keys_cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5: 1 at 0, 0 at the other integers, 0 from 2 on."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _resize_once(image: Tensor, size: tuple[int, int]) -> Tensor:
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def pad_to_multiple(image: Tensor, multiple: int, minimum: int = 1) -> Tensor:
    """`image` extended at the right and bottom to sides that `multiple` divides and that reach `minimum`.

    The border is the image mirrored about its edge pixels, as often as needed, so any size works: a 1×1 image
    becomes constant. `crop(result, H, W)` gives the image back.

    Args:
        image: ...×H×W.
        multiple: what both sides become a multiple of.
        minimum: the least that both sides become; rounded up to the multiple.
    """
    if multiple < 1 or minimum < 1:
        raise ValueError(f"multiple and minimum must be at least 1, got {multiple} and {minimum}")
    for axis in (-2, -1):
        size = image.shape[axis]
        target = -(-max(size, minimum) // multiple) * multiple
        if target != size:
            image = image.index_select(axis, mirrored(size, 0, target, image.device))
    return image


def mirrored(size: int, first: int, last: int, device: torch.device | None = None) -> Tensor:
    """Indices … 1, 0 … size-1, size-2 … of a signal mirrored without repeating its ends, from `first` on."""
    period = max(2 * (size - 1), 1)
    index = torch.arange(first, last, device=device) % period
    return torch.where(index < size, index, period - index)


def crop(image: Tensor, height: int, width: int) -> Tensor:
    """The top left `height`×`width` of ...×H×W: what `pad_to_multiple` left in place."""
    if height > image.shape[-2] or width > image.shape[-1]:
        raise ValueError(f"cannot crop {image.shape[-2]}×{image.shape[-1]} to {height}×{width}")
    return image[..., :height, :width]


# Transparency beside a network that knows only colour.
# Colour under fully transparent pixels is arbitrary (often black) and would bleed over the edge when
# upscaled, so it is replaced by visible colour from nearby first; alpha itself is resized, never shown to the
# network.
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


def resized(image: ImageData, size: tuple[int, int]) -> ImageData:
    """The image at another height and width by `resize`, its transparency too."""
    if size == (image.height, image.width):
        return image
    color = resize(fill_transparent(image.color, image.alpha)[None].clamp(0, 1), size)[0]
    alpha = None if image.alpha is None else resize_alpha(image.alpha, size)
    return dataclasses.replace(image, color=color, alpha=alpha)


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
