"""Images in and out: files of every common kind, value range, resizing, padding, transparency.

Everything else in the package sees float32 tensors in [0, 1]; only this package knows about files, modes,
bit depths and metadata, and only this package changes the value range.
"""

from clearsr.image.data import ImageData, ImageMetadata
from clearsr.image.geometry import (
    crop,
    fill_transparent,
    pad_to_multiple,
    resize,
    resize_alpha,
    resized,
    to_signed,
    to_unit,
)
from clearsr.image.listing import IMAGE_SUFFIXES, ListedImage, list_images
from clearsr.image.modes import from_pil, to_pil
from clearsr.image.reading import (
    ChooseWindow,
    open_source,
    read_header,
    read_image,
    read_levels,
    read_sequence,
    read_size,
    stored_format,
)
from clearsr.image.writing import check_output, output_suffixes, write_blocks, write_image

__all__ = [
    "IMAGE_SUFFIXES",
    "ChooseWindow",
    "ImageData",
    "ImageMetadata",
    "ListedImage",
    "check_output",
    "crop",
    "fill_transparent",
    "from_pil",
    "list_images",
    "open_source",
    "output_suffixes",
    "pad_to_multiple",
    "read_header",
    "read_image",
    "read_levels",
    "read_sequence",
    "read_size",
    "resize",
    "resize_alpha",
    "resized",
    "stored_format",
    "to_pil",
    "to_signed",
    "to_unit",
    "write_blocks",
    "write_image",
]
