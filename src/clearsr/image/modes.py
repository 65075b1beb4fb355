"""Between Pillow images of any mode, or arrays, and `ImageData`.

Pillow holds 16 bits per sample in grey images only; 16-bit colour goes through `deep.py` when read from a
file, and becomes 8 bits in `to_pil`.
"""

import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageCms

from clearsr.errors import ClearSRError, notify, one_line
from clearsr.image.data import ImageData, ImageMetadata, Raster, from_raster, to_samples
from clearsr.image.declared import PROFILED
from clearsr.image.metadata import (
    IPTC_RESOURCE,
    collect_metadata,
    info_of,
    metadata_for_size,
    orientation_of,
    safe_exif,
)

_GRAY = ("1", "L", "LA", "La")
_GRAY16 = ("I;16", "I;16L", "I;16B", "I;16N")
_COLOR = ("P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "YCbCr", "HSV")


def from_pil(image: Image.Image, source: str = "image") -> ImageData:
    """The upright image that a Pillow image of any mode shows; the Pillow image is left as it was.

    Raises:
        ClearSRError: the image has no pixels, or values that have no place in 0-1.
    """
    if image.width < 1 or image.height < 1:
        raise ClearSRError(f"{source}: has no pixels ({image.width}×{image.height})")
    try:
        image.load()
    except (OSError, ValueError, SyntaxError) as error:  # of a file that is cut off, or closed
        raise ClearSRError(f"{source}: cannot be read ({one_line(error)})") from error
    raster = raster_of(image, source)
    exif = safe_exif(image, source)
    height, width, channels = raster.samples.shape
    metadata = collect_metadata(info_of(image), exif, channels <= 2, source, (height, width))
    return from_raster(raster, metadata, source, orientation_of(exif))


def to_pil(image: ImageData) -> Image.Image:
    """A Pillow image of mode L, LA, RGB or RGBA, or I;16 for opaque 16-bit grey, with metadata in `info`."""
    is_deep = image.bit_depth == 16 and image.is_gray and image.alpha is None
    samples = to_samples(image, 16 if is_deep else 8)
    result = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    metadata = metadata_for_size(image.metadata, image.height, image.width)
    info: dict[str, Any] = {
        **dict(metadata.text),
        "icc_profile": metadata.icc_profile,
        "exif": metadata.exif,
        "xmp": metadata.xmp,
        "dpi": metadata.dpi,
        "comment": None if metadata.comment is None else metadata.comment.encode("utf-8"),
        "photoshop": None if metadata.iptc is None else {IPTC_RESOURCE: metadata.iptc},
    }
    result.info.update({key: value for key, value in info.items() if value is not None})
    return result


def from_array(array: np.ndarray, source: str = "image") -> ImageData:
    """The image that an array shows: H×W, or H×W×C with grey, grey and alpha, RGB or RGBA.

    Raises:
        ClearSRError: another shape, or values that are neither uint8, uint16 nor floats in [0, 1].
    """
    if not isinstance(array, np.ndarray):
        raise ClearSRError(f"{source}: expected an array H×W or H×W×C, got {type(array).__name__}")
    samples = array[..., None] if array.ndim == 2 else array
    if samples.ndim != 3 or samples.shape[2] not in (1, 2, 3, 4) or samples.size == 0:
        raise ClearSRError(f"{source}: expected H×W or H×W×C with C from 1 to 4, got {array.shape}")
    if samples.dtype.kind == "f":
        samples = checked_floats(samples, source)
    elif samples.dtype == np.dtype(np.uint16).newbyteorder():  # the other order of bytes
        samples = samples.astype(np.uint16)
    elif samples.dtype not in (np.uint8, np.uint16):
        raise ClearSRError(f"{source}: expected uint8, uint16 or floats in [0, 1], got {samples.dtype}")
    return from_raster(Raster(samples), ImageMetadata(), source)


def to_array(image: ImageData, like: np.ndarray) -> np.ndarray:
    """The image as an array with the channels and the dtype of the one that it came from."""
    if like.dtype.kind == "f":
        planes = image.color[:1] if image.is_gray else image.color
        planes = planes if image.alpha is None else torch.cat([planes, image.alpha])
        samples = planes.clamp(0, 1).movedim(0, -1).numpy().astype(like.dtype)
    else:
        samples = to_samples(image, image.bit_depth)
    return samples[..., 0] if like.ndim == 2 else samples


OutputType = Literal["pil", "np", "pt"]


def images_in(given: Any) -> tuple[list[ImageData], Literal["one", "several", "stack"]]:
    """The images that are given to a pipeline, as those of diffusers take them, and how they were given.

    Args:
        given: a Pillow image, an array H×W or H×W×C or a tensor C×H×W with C from 1 to 4; a stack of arrays
            N×H×W×C or tensors N×C×H×W; or a sequence of single ones. Integers are uint8 or uint16, floats
            are in [0, 1].

    Raises:
        ClearSRError: it is none of these.
    """
    if isinstance(given, Image.Image | np.ndarray | torch.Tensor):
        if isinstance(given, Image.Image) or given.ndim != 4:
            return [_single(given, "image")], "one"
        if len(given) == 0:
            raise ClearSRError("images: is a stack of none; expected one or more")
        return [_single(each, f"image {number}") for number, each in enumerate(given)], "stack"
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        return [_single(each, f"image {number}") for number, each in enumerate(given)], "several"
    raise _no_image("images", given)


def _single(given: Any, source: str) -> ImageData:
    if isinstance(given, Image.Image):
        return from_pil(given)
    if isinstance(given, np.ndarray):
        return from_array(given, source)
    if not isinstance(given, torch.Tensor):
        raise _no_image(source, given)
    if given.ndim != 3 or given.shape[0] not in (1, 2, 3, 4):
        raise ClearSRError(f"{source}: expected a tensor C×H×W with C from 1 to 4, got {tuple(given.shape)}")
    planes = given.detach().cpu()
    planes = planes.float() if planes.is_floating_point() else planes
    return from_array(planes.movedim(0, -1).numpy(), source)


def _no_image(source: str, given: object) -> ClearSRError:
    accepted = "a Pillow image, an array H×W×C, a tensor C×H×W, or a list of these"
    return ClearSRError(f"{source}: expected {accepted}, got {type(given).__name__}")


def images_out(images: Sequence[ImageData], given: str, output_type: OutputType) -> Any:
    """Results in the way that images were `given`, as `images_in` says.

    Returns:
        Pillow images, arrays H×W×C, or tensors C×H×W, float32 in [0, 1]; stacked where they were.
    """
    if output_type == "pil":
        results: list[Any] = [to_pil(image) for image in images]
    else:
        results = [to_array(image, np.empty((1, 1, 1), np.float32)) for image in images]
        if output_type == "pt":
            results = [torch.from_numpy(result).movedim(-1, 0).contiguous() for result in results]
        if given == "stack":
            return torch.stack(results) if output_type == "pt" else np.stack(results)
    return results[0] if given == "one" else results


def raster_of(image: Image.Image, source: str) -> Raster:
    """The samples of a loaded Pillow image of any mode, as grey or RGB with or without alpha.

    Raises:
        ClearSRError: the values have no place in 0-1, or the mode is unknown.
    """
    mode = image.mode
    if mode in _GRAY16:
        return _with_transparent_level(np.asarray(image).astype(np.uint16), image)
    if mode == "I":
        return _with_transparent_level(_narrowed(np.asarray(image), source), image)
    if mode == "F":
        return Raster(checked_floats(np.asarray(image), source)[..., None])
    if mode in _GRAY:
        target = "LA" if image.has_transparency_data else "L"
    elif mode in _COLOR:
        target = "RGBA" if image.has_transparency_data else "RGB"
    elif mode in PROFILED:
        return Raster(np.asarray(to_srgb(image, source)))
    else:
        raise ClearSRError(f"{source}: has pixels of kind {mode!r}; convert it to RGB or greyscale first")
    samples = np.asarray(image if mode == target else image.convert(target))
    return Raster(samples[..., None] if samples.ndim == 2 else samples)


def to_srgb(image: Image.Image, source: str) -> Image.Image:
    """CMYK, Lab or profiled grey as sRGB: by its ICC profile if it has a usable one, else by formula."""
    profile = image.info.get("icc_profile")
    try:
        if profile:
            origin = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        elif image.mode == "LAB":
            origin = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            return image.convert("RGB")
        converted = ImageCms.profileToProfile(image, origin, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        if image.mode == "LAB":
            raise ClearSRError(f"{source}: its Lab colours cannot be converted; save it as RGB") from error
        text = f"its ICC profile cannot be used ({one_line(error)}); converted without it"
        notify("profile", source, text)
        return image.convert("RGB")
    assert converted is not None, "profileToProfile returns an image unless told to work in place"
    return converted


def checked_floats(values: np.ndarray, source: str) -> np.ndarray:
    """float32 in [0, 1], or an error: only there is it clear how bright a floating-point value is.

    Raises:
        ClearSRError: a value is outside, or not a number.
    """
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ClearSRError(
            f"{source}: holds floating-point values outside 0 to 1 (high dynamic range); "
            "tone-map it to an 8-bit or 16-bit image first"
        )
    return values.astype(np.float32)


def _narrowed(values: np.ndarray, source: str) -> np.ndarray:
    """Pillow's 32-bit grey as the 16 bits that it nearly always carries."""
    if values.min() < 0 or values.max() > 65535:
        raise ClearSRError(
            f"{source}: holds 32-bit integers outside 0 to 65535; save it as a 16-bit image first"
        )
    return values.astype(np.uint16)


def _with_transparent_level(levels: np.ndarray, image: Image.Image) -> Raster:
    """H×W 16-bit grey, with alpha where PNG's tRNS chunk names one level as transparent."""
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return Raster(levels[..., None])
    alpha = np.where(levels == transparent, 0, 65535).astype(np.uint16)
    return Raster(np.stack([levels, alpha], axis=-1))
