"""Pictures as what a terminal shows: the protocols of kitty, iTerm2 and sixel, and cells of colour elsewhere.

Which of them a terminal knows is read from its environment variables: asking the terminal itself would take
its answer from whatever the user is typing. Nothing here writes; the caller has the terminal.
"""

import base64
import io
import re
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text

Protocol = Literal["kitty", "iterm2", "sixel", "blocks"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
VARIABLE = "CLEARSR_PREVIEW"  # names the protocol where it cannot be told

_KITTY_CHUNK = 4096  # characters of base64 in one escape sequence, by the protocol
_UPPER_HALF = "▀"
_REPEATED = re.compile(r"(.)\1{3,}")


def protocol_of(environment: Mapping[str, str]) -> Protocol:
    """What the terminal with these environment variables can show; `blocks` wherever that is not sure."""
    for protocol in PROTOCOLS:
        if environment.get(VARIABLE) == protocol:
            return protocol
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux")):  # they let no picture through
        return "blocks"
    if term in ("xterm-kitty", "xterm-ghostty") or "KITTY_WINDOW_ID" in environment or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    if "KONSOLE_VERSION" in environment:
        return "kitty"
    return "sixel" if term.startswith(("foot", "mlterm", "yaft")) else "blocks"


def escape_sequences(picture: Image.Image, protocol: Protocol) -> str:
    """What to write to a terminal that knows the protocol; the cursor is then in the picture's last row."""
    writers = {"kitty": _kitty, "iterm2": _iterm2, "sixel": _sixel}
    return writers[protocol](picture.convert("RGB"))


def colored_cells(picture: Image.Image, columns: int) -> Text:
    """The picture shrunk to that many columns; a cell shows two pixels, one above the other."""
    width = min(columns, picture.width)
    height = max(2, 2 * round(picture.height * width / picture.width / 2))
    small = picture.convert("RGB").resize((width, height), Image.Resampling.BOX)
    text = Text(no_wrap=True, end="")
    for top in range(0, height, 2):
        for x in range(width):
            upper, lower = (Color.from_rgb(*small.getpixel((x, y))) for y in (top, top + 1))  # type: ignore[misc]
            text.append(_UPPER_HALF, Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _kitty(picture: Image.Image) -> str:
    """A PNG, shown where the cursor is, no answer wanted: https://sw.kovidgoyal.net/kitty/graphics-protocol"""
    data = base64.standard_b64encode(_png(picture)).decode()
    chunks = [data[start : start + _KITTY_CHUNK] for start in range(0, len(data), _KITTY_CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks, 1):
        keys = "a=T,f=100,q=2," if number == 1 else ""
        parts.append(f"\x1b_G{keys}m={int(number < len(chunks))};{chunk}\x1b\\")
    return "".join(parts)


def _iterm2(picture: Image.Image) -> str:
    """A PNG in its own size: https://iterm2.com/documentation-images.html"""
    content = _png(picture)
    keys = f"inline=1;size={len(content)};width={picture.width}px;height={picture.height}px"
    return f"\x1b]1337;File={keys}:{base64.standard_b64encode(content).decode()}\x07"


def _sixel(picture: Image.Image) -> str:
    """DEC's sixels: bands of six rows in up to 256 colours, each band drawn colour by colour."""
    indexed = picture.quantize(256)
    palette = indexed.getpalette() or []
    parts = [f'\x1bPq"1;1;{picture.width};{picture.height}']
    for index in range(len(palette) // 3):
        red, green, blue = (round(level * 100 / 255) for level in palette[3 * index : 3 * index + 3])
        parts.append(f"#{index};2;{red};{green};{blue}")
    pixels = np.asarray(indexed)
    for top in range(0, picture.height, 6):
        band = pixels[top : top + 6]
        values = 1 << np.arange(len(band))[:, None]  # the topmost row is the lowest bit
        for index in np.unique(band):
            sixels = (63 + ((band == index) * values).sum(0)).astype(np.uint8).tobytes().decode("ascii")
            parts.append(f"#{index}{_REPEATED.sub(_counted, sixels)}$")
        parts.append("-")
    return "".join(parts) + "\x1b\\"


def _counted(run: re.Match[str]) -> str:
    """A repeated sixel as `!count`."""
    return f"!{len(run[0])}{run[1]}"
