"""Several pictures as one file: an animation with its timing, or a TIFF of several pages."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from clearsr.config.output import OutputConfig
from clearsr.errors import ClearSRError, display_name, notify
from clearsr.image.carrying import AVIF, GIF, JPEG, TIFF, Format
from clearsr.image.data import ImageData, ImageMetadata, to_samples
from clearsr.image.metadata import metadata_for_size
from clearsr.image.modes import to_srgb
from clearsr.image.tiff import append_page
from clearsr.image.writing import (
    Target,
    as_format_holds,
    encode,
    format_options,
    metadata_options,
    write_whole,
)

_HOLE = 255  # a GIF's colour that is none


def check_frames(target: Target, are_pages: bool) -> None:
    """See that a format holds several frames, or pages.

    Raises:
        ClearSRError: it does not.
    """
    if are_pages and target.format is not TIFF:
        raise ClearSRError(f"{display_name(target.path)}: pages are kept by TIFF alone; use --format tiff")
    if target.format is JPEG:
        raise ClearSRError(
            f"{display_name(target.path)}: JPEG holds one picture; --frames all takes png, webp, avif, gif "
            "or tiff"
        )


def write_frames(
    frames: Iterator[ImageData],
    durations: Sequence[float] | None,
    loop: int,
    target: Target,
    config: OutputConfig,
) -> None:
    """Write an animation, or a TIFF of several pages (as they come); metadata is the first one's.

    Args:
        durations: milliseconds of each; None for pages.
        loop: how often all are shown, 0 for without end.

    Raises:
        ClearSRError: as `write_image`.
    """
    path, format = target
    name = display_name(path)

    def write_pages(file: BinaryIO) -> None:
        for number, frame in enumerate(frames):
            image, depth = as_format_holds(frame, path, format, config)
            if number:
                append_page(file, to_samples(image, depth), image.metadata, config.tiff_compression)
            else:
                encode(file, image, to_samples(image, depth), format, config)
        if durations is not None:
            notify("frames", name, "TIFF holds no timing; its frames are pages")

    def write_animation(file: BinaryIO) -> None:
        taken = _for_gif(frames, path, config) if format is GIF else _plain(frames, path, format, config)
        (first, options), *others = taken
        if format is not AVIF:
            options["loop"] = loop
        if format is GIF and loop == 1:
            del options["loop"]  # once is what a GIF says by saying nothing
        options["duration"] = [_shown(duration, format) for duration in durations or ()]
        pictures = [picture for picture, _ in others]
        first.save(file, format.name, save_all=True, append_images=pictures, **options)

    write_whole(path, write_pages if format is TIFF else write_animation)


def _shown(duration: float, format: Format) -> int:
    """Whole milliseconds; a GIF holds hundredths of a second."""
    return round(duration / 10) * 10 if format is GIF else round(duration)


Frames = Iterator[tuple[Image.Image, dict[str, Any]]]  # with Pillow's options, which are the first one's


def _plain(frames: Iterator[ImageData], path: Path, format: Format, config: OutputConfig) -> Frames:
    """Frames in RGB or RGBA."""
    name = display_name(path)
    for frame in frames:
        image, _ = as_format_holds(frame, path, format, config)
        metadata = metadata_for_size(image.metadata, image.height, image.width)
        if image.bit_depth != 8:
            notify("bit_depth", name, "animations hold 8 bits per sample; 16-bit values were rounded")
        if image.is_gray and metadata.icc_profile is not None:
            text = "its profile is one for grey, and animations are in colour; it is left out"
            notify("profile", name, text)
            metadata = dataclasses.replace(metadata, icc_profile=None)
        yield _in_color(image), {**format_options(format, config), **metadata_options(metadata, format)}


def _for_gif(frames: Iterator[ImageData], path: Path, config: OutputConfig) -> Frames:
    """Frames in sRGB of 256 colours each, which are another for each; one of them for holes."""
    name = display_name(path)
    for frame in frames:
        metadata = frame.metadata if config.keep_metadata else ImageMetadata()
        notify("bit_depth", name, "a GIF holds 256 colours a frame; the others became their nearest")
        if lost := [field for field in ("exif", "xmp", "text", "iptc", "dpi") if getattr(metadata, field)]:
            notify("metadata", name, f"GIF has no place for its {', '.join(lost)}; left out")
        comment = None if metadata.comment is None else metadata.comment.encode("utf-8")
        yield _in_palette(frame), {"comment": comment or b"", "optimize": False}


def _in_palette(frame: ImageData) -> Image.Image:
    """The frame in 256 colours, or 255 and holes where it is less than half opaque; dithered."""
    opaque = dataclasses.replace(frame, alpha=None)
    profile = frame.metadata.icc_profile
    picture = Image.fromarray(to_samples(opaque, 8)[..., 0]) if frame.is_gray else _in_color(opaque)
    picture.info["icc_profile"] = profile
    color = to_srgb(picture, frame.source)
    if frame.alpha is None:
        return color.quantize(palette=color.quantize(256, Image.Quantize.MEDIANCUT))
    reduced = color.quantize(palette=color.quantize(_HOLE, Image.Quantize.MEDIANCUT))
    holes = Image.fromarray(np.where(frame.alpha[0].numpy() < 0.5, 255, 0).astype(np.uint8))
    reduced.paste(_HOLE, (0, 0), holes)
    reduced.info["transparency"] = _HOLE
    return reduced


def _in_color(image: ImageData) -> Image.Image:
    return Image.fromarray(to_samples(dataclasses.replace(image, is_gray=False), 8))
