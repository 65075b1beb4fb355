"""A PNG encoder for 16 bits per sample, which Pillow has for opaque grey only.

W3C PNG, third edition: every row uses the Paeth filter, whose predictors are known in advance when encoding,
so whole blocks of rows are filtered at once.
"""

import struct
import zlib
from typing import BinaryIO

import numpy as np

from clearsr.image.data import ImageMetadata

_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_PAETH = 4
_ROWS_AT_ONCE = 64
_INCHES_PER_METER = 1 / 0.0254


def write_png16(
    file: BinaryIO, samples: np.ndarray, metadata: ImageMetadata, exif: bytes | None, compression: int = 6
) -> None:
    """Write H×W×C uint16 samples; C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.

    Args:
        file: opened for writing bytes.
        samples: the pixels.
        metadata: its profile, XMP and resolution are written; its EXIF is not.
        exif: a TIFF block, without the "Exif" header of JPEG.
        compression: zlib level 0-9.
    """
    height, width, channels = samples.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _COLOR_TYPES[channels], 0, 0, 0))
    if metadata.icc_profile is not None:
        _write_chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(metadata.icc_profile))
    if metadata.dpi is not None:
        per_meter = [round(value * _INCHES_PER_METER) for value in metadata.dpi]
        _write_chunk(file, b"pHYs", struct.pack(">IIB", *per_meter, 1))
    if metadata.xmp is not None:
        _write_chunk(file, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp)
    if exif is not None:
        _write_chunk(file, b"eXIf", exif)
    packer = zlib.compressobj(compression)
    for start in range(0, height, _ROWS_AT_ONCE):
        packed = packer.compress(_filtered(samples, start, min(start + _ROWS_AT_ONCE, height)))
        if packed:
            _write_chunk(file, b"IDAT", packed)
    _write_chunk(file, b"IDAT", packer.flush())
    _write_chunk(file, b"IEND", b"")


def _filtered(samples: np.ndarray, start: int, stop: int) -> bytes:
    """Rows `start` to `stop`: a filter byte, then each byte less its left, upper or upper left neighbour."""
    pixel_bytes = 2 * samples.shape[2]
    first = max(start - 1, 0)
    data = np.ascontiguousarray(samples[first:stop].astype(">u2")).view(np.uint8).astype(np.int16)
    rows = data.reshape(stop - first, -1)
    padded = np.pad(rows, ((1 if start == 0 else 0, 0), (pixel_bytes, 0)))
    left, up, corner = padded[1:, :-pixel_bytes], padded[:-1, pixel_bytes:], padded[:-1, :-pixel_bytes]
    estimate = left + up - corner
    to_left, to_up, to_corner = (np.abs(estimate - other) for other in (left, up, corner))
    predictor = np.where(to_up <= to_corner, up, corner)
    predictor = np.where((to_left <= to_up) & (to_left <= to_corner), left, predictor)
    residual = (padded[1:, pixel_bytes:] - predictor).astype(np.uint8)
    return np.insert(residual, 0, _PAETH, axis=1).tobytes()


def _write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
