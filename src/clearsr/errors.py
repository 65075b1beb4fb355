"""The package's own error, and what it quotes: something that the user can put right, said in one line.

The command line prints it without a traceback and exits non-zero; all else that escapes is our bug.
"""

from pathlib import Path

_LONGEST = 2000  # characters: what a file holds may be quoted, and may be anything


class ClearSRError(ValueError):
    """A mistake in the input, in a flag, in a configuration or in a weights folder.

    The message is one line: the file or flag, what is wrong with it, and what is accepted. Line breaks and
    control characters, which a message quotes from a file or a name, become spaces.
    """

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST - 3]}..."
        if not message.isprintable():
            message = "".join(c if c.isprintable() else " " for c in message).strip()
        super().__init__(message)


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of another package's message, for a part of one of ours; its type if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:most]


def one_line(error: BaseException, most: int = 200) -> str:
    """All of another package's message folded into a line of at most `most` characters."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def display_name(path: Path) -> str:
    """The path for a one-line message: names with line breaks or control characters are quoted."""
    name = str(path)
    return name if name.isprintable() else repr(name)
