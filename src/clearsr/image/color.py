"""Give a result the colours of its input: wavelet and AdaIN matching, and none where it has none.

Diffusion shifts colours over large areas; the low-resolution image knows them. Both methods keep the detail
of the result and take the coarse colour from the reference. (The wavelet form is StableSR's, Wang et al.)
Both can be done on parts of an image with `COLOR_REACH` pixels around, AdaIN with the whole's statistics.
"""

from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from clearsr.config.sampling import ColorMethod, GrayRule
from clearsr.errors import ClearSRError

WAVELET_LEVELS = 5
_HELD_REACH = 8  # pixels to each side that must be white, or black, where the result is held to it
# Pixels to each side that matching looks at.
COLOR_REACH: dict[ColorMethod, int] = {"wavelet": 2**WAVELET_LEVELS - 1, "adain": _HELD_REACH, "none": 0}
_VARIANCE_FLOOR = 1e-5
# How far apart the channels of a pixel may be in a picture that counts as grey; a little more, for rounding.
_GRAY_SPREAD: dict[GrayRule, float] = {"near": 2.01 / 255, "exact": 1e-6, "off": -1.0}
_LUMA = (0.299, 0.587, 0.114)


class ChannelStatistics:
    """Mean and spread of each channel of an image that comes in parts."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = torch.zeros(3, dtype=torch.float64)
        self._sum_of_squares = torch.zeros(3, dtype=torch.float64)

    def add(self, part: Tensor) -> None:
        """Another part of the same image, 1×3×H×W."""
        values = part.detach().double().cpu().transpose(0, 1).flatten(1)
        self._count += values.shape[1]
        self._sum += values.sum(1)
        self._sum_of_squares += values.square().sum(1)

    def mean_and_spread(self) -> tuple[Tensor, Tensor]:
        """1×3×1×1 each, as `adain` has them of a whole image."""
        mean = self._sum / self._count
        variance = (self._sum_of_squares - self._count * mean**2) / max(self._count - 1, 1)
        spread = (variance.clamp_min(0) + _VARIANCE_FLOOR).sqrt()
        return mean.float().view(1, 3, 1, 1), spread.float().view(1, 3, 1, 1)


def channel_spread(color: Tensor, alpha: Tensor | None = None) -> float:
    """How far apart the channels of a pixel of 3×H×W that can be seen are at most: 0 where all is grey."""
    spread = color.amax(0) - color.amin(0)
    return float((spread if alpha is None else spread * (alpha[0] > 0)).max())


def counts_as_gray(spread: float, rule: GrayRule) -> bool:
    """Whether a picture with that `channel_spread` is one that is to stay grey."""
    return spread <= _GRAY_SPREAD[rule]


def as_gray(image: Tensor) -> Tensor:
    """The luma of …×3×H×W three times: exactly grey, as bright as it was."""
    weights = torch.tensor(_LUMA, dtype=image.dtype, device=image.device).view(3, 1, 1)
    return (image * weights).sum(-3, keepdim=True).expand_as(image).contiguous()


def match_color(
    sr_image: Tensor,
    reference: Tensor,
    method: ColorMethod = "wavelet",
    whole: tuple[ChannelStatistics, ChannelStatistics] | None = None,
) -> Tensor:
    """`sr_image` with the coarse colours of `reference`.

    Args:
        sr_image: B×3×H×W in [0, 1].
        reference: the bicubic-upsampled input, same shape and range.
        method: "wavelet" takes everything coarser than about 30 pixels from the reference; "adain" takes mean
            and spread of each channel; "none" returns `sr_image`. With the first two, what is white or black
            in a neighbourhood of the reference is so in the result.
        whole: for "adain" of a part, the statistics of the whole result and of its reference.

    Returns:
        B×3×H×W in [0, 1], in the dtype of `sr_image`.

    Raises:
        ClearSRError: `method` is not one of the three.
    """
    if method not in get_args(ColorMethod):
        raise ClearSRError(f"color method {method!r}: accepted are {', '.join(get_args(ColorMethod))}")
    if sr_image.shape != reference.shape:
        raise ValueError(
            f"reference is {tuple(reference.shape)}, sr_image {tuple(sr_image.shape)}; must agree"
        )
    if method == "none":
        return sr_image
    given, wanted = sr_image.float(), reference.float()
    if method == "wavelet":
        # high(SR) + low(LR). The filter is linear, so one pass over the difference does for both images.
        matched = given + low_frequencies(wanted - given)
    else:
        (mean, spread), (wanted_mean, wanted_spread) = (
            (part.mean_and_spread() for part in whole) if whole else map(_statistics, (given, wanted))
        )
        matched = (given - mean) / spread * wanted_spread + wanted_mean
    return _held(matched.clamp(0, 1), wanted).to(sr_image.dtype)


def _held(matched: Tensor, reference: Tensor) -> Tensor:
    """`matched`, but white (or black), channel by channel, where the reference is so all around.

    The network's grain goes only one way there, as there is nothing beyond: white would come out darker.
    """
    for extreme, distance in ((1.0, 1 - reference), (0.0, reference)):
        is_extreme = distance <= 0.5 / 255
        if bool(is_extreme.any()):
            matched = torch.where(_all_around(is_extreme), extreme, matched)
    return matched


def _all_around(mask: Tensor) -> Tensor:
    """Where a mask holds at all places within `_HELD_REACH` along both axes; beyond the border it does."""
    reach, width = _HELD_REACH, 2 * _HELD_REACH + 1
    for axis in (-2, -1):
        mask = F.pad(mask, (0, 0, reach, reach) if axis == -2 else (reach, reach), value=True)
        done = 1  # places that are looked at together, doubled as long as it goes
        while done < width:
            step = min(done, width - done)
            left = mask.shape[axis] - step
            mask = mask.narrow(axis, 0, left) & mask.narrow(axis, step, left)
            done += step
    return mask


def low_frequencies(image: Tensor, levels: int = WAVELET_LEVELS) -> Tensor:
    """The à-trous approximation of B×C×H×W: `levels` binomial blurs, each twice as wide as the one before.

    The detail that they remove adds up to `image - low_frequencies(image)`. Edges are replicated, so images
    smaller than the widest blur work too.
    """
    channels = image.shape[1]
    binomial = torch.tensor([0.25, 0.5, 0.25], device=image.device, dtype=image.dtype)
    rows = binomial.view(1, 1, 3, 1).expand(channels, 1, 3, 1)
    columns = binomial.view(1, 1, 1, 3).expand(channels, 1, 1, 3)
    for level in range(levels):
        step = 2**level
        # [1,2,1]/4 along each axis is the 3×3 kernel [[1,2,1],[2,4,2],[1,2,1]]/16 at two thirds of the cost.
        image = F.pad(image, (step, step, step, step), mode="replicate")
        image = F.conv2d(image, rows, groups=channels, dilation=(step, 1))
        image = F.conv2d(image, columns, groups=channels, dilation=(1, step))
    return image


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, B×C×1×1; one pixel counts as spread 0."""
    correction = 1 if image.shape[-2] * image.shape[-1] > 1 else 0
    variance, mean = torch.var_mean(image, dim=(-2, -1), correction=correction, keepdim=True)
    return mean, (variance + _VARIANCE_FLOOR).sqrt()
