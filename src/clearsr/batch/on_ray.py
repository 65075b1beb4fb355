"""The pool on Ray Data: a dataset of paths through actors that hold a model each, on one machine or many.

Only paths and rows travel through Ray; workers read and write files themselves. Ray restarts an actor that
died and gives its chunk to another one. A ledger (one small actor) remembers which jobs of the chunks in
work are done and how many workers a job has cost, so that none is done twice or tried for ever.
"""

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from clearsr.batch.local import Share
from clearsr.batch.manifest import as_line, from_line, in_chunks
from clearsr.batch.spool import Spool
from clearsr.batch.worker import Worker, WorkerBrokenError, given_up
from clearsr.config.batch import BatchConfig, WorkConfig
from clearsr.errors import ClearSRError, first_line
from clearsr.files.upscale import Job, Result
from clearsr.quiet import muted, own_stderr

logger = logging.getLogger(__name__)

_MAX_CHUNK = 64  # jobs; what a worker takes at once, and what the manifest may lack after a kill
_CHUNKS_PER_WORKER = 50  # at least, so that all workers end at about the same time
_OBJECT_STORE_BYTES = 200_000_000  # of a Ray of our own: paths and rows are small


def has_ray() -> bool:
    """Whether Ray Data is installed."""
    try:
        import pyarrow  # noqa: F401
        import ray  # noqa: F401
    except ImportError:
        return False
    return True


def run_on_ray(jobs: Spool, work: WorkConfig, share: Share, config: BatchConfig) -> Iterator[list[Result]]:
    """Rows of the jobs as chunks of them are done, in no particular order. Ray must be running.

    Raises:
        ClearSRError: the model cannot be loaded.
    """
    import ray
    from ray.data import ActorPoolStrategy

    # No processor of its own: it answers at once, and the workers' share is theirs.
    ledger_actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger)
    ledger = ledger_actor.remote(config.max_attempts, max_loads=10 + 3 * share.workers)
    with _quiet_data():
        chunks: list[Any] = [ray.put(chunk) for chunk in _chunks(jobs, share.workers)]
        rows = ray.data.from_arrow_refs(chunks).map_batches(
            RayWorker,
            fn_constructor_args=(work, share.threads, ledger),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(share.workers, len(chunks)), max_tasks_in_flight_per_actor=2),
            num_cpus=share.threads,
            num_gpus=share.gpus or None,
            max_restarts=-1,
            max_task_retries=-1,
        )
        del chunks
        try:
            tables: Iterable[Any] = rows.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            )
            for batch in tables:
                yield [from_line(line) for line in batch["row"].to_pylist()]
        except Exception as error:
            if (reason := _own_error(error)) is not None:
                raise ClearSRError(str(reason)) from None
            raise


class RayWorker:
    """A worker as Ray Data calls it: a table of jobs in, a table of rows out."""

    def __init__(self, work: WorkConfig, threads: int, ledger: Any) -> None:
        import ray

        own_stderr()
        self._ask = lambda method, *arguments: ray.get(getattr(ledger, method).remote(*arguments))
        self._ledger = ledger
        if not self._ask("may_load"):
            raise ClearSRError(
                "workers end while they load the model; is there too little memory for --workers?"
            )
        self._worker = Worker(work, threads)
        self._ask("loaded")

    def __call__(self, batch: Any) -> Any:
        """The rows of a chunk."""
        import pyarrow as pa

        jobs = [Job(*json.loads(text)) for text in batch["job"].to_pylist()]
        lines = [self._line(job) for job in jobs]
        self._ledger.forget.remote([job.input for job in jobs])
        return pa.table({"row": lines})

    def _line(self, job: Job) -> str:
        line, attempts = self._ask("begin", job.input)
        if line is None:
            try:
                row = given_up(job, attempts) if attempts is not None else self._worker.do(job)
            except WorkerBrokenError as error:
                logger.error("%s", error)
                os._exit(1)  # Ray replaces the actor; an exception would end the run
            line = as_line(row)
            self._ask("finish", job.input, line)
        return str(line)


class Ledger:
    """What became of the jobs of the chunks in work, kept outside the workers, which may die."""

    def __init__(self, max_attempts: int, max_loads: int) -> None:
        self._max_attempts, self._max_loads = max_attempts, max_loads
        self._attempts: Counter[str] = Counter()
        self._lines: dict[str, str] = {}
        self._loading = 0

    def begin(self, input: str) -> tuple[str | None, int | None]:
        """A worker is about to do a job: its row if it is done, or how often it was tried in vain."""
        if (line := self._lines.get(input)) is not None:
            return line, None
        if self._attempts[input] >= self._max_attempts:
            return None, self._attempts[input]
        self._attempts[input] += 1
        return None, None

    def finish(self, input: str, line: str) -> None:
        """A job has its row."""
        self._lines[input] = line

    def forget(self, inputs: Sequence[str]) -> None:
        """A chunk is done."""
        for input in inputs:
            self._attempts.pop(input, None)
            self._lines.pop(input, None)

    def may_load(self) -> bool:
        """A worker is about to load the model: whether not too many began to since the last that could."""
        self._loading += 1
        return self._loading <= self._max_loads

    def loaded(self) -> None:
        """A worker has loaded the model."""
        self._loading = 0


@contextmanager
def ray_session(config: BatchConfig, share: Share) -> Iterator[tuple[int, int] | None]:
    """Within the block Ray runs: the cluster at `address` or in RAY_ADDRESS, or one of our own.

    Yields processors and GPUs of a Ray that is not our own. One that the caller has started is used as it is.

    Raises:
        ClearSRError: there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield _size()
        return
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    is_verbose = logger.isEnabledFor(logging.DEBUG)
    options: dict[str, Any] = {"log_to_driver": is_verbose, "logging_level": logging.ERROR}
    if address == "local":
        options |= {
            "num_cpus": share.workers * share.threads + 1,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    if not is_verbose:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side warns of what Ray Data does
    try:
        sys.stderr.flush()
        with muted():  # its C++ side says there what its log level is
            ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise ClearSRError(
            f"--address {address}: no Ray cluster can be reached there ({first_line(error)})"
        ) from None
    with redirect_stdout(sys.stderr):  # when a worker dies Ray prints, and once more as it shuts down
        try:
            yield None if address == "local" else _size()
        finally:
            ray.shutdown()


def _size() -> tuple[int, int]:
    """Processors and GPUs of the Ray that runs."""
    import ray

    resources = ray.cluster_resources()
    return int(resources.get("CPU", 1)), int(resources.get("GPU", 0))


def _chunks(jobs: Spool, workers: int) -> Iterator[Any]:
    """Tables of jobs, small enough for all workers to end together."""
    import pyarrow as pa

    size = max(1, min(_MAX_CHUNK, jobs.count // (workers * _CHUNKS_PER_WORKER)))
    for chunk in in_chunks(jobs, size):
        yield pa.table({"job": [json.dumps(job) for job in chunk]})


@contextmanager
def _quiet_data() -> Iterator[None]:
    """Within the block Ray Data shows no bars and says nothing but errors."""
    from ray.data import DataContext

    context = DataContext.get_current()
    before = context.enable_progress_bars, context.print_on_execution_start
    log = logging.getLogger("ray.data")
    level = log.level
    context.enable_progress_bars, context.print_on_execution_start = False, False
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before
        log.setLevel(level)


def _own_error(error: BaseException | None) -> ClearSRError | None:
    """The error of ours that is wrapped in one of Ray's."""
    while error is not None:
        if isinstance(error, ClearSRError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None
