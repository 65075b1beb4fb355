"""`run_batch`: plan, have it done, remember. The one way in, for the command line and for Python."""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from clearsr import __version__
from clearsr.atomic import written_aside
from clearsr.batch import on_ray
from clearsr.batch.local import Share, run_alone, run_processes
from clearsr.batch.manifest import Manifest, in_chunks
from clearsr.batch.spool import Plan, in_the_way, plan_batch
from clearsr.config.base import build_config, parse_json
from clearsr.config.batch import BatchConfig, WorkConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError, display_name, installing
from clearsr.files.storage import check_writable, is_url, normalise
from clearsr.files.upscale import Result
from clearsr.models.checkpoint import CONFIG_NAME, WEIGHTS_NAME, locate, read_description, sha256_of

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.jsonl"
_ROWS_AT_ONCE = 1000
_CORES_PER_WORKER = 2
# Of the pipeline's options, those that a result depends on by more than rounding.
_OPTIONS = ("precision", "base_model")


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
    share = share_out(config, own_cores(), torch.cuda.device_count(), device)
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


def own_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# The settings that a manifest's pictures were made with, saved beside it: another run must have the same.


class Settings(NamedTuple):
    """What is saved beside a manifest.

    Attributes:
        values: what the results depend on, nested.
        since: outputs written after this moment, in seconds since 1970, are of this manifest's runs.
    """

    values: dict[str, Any]
    since: float


def settings_path(manifest: Path) -> Path:
    """The file beside a manifest."""
    return manifest.with_suffix(".settings.json")


def settings_of(work: WorkConfig) -> dict[str, Any]:
    """All that a result depends on beside the picture, in JSON's types.

    Raises:
        ClearSRError: there is no such model.
    """
    folder = locate(work.model)
    sampling = work.sampling or build_config(SamplingConfig, read_description(folder)["sampling"])
    return {
        "model": {name: sha256_of(folder / name) for name in (CONFIG_NAME, WEIGHTS_NAME)},
        **{name: work.pipeline.get(name) for name in _OPTIONS},
        "sampling": sampling.model_dump(mode="json"),
        "output": work.output.model_dump(mode="json"),
        "suffix": work.suffix,
    }


def find_settings(manifest: Path, work: WorkConfig, start_anew: bool) -> Settings:
    """The settings of a manifest that goes on, or those of a new one, which are still to be saved.

    Args:
        start_anew: forget what was there; every output may then be replaced.

    Raises:
        ClearSRError: the manifest was begun with other settings, or they are lost.
    """
    values = settings_of(work)
    if start_anew:
        return Settings(values, 0.0)
    if not manifest.exists() or manifest.stat().st_size == 0:
        return Settings(values, time.time())
    saved = _read(settings_path(manifest))
    if changes := _changes(saved.values, values):
        raise ClearSRError(
            f"{display_name(manifest)}: was begun with other settings ({'; '.join(changes)}); repeat those, "
            "choose another -o or --manifest, or do all again with --overwrite"
        )
    return saved


def save_settings(manifest: Path, settings: Settings) -> None:
    """Write the settings beside the manifest.

    Raises:
        ClearSRError: they cannot be written.
    """
    path = settings_path(manifest)
    document = {"clearsr": __version__, "since": settings.since, **settings.values}
    try:
        with written_aside(path) as aside:
            aside.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ClearSRError(f"{display_name(path)}: cannot be written: {error.strerror}") from None


def _read(path: Path) -> Settings:
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        del values["clearsr"]
        return Settings(values, float(values.pop("since")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClearSRError(
            f"{display_name(path)}: cannot be read, and says what the manifest beside it was made with "
            f"({error}); restore it, name another --manifest, or do all again with --overwrite"
        ) from None


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs, by dotted name."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _changes(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {_short(old)}, is {_short(new)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}...{text[-2:]}"
