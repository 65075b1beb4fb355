"""One picture of a run over files: what is to be done, the work, and what became of it.

The work never raises for a bad picture: it returns a record, so that the next file has its turn. Which
picture becomes which file is decided in `planning.py`. Nothing here prints.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from clearsr.config.output import OutputConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError
from clearsr.image import check_output, read_image, write_image
from clearsr.image.data import display_name
from clearsr.seeds import file_seed

if TYPE_CHECKING:
    from clearsr.pipeline import ClearSRPipeline
    from clearsr.sampling import StepCallback

Status = Literal["upscaled", "degraded", "skipped", "failed"]


@dataclass(frozen=True)
class Job:
    """One picture and the file that it becomes.

    Attributes:
        input: the file to read.
        relative: its path below the folder that was named, or its bare name.
        output: the file to write.
    """

    input: Path
    relative: Path
    output: Path


@dataclass(frozen=True)
class Result:
    """What became of a job.

    Attributes:
        seconds: time that it took.
        width: of the output; None if none was written.
        height: of the output; None if none was written.
        error: one line, if it failed.
    """

    input: Path
    output: Path
    status: Status
    seconds: float = 0.0
    width: int | None = None
    height: int | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The record in JSON's types."""
        record = dataclasses.asdict(self)
        return {**record, "input": str(self.input), "output": str(self.output)}


def is_done(job: Job) -> bool:
    """Whether the output is there already. (It is written whole or not at all.)"""
    return job.output.is_file()


def skipped(job: Job) -> Result:
    """The record of a job that is left as it is."""
    return Result(job.input, job.output, "skipped")


def upscale_file(
    pipeline: "ClearSRPipeline",
    job: Job,
    sampling: SamplingConfig,
    output: OutputConfig,
    on_step: "StepCallback | None" = None,
) -> Result:
    """Upscale one file. A picture that cannot be read, written or held in memory is a failed record.

    The noise is seeded by `sampling.seed` and the file's name (see `file_seed`), so the result depends on the
    picture, its name and the settings, and not on the folder it is in or on what else is upscaled.
    """
    from clearsr.pipeline import output_size

    sampling = sampling.model_copy(update={"seed": file_seed(sampling.seed, job.input.name)})

    def work() -> tuple[int, int]:
        image = read_image(job.input)
        size = output_size(image, sampling)
        job.output.parent.mkdir(parents=True, exist_ok=True)
        check_output(job.output, size)
        write_image(pipeline.upscale([image], sampling, on_step)[0], job.output, output)
        return size

    return record_of(job, "upscaled", work)


def record_of(job: Job, done: Status, work: Callable[[], tuple[int, int]]) -> Result:
    """Do the work and say what became of it; `work` returns height and width of what it wrote."""
    start = time.monotonic()

    def failed(reason: str) -> Result:
        return Result(job.input, job.output, "failed", time.monotonic() - start, error=reason)

    try:
        height, width = work()
    except ClearSRError as error:
        return failed(str(error))
    except OSError as error:
        return failed(f"{display_name(job.output)}: cannot be written: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        name = display_name(job.input)
        return failed(f"{name}: not enough memory; try a smaller --tile, a smaller --upscale or --device cpu")
    return Result(job.input, job.output, done, time.monotonic() - start, width, height)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the processor or an accelerator (whose errors have no common class)."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in ("out of memory", "not enough memory", "can't allocate memory"))
