"""An image as a file whose format follows from its name's suffix, whole (`write_image`) or by blocks.

The file is written under a temporary name in the same folder and then renamed, so nobody sees half of it and
an interrupted run leaves nothing behind. What a format cannot hold is converted, and a notice says so.
"""

import dataclasses
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, features

from clearsr.atomic import written_aside
from clearsr.config.output import OutputConfig
from clearsr.errors import ClearSRError, display_name, notify
from clearsr.image import carrying
from clearsr.image.carrying import AVIF, FORMATS, GIF, JPEG, PNG, TIFF, WEBP, Format
from clearsr.image.data import ImageData, ImageMetadata, to_samples
from clearsr.image.declared import fitting_profile
from clearsr.image.metadata import exif_bytes, exif_of, metadata_for_size
from clearsr.image.modes import to_srgb
from clearsr.image.png import PngWriter, text_chunks
from clearsr.image.tiff import Tiles, write_tiff
from clearsr.tiling import Window

_MAX_JPEG_SEGMENT = 65_533
_JPEG_SEGMENTS = (("exif", "EXIF", 6), ("xmp", "XMP", 29), ("comment", "comment", 0), ("iptc", "IPTC", 0))
_PHOTOSHOP = b"Photoshop 3.0\0"  # what JPEG's segment of Photoshop's resources begins with


class Target(NamedTuple):
    """A file that can be written, as `check_output` found."""

    path: Path
    format: Format

    @property
    def is_streamed(self) -> bool:
        """Whether it is written in pieces, without the whole picture in memory."""
        return self.format in (TIFF, PNG)

    @property
    def has_pages(self) -> bool:
        """Whether several pictures in it are written one after the other."""
        return self.format is TIFF


def output_suffixes(are_frames: bool = False) -> tuple[str, ...]:
    """Suffixes that `write_image` accepts with the installed Pillow, or with `are_frames` `write_frames`."""
    absent = {name for name, module in (("WEBP", "webp"), ("AVIF", "avif")) if not features.check(module)}
    if not are_frames:
        absent.add(GIF.name)
    return tuple(suffix for suffix, format in FORMATS.items() if format.name not in absent)


def check_output(path: Path, size: tuple[int, int] | None = None, are_frames: bool = False) -> Target:
    """The file with the format that its name says; to be called before the work whose result it takes.

    Args:
        path: the file to write.
        size: height and width, if known yet.
        are_frames: it is to hold several.

    Raises:
        ClearSRError: the suffix is unknown, the folder is missing or no folder, the path is a folder, or the
            format cannot hold an image of that size, or one alone.
    """
    name = display_name(path)
    suffix = path.suffix.lower()
    if suffix not in output_suffixes(are_frames=True):
        got = f"the suffix {suffix!r}" if suffix else "no suffix"
        raise ClearSRError(f"{name}: has {got}; accepted for output: {', '.join(output_suffixes())}")
    try:
        is_folder, has_folder, parent_exists = path.is_dir(), path.parent.is_dir(), path.parent.exists()
    except (OSError, ValueError) as error:
        raise ClearSRError(f"{name}: cannot be written: {_reason(error)}") from None
    if is_folder:
        raise ClearSRError(f"{name}: is a folder; expected the name of a file to write")
    if not has_folder:
        what = "is not a folder" if parent_exists else "does not exist"
        raise ClearSRError(f"{name}: cannot be written: {display_name(path.parent)} {what}")
    format = FORMATS[suffix]
    if format is GIF and not are_frames:
        raise ClearSRError(
            f"{name}: a GIF holds 256 colours and is written of animations alone (--frames all); use .png"
        )
    if size is not None and max(size) > format.max_side:
        raise ClearSRError(
            f"{name}: {size[1]}×{size[0]} is too large for {format.name} (at most {format.max_side} a side); "
            "use .png or .tif"
        )
    return Target(path, format)


def write_image(image: ImageData, path: Path | str | Target, config: OutputConfig | None = None) -> None:
    """Write `image` to `path`, checked already or not, replacing a file of that name in one step.

    Transparency is laid onto white where the format is JPEG, and 16 bits become 8 where it has no more.

    Raises:
        ClearSRError: see `check_output`; or the disk is full, the folder is read-only, and the like.
    """
    config = config or OutputConfig()
    path, format = path if isinstance(path, Target) else check_output(Path(path), (image.height, image.width))
    image, depth = as_format_holds(image, path, format, config)
    samples = to_samples(image, depth)
    try:
        write_whole(path, lambda file: encode(file, image, samples, format, config))
    except ClearSRError:
        raise
    except (ValueError, MemoryError, RuntimeError) as error:  # an encoder's refusal
        name = display_name(path)
        raise ClearSRError(f"{name}: cannot be written as {format.name}: {_reason(error)}") from error


def as_format_holds(
    image: ImageData, path: Path, format: Format, config: OutputConfig
) -> tuple[ImageData, int]:
    """The image (or a part of one) with what the file will hold, and bits per sample; says what is lost."""
    name = display_name(path)
    depth = image.bit_depth if config.bit_depth == "input" else config.bit_depth
    has_no_place = image.alpha is not None and not format.has_alpha
    if has_no_place or depth not in format.bit_depths:
        image = _at_depth(image, depth)  # so that it is the same by way of a file that holds all of it
    if has_no_place and image.alpha is not None:
        if bool((image.alpha < 1).any()):
            notify("transparency", name, f"{format.name} holds no transparency; it was laid onto white")
        image = on_white(image)
    if depth not in format.bit_depths:
        notify("bit_depth", name, f"{format.name} holds 8 bits per sample; 16-bit values were rounded")
        depth = 8
    metadata = image.metadata if config.keep_metadata else ImageMetadata()
    metadata = carrying.as_format_holds(metadata, format.extras, format.name, name)
    profile = fitting_profile(image.metadata.icc_profile, image.is_gray)
    return dataclasses.replace(image, metadata=dataclasses.replace(metadata, icc_profile=profile)), depth


def _at_depth(image: ImageData, depth: int) -> ImageData:
    """The image with values that so many bits hold."""
    top = 2**depth - 1
    alpha = None if image.alpha is None else (image.alpha.clamp(0, 1) * top).round() / top
    return dataclasses.replace(image, color=(image.color.clamp(0, 1) * top).round() / top, alpha=alpha)


def encode(
    file: BinaryIO, image: ImageData, samples: np.ndarray, format: Format, config: OutputConfig
) -> None:
    """Write H×W×C samples with the metadata of `image`."""
    height, width, channels = samples.shape
    metadata = metadata_for_size(image.metadata, height, width)
    if format is TIFF:
        exif = None if metadata.exif is None else exif_of(metadata.exif)
        write_tiff(file, samples, metadata, exif, config.tiff_compression)
        return
    if samples.dtype == np.uint16:
        writer = PngWriter(file, samples.shape, samples.dtype, metadata, config.png_compression)
        writer.write_rows(samples)
        writer.close()
        return
    picture = Image.fromarray(samples[..., 0] if channels == 1 else samples)
    profile = metadata.icc_profile
    if image.is_gray and not format.has_gray:
        picture, profile = _gray_as_rgb(picture, profile, image.source)
    options = {
        **format_options(format, config),
        **metadata_options(metadata, format),
        "icc_profile": profile,
    }
    if format is JPEG:
        iptc = metadata.iptc
        options["comment"] = b"" if metadata.comment is None else metadata.comment.encode("utf-8")
        options["iptc"] = b"" if iptc is None else _PHOTOSHOP + carrying.photoshop_block(iptc)
        _drop_oversized(options, image.source)
        if resources := options.pop("iptc", b""):
            options["extra"] = b"\xff\xed" + (len(resources) + 2).to_bytes(2, "big") + resources
    picture.save(file, format.name, **options)


def metadata_options(metadata: ImageMetadata, format: Format) -> dict[str, Any]:
    """What goes with the pixels, in Pillow's names."""
    names = ("icc_profile", "exif", "dpi", "xmp")
    options: dict[str, Any] = {
        name: value for name in names if (value := getattr(metadata, name)) is not None
    }
    if format is PNG:
        options.pop("xmp", None)
        options["pnginfo"] = text_chunks(metadata)
    if format is AVIF and metadata.exif is not None:
        # Pillow would take Orientation out (it is 1) and pack the rest with question marks for other letters.
        block = exif_of(metadata.exif)
        block.pop(ExifTags.Base.Orientation, None)
        options["exif"] = exif_bytes(block)
    return options


def format_options(format: Format, config: OutputConfig) -> dict[str, Any]:
    """The encoder's own settings, in Pillow's names."""
    if format is JPEG:
        # Without `optimize`, for which Pillow's buffer is too small where there is much noise.
        return {"quality": config.jpeg_quality, "subsampling": "4:4:4"}
    if format is WEBP:
        # `exact` keeps the colour of transparent pixels; `quality` is the effort when lossless.
        quality = 75 if config.webp_lossless else config.webp_quality
        return {"lossless": config.webp_lossless, "quality": quality, "method": 4, "exact": True}
    if format is AVIF:
        return {"quality": config.avif_quality, "subsampling": "4:4:4"}
    return {"compress_level": config.png_compression}


def _drop_oversized(options: dict[str, Any], source: str) -> None:
    """JPEG keeps each of these in one segment of 64 kB; what is larger cannot be carried over."""
    for key, name, overhead in _JPEG_SEGMENTS:
        if len(options.get(key, b"")) + overhead > _MAX_JPEG_SEGMENT:
            del options[key]
            notify("metadata", source, f"its {name} is too large for JPEG and is left out")


def _gray_as_rgb(
    picture: Image.Image, profile: bytes | None, source: str
) -> tuple[Image.Image, bytes | None]:
    """Grey as RGB for formats without grey: its profile, which would not fit, is applied instead."""
    target = "RGBA" if picture.mode == "LA" else "RGB"
    if profile is None:
        return picture.convert(target), None
    gray = picture.convert("L")
    gray.info["icc_profile"] = profile
    color = to_srgb(gray, source)
    if picture.mode == "LA":
        color.putalpha(picture.getchannel("A"))
    return color, None


def on_white(image: ImageData) -> ImageData:
    """The image as it looks on white paper: without transparency."""
    if image.alpha is None:
        return image
    return dataclasses.replace(image, color=image.color * image.alpha + (1 - image.alpha), alpha=None)


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a file that then appears at `path`; leave nothing if it fails.

    Raises:
        ClearSRError: the disk is full, the folder is read-only, and the like.
    """
    target = Path(os.path.realpath(path))  # through a link, the file behind it is replaced
    try:
        with written_aside(target) as aside, aside.open("wb+") as file:
            write(file)
    except OSError as error:
        raise ClearSRError(f"{display_name(path)}: cannot be written: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What went wrong, in a few words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200].lower()


# `write_blocks`: a picture that comes block by block as a file, written while it is made.
# TIFF and PNG hold one row of blocks at a time. The other formats have encoders for whole pictures only:
# their samples are collected, at one or two bytes each.
Blocks = Iterator[tuple[Window, ImageData]]


def write_blocks(
    path: Path | Target,
    size: tuple[int, int],
    side: int,
    blocks: Blocks,
    config: OutputConfig | None = None,
) -> None:
    """Write a picture of which parts of side `side` come row by row; as `write_image` in all else.

    Args:
        path: the file to write, checked for that size already or not.
        size: height and width.
        side: of a block, a multiple of 16.
        blocks: where each block lies, and the block; every one brings the metadata of the whole.

    Raises:
        ClearSRError: as `write_image`.
    """
    config = config or OutputConfig()
    path, format = path if isinstance(path, Target) else check_output(path, size)

    def write(file: BinaryIO) -> None:
        window, first = next(blocks)
        template, depth = as_format_holds(first, path, format, config)

        def converted() -> Iterator[tuple[Window, np.ndarray]]:
            yield window, to_samples(template, depth)
            for where, block in blocks:
                fitted, _ = as_format_holds(block, path, format, config)
                yield where, to_samples(fitted, depth)

        _write(file, (template, depth), size, side, converted(), format, config)

    write_whole(path, write)


def _write(
    file: BinaryIO,
    template: tuple[ImageData, int],
    size: tuple[int, int],
    side: int,
    samples: Iterator[tuple[Window, np.ndarray]],
    format: Format,
    config: OutputConfig,
) -> None:
    """Write samples; `template` has the metadata and the bits per sample."""
    image, depth = template
    channels = (1 if image.is_gray else 3) + (image.alpha is not None)
    shape, dtype = (*size, channels), np.dtype(np.uint8 if depth == 8 else np.uint16)
    metadata = metadata_for_size(image.metadata, *size)
    if format is TIFF:
        tiles = Tiles((part for _, part in samples), shape, dtype, side)
        exif = None if metadata.exif is None else exif_of(metadata.exif)
        write_tiff(file, tiles, metadata, exif, config.tiff_compression)
    elif format is PNG:
        writer = PngWriter(file, shape, dtype, metadata, config.png_compression)
        rows = np.empty((side, size[1], channels), dtype)
        for window, part in samples:
            rows[: len(part), window.left : window.right] = part
            if window.right == size[1]:
                writer.write_rows(rows[: len(part)])
        writer.close()
    else:
        whole = np.empty(shape, dtype)
        for window, part in samples:
            whole[window.top : window.bottom, window.left : window.right] = part
        encode(file, image, whole, format, config)
