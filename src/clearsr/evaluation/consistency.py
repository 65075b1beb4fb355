"""Whether a result still shows its input: made small again, it is compared with the LR image."""

from torch import Tensor

from clearsr.evaluation.metrics import psnr
from clearsr.image import resize


def lr_consistency(sr: Tensor, lr: Tensor) -> Tensor:
    """PSNR in dB of the luma of `sr`, shrunk to the size of `lr`, against `lr`; one value per picture.

    It is shrunk by `resize`, the antialiased bicubic of Pillow, and not rounded to 8 bits.

    Args:
        sr: B×3×H×W or 3×H×W in [0, 1].
        lr: the input, B×3×h×w or 3×h×w in [0, 1].
    """
    height, width = lr.shape[-2:]
    return psnr(resize(sr.reshape(-1, *sr.shape[-3:]), (height, width)), lr)
