"""Camera data of a kind that TIFF's tags do not take costs itself, not the picture."""

import logging

import numpy as np
import pytest
from PIL import ExifTags, Image

from clearsr.image.data import ImageMetadata
from clearsr.image.tiff import write_tiff

_FOLDER = int(ExifTags.IFD.Exif)
_MAKER = 37500


@pytest.mark.parametrize("bad", [{256: 1.5}, {256: "wide"}, {}])
def test_what_cannot_be_packed_is_left_out(tmp_path, caplog, bad):
    samples = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    exif = Image.Exif()
    exif.get_ifd(_FOLDER).update({_MAKER: b"remark", **bad})
    with caplog.at_level(logging.WARNING), (tmp_path / "a.tif").open("w+b") as file:
        write_tiff(file, samples, ImageMetadata(), exif, "none")
    assert bool(caplog.records) == bool(bad)
    with Image.open(tmp_path / "a.tif") as image:
        assert np.array_equal(np.asarray(image), samples)
        assert dict(image.getexif().get_ifd(_FOLDER)) == {_MAKER: b"remark"}
