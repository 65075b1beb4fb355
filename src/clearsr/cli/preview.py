"""`--preview`: the middle of a result beside the same part of its input, shown in the terminal on stderr.

Only ever to a terminal: never to a pipe or a file, so that what goes there stays what it is.
"""

import base64
import io
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import rich
from PIL import Image
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import ControlType, Segment
from rich.style import Style
from rich.text import Text

from clearsr.errors import ClearSRError
from clearsr.image import ImageData, open_source, resize, to_pil
from clearsr.image.writing import on_white
from clearsr.tiling import Window

# Pictures as what a terminal shows: the protocols of kitty, iTerm2 and sixel, and cells of colour elsewhere.
# Which of them a terminal knows is read from its environment variables: asking the terminal itself would take
# its answer from whatever the user is typing. Nothing here writes; the caller has the terminal.
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


logger = logging.getLogger(__name__)

Show = Callable[[Path, Path], None]

_GAP = 8  # pixels between the two
_SIDE = 512  # pixels of the result that are shown, each as one pixel of the screen
_SIDE_FOR_CELLS = 1024  # pixels of the result that are shrunk to cells of colour
_CELL_WIDTH = 8  # pixels, where the terminal does not say


def previewer(quiet: bool) -> Show:
    """What shows an input and its result; it does nothing where there is no terminal that can."""
    console = rich.get_console()
    is_dumb = console.color_system is None or console.no_color or os.environ.get("TERM") == "dumb"
    if quiet or is_dumb or not console.file.isatty():
        return lambda _input, _output: None
    protocol = protocol_of(os.environ)

    def show(source: Path, result: Path) -> None:
        try:
            if protocol == "blocks":
                picture, caption = before_and_after(source, result, _SIDE_FOR_CELLS)
                console.print(colored_cells(picture, console.width - 1), end="")
            else:
                side = min(_SIDE, (_terminal_pixels(console) - _GAP) // 2)
                picture, caption = before_and_after(source, result, side)
                console.print(_Raw(escape_sequences(picture, protocol)))
            console.print(Text(caption), soft_wrap=True)
        except ClearSRError as error:  # the result is there all the same
            logger.warning("no preview: %s", error)

    return show


def before_and_after(source: Path, result: Path, side: int) -> tuple[Image.Image, str]:
    """The middle of a result, at the right of the same part of its input, enlarged; and a line about it.

    Args:
        side: pixels of the result that are shown, at most, in width and in height.

    Raises:
        ClearSRError: a file cannot be read.
    """
    with closing(open_source(source)) as lr, closing(open_source(result)) as sr:
        across, down = sr.width / lr.width, sr.height / lr.height
        part = _middle((lr.height, lr.width), (side / down, side / across))
        after = sr.read(
            Window(*(round(n * share) for n, share in zip(part, (down, across, down, across), strict=True)))
        )
        before = on_white(lr.read(part)).color
        size = (sr.height, sr.width)
    larger = resize(before[None], (after.height, after.width))[0]
    pair = [to_pil(ImageData(color)).convert("RGB") for color in (larger, on_white(after).color)]
    sheet = Image.new("RGB", (2 * after.width + _GAP, after.height))
    sheet.paste(pair[0], (0, 0))
    sheet.paste(pair[1], (after.width + _GAP, 0))
    is_whole = (after.height, after.width) == size
    shown = "" if is_whole else f", the middle {after.width}x{after.height} of {size[1]}x{size[0]}"
    return sheet, f"before | after{shown}"


class _Raw:
    """Characters that go to the terminal as they are, then a line break."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment(self._text, None, [(ControlType.BELL,)])  # any control code: rich leaves the text alone
        yield Segment("\n")


def _middle(size: tuple[int, int], wanted: Iterable[float]) -> Window:
    """The middle of a grid of that height and width, as high and wide as wanted or as there is."""
    heights = [max(1, min(full, int(part))) for full, part in zip(size, wanted, strict=True)]
    top, left = (full - part for full, part in zip(size, heights, strict=True))
    return Window(top // 2, left // 2, top // 2 + heights[0], left // 2 + heights[1])


def _terminal_pixels(console: Console) -> int:
    """The terminal's width in pixels: as it says, or a guess by its columns."""
    try:
        import fcntl
        import struct
        import termios

        answer = fcntl.ioctl(console.file.fileno(), termios.TIOCGWINSZ, bytes(8))
        return struct.unpack("HHHH", answer)[2] or console.width * _CELL_WIDTH
    except (ImportError, OSError):  # Windows; no terminal's file
        return console.width * _CELL_WIDTH
