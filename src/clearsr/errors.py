"""What is said to the user: the package's own error, what it quotes, and notices of what is lost.

An error is something that the user can put right, said in one line: the command line prints it without a
traceback and exits non-zero; all else that escapes is our bug. A notice says what a result does not have as
the input had it: who does a picture collects them as the `warnings` of its result, which every front end
shows. Where nobody collects, they are log lines.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

logger = logging.getLogger(__name__)

_LONGEST = 2000  # characters: what a file holds may be quoted, and may be anything


class ClearSRError(ValueError):
    """A mistake in the input, in a flag, in a configuration or in a weights folder.

    The message is one line: the file or flag, what is wrong with it, and what is accepted. Line breaks and
    control characters, which a message quotes from a file or a name, become spaces.
    """

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST - 3]}..."
        super().__init__(printable(message).strip())


def printable(text: str) -> str:
    """Text with blanks for line breaks and control characters, which a terminal would obey."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


# Packages that the base installation has not, and the extra that brings each.
EXTRA_OF = {
    "accelerate": "train",
    "diffusers": "sd",
    "huggingface_hub": "sd",
    "peft": "sd",
    "transformers": "sd",
    "wandb": "wandb",
}


@contextmanager
def optional(purpose: str) -> Iterator[None]:
    """Within the block a package of an extra is imported.

    Raises:
        ClearSRError: it is not installed; names the purpose and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        raise ClearSRError(f"{purpose}: needs {package}; {installing(EXTRA_OF[package])}") from None


def installing(extra: str) -> str:
    """How to get an extra: pip asks no index for a clearsr that is installed; else it is in the source."""
    named = f"pip install 'clearsr[{extra}]', or '.[{extra}]' in the folder of the source"
    return f"install the extra {extra}: {named}"


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


class LargeEnoughError(ClearSRError):
    """A picture has the size that is wanted, or more, and such are to be skipped (`--when-large skip`)."""


NoticeKind = Literal[
    "frames",
    "transparency",
    "bit_depth",
    "profile",
    "channels",
    "metadata",
    "gain_map",
    "motion_photo",
    "size",
    "truncated",
]


@dataclass(frozen=True)
class Notice:
    """One thing that the result does not have as the input had it.

    Attributes:
        kind: what it concerns, for programs.
        text: one line for people; it does not name the file, so that it is the same wherever the file lies.
    """

    kind: NoticeKind
    text: str

    @classmethod
    def from_values(cls, values: Any) -> "Notice":
        """The record of what `dataclasses.asdict` made of it.

        Raises:
            ValueError: it is none.
        """
        if not isinstance(values, dict) or values.keys() != {"kind", "text"}:
            raise ValueError("a warning must have kind and text")
        if values["kind"] not in get_args(NoticeKind) or not isinstance(values["text"], str):
            raise ValueError(f"{values['kind']!r}: no warning is of this kind")
        return cls(**values)


_collecting: ContextVar[list[Notice] | None] = ContextVar("collecting", default=None)


@contextmanager
def collected() -> Iterator[list[Notice]]:
    """Within the block notices go to the list that it yields, each once, and not to the log.

    A block within a block has a list of its own. Threads and tasks do not see each other's.
    """
    found: list[Notice] = []
    token = _collecting.set(found)
    try:
        yield found
    finally:
        _collecting.reset(token)


def notify(kind: NoticeKind, source: str, text: str) -> None:
    """Add a notice about the file `source`, once for a picture that is tried again or comes in blocks."""
    found = _collecting.get()
    if found is None:
        logger.warning("%s: %s", source, text)
        return
    notice = Notice(kind, text)
    if notice not in found:
        found.append(notice)
