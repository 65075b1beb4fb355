"""What is written beside the pixels, as ExifTool and exiv2 read it: both find the same, and what went in.

ExifTool is looked for on the path (Debian: libimage-exiftool-perl), exiv2 as its Python package.
"""

import dataclasses
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms

from clearsr.image import from_pil, read_image, write_image
from clearsr.image.data import ImageData

EXIFTOOL = shutil.which("exiftool")
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
    b'xmlns:xmp="http://ns.adobe.com/xap/1.0/" tiff:ImageWidth="24" xmp:Label="Label of mine"/>'
    b"</rdf:RDF></x:xmpmeta>"
)
# What both are asked for: a name here, ExifTool's, exiv2's, and what it is.
ENTRIES = (
    ("artist", "IFD0:Artist", "Exif.Image.Artist", "Zoë Mü"),
    ("copyright", "IFD0:Copyright", "Exif.Image.Copyright", "(c) Zoë"),
    ("description", "IFD0:ImageDescription", "Exif.Image.ImageDescription", "a red ball"),
    ("camera", "IFD0:Model", "Exif.Image.Model", "Camera 7"),
    ("exposure", "ExifIFD:ISO", "Exif.Photo.ISOSpeedRatings", "400"),
    ("width", "ExifIFD:ExifImageWidth", "Exif.Photo.PixelXDimension", "48"),
    ("height", "ExifIFD:ExifImageHeight", "Exif.Photo.PixelYDimension", "32"),
    ("label", "XMP-xmp:Label", "Xmp.xmp.Label", "Label of mine"),
    ("XMP's width", "XMP-tiff:ImageWidth", "Xmp.tiff.ImageWidth", "48"),
)
IPTC = (("title", "IPTC:ObjectName", "Iptc.Application2.ObjectName", "Grüße"),)


@pytest.fixture
def enlarged() -> ImageData:
    """A picture of 24×16 that has become one of 48×32."""
    exif = Image.Exif()
    for tag, value in ((315, "Zoë Mü"), (33432, "(c) Zoë"), (270, "a red ball"), (272, "Camera 7"), (274, 1)):
        exif[tag] = value.encode() if isinstance(value, str) else value
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details[34855], details[40962], details[40963] = 400, 24, 16
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps[1], gps[2], gps[3], gps[4] = "N", (48.0, 8.0, 1.5), "E", (11.0, 34.0, 30.0)
    title = b"\x1c\x01\x5a\x00\x03\x1b%G" + b"\x1c\x02\x05\x00\x07" + "Grüße".encode()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    file = io.BytesIO()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture.save(
        file, "JPEG", exif=exif.tobytes(), xmp=XMP, icc_profile=profile, dpi=(300, 300), comment="by hand"
    )
    with Image.open(file) as image:
        image.info["photoshop"] = {0x0404: title}
        small = from_pil(image)
    return dataclasses.replace(small, color=torch.rand(3, 32, 48))


def _by_exiftool(path: Path) -> dict[str, Any]:
    command = [EXIFTOOL, "-json", "-n", "-G1", "-charset", "iptc=UTF8", "-charset", "exif=UTF8", str(path)]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    (found,) = json.loads(done.stdout)
    return found


def _by_exiv2(path: Path) -> dict[str, str]:
    exiv2 = pytest.importorskip("exiv2")
    image = exiv2.ImageFactory.open(str(path))
    image.readMetadata()
    every = [*image.exifData(), *image.iptcData(), *image.xmpData()]
    return {entry.key(): entry.toString() for entry in every}


@pytest.mark.skipif(EXIFTOOL is None, reason="needs exiftool")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
def test_two_other_readers_find_what_went_in(enlarged: ImageData, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_image(enlarged, path)
    theirs = _by_exiftool(path)
    assert not [key for key in theirs if key.endswith((":Warning", ":Error"))], theirs
    expected = [*ENTRIES, *(IPTC if suffix in (".jpg", ".tif") else ())]
    assert {name: str(theirs.get(key)) for name, key, _, _ in expected} == {e[0]: e[3] for e in expected}
    assert theirs["Composite:GPSLatitude"] == pytest.approx(48 + 8 / 60 + 1.5 / 3600)
    assert theirs["Composite:GPSLongitude"] == pytest.approx(11 + 34.5 / 60)
    assert theirs["ICC_Profile:ProfileDescription"].startswith("sRGB")
    if suffix == ".jpg":
        assert theirs["File:Comment"] == "by hand"
    others = _by_exiv2(path)
    if not others and suffix == ".avif":
        pytest.skip("this exiv2 is built without BMFF")
    assert {name: others.get(key) for name, _, key, _ in expected} == {e[0]: e[3] for e in expected}
    assert others["Exif.GPSInfo.GPSLatitude"].split() == ["48/1", "8/1", "3/2"]
    again = read_image(path)
    assert (again.height, again.width) == (32, 48)
