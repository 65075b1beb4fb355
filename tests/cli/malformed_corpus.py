"""Malformed images of every format that is read, made from small whole ones; the same for the same seed."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import tifffile
from PIL import Image

_HEIGHT, _WIDTH = 18, 22
_HEADER = 80  # bytes in which most of a file's structure is


def malformed_images(seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Name and content of each: broken in ten ways per format, then what is aimed at one weak spot."""
    draw = random.Random(seed)
    whole = whole_images()
    for name, content in whole.items():
        stem, _, suffix = name.partition(".")
        for index, changed in enumerate(_broken(content, draw)):
            yield f"{stem}-{index:02d}.{suffix}", changed
    names = list(whole)
    for one, other in zip(names, names[1:] + names[:1], strict=True):  # the suffix lies
        yield f"in-{other.replace('.', '-')}.{one.partition('.')[2]}", whole[other]
    yield from _bombs()
    yield from _metadata(draw)
    yield from (
        ("empty.png", b""),
        ("text.jpg", b"Dear diary"),
        ("zeros.tif", bytes(4096)),
        ("one.bmp", b"B"),
    )
    yield from (
        (f"noise-{i}.{suffix}", draw.randbytes(900)) for i, suffix in enumerate(("png", "jpg", "avif"))
    )


def whole_images() -> dict[str, bytes]:
    """A good picture in every format that the installed packages write."""
    y, x = np.mgrid[0 : 1 : _HEIGHT * 1j, 0 : 1 : _WIDTH * 1j]
    pixels = (255 * np.stack([x, y, (x + y) / 2], -1)).astype(np.uint8)
    image, frames = Image.fromarray(pixels), [Image.new("RGB", (_WIDTH, _HEIGHT), (9, 99, 199))]
    several = {"save_all": True, "append_images": frames}
    deep = pixels.astype(np.uint16) * 257
    found = {
        "gray.png": _saved(image.convert("L"), "PNG"),
        "alpha.png": _saved(image.convert("RGBA"), "PNG"),
        "palette.png": _saved(image.convert("P"), "PNG", transparency=3),
        "moving.apng": _saved(image, "PNG", **several),
        "plain.jpg": _saved(image, "JPEG"),
        "progressive.jpg": _saved(image, "JPEG", progressive=True),
        "cmyk.jpg": _saved(image.convert("CMYK"), "JPEG"),
        "two.mpo": _saved(image, "MPO", **several),
        "lossy.webp": _saved(image, "WEBP"),
        "lossless.webp": _saved(image, "WEBP", lossless=True),
        "moving.webp": _saved(image, "WEBP", **several),
        "raw.tif": _saved(image, "TIFF"),
        "lzw.tif": _saved(image, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": _saved(image, "TIFF", compression="jpeg"),
        "fax.tif": _saved(image.convert("1"), "TIFF", compression="group4"),
        "deep.tif": _tiff(deep, photometric="rgb", compression="zlib"),
        "planar.tif": _tiff(np.moveaxis(deep, -1, 0), photometric="rgb"),
        "tiled.tif": _tiff(deep, photometric="rgb", tile=(16, 16)),
        "big.tif": _tiff(pixels, photometric="rgb", bigtiff=True),
        "float.tif": _tiff((pixels / 255).astype(np.float32), photometric="rgb"),
        "plain.avif": _saved(image, "AVIF"),
        "plain.bmp": _saved(image, "BMP"),
        "plain.dib": _saved(image, "DIB"),
        "plain.gif": _saved(image, "GIF"),
        "moving.gif": _saved(image, "GIF", **several),
        "plain.ppm": _saved(image, "PPM"),
        "gray.pgm": _saved(image.convert("L"), "PPM"),
        "one.pbm": _saved(image.convert("1"), "PPM"),
        "plain.jp2": _saved(image, "JPEG2000"),
        "stream.j2k": _saved(image, "JPEG2000", no_jp2=True),
        "plain.tga": _saved(image, "TGA", compression="tga_rle"),
        "plain.ico": _saved(image, "ICO"),
        "plain.pcx": _saved(image, "PCX"),
        "plain.qoi": _saved(image, "QOI"),
        "plain.dds": _saved(image, "DDS"),
        "plain.sgi": _saved(image, "SGI"),
        "plain.psd": _psd(pixels),
    }
    try:
        import pillow_heif
    except ImportError:
        return found
    return {**found, "phone.heic": _bytes_of(pillow_heif.from_pillow(image).save)}


def _broken(content: bytes, draw: random.Random) -> Iterator[bytes]:
    """Ten damaged copies."""
    size = len(content)
    yield content[: size // 3]
    yield content[: max(1, size - 7)]
    yield content[: min(size - 1, draw.randrange(2, 40))]
    yield bytes(4) + content[4:]
    yield _flipped(content, draw, 1, _HEADER)
    yield _flipped(content, draw, 4, _HEADER)
    yield _flipped(content, draw, 24, size)
    start = draw.randrange(size // 2)
    yield content[:start] + b"\xff" * 12 + content[start + 12 :]
    yield content[:start] + draw.randbytes(9) + content[start:]  # everything behind has moved
    yield content[: size // 2] + content[size // 3 :]


def _flipped(content: bytes, draw: random.Random, count: int, end: int) -> bytes:
    """Bits inverted, not in the first four bytes, by which the format is known."""
    changed = bytearray(content)
    for _ in range(count):
        changed[draw.randrange(4, min(end, len(content)))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _bombs() -> Iterator[tuple[str, bytes]]:
    """Tiny files that state giant sizes, or unpack to them."""
    for index, (width, height) in enumerate(
        ((0, 0), (0, 9), (60_000, 60_000), (2**31 - 1, 1), (1, 2**31 - 1))
    ):
        data = zlib.compress(bytes(100))
        yield f"bomb-{index}.png", png_of(width, height, data)
        header = struct.pack("<IIiiHHI", 54, 40, width, height, 1, 24, 0)
        yield f"bomb-{index}.bmp", b"BM" + bytes(8) + header + bytes(54)
        yield f"bomb-{index}.ppm", f"P6 {width} {height} 255\n".encode() + bytes(99)
        yield f"bomb-{index}.qoi", b"qoif" + struct.pack(">II", width, height) + b"\3\0" + bytes(40)
        yield (
            f"bomb-{index}.psd",
            b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, height, width, 8, 3) + bytes(60),
        )
        short = struct.pack("<HH", width % 65536, height % 65536)
        yield f"bomb-{index}.gif", b"GIF89a" + short + bytes(3) + b"," + bytes(4) + short + b"\0\2\1\0\0;"
        yield f"bomb-{index}.tga", bytes([0, 0, 10]) + bytes(9) + short + b"\x18\0" + b"\xff\1\2\3" * 9
        tags = [
            (256, 4, width),
            (257, 4, height),
            (258, 3, 8),
            (259, 3, 1),
            (262, 3, 1),
            (273, 4, 8),
            (279, 4, 9),
        ]
        yield f"bomb-{index}.tif", _ifd(tags)
    # A real bomb: 18 GB of rows in a few kilobytes, and one whose header is modest but whose data is not.
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(1 << 20)) for _ in range(64)) + rows.flush()
    yield "unpacks.png", png_of(60_000, 100_000, packed)
    yield "overflows.png", png_of(8, 8, packed)
    note = zlib.compress(bytes(64 << 20))
    yield "note.png", png_of(8, 8, zlib.compress(bytes(8 * 25)), [(b"zTXt", b"Comment\0\0" + note)])
    yield "profile.png", png_of(8, 8, zlib.compress(bytes(8 * 25)), [(b"iCCP", b"p\0\0" + note)])
    yield "loop.tif", b"II*\0\x08\0\0\0" + struct.pack("<HHHIIHHIII", 2, 256, 4, 1, 4, 257, 4, 1, 4, 8)


def _metadata(draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """Good pixels with EXIF, ICC and XMP that are not."""
    image = Image.new("RGB", (_WIDTH, _HEIGHT), (200, 90, 40))
    blocks = {
        "noise": draw.randbytes(300),
        "short": b"II*\0",
        "far": b"II*\0\xff\xff\xff\x7f",
        "loop": b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 34665, 4, 1, 8, 8),
        "counts": b"MM\0*\0\0\0\x08" + struct.pack(">HHHII", 1, 271, 2, 2**32 - 1, 8) + bytes(4),
        "zero": b"II*\0\x08\0\0\0" + struct.pack("<HHHIIII", 1, 282, 5, 1, 26, 0, 5) + bytes(8),
        "orientation": b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 274, 3, 1, 99, 0, 0),
        "types": b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 274, 200, 1, 6, 0),
        "many": b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + draw.randbytes(600),
    }
    for name, block in blocks.items():
        for suffix, format in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")):  # AVIF's encoder refuses
            yield f"exif-{name}.{suffix}", _saved(image, format, exif=b"Exif\0\0" + block)
    good_header = struct.pack(">I", 200) + bytes(8) + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(160)
    for name, profile in {
        "noise": draw.randbytes(500),
        "short": b"\0",
        "header": good_header,
        "cmyk": good_header.replace(b"RGB ", b"CMYK"),
    }.items():
        for suffix, format in (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("tif", "TIFF")):
            yield f"icc-{name}.{suffix}", _saved(image, format, icc_profile=profile)
        yield f"icc-{name}-cmyk.jpg", _saved(image.convert("CMYK"), "JPEG", icc_profile=profile)
    for suffix, format in (("jpg", "JPEG"), ("webp", "WEBP"), ("tif", "TIFF")):
        yield f"xmp.{suffix}", _saved(image, format, xmp=draw.randbytes(400))
    yield (
        "dpi.bmp",
        _saved(image, "BMP")[:38] + struct.pack("<ii", -(2**31), 2**31 - 1) + _saved(image, "BMP")[46:],
    )


def png_of(width: int, height: int, data: bytes, chunks: list[tuple[bytes, bytes]] | None = None) -> bytes:
    """A grey PNG with right checksums, whatever it states and holds."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    parts = [header, *(chunks or []), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


def _ifd(tags: list[tuple[int, int, int]]) -> bytes:
    """A TIFF whose directory holds single values."""
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


def _psd(pixels: np.ndarray) -> bytes:
    """Photoshop's format with nothing in it but the flat picture."""
    head = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, *pixels.shape[:2], 8, 3)
    return head + bytes(12) + b"\0\0" + np.moveaxis(pixels, -1, 0).tobytes()


def _tiff(pixels: np.ndarray, **options) -> bytes:
    return _bytes_of(lambda file: tifffile.imwrite(file, pixels, **options))


def _saved(image: Image.Image, format: str, **options) -> bytes:
    return _bytes_of(lambda file: image.save(file, format, **options))


def _bytes_of(write) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()
