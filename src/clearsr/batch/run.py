"""`run_batch`: plan, have it done, remember. The one way in, for the command line and for Python."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from clearsr.batch import on_ray
from clearsr.batch.local import Share, run_alone, run_processes
from clearsr.batch.manifest import Manifest, in_chunks
from clearsr.batch.saved_settings import find_settings, save_settings
from clearsr.batch.spool import Plan, in_the_way, plan_batch
from clearsr.config.batch import BatchConfig, WorkConfig
from clearsr.errors import ClearSRError, installing
from clearsr.files.storage import check_writable, is_url, normalise
from clearsr.files.upscale import Result

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.jsonl"
_ROWS_AT_ONCE = 1000
_CORES_PER_WORKER = 2


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        manifest: the file with a row per input.
        done: pictures of this run, by status.
        settled: pictures that an earlier run had settled, by status.
    """

    manifest: Path
    done: Counter[str]
    settled: Counter[str]


def run_batch(
    inputs: Sequence[str],
    output: str,
    work: WorkConfig,
    config: BatchConfig | None = None,
    *,
    manifest: Path | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    on_row: Callable[[Result], None] | None = None,
) -> Summary:
    """Upscale all pictures that files, folders and URLs stand for; what an earlier run did is left alone.

    Args:
        inputs: files, folders and URLs of either.
        output: a folder or its URL.
        manifest: a local file; unset: `manifest.jsonl` in `output`.
        on_plan: told what is to be done before it is begun.
        on_row: told each row when the manifest has it.

    Raises:
        ClearSRError: nothing was begun, since an input or setting is wrong or the manifest is of another run;
            or the work had to stop, and the manifest has what was done.
    """
    config = config or BatchConfig()
    path = manifest_path(output, manifest)
    engine = choose_engine(config)
    check_writable(normalise(output))
    done: Counter[str] = Counter()
    tell = on_row or (lambda _row: None)
    book = Manifest(path)
    try:
        settings = find_settings(path, work, config.overwrite)
        plan = plan_batch(inputs, output, work.suffix, book, settings.since, config)
        if config.overwrite:
            book.clear()  # first, so that no row is ever beside settings that it was not made with
        save_settings(path, settings)
        if on_plan is not None:
            on_plan(plan)
        for rows in _all_rows(plan, work, config, engine):
            book.append(rows)
            done.update(row.status for row in rows)
            for row in rows:
                tell(row)
        book.compact()
    finally:
        book.close()
    return Summary(path, done, plan.settled)


def manifest_path(output: str, manifest: Path | None) -> Path:
    """Where the manifest is.

    Raises:
        ClearSRError: results go to a URL, where nothing can be appended to, and no file was named.
    """
    if manifest is not None:
        return manifest.absolute()
    if is_url(normalise(output)):
        raise ClearSRError(
            f"-o {output}: the manifest grows line by line, which takes a local file; give --manifest FILE"
        )
    return Path(normalise(output)) / MANIFEST_NAME


def choose_engine(config: BatchConfig) -> str:
    """`ray` or `local`.

    Raises:
        ClearSRError: Ray is asked for and not installed, or an address is of no use.
    """
    if config.engine == "local":
        if config.address is not None:
            raise ClearSRError("--address: is a Ray cluster's, which --engine local does not use")
        return "local"
    if on_ray.has_ray():
        return "ray"
    if config.engine == "ray" or config.address is not None:
        asked = f"--address {config.address}" if config.address else "--engine ray"
        raise ClearSRError(f"{asked}: Ray is not installed; {installing('batch')}")
    logger.warning("working on this machine without Ray, which is not installed; %s", installing("batch"))
    return "local"


def share_out(config: BatchConfig, cores: int, gpus: int, device: str) -> Share:
    """Workers and what each gets, where the user left it open.

    Args:
        cores: of the machine or cluster.
        gpus: of the machine or cluster.
        device: as `ClearSRPipeline` takes it.
    """
    uses_gpus = gpus > 0 and device in ("auto", "cuda")
    each = config.gpus_per_worker if config.gpus_per_worker is not None else float(uses_gpus)
    if each > 0:
        default = max(1, int(gpus / each))
    else:
        default = max(1, cores // (config.threads_per_worker or _CORES_PER_WORKER))
    workers = config.workers or default
    threads = config.threads_per_worker or _threads_of_environment() or max(1, cores // workers)
    return Share(workers, threads, each)


def _all_rows(plan: Plan, work: WorkConfig, config: BatchConfig, engine: str) -> Iterator[list[Result]]:
    """First the rows of what is left alone, then those of the work."""
    yield from in_chunks((in_the_way(job) for job in plan.in_the_way), _ROWS_AT_ONCE)
    if not plan.to_do.count:
        return
    device = str(work.pipeline.get("device", "auto"))
    share = share_out(config, _own_cores(), torch.cuda.device_count(), device)
    if engine == "ray":
        with on_ray.ray_session(config, share) as cluster:
            if cluster is not None:
                share = share_out(config, *cluster, device)
            yield from on_ray.run_on_ray(plan.to_do, work, share, config)
    elif share.workers == 1:
        yield from run_alone(plan.to_do, work, share)
    else:
        yield from run_processes(plan.to_do, work, share, config.max_attempts)


def _threads_of_environment() -> int | None:
    """What OMP_NUM_THREADS asks for, which torch itself goes by; None if it is not set to a number."""
    text = os.environ.get("OMP_NUM_THREADS", "").strip()
    return int(text) if text.isdecimal() and int(text) > 0 else None


def _own_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
