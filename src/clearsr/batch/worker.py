"""One worker: it holds a pipeline and turns items into rows. Ray actors, processes and a lone run use it."""

import dataclasses
import logging
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from clearsr.batch.manifest import Row
from clearsr.config.batch import WorkConfig
from clearsr.errors import ClearSRError
from clearsr.files.storage import fetch, is_url, split, store
from clearsr.files.upscale import Job, upscale_file
from clearsr.models.checkpoint import sha256_of
from clearsr.pipeline.budget import is_out_of_memory
from clearsr.seeds import file_seed

logger = logging.getLogger(__name__)


class Item(NamedTuple):
    """One picture to do.

    Attributes:
        input: absolute path or URL.
        output: absolute path or URL.
        version: of the input, as `storage.version_of` tells it.
    """

    input: str
    output: str
    version: str


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

    def do(self, item: Item) -> Row:
        """Fetch, upscale, store. Whatever is wrong with one picture becomes its row.

        Raises:
            WorkerBrokenError: see there.
        """
        start = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="clearsr-") as folder:
                return self._do(item, Path(folder), start)
        except ClearSRError as error:
            reason = str(error)
        except Exception as error:
            if isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error):
                raise WorkerBrokenError(str(error)) from error
            logger.exception("%s: unexpected error", item.input)
            reason = f"{item.input}: unexpected {type(error).__name__}: {error}"
        return failed_row(item, reason, time.monotonic() - start, self.name)

    def _do(self, item: Item, folder: Path, start: float) -> Row:
        work = self._work
        source = fetch(item.input, folder)
        target = folder / "result" / split(item.output)[1] if is_url(item.output) else Path(item.output)
        result = upscale_file(
            self._pipeline, Job(source, Path(source.name), target), work.sampling, work.output
        )
        if result.error is not None:
            reason = result.error.replace(str(source), item.input).replace(str(target), item.output)
            row = failed_row(item, reason, time.monotonic() - start, self.name)
            return dataclasses.replace(row, warnings=result.warnings)
        digest = sha256_of(target)
        if is_url(item.output):
            store(target, item.output)
        return Row(
            item.input, item.output, "ok", seconds=round(time.monotonic() - start, 3),
            width=result.width, height=result.height, sha256=digest,
            seed=file_seed(work.sampling.seed, source.name), version=item.version, worker=self.name,
            warnings=result.warnings,
        )  # fmt: skip


def failed_row(item: Item, reason: str, seconds: float, worker: str | None = None) -> Row:
    """The row of an item that could not be done."""
    return Row(
        item.input, item.output, "failed", " ".join(reason.split()), round(seconds, 3),
        version=item.version, worker=worker,
    )  # fmt: skip


def given_up(item: Item, attempts: int) -> Row:
    """The row of an item that ended every worker that took it."""
    reason = f"{item.input}: {attempts} workers ended while they worked on it (out of memory, or a crash)"
    return failed_row(item, reason, 0.0)
