"""`-` as a file: standard input and standard output stand behind files in a folder that is gone afterwards.

Binary data only ever goes to standard output whole, when all work on it is done.
"""

import dataclasses
import os
import shutil
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from clearsr.cli.parser import UsageError
from clearsr.errors import ClearSRError

if TYPE_CHECKING:
    from clearsr.files.upscale import Job, Result

_STREAM = Path("-")
_START = 65_536  # bytes, by which a picture is known


@dataclass(frozen=True)
class Streams:
    """The files that a run works on.

    Attributes:
        inputs: what the user named, with a file in place of `-`.
        output: likewise.
        stands_for: file -> what it is called in messages, for those in place of a stream.
    """

    inputs: list[Path]
    output: Path | None
    stands_for: dict[str, str]

    @property
    def writes_stdout(self) -> bool:
        """Whether the result goes to standard output, which then carries nothing else."""
        return "standard output" in self.stands_for.values()

    def shown(self, result: "Result") -> "Result":
        """The record in the user's words."""
        error = result.error
        for file, name in self.stands_for.items():
            error = None if error is None else error.replace(file, name)
        place = {file: str(_STREAM) for file in self.stands_for}
        return dataclasses.replace(
            result,
            error=error,
            input=place.get(result.input, result.input),
            output=place.get(result.output, result.output),
        )

    def shown_job(self, job: "Job") -> "Job":
        """The job in the user's words."""
        return job._replace(input=str(_STREAM)) if job.input in self.stands_for else job


@contextmanager
def open_streams(args: Namespace, suffix: str) -> Iterator[Streams]:
    """Within the block there are files for `-`; what was written to the output's is then put out.

    Args:
        args: with `inputs`, `output`, `json`, `compare` and `compare_with`.
        suffix: of a picture on standard output.

    Raises:
        UsageError: a stream beside other files, or where it cannot be.
    """
    inputs, output = list(args.inputs), args.output
    from_stdin = _STREAM in inputs
    to_stdout = output == _STREAM or (from_stdin and output is None)
    if not from_stdin and not to_stdout:
        yield Streams(inputs, output, {})
        return
    _check(args, from_stdin, to_stdout)
    with tempfile.TemporaryDirectory(prefix="clearsr-") as name:
        stands_for: dict[str, str] = {}
        if from_stdin:
            inputs = [Path(name) / "stdin"]  # this name seeds the noise
            stands_for[str(inputs[0])] = "standard input"
            _lay_aside(sys.stdin.buffer, inputs[0])
        if to_stdout:
            output = Path(name) / f"stdout{suffix}"
            stands_for[str(output)] = "standard output"
        yield Streams(inputs, output, stands_for)
        if to_stdout and output is not None and os.path.isfile(output):
            with output.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def _lay_aside(stream: BinaryIO, file: Path) -> None:
    """Keep what comes as a file; of what does not begin as a picture no more than that.

    Raises:
        ClearSRError: there is no room for it.
    """
    from clearsr.image.decoding import may_be_picture

    try:
        with file.open("wb") as kept:
            kept.write(start := stream.read(_START))
            if may_be_picture(start):
                shutil.copyfileobj(stream, kept)
    except OSError as error:
        reason = error.strerror or error
        raise ClearSRError(f"standard input: cannot be kept in {file.parent.parent} ({reason})") from None


def _check(args: Namespace, from_stdin: bool, to_stdout: bool) -> None:
    if len(args.inputs) > 1 or (to_stdout and os.path.isdir(args.inputs[0])):
        raise UsageError("-: stands for one picture; there are other inputs, or a folder")
    if from_stdin and sys.stdin is None:
        raise UsageError("-: standard input is closed; pipe a picture into it")
    if to_stdout and sys.stdout is None:
        raise UsageError("-o -: standard output is closed; send it elsewhere, or name a file")
    if from_stdin and sys.stdin.isatty():
        raise UsageError("-: standard input is a terminal; pipe a picture into it")
    if to_stdout and sys.stdout.isatty():
        raise UsageError("-o -: standard output is a terminal; send it elsewhere, or name a file")
    for flag, given in (
        ("--json", args.json),
        ("--compare-with", args.compare_with),
        ("--compare", args.compare),
    ):
        if to_stdout and given:
            raise UsageError(f"{flag}: the picture itself goes to standard output; name a file with -o")
