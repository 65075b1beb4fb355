"""Memory against pixels, and pictures per second against workers: both need processes of their own."""

from typing import Any

from clearsr.config.evaluation import BenchmarkConfig
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


def _run(task: str, config: BenchmarkConfig, **details: Any) -> dict[str, Any]:
    child = start(task, config.threads, **details)
    try:
        return answer(child)
    finally:
        child.kill()
        child.communicate()


def _plain(config: BenchmarkConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")
