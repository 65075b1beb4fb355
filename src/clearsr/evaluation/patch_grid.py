"""Whether a picture shows a grid of 8 pixels, as networks that work on patches of 8 may leave.

A grid is power at its period and at the harmonics of it, where photographs have no more than at the
frequencies beside.
"""

import torch
from torch import Tensor

from clearsr.evaluation.metrics import luma_batch

PERIODS = {"8": 1, "4": 2, "8_3": 3}  # pixels -> cycles in 8 pixels
MINIMUM_SIDE = 80  # below it the neighbours of one period reach the next
_NEIGHBOURS = range(2, 10)  # on each side, the nearest left out


def grid_power(image: Tensor) -> Tensor:
    """Power of the luma at periods of 8, 4 and 8/3 pixels over that beside them: B×3, near 1 without a grid.

    Of every row, cut to a multiple of 8, the power spectrum is taken (discrete Fourier transform, no window),
    averaged over the rows, and its value at a period divided by the median of the 8 frequencies on each side,
    without the nearest; the same of the columns, and the mean of both.

    Args:
        image: B×C×H×W or C×H×W in [0, 1], RGB or grey.

    Returns:
        B×3, float64; NaN where a side is shorter than `MINIMUM_SIDE`.
    """
    luma = luma_batch(image)
    return (_along_rows(luma) + _along_rows(luma.transpose(1, 2))) / 2


def _along_rows(luma: Tensor) -> Tensor:
    """The ratios of B×H×W, B×3, between the columns of one row."""
    length = luma.shape[-1] // 8 * 8
    if length < MINIMUM_SIDE:
        return luma.new_full((len(luma), len(PERIODS)), torch.nan)
    power = torch.fft.rfft(luma[..., :length]).abs().square().mean(1)
    ratios = []
    for cycles in PERIODS.values():
        at = length // 8 * cycles
        beside = torch.cat([power[:, [at - n, at + n]] for n in _NEIGHBOURS], 1)
        ratios.append(power[:, at] / beside.quantile(0.5, dim=1))
    return torch.stack(ratios, 1)
