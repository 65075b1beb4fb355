"""Memory against pixels, pictures per second against workers, and how a server starts: all need processes."""

import gzip
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from typing import Any

from clearsr.config.evaluation import BenchmarkConfig
from clearsr.errors import ClearSRError
from clearsr.paper.complexity.child import answer, start
from clearsr.paper.complexity.timing import SIDE


def measure_memory(config: BenchmarkConfig) -> dict[str, Any]:
    """Peak resident memory of one upscaling in a fresh process, and what is beyond torch itself."""
    baseline = _run("torch", config)["peak_bytes"]
    rows = {}
    for side in config.sides:
        peak = _run("upscale", config, side=side, settings=_plain(config))["peak_bytes"]
        rows[str(side)] = {"megapixels": side**2 / 1e6, "peak_bytes": peak, "above_torch": peak - baseline}
    return {"torch_bytes": baseline, "sides": rows}


def measure_workers(config: BenchmarkConfig) -> dict[str, Any]:
    """Pictures per second, 128 -> 512, with growing numbers of processes of one thread each."""
    rows = {}
    for workers in config.workers:
        details = {"side": SIDE, "images": config.images, "settings": {**_plain(config), "threads": 1}}
        children = [start("work", 1, **details) for _ in range(workers)]
        try:
            for child in children:
                answer(child)  # it is ready
            for child in children:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
            spans = [answer(child) for child in children]
        finally:
            for child in children:
                child.kill()
                child.communicate()
        seconds = max(span["end"] for span in spans) - min(span["begin"] for span in spans)
        rows[str(workers)] = {"images_per_second": workers * config.images / seconds, "seconds": seconds}
    first = next(iter(rows.values()))["images_per_second"]
    for row in rows.values():
        row["over_first"] = row["images_per_second"] / first
    return {"images_per_worker": config.images, "workers": rows}


def measure_serve(config: BenchmarkConfig) -> dict[str, Any]:
    """Seconds from the start of `clearsr serve` to each moment, and what its page takes over the wire."""
    rounds = [_start_server(config) for _ in range(config.rounds)]
    moments = {name: [one[0][name] for one in rounds] for name in rounds[0][0]}
    requests, size = rounds[-1][1:]
    medians = {name: statistics.median(seconds) for name, seconds in moments.items()}
    return {"seconds": moments, "medians": medians, "page_requests": requests, "page_bytes": size}


def _start_server(config: BenchmarkConfig) -> tuple[dict[str, float], int, int]:
    """Seconds to each moment of one start; requests and bytes of the page.

    Raises:
        ClearSRError: it does not start.
    """
    command = [sys.executable, "-m", "clearsr", "serve", "--model", config.model, "--device", config.device]
    path = os.pathsep.join(part for part in sys.path if part)  # this package first, also where not installed
    start = time.monotonic()
    server = subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    moments: dict[str, float] = {}

    def passed(name: str) -> None:
        moments[name] = time.monotonic() - start

    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+/", server.stdout.readline())
        if found is None:
            raise ClearSRError("serve: the server does not start; `clearsr serve` says why")
        passed("serving at")
        address = found[0]
        _fetch(f"{address}healthz")
        passed("healthz")
        page = _fetch(address)
        text = gzip.decompress(page).decode()
        parts = [page, *(_fetch(address + name) for name in re.findall(r'="/(page/[^"]+)"', text))]
        parts += [
            _fetch(f"{address}v1/{name}") for name in ("settings", "estimate")
        ]  # they wait for the model
        passed("page usable")
        return moments, len(parts), sum(map(len, parts))
    finally:
        server.terminate()
        server.communicate()


def _fetch(address: str) -> bytes:
    """The body as it comes over the wire."""
    request = urllib.request.Request(address, headers={"Accept-Encoding": "gzip"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
        body: bytes = answer.read()
    return body


def _run(task: str, config: BenchmarkConfig, **details: Any) -> dict[str, Any]:
    child = start(task, config.threads, **details)
    try:
        return answer(child)
    finally:
        child.kill()
        child.communicate()


def _plain(config: BenchmarkConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")
