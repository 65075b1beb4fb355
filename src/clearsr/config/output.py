"""How files are read and written; a result's format itself follows from the suffix of its name."""

from typing import Literal

from pydantic import Field

from clearsr.config.base import FrozenConfig

# What a user calls a format -> the suffix of its files.
FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tif", "avif": ".avif"}
FRAME_FORMATS = {"gif": ".gif"}  # of several frames alone
SAME = ".*"  # in place of a suffix: the input's own
# What else users call them, and suffixes of the same formats.
FORMAT_NAMES = {**{name: name for name in FORMATS}, "jpeg": "jpg", "tif": "tiff"}
_SUFFIXES = {suffix: suffix for suffix in (*FORMATS.values(), ".jpeg", ".tiff")}
_SUFFIXES |= dict.fromkeys((".jpe", ".jfif", ".mpo"), ".jpg")


def suffix_for(name: str, suffix: str) -> str:
    """The suffix of the result of a file of that name: `suffix`, unless that is `SAME`.

    Then the input's own, in small letters; png where results cannot have that format.
    """
    if suffix != SAME:
        return suffix
    dot = name.rfind(".")
    return _SUFFIXES.get(name[dot:].lower() if dot > 0 else "", ".png")


class OutputConfig(FrozenConfig):
    """Settings of the output file, and of what is taken of the input.

    A format takes those that concern it and ignores the rest.
    """

    bit_depth: Literal["input", 8, 16] = Field(
        default="input", description="bits per sample of PNG and TIFF; `input` keeps what the input had"
    )
    png_compression: int = Field(
        default=6, ge=0, le=9, description="zlib level of PNG; all levels are lossless"
    )
    jpeg_quality: int = Field(
        default=95, ge=1, le=100, description="JPEG quality; chroma is never subsampled"
    )
    webp_lossless: bool = Field(default=True, description="write WebP without loss")
    webp_quality: int = Field(default=95, ge=1, le=100, description="WebP quality when webp_lossless is off")
    avif_quality: int = Field(
        default=90, ge=1, le=100, description="AVIF quality; chroma is never subsampled"
    )
    tiff_compression: Literal["deflate", "none"] = Field(
        default="deflate", description="lossless compression of TIFF"
    )
    keep_metadata: bool = Field(
        default=True, description="carry EXIF, XMP and resolution over; the colour profile is always kept"
    )
    frames: Literal["first", "all"] = Field(
        default="first",
        description="of animations and pages: the first, or all (into png, webp, avif, gif, tiff)",
    )
    keep_time: bool = Field(
        default=False, description="the result's file has the time at which the input's was changed"
    )
    allow_truncated: bool = Field(
        default=False, description="take what is there of a JPEG or PNG that is cut off, grey below"
    )
