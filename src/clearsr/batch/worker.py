"""One worker, a loaded pipeline that turns jobs into rows: as an actor of Ray, as a process, or alone."""

import dataclasses
import logging
import os
import socket
import tempfile
import time
from pathlib import Path

import torch

from clearsr.config.batch import WorkConfig
from clearsr.errors import ClearSRError
from clearsr.files.storage import fetch, is_url, split, store
from clearsr.files.upscale import Job, Result, upscale_file
from clearsr.models.checkpoint import sha256_of
from clearsr.pipeline.budget import is_out_of_memory
from clearsr.seeds import file_seed

logger = logging.getLogger(__name__)


class WorkerBrokenError(RuntimeError):
    """The worker can do no more, as after an error that leaves its accelerator unusable; replace it."""


class Worker:
    """A loaded pipeline with what it is to do.

    Attributes:
        name: machine and process, for the manifest.
    """

    def __init__(self, work: WorkConfig, threads: int | None = None, device: str | None = None) -> None:
        """Load the model.

        Args:
            threads: processor threads; unset: as torch chooses.
            device: in place of the one in `work`.

        Raises:
            ClearSRError: the model cannot be loaded, or the device is not to be had.
        """
        from clearsr.pipeline.pipeline import ClearSRPipeline

        if threads is not None:
            torch.set_num_threads(threads)
        options = {**work.pipeline, **({} if device is None else {"device": device})}
        self._pipeline = ClearSRPipeline.from_pretrained(work.model, **options)
        self._work = work
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def do(self, job: Job) -> Result:
        """Fetch, upscale, store. Whatever is wrong with one picture becomes its row.

        Raises:
            WorkerBrokenError: see there.
        """
        start = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="clearsr-") as folder:
                return self._do(job, Path(folder), start)
        except ClearSRError as error:
            reason = str(error)
        except Exception as error:
            if isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error):
                raise WorkerBrokenError(str(error)) from error
            logger.exception("%s: unexpected error", job.input)
            reason = f"{job.input}: unexpected {type(error).__name__}: {error}"
        return failed_row(job, reason, time.monotonic() - start, self.name)

    def _do(self, job: Job, folder: Path, start: float) -> Result:
        work = self._work
        source = fetch(job.input, folder)
        target = folder / "result" / split(job.output)[1] if is_url(job.output) else Path(job.output)
        local = job._replace(input=str(source), output=str(target))
        sampling = work.sampling or self._pipeline.defaults
        result = upscale_file(self._pipeline, local, sampling, work.output)
        if result.error is not None:
            reason = result.error.replace(str(source), job.input).replace(str(target), job.output)
            row = failed_row(job, reason, time.monotonic() - start, self.name)
            return dataclasses.replace(row, status=result.status, warnings=result.warnings)
        digest = sha256_of(target)
        if is_url(job.output):
            store(target, job.output)
        return dataclasses.replace(
            result, input=job.input, output=job.output, status="ok",
            seconds=round(time.monotonic() - start, 3), sha256=digest,
            seed=file_seed(sampling.seed, source.name), version=job.version, worker=self.name,
        )  # fmt: skip


def failed_row(job: Job, reason: str, seconds: float, worker: str | None = None) -> Result:
    """The row of a job that could not be done."""
    return Result(
        job.input, job.output, "failed", " ".join(reason.split()), round(seconds, 3),
        version=job.version, worker=worker,
    )  # fmt: skip


def given_up(job: Job, attempts: int) -> Result:
    """The row of a job that ended every worker that took it."""
    reason = f"{job.input}: {attempts} workers ended while they worked on it (out of memory, or a crash)"
    return failed_row(job, reason, 0.0)
