"""One measurement in a process of its own, told by one line of JSON and answered by lines of JSON on stdout.

`python -m clearsr.paper.complexity.child '{"task": "torch"}'`: what a process takes before
there is any of ours.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from clearsr.errors import ClearSRError


def start(task: str, threads: int | None, **details: Any) -> "subprocess.Popen[str]":
    """A child at work on `task`, a function of this file; its stdin and stdout are pipes."""
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    # This package first, also where it is not installed.
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    order = json.dumps({"task": task, **details})
    return subprocess.Popen(
        [sys.executable, "-m", "clearsr.paper.complexity.child", order],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def answer(child: "subprocess.Popen[str]") -> dict[str, Any]:
    """The next line that a child writes.

    Raises:
        ClearSRError: it ended without one; what went wrong is on stderr.
    """
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise ClearSRError(f"a process of the benchmark ended with code {child.wait()}; see above")
    result: dict[str, Any] = json.loads(line)
    return result


def load_torch() -> dict[str, Any]:
    """The interpreter with torch loaded."""
    import torch

    torch.zeros(1)
    return {"peak_bytes": peak_bytes()}


def upscale(side: int, settings: dict[str, Any]) -> dict[str, Any]:
    """One upscaling to a square of that side."""
    from clearsr.config.base import build_config
    from clearsr.config.evaluation import BenchmarkConfig
    from clearsr.paper.complexity.timing import load_pipeline, upscale_once

    upscale_once(load_pipeline(build_config(BenchmarkConfig, settings)), side)
    return {"peak_bytes": peak_bytes()}


def work(side: int, images: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Several upscalings, begun when the parent sends a line."""
    from clearsr.config.base import build_config
    from clearsr.config.evaluation import BenchmarkConfig
    from clearsr.paper.complexity.timing import load_pipeline, upscale_once

    pipeline = load_pipeline(build_config(BenchmarkConfig, settings))
    upscale_once(pipeline, side)
    _say({"ready": True})
    sys.stdin.readline()
    begin = time.time()
    for _ in range(images):
        upscale_once(pipeline, side)
    return {"begin": begin, "end": time.time()}


def peak_bytes() -> int:
    """The most memory that this process has held at once.

    Not `ru_maxrss` on Linux: a child's starts at what its parent holds.

    Raises:
        ClearSRError: this system does not tell.
    """
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        raise ClearSRError("--only memory: needs Linux or macOS") from None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: in bytes


def reset_peak() -> None:
    """Have `peak_bytes` count from now on, where the system can; else it goes on from the start."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _say(result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)  # noqa: T201


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"torch": load_torch, "upscale": upscale, "work": work}

if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    _say(TASKS[order.pop("task")](**order))
