"""`--preview`: the middle of a result beside the same part of its input, shown in the terminal on stderr.

Only ever to a terminal: never to a pipe or a file, so that what goes there stays what it is.
"""

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import rich
from PIL import Image
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import ControlType, Segment
from rich.text import Text

from clearsr.cli.terminal_images import colored_cells, escape_sequences, protocol_of
from clearsr.errors import ClearSRError
from clearsr.image import ImageData, open_source, resize, to_pil
from clearsr.image.writing import on_white
from clearsr.tiling import Window

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
