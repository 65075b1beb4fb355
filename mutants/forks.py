"""Tests in a fork that has the libraries already, but nothing of clearsr; there, one file may be a mutant.

A mutant is text alone: it is compiled when it is imported, and never lies on the disk. So a test that starts
another process sees the file as it is.
"""

import contextlib
import gc
import importlib.abc
import importlib.util
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
PLAIN = ("-q", "-x", "--tb=line", "-rf", "-p", "no:cacheprovider", "-p", "pytest_timeout")
LIBRARIES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("accelerate", "hypothesis", "numpy", "peft", "PIL.Image", "pydantic", "tifffile"), ()),
    **dict.fromkeys(("safetensors.torch", "scipy.ndimage", "skimage"), ()),
    "diffusers": (
        *("UNet2DConditionModel", "AutoencoderKL", "UniPCMultistepScheduler", "DDPMScheduler"),
        *("DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"),
    ),
    "transformers": ("CLIPVisionModel", "CLIPTextModel"),
}
GIGABYTES = 12  # of address space, for a mutant whose sizes have gone wild


def load_libraries() -> None:
    """Import what takes seconds and what every fork would import anew."""
    for name, lazy in LIBRARIES.items():
        module = import_module(name)
        for attribute in lazy:
            getattr(module, attribute)
    torch.set_num_threads(1)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # looking for them takes 2 s
    gc.collect()
    gc.freeze()  # pytest collects twice at its end: not what is here already
    assert not [name for name in sys.modules if name.partition(".")[0] == "clearsr"]


class Ended(NamedTuple):
    """How a fork came to its end."""

    code: int  # of pytest; negative: the number of the signal that ended it
    output: str


class Fork:
    """A process that runs a function, with a limit of CPU seconds; what it prints is kept."""

    def __init__(self, function: Callable[[], int], cpu_seconds: float) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - it outlives the call
        self._last = time.monotonic() + 20 * cpu_seconds + 60  # for one that waits
        self._pid = os.fork()
        if self._pid == 0:
            os.setsid()
            os.dup2(self._output.fileno(), 1)
            os.dup2(self._output.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds) + 1, int(cpu_seconds) + 3))
            resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
            code = 99
            try:
                code = function()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def ended(self) -> Ended | None:
        """How it ended, or None while it runs."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid == 0 and time.monotonic() < self._last:
            return None
        self.kill()
        if pid == 0:
            _, status = os.waitpid(self._pid, 0)
        self._output.seek(0)
        return Ended(os.waitstatus_to_exitcode(status), self._output.read().decode(errors="replace"))

    def kill(self) -> None:
        """End it and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)


def run_tests(
    names: list[str], path: Path | None = None, code: str = "", plugins: tuple[Any, ...] = ()
) -> int:
    """pytest's exit code for some tests, with a file of the package replaced by `code`. For a fork."""
    os.chdir(ROOT)
    sys.path.insert(0, str(SOURCE))
    if path is not None:
        sys.meta_path.insert(0, _Finder(path, code))
    with tempfile.TemporaryDirectory(prefix="clearsr-mutants-") as folder:
        return int(pytest.main([*PLAIN, f"--basetemp={folder}/tests", *names], plugins=list(plugins)))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, path: Path, code: str) -> None:
        self._name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        self._loader = _Loader(self._name, str(path))
        self._loader.code = code

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._loader.path, loader=self._loader)


class _Loader(SourceFileLoader):
    code = ""

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.code, self.path, "exec", dont_inherit=True)


class Touched(NamedTuple):
    """What a test takes, and the lines of our files that run in it and in its fixtures."""

    seconds: float
    lines: dict[str, list[int]]


class Tracer:
    """A plugin for pytest that finds out what every test touches. Lines that run at import are in none."""

    def __init__(self) -> None:
        self.tests: dict[str, Touched] = {}
        self._now: dict[str, set[int]] = defaultdict(set)
        self._of_fixture: dict[Any, dict[str, set[int]]] = {}
        self._prefix = str(SOURCE)

    def _trace(self, frame: FrameType, event: str, value: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(self._prefix):
            return None
        lines = self._now[name]

        def line(frame: FrameType, event: str, value: Any) -> Any:
            lines.add(frame.f_lineno)
            return line

        return line

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, Any, Any]:
        """What runs in a fixture's set-up is kept for all the tests that use it."""
        outer, self._now = self._now, defaultdict(set)
        try:
            return (yield)
        finally:
            self._of_fixture.setdefault(fixturedef, {}).update(self._now)
            self._now = outer

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Generator[None, Any, Any]:
        """One test, set-up and all."""
        self._now = defaultdict(set)
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        begin = time.process_time()
        try:
            return (yield)
        finally:
            seconds = time.process_time() - begin
            sys.settrace(None)
            for name, lines in self._fixtures_lines(item):
                self._now[name] |= lines
            below = {str(Path(name).relative_to(SOURCE)): sorted(lines) for name, lines in self._now.items()}
            self.tests[item.nodeid] = Touched(round(seconds, 2), below)

    def _fixtures_lines(self, item: Any) -> Iterator[tuple[str, set[int]]]:
        for fixtures in item._fixtureinfo.name2fixturedefs.values():
            for fixture in fixtures:
                yield from self._of_fixture.get(fixture, {}).items()
