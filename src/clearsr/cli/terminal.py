"""What goes to stderr while a command runs: log lines, warnings and progress bars, in one console."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import rich
from rich.console import Console
from rich.text import Text

from clearsr.errors import printable

_DECODERS = ("PIL", "tifffile")  # they log what the reader then says in one line that names the file


class _Lines(logging.Handler):
    """Log records as single lines that do not disturb a progress bar."""

    def __init__(self, console: Console, level: int) -> None:
        super().__init__()
        self._console, self._level = console, level
        self._last = ""

    def inform(self) -> None:
        """Show informative records from here on, unless the user asked for quiet."""
        if self._level == logging.WARNING:
            self._level = logging.INFO

    def filter(self, record: logging.LogRecord) -> bool:
        """Our own records from the chosen level on; other packages' errors but decoders', or all at DEBUG."""
        package = record.name.partition(".")[0]
        if package == "clearsr" or self._level <= logging.DEBUG:
            return record.levelno >= self._level
        return record.levelno >= logging.ERROR and package not in _DECODERS

    def emit(self, record: logging.LogRecord) -> None:
        word = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        try:
            message = " ".join(printable(record.getMessage()).split())
            if word and message == self._last:
                return  # of a file that is read twice, as for --compare
            self._last = message
            self._console.print(Text(f"clearsr: {word}{message}"), soft_wrap=True)
        except Exception:
            self.handleError(record)


@contextmanager
def terminal(verbose: bool = False, quiet: bool = False) -> Iterator[Console]:
    """Within the block, log records and rich's default console go to stderr.

    Args:
        verbose: show everything, other packages' warnings too; else only our own warnings and all errors.
        quiet: show errors only.
    """
    rich.reconfigure(stderr=True)
    console = rich.get_console()
    shown = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
    handler = _Lines(console, shown)
    root, own = logging.getLogger(), logging.getLogger("clearsr")
    before = own.level
    root.addHandler(handler)
    own.setLevel(min(shown, logging.INFO))
    logging.captureWarnings(True)
    try:
        yield console
    finally:
        logging.captureWarnings(False)
        own.setLevel(before)
        root.removeHandler(handler)


def show_information() -> None:
    """From here on our informative log lines are shown too (a long run such as training wants them)."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Lines):
            handler.inform()


@contextmanager
def busy(what: str, quiet: bool = False) -> Iterator[None]:
    """Within the block a spinner says what takes so long; only where there is a terminal."""
    console = rich.get_console()
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(Text(what)):
        yield


@contextmanager
def counting(what: str, total: int, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Within the block a spinner says which of `total` things is worked on; call what it yields with each."""
    console = rich.get_console()
    if quiet or not console.is_terminal:
        yield lambda _name: None
        return
    done = 0
    with console.status(Text(what)) as status:

        def begin(name: str) -> None:
            nonlocal done
            done += 1
            status.update(Text(f"{what}: {name} ({done} of {total})"))

        yield begin


def write_line(line: str, file: TextIO | None = None) -> None:
    """One line of results on stdout (or `file`), whatever characters a file name holds."""
    encoding = (file or sys.stdout).encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=file)
