"""Colours that a file declares in another way than by an ICC profile, as the profile that says the same.

PNG's cICP, sRGB, gAMA and cHRM, the nclx of AVIF and HEIF, a TIFF's chromaticities, and EXIF's Adobe RGB. The
numbers of primaries and transfer functions are those of ITU-T H.273. Pixels keep their values, and the result
has the profile. PQ and HLG are refused: they are light beyond white, which a picture for plain screens does
not hold.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from clearsr.errors import ClearSRError, notify

_D65, _C, _DCI = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351)
_BT709 = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060)
# H.273, table 2: name, white, and red, green and blue.
_PRIMARIES: dict[int, tuple[str, tuple[float, float], tuple[float, ...]]] = {
    1: ("BT.709", _D65, _BT709),
    4: ("BT.470 M", _C, (0.67, 0.33, 0.21, 0.71, 0.14, 0.08)),
    5: ("BT.601 625", _D65, (0.64, 0.33, 0.29, 0.60, 0.15, 0.06)),
    6: ("BT.601 525", _D65, (0.630, 0.340, 0.310, 0.595, 0.155, 0.070)),
    7: ("SMPTE 240", _D65, (0.630, 0.340, 0.310, 0.595, 0.155, 0.070)),
    8: ("film", _C, (0.681, 0.319, 0.243, 0.692, 0.145, 0.049)),
    9: ("BT.2020", _D65, (0.708, 0.292, 0.170, 0.797, 0.131, 0.046)),
    11: ("DCI-P3", _DCI, (0.680, 0.320, 0.265, 0.690, 0.150, 0.060)),
    12: ("Display P3", _D65, (0.680, 0.320, 0.265, 0.690, 0.150, 0.060)),
    22: ("EBU 3213", _D65, (0.630, 0.340, 0.295, 0.605, 0.155, 0.077)),
}
_UNSPECIFIED = 2  # as a number of primaries, too
# Table 3: exponents; None is sRGB's curve, by which that of BT.709 and its kin is shown here, too.
_TRANSFERS: dict[int, float | None] = {
    1: None, 2: None, 4: 2.2, 5: 2.8, 6: None, 7: None, 8: 1.0, 11: None, 12: None, 13: None, 14: None,
    15: None, 17: 2.6,
}  # fmt: skip
_HDR = {16: "PQ", 18: "HLG"}
_SRGB_GAMMA, _NEAR_GAMMA, _NEAR_PLACE = 0.45455, 0.005, 0.002  # and by how much it may be missed
_WHITE_POINT_TAG, _PRIMARIES_TAG = 318, 319  # of TIFF
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


class Colors(NamedTuple):
    """Where a file's RGB lies.

    Attributes:
        white: x and y.
        primaries: x and y of red, green and blue.
        exponent: of the curve from values to light; None for sRGB's.
        name: for the profile's description.
    """

    white: Sequence[float]
    primaries: Sequence[float]
    exponent: float | None
    name: str


_SRGB = Colors(_D65, _BT709, None, "sRGB")
_ADOBE_RGB = Colors(_D65, (0.64, 0.33, 0.21, 0.71, 0.15, 0.06), 2.19921875, "Adobe RGB (1998)")


# Pillow's modes that become RGB, by the file's ICC profile if it has one: the result has another then.
PROFILED = ("CMYK", "LAB")
CONVERTED = "converted"  # among what Pillow calls `info`: it was of these


def declared_profile(info: Mapping[Any, Any], exif: Image.Exif, is_gray: bool, source: str) -> bytes | None:
    """The ICC profile of a picture: its own, or one that says what it says otherwise; None for sRGB.

    Args:
        info: as `metadata.info_of` has it; `cicp`, primaries and transfer function, goes first.
        is_gray: whether the picture is; a profile that does not fit is left out.

    Raises:
        ClearSRError: its values are PQ or HLG, or by a curve that is not known.
    """
    declared = _declared(info, exif, is_gray, source)
    profile = fitting_profile(declared, is_gray)
    if declared and profile is None and CONVERTED not in info:
        notify("profile", source, "its ICC profile is none for such colours; it is left out")
    return profile


def fitting_profile(profile: object, is_gray: bool) -> bytes | None:
    """The ICC profile if its header (bytes 16-20 name the colour space) says that it is for such pixels."""
    if not isinstance(profile, bytes) or len(profile) < 128:
        return None
    return profile if profile[16:20] == (b"GRAY" if is_gray else b"RGB ") else None


def _declared(info: Mapping[Any, Any], exif: Image.Exif, is_gray: bool, source: str) -> bytes | None:
    """Its own profile as it is, or one made of what else it says."""
    own = info.get("icc_profile")
    if "cicp" in info:
        primaries, transfer = info["cicp"]
        colors = _of_numbers(primaries, transfer, source)
    elif own or "srgb" in info:
        return own
    elif "gamma" in info or "chromaticity" in info:
        colors = _of_png(info)
    else:
        colors = _ADOBE_RGB if _is_adobe_rgb(exif) else _SRGB
    if _is_srgb(colors):
        return None
    try:
        return _profile(colors, is_gray)
    except (ValueError, ArithmeticError, np.linalg.LinAlgError, struct.error):
        notify("profile", source, "what it says of its colours makes no sense and is left out")
        return None


def _of_numbers(primaries: int, transfer: int, source: str) -> Colors:
    """Colours by H.273."""
    if transfer not in _TRANSFERS:
        kind = f"HDR ({_HDR[transfer]})" if transfer in _HDR else f"by a curve that is not known ({transfer})"
        raise ClearSRError(f"{source}: its colours are {kind}; export it for plain screens (SDR) first")
    exponent = _TRANSFERS[transfer]
    if primaries not in _PRIMARIES:
        if primaries != _UNSPECIFIED:
            notify("profile", source, f"its primaries ({primaries}) are not known; taken for those of sRGB")
        primaries = 1
    name, white, places = _PRIMARIES[primaries]
    return Colors(white, places, exponent, name if exponent is None else f"{name}, gamma {exponent:g}")


def _of_png(info: Mapping[Any, Any]) -> Colors:
    """Colours by gAMA and cHRM: the exponent of the values, and x and y of white, red, green and blue."""
    gamma, places = float(info.get("gamma") or _SRGB_GAMMA), info.get("chromaticity", ())
    white, primaries = (places[:2], places[2:]) if len(places) == 8 else (_D65, _BT709)
    is_srgb = abs(gamma - _SRGB_GAMMA) < _NEAR_GAMMA and _is_near(white, _D65) and _is_near(primaries, _BT709)
    if is_srgb or "gamma" not in info:
        return Colors(white, primaries, None, "declared primaries")
    return Colors(white, primaries, 1 / gamma, f"declared, gamma {1 / gamma:.3g}")


def _is_adobe_rgb(exif: Image.Exif) -> bool:
    """Whether EXIF says so, as cameras do (DCF): a colour space of no name, in an option file."""
    try:
        details = exif.get_ifd(ExifTags.IFD.Exif)
        space, kind = details.get(ExifTags.Base.ColorSpace), exif.get_ifd(ExifTags.IFD.Interop).get(1)
    except Exception:  # as in `metadata.py`, where damage is told of
        return False
    return space == 2 or (space == 0xFFFF and str(kind).strip("\0 ") == "R03")


def _is_srgb(colors: Colors) -> bool:
    is_at_home = _is_near(colors.white, _D65) and _is_near(colors.primaries, _BT709)
    return colors.exponent is None and is_at_home


def _is_near(places: Sequence[float], others: Sequence[float]) -> bool:
    return all(abs(a - b) < _NEAR_PLACE for a, b in zip(places, others, strict=True))


def chromaticities_of(image: Image.Image) -> dict[str, Any]:
    """A TIFF's, as Pillow has those of a PNG; nothing for others."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return {}
    white, primaries = (image.tag_v2.get(tag, ()) for tag in (_WHITE_POINT_TAG, _PRIMARIES_TAG))
    if not isinstance(white, tuple) or not isinstance(primaries, tuple) or len(primaries) != 6:
        return {}
    return {"chromaticity": tuple(map(float, (*(white if len(white) == 2 else _D65), *primaries)))}


# The nclx of AVIF and HEIF: a property of the picture, among boxes within boxes (ISO/IEC 14496-12, 23008-12).
def nclx_in(content: bytes) -> dict[str, Any]:
    """Primaries and transfer function, as `cicp`, of the picture that a file of boxes shows; or nothing."""
    try:
        meta = _boxes(_boxes(content)[b"meta"][0][4:])
        (header,) = meta[b"pitm"]
        item = int.from_bytes(header[4:], "big")
        described = _boxes(meta[b"iprp"][0])
        kinds = list(_children(described[b"ipco"][0]))
        for index in _properties(described[b"ipma"][0], item):
            kind, body = kinds[index - 1]
            if kind == b"colr" and body[:4] == b"nclx":
                return {"cicp": struct.unpack(">HH", body[4:8])}
    except (KeyError, IndexError, ValueError, struct.error):
        return {}  # decoders judge files; this one is read already
    return {}


def _children(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each box."""
    position = 0
    while position + 8 <= len(content):
        length, head = int.from_bytes(content[position : position + 4], "big"), 8
        if length == 1:
            length, head = int.from_bytes(content[position + 8 : position + 16], "big"), 16
        end = position + max(length, head) if length else len(content)
        yield content[position + 4 : position + 8], content[position + head : end]
        position = end


def _boxes(content: bytes) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for kind, body in _children(content):
        found.setdefault(kind, []).append(body)
    return found


def _properties(associations: bytes, wanted: int) -> Iterator[int]:
    """Numbers, from 1, of the properties that an item has."""
    item_bytes, are_long = 2 if associations[0] < 1 else 4, associations[3] & 1
    position = 8
    for _ in range(int.from_bytes(associations[4:8], "big")):
        item = int.from_bytes(associations[position : position + item_bytes], "big")
        count = associations[position + item_bytes]
        position += item_bytes + 1
        for _ in range(count):
            number = int.from_bytes(associations[position : position + 1 + are_long], "big")
            position += 1 + are_long
            if item == wanted:
                yield number & (0x7FFF if are_long else 0x7F)


# An ICC profile of version 4: primaries or grey, a curve, white adapted to D50 (ICC.1:2022, Bradford).
def _profile(colors: Colors, is_gray: bool) -> bytes:
    """The profile of these colours.

    Raises:
        ValueError, ArithmeticError, LinAlgError, struct.error: there are no such colours.
    """
    white = _light(colors.white)
    adapted = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD
    tags = {b"desc": _text(colors.name), b"cprt": _text("Public Domain"), b"wtpt": _place(_D50)}
    tags[b"chad"] = b"sf32\0\0\0\0" + b"".join(map(_fixed, adapted.ravel()))
    if is_gray:
        tags[b"kTRC"] = _curve(colors.exponent)
    else:
        corners = np.stack([_light(colors.primaries[i : i + 2]) for i in (0, 2, 4)], axis=1)
        columns = adapted @ (corners * np.linalg.solve(corners, white))
        if not np.isfinite(columns).all():
            raise ValueError("no primaries")
        for letter, column in zip(b"rgb", columns.T, strict=True):
            tags[bytes((letter,)) + b"XYZ"] = _place(column)
            tags[bytes((letter,)) + b"TRC"] = _curve(colors.exponent)
    start = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for kind, content in tags.items():
        table += struct.pack(">4sII", kind, start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    space = b"GRAY" if is_gray else b"RGB "
    head = struct.pack(">I4xI4s4s4s6H4s", start + len(data), 0x04400000, b"mntr", space, b"XYZ ",
                       2026, 1, 1, 0, 0, 0, b"acsp")  # fmt: skip
    return head.ljust(68, b"\0") + b"".join(map(_fixed, _D50)) + bytes(48) + table + data


def _light(place: Sequence[float]) -> np.ndarray:
    """XYZ of light of brightness 1 at x and y."""
    x, y = place
    if not 0 < y <= 1:
        raise ValueError("no light there")
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(float(value) * 65536))


def _place(light: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, light))


def _curve(exponent: float | None) -> bytes:
    values = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045) if exponent is None else (exponent,)
    return struct.pack(">4s4xHxx", b"para", 0 if exponent else 3) + b"".join(map(_fixed, values))


def _text(text: str) -> bytes:
    letters = text.encode("utf-16-be")
    return struct.pack(">4s4xII2s2sII", b"mluc", 1, 12, b"en", b"US", len(letters), 28) + letters
