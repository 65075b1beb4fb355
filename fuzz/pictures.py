"""Pictures of strangers, and the metadata in them, through every reader and into every writer."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from checking import BrokenWordError, file, refusing, tests_module

from clearsr.config.output import OutputConfig
from clearsr.errors import ClearSRError
from clearsr.image import ImageData, open_source, read_image, read_levels, read_size, write_image
from clearsr.tiling import Window

MAX_PIXELS = 2**18  # small pictures find the same mistakes faster
_OUTPUTS = (".png", ".jpg", ".webp", ".tif", ".avif")
_EXIF = b"II*\0\x08\0\0\0"


def corpus(_: Path) -> Iterator[bytes]:
    made = tests_module("cli/malformed_corpus.py")
    yield from made.whole_images().values()
    yield from (data for _, data in made.malformed_images() if len(data) < 20_000)


def tiffs(_: Path) -> Iterator[bytes]:
    yield from (data for data in corpus(_) if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))


def check_picture(data: bytes, folder: Path) -> None:
    """Every way to read a picture, and to write one that carries its metadata."""
    with file(folder / "picture.png", data) as path:
        image = None
        with refusing():
            image = read_image(path, MAX_PIXELS)
        if image is not None:
            _check_image(image)
            _write(image, folder, _OUTPUTS[zlib.crc32(data) % len(_OUTPUTS)])
        with refusing():
            height, width = read_size(path, MAX_PIXELS)
            if height * width <= MAX_PIXELS:
                _check_levels(path)
        with refusing():
            _check_source(path, image)


def _check_levels(path: Path) -> None:
    levels = read_levels(path)
    if levels.dtype != torch.uint8 or levels.shape[0] != 3:
        raise BrokenWordError(f"levels are {levels.dtype} {tuple(levels.shape)}")


def _check_source(path: Path, whole: ImageData | None) -> None:
    """A picture that is read part by part is as large as the whole one, and its parts are what they say."""
    with closing(open_source(path, MAX_PIXELS)) as source:
        height, width = source.height, source.width
        if whole is not None and (whole.height, whole.width) != (height, width):
            raise BrokenWordError(f"{width}x{height} in parts, {whole.width}x{whole.height} as a whole")
        for window in (
            Window(0, 0, height, width),
            Window(height // 2, width // 2, height, width),
            Window(height // 3, 0, height // 3 + 1, 1),
        ):
            part = source.read(window)
            _check_image(part)
            if (part.height, part.width) != window.size:
                raise BrokenWordError(f"{window} gave {part.width}x{part.height}")


def _check_image(image: ImageData) -> None:
    for planes in (image.color, image.alpha):
        if planes is not None and not (planes.min() >= 0 and planes.max() <= 1):
            raise BrokenWordError("values outside 0 to 1")


def _write(image: ImageData, folder: Path, suffix: str) -> None:
    """What a picture carries must not keep its result from being written."""
    if max(image.height, image.width) > 16_383:
        return  # more than WebP takes
    result = folder / f"result{suffix}"
    try:
        write_image(image, result, OutputConfig(png_compression=1))
    except ClearSRError as error:
        raise BrokenWordError(f"what was read cannot be written: {error}") from error
    read_image(result)
    result.unlink()


def metadata_seeds(folder: Path) -> Iterator[bytes]:
    """EXIF blocks, profiles and XMP packets behind a byte that says which."""
    for data in corpus(folder):
        if (start := data.find(b"Exif\0\0")) >= 0:
            yield b"\0" + data[start + 6 : start + 700]
    for kind, entries in (("<", (271, 282, 306, 34665, 34853)), (">", (270, 283, 305, 34665))):
        parts = [struct.pack(f"{kind}HHII", tag, 5 if tag in (282, 283) else 4, 1, 8) for tag in entries]
        head = _EXIF if kind == "<" else b"MM\0*\0\0\0\x08"
        yield b"\0" + head + struct.pack(f"{kind}H", len(parts)) + b"".join(parts) + bytes(8)
    from PIL import ImageCms

    yield b"\1" + ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield b"\2<x:xmpmeta xmlns:x='adobe:ns:meta/'><a tiff:Orientation='6'/></x:xmpmeta>"
    yield b"\3" + struct.pack(">IIB", 2835, 2835, 1)


def check_metadata(data: bytes, folder: Path) -> None:
    """A good picture with the bytes as its EXIF, ICC, XMP or resolution."""
    kind, block = data[:1] or b"\0", data[1:]
    name, body = {
        0: (b"eXIf", block),
        1: (b"iCCP", b"p\0\0" + zlib.compress(block)),
        2: (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + block),
        3: (b"pHYs", block),
    }[kind[0] % 4]
    pixels = zlib.compress((b"\0" + bytes(range(9))) * 7)
    check_picture(_png(9, 7, pixels, [(name, body)]), folder)


def _png(width: int, height: int, data: bytes, chunks: list[tuple[bytes, bytes]]) -> bytes:
    made: bytes = tests_module("cli/malformed_corpus.py").png_of(width, height, data, chunks)
    return made
