"""How sharp a whole picture is, in two classical numbers that need no reference and no model.

All work on the luma of `metrics.to_luma` (0-255 scale), invent no pixels beyond the border and return one
float64 value per image. They compare versions of the same picture; between different pictures they measure
the content. Noise and ringing count as sharpness: read them beside PSNR or NIQE, never alone.
"""

from torch import Tensor

from clearsr.errors import ClearSRError
from clearsr.evaluation.metrics import luma_batch

_MINIMUM_SIZE = 3


def laplacian_variance(image: Tensor) -> Tensor:
    """Variance of the 4-neighbour Laplacian (Pech-Pacheco et al. 2000); 0 for a flat picture or a ramp.

    Args:
        image: B×C×H×W or C×H×W in [0, 1], RGB or grey.

    Returns:
        B values, in squared grey levels.

    Raises:
        ClearSRError: the image is smaller than 3x3.
    """
    luma = _checked_luma(image)
    neighbours = luma[:, :-2, 1:-1] + luma[:, 2:, 1:-1] + luma[:, 1:-1, :-2] + luma[:, 1:-1, 2:]
    return (neighbours - 4 * luma[:, 1:-1, 1:-1]).var(dim=(-2, -1), correction=0)


def gradient_energy(image: Tensor) -> Tensor:
    """Mean squared gradient by the Sobel operator; s² for a ramp that rises s grey levels per pixel.

    This is the Tenengrad measure without a threshold. Arguments and errors are those of `laplacian_variance`.
    """
    luma = _checked_luma(image)
    smoothed_down = (luma[:, :-2] + 2 * luma[:, 1:-1] + luma[:, 2:]) / 4
    smoothed_across = (luma[:, :, :-2] + 2 * luma[:, :, 1:-1] + luma[:, :, 2:]) / 4
    horizontal = (smoothed_down[:, :, 2:] - smoothed_down[:, :, :-2]) / 2
    vertical = (smoothed_across[:, 2:] - smoothed_across[:, :-2]) / 2
    return (horizontal.square() + vertical.square()).mean(dim=(-2, -1))


def _checked_luma(image: Tensor) -> Tensor:
    """B×H×W luma of an image that has at least one inner pixel."""
    luma = luma_batch(image)
    height, width = luma.shape[-2:]
    if min(height, width) < _MINIMUM_SIZE:
        raise ClearSRError(f"sharpness: the image is {width}x{height}; it must measure at least 3x3 pixels")
    return luma
