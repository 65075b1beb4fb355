"""argparse as the commands use it: errors are raised, not printed by it, and name the nearest flag."""

import argparse
import difflib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from clearsr.atomic import write_text
from clearsr.errors import ClearSRError


class UsageError(ClearSRError):
    """The command line itself is wrong; nothing was done. Exit code 2."""


class Parser(argparse.ArgumentParser):
    """The parser of one command, with the flags that all commands share.

    A verb may declare a shared flag anew; its own meaning then wins.
    """

    def __init__(self, prog: str, summary: str) -> None:
        super().__init__(
            prog=prog,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            conflict_handler="resolve",
        )
        self.register("type", Path, _path)
        self.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
        self.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UsageError(message.removeprefix("argument "))

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, with a hint for a flag that is not known."""
        try:
            parsed, unknown = self.parse_known_args(args, namespace)
        except UsageError:
            _explain_dashes(sys.argv[1:] if args is None else args)
            raise
        if unknown:
            _explain_dashes(unknown)
            flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
            name = unknown[0].partition("=")[0]
            if name.startswith("-"):
                raise UsageError(f"{name}: no such flag; {closest(name, flags)}")
            raise UsageError(f"{name}: one argument too many")
        return parsed


def _path(text: str) -> Path:
    """A path, and not one without letters, which pathlib would take for the folder that one is in."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; expected a file or folder (. is the one you are in)")
    return Path(text)


def _explain_dashes(arguments: Sequence[str]) -> None:
    """Raise if one of the arguments is a file that was taken for a flag."""
    for argument in arguments:
        if argument.startswith("-") and len(argument) > 1 and Path(argument).is_file():
            raise UsageError(f"{argument}: looks like a flag; for the file of that name write ./{argument}")


def closest(name: str, known: Iterable[str]) -> str:
    """A hint: the nearest of the known names, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def refuse_folder(flag: str, path: Path | None) -> None:
    """See, before the work, that a file to be written is not named as a folder that is there.

    Raises:
        UsageError: it is.
    """
    if path is not None and path.is_dir():
        raise UsageError(f"{flag} {path}: is a folder; expected the name of a file")


def refuse_inputs(flag: str, path: Path | None, inputs: Iterable[Path]) -> None:
    """See, before the work, that a file to be written is none of those that are read.

    Raises:
        UsageError: it is.
    """
    if path is None or not path.exists():
        return
    if any(read.exists() and path.samefile(read) for read in inputs):
        raise UsageError(f"{flag} {path}: is also an input, which would be lost; name another file")


def complain(message: str) -> None:
    """One error line on stderr; line breaks in other packages' messages are folded."""
    print(f"clearsr: error: {' '.join(message.split())}", file=sys.stderr)


def check_json(path: Path) -> None:
    """Refuse a file that could not be written, before the work.

    Raises:
        UsageError: it is a folder, or in one that is not there.
    """
    refuse_folder("--json", path)
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--json {path}: lies in a folder that does not exist; expected the name of a file")


def write_json(report: dict[str, Any], path: Path) -> None:
    """Write the report.

    Raises:
        ClearSRError: it cannot be written.
    """
    write_text(path, json.dumps(report, indent=2) + "\n")
