"""What an image is inside the package: float tensors in [0, 1], and what the file said beside its pixels.

The bridge to integer samples of 8 or 16 bits is here too; nothing in this file knows about files or Pillow.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clearsr.tiling import Window

_LUMA = (0.299, 0.587, 0.114)
# EXIF orientations: stored with rows and columns exchanged, and the axes to flip after undoing that.
_TURNED = (5, 6, 7, 8)
_FLIPS = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}


@dataclass(frozen=True)
class ImageMetadata:
    """What travels from the input file to the output file beside the pixels (`image/metadata.py`).

    Attributes:
        icc_profile: the ICC profile that the colour values are in (RGB, or grey when the image is grey).
        exif: a TIFF block as Pillow's `Exif.load` takes it; Orientation is 1, there is no thumbnail.
        xmp: the XMP packet; its orientation, if any, is 1.
        dpi: horizontal and vertical pixels per inch.
        text: keywords and texts, as PNG has them.
        iptc: a block of IPTC-IIM.
        comment: the comment of a JPEG or GIF.
        size: height and width of the upright picture that `exif` and `xmp` state values of.
    """

    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: tuple[tuple[str, str], ...] = ()
    iptc: bytes | None = None
    comment: str | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class ImageData:
    """One upright image. Replace its pixels with `dataclasses.replace(image, color=..., alpha=...)`.

    Attributes:
        color: 3×H×W float32 RGB in [0, 1], not premultiplied; grey images hold the grey three times.
        alpha: 1×H×W float32 in [0, 1], or None for an image without transparency.
        is_gray: the file's mode is grey, so the output is written grey.
        bit_depth: 8 or 16, what the file's samples had (and the output gets unless told otherwise).
        metadata: profile, EXIF, XMP and resolution.
        source: name for messages.
    """

    color: Tensor
    alpha: Tensor | None = None
    is_gray: bool = False
    bit_depth: int = 8
    metadata: ImageMetadata = ImageMetadata()
    source: str = "image"

    def __post_init__(self) -> None:
        if self.color.ndim != 3 or self.color.shape[0] != 3 or self.color.numel() == 0:
            raise ValueError(f"{self.source}: color must be 3×H×W, got {tuple(self.color.shape)}")
        if self.alpha is not None and self.alpha.shape != (1, self.height, self.width):
            raise ValueError(
                f"{self.source}: alpha must be 1×{self.height}×{self.width}, got {tuple(self.alpha.shape)}"
            )
        if self.bit_depth not in (8, 16):
            raise ValueError(f"{self.source}: bit_depth must be 8 or 16, got {self.bit_depth}")

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.color.shape[1]

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.color.shape[2]


class Raster(NamedTuple):
    """Decoded samples as a file holds them.

    Attributes:
        samples: H×W×C; C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; unsigned integers over their full range,
            or floats in [0, 1].
        is_premultiplied: colour has been multiplied by alpha.
    """

    samples: np.ndarray
    is_premultiplied: bool = False


def from_raster(raster: Raster, metadata: ImageMetadata, source: str, orientation: int = 1) -> ImageData:
    """The upright image that the samples show, given the EXIF orientation they are stored in."""
    dtype = raster.samples.dtype
    planes = np.ascontiguousarray(raster.samples.transpose(2, 0, 1)).astype(np.float32)
    if dtype.kind == "u":
        planes /= np.float32(np.iinfo(dtype).max)
    tensor = _upright(torch.from_numpy(planes), orientation)
    channels = tensor.shape[0]
    color, alpha = (tensor[:-1], tensor[-1:].clone()) if channels in (2, 4) else (tensor, None)
    if raster.is_premultiplied and alpha is not None:
        color = torch.where(alpha > 0, color / alpha.clamp_min(1e-8), 0.0).clamp(0, 1)
    is_gray = color.shape[0] == 1
    return ImageData(
        color=color.repeat(3, 1, 1) if is_gray else color.contiguous(),
        alpha=alpha,
        is_gray=is_gray,
        bit_depth=8 if dtype == np.uint8 else 16,
        metadata=metadata,
        source=source,
    )


def to_levels(raster: Raster, orientation: int = 1) -> Tensor:
    """The upright colours on 256 levels: uint8 3×H×W RGB, what `from_raster` gives times 255 and rounded.

    Samples of 8 bits are passed through, which spares large photographs a detour of many times their size.
    """
    samples, is_premultiplied = raster
    if samples.dtype != np.uint8 or is_premultiplied:
        image = from_raster(raster, ImageMetadata(), "image", orientation)
        return image.color.mul_(255).round_().to(torch.uint8)
    color = samples[..., :3] if samples.shape[2] >= 3 else samples[..., :1]
    planes = torch.from_numpy(np.array(color.transpose(2, 0, 1), order="C"))
    return _upright(planes, orientation).expand(3, -1, -1).contiguous()


def to_samples(image: ImageData, bit_depth: int, with_alpha: bool = True) -> np.ndarray:
    """H×W×C unsigned integers of `bit_depth` bits, rounded to nearest; C as in `Raster`."""
    color = image.color.detach().float().cpu()
    if image.is_gray:
        weights = torch.tensor(_LUMA).view(3, 1, 1)
        color = (color * weights).sum(0, keepdim=True)
    planes = [color]
    if with_alpha and image.alpha is not None:
        planes.append(image.alpha.detach().float().cpu())
    top = 2**bit_depth - 1
    levels = torch.cat(planes).clamp(0, 1).mul_(top).round_().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(levels.astype(np.uint8 if bit_depth == 8 else np.uint16))


def _upright(planes: Tensor, orientation: int) -> Tensor:
    """Undo EXIF orientation 1-8 on C×H×W: 5-8 are stored with rows and columns exchanged."""
    if orientation in _TURNED:
        planes = planes.transpose(-1, -2)
    flips = _FLIPS.get(orientation, ())
    return planes.flip(flips).contiguous() if flips else planes.contiguous()


def upright_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Height and width of the upright picture, of those that are stored."""
    return (width, height) if orientation in _TURNED else (height, width)


def upright_point(x: float, y: float, size: tuple[int, int], orientation: int) -> tuple[float, float]:
    """Where the pixel at column x and row y of what is stored lies in the upright picture of that `size`."""
    if orientation in _TURNED:
        x, y = y, x
    flips = _FLIPS.get(orientation, ())
    height, width = size
    return (width - 1 - x if -1 in flips else x), (height - 1 - y if -2 in flips else y)


def stored_window(window: Window, height: int, width: int, orientation: int) -> Window:
    """Where a part of an upright height×width picture lies in what is stored."""
    top, left, bottom, right = window
    flips = _FLIPS.get(orientation, ())
    if -2 in flips:
        top, bottom = height - bottom, height - top
    if -1 in flips:
        left, right = width - right, width - left
    return Window(left, top, right, bottom) if orientation in _TURNED else Window(top, left, bottom, right)


class InputCost(NamedTuple):
    """Memory that reading an image takes at its peak, in bytes.

    Attributes:
        whole: where it is read at once.
        in_parts: where it is read part by part, as far as its format can be.
    """

    whole: int = 0
    in_parts: int = 0


IN_MEMORY = InputCost()  # an image that need not be read
