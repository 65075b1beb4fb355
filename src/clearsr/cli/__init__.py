"""The `clearsr` command: a table of verbs, each in a module of its own that is imported when it is chosen.

Nothing but the standard library is imported here, so that `clearsr --help` answers at once. What a user can
put right ends in one line on stderr; anything else is a bug and keeps its traceback.
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from clearsr.cli.parser import Parser, UsageError, closest, complain
from clearsr.errors import ClearSRError
from clearsr.quiet import own_stderr

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED, EXIT_TERMINATED = 1, 2, 130, 141, 143
_OF_THE_SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)  # no mistake of ours


class _Terminated(KeyboardInterrupt):
    """SIGTERM came: what holds files or processes lets go of them as on Ctrl-C."""


class Command(NamedTuple):
    """A verb.

    Attributes:
        target: `module:function`; the module also has `add_arguments(parser)`.
        summary: one line of help.
    """

    target: str
    summary: str


COMMANDS = {
    "upscale": Command("clearsr.cli.upscale:run", "make photographs larger and sharper"),
    "batch": Command(
        "clearsr.cli.batch:run", "upscale many files with a pool of workers, here or on a cluster"
    ),
    "serve": Command("clearsr.cli.serve:run", "start a web page and an HTTP API on this machine"),
    "degrade": Command("clearsr.cli.degrade:run", "make realistic low-resolution versions of photographs"),
    "demo": Command("clearsr.cli.demo:run", "upscale a bundled photograph, beside bicubic and the original"),
    "info": Command("clearsr.cli.info:run", "show a model's parts, parameters and settings"),
    "model": Command("clearsr.cli.model:run", "choose the settings that a model brings along"),
    "doctor": Command("clearsr.cli.doctor:run", "is all there that upscaling needs, and what else could be"),
    "data": Command(
        "clearsr.cli.data:run", "check images, cut them into shards of crops, make test sets of them"
    ),
    "evaluate": Command("clearsr.cli.evaluate:run", "measure pictures against their originals"),
    "report": Command("clearsr.cli.report:run", "print Table 1: the published rows beside ours"),
    "ablate": Command("clearsr.cli.ablate:run", "Tables 2, 3, 6, 7, 8: train and measure every row"),
    "sweep-lsa": Command("clearsr.cli.sweep_lsa:run", "Table 4 and Figure 7: measures over alpha and beta"),
    "fit-niqe": Command("clearsr.cli.fit_niqe:run", "fit the pristine model of our NIQE to photographs"),
    "train": Command("clearsr.cli.train:run", "train one stage of a model from a YAML recipe"),
    "analyze": Command("clearsr.cli.analyze:run", "draw the paper's figures about the inside of a network"),
    "calibrate": Command(
        "clearsr.cli.calibrate:run", "find where Latent Space Adjustment acts in a model's run"
    ),
    "complexity": Command(
        "clearsr.cli.complexity:run", "print the paper's Table 5 with our models beside it"
    ),
    "bench": Command("clearsr.cli.bench:run", "measure speed, memory and work, as ratios within one run"),
    "completion": Command("clearsr.cli.completion:run", "print a script for bash, zsh or fish"),
    "init": Command("clearsr.cli.init:run", "build an untrained ClearSR on a Stable Diffusion 2.x base"),
    "convert": Command(
        "clearsr.cli.convert:run",
        "start from published weights: Stable Diffusion, ControlNet, DiffBIR, SeeSR",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Returns:
        The exit code: 0, 1 (something failed), 2 (wrong usage), 130 (Ctrl-C), 143 (SIGTERM).
    """
    if argv is None:  # this is the command, not a function of somebody's program
        own_stderr()
    # torch reads this when it is imported: what Apple's GPUs cannot do yet is then done on the CPU.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    try:
        with _ending_on_sigterm():
            code = _dispatch(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse, after --help and --version
        return stop.code if isinstance(stop.code, int) else EXIT_FAILED
    except ClearSRError as error:
        complain(str(error))
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except _Terminated:
        complain("terminated")
        return EXIT_TERMINATED
    except KeyboardInterrupt:
        complain("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough; keep Python from flushing at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED
    except OSError as error:
        if error.errno not in _OF_THE_SYSTEM:
            raise
        complain(f"{error.filename or 'output'}: cannot be written: {error.strerror}")
        return EXIT_FAILED


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Within the block SIGTERM to this process ends the work in order; to one forked from it, at once."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return
    process = os.getpid()

    def end(number: int, _frame: object) -> None:
        if os.getpid() != process:
            os._exit(EXIT_TERMINATED)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if name in ("-V", "--version"):
        import clearsr

        print(f"clearsr {clearsr.__version__}")
        return 0
    if name not in COMMANDS:
        raise UsageError(f"{name}: no such command; {closest(name, COMMANDS)}")
    args = parser_of(name).parse_args(arguments[1:])

    from clearsr.cli.terminal import terminal  # rich, which --help can do without

    with terminal(verbose=args.verbose, quiet=args.quiet):
        function = COMMANDS[name].target.partition(":")[2]
        return int(getattr(_module_of(name), function)(args))


def _module_of(name: str) -> ModuleType:
    return import_module(COMMANDS[name].target.partition(":")[0])


def parser_of(name: str) -> Parser:
    """The parser of a command of the table."""
    parser = Parser(f"clearsr {name}", COMMANDS[name].summary)
    _module_of(name).add_arguments(parser)
    return parser


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: clearsr COMMAND ...",
            "",
            "Real-world image super-resolution that stays true to the photograph.",
            "",
            "commands:",
            *lines,
            "",
            "options:",
            "  -h, --help     show this, or with a command: what it takes",
            "  -V, --version  show the version",
            "",
            "examples:",
            "  clearsr upscale photo.jpg",
            "  clearsr upscale photos/ -o larger/ --upscale 2",
        ]
    )
