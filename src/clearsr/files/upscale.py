"""One picture of a run over files: what is to be done, the work, and what became of it.

The work never raises for a bad picture: it returns a record, so that the next file has its turn. Which
picture becomes which file is decided in `files/plan.py`. Nothing here prints.
"""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from clearsr.config.output import OutputConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError, LargeEnoughError, Notice, collected, display_name, notify
from clearsr.files.storage import shown
from clearsr.hardware import release_cached_memory
from clearsr.image import (
    check_output,
    open_source,
    read_header,
    read_image,
    read_sequence,
    resized,
    stored_format,
    write_blocks,
    write_image,
)
from clearsr.image.carrying import FORMATS
from clearsr.image.data import ImageData
from clearsr.image.frames import check_frames, write_frames
from clearsr.image.reading import FrameSequence
from clearsr.image.writing import Target, write_whole
from clearsr.pipeline.budget import Workload, as_text, free_bytes, is_out_of_memory, with_less_on_failure
from clearsr.seeds import file_seed

if TYPE_CHECKING:
    from clearsr.pipeline.pipeline import ClearSRPipeline
    from clearsr.sampling.denoise import StepCallback

WHOLE_FILE_BYTES = 8  # per pixel: the samples of a picture and the encoder's own copy

Status = Literal["ok", "upscaled", "degraded", "skipped", "failed"]


class Job(NamedTuple):
    """One picture and the file that it becomes.

    Attributes:
        input: the file to read: a path, or a URL as `files.storage` takes it.
        relative: its path below the folder that was named, or its bare name; with `/` on any system.
        output: the file to write, likewise.
        version: of the input when it was planned, in a batch; it changes when the input does.
    """

    input: str
    relative: str
    output: str
    version: str = ""


@dataclass(frozen=True)
class Result:
    """What became of a job: a line of a batch's manifest, or the record of a file in a run without one.

    Attributes:
        input: as the job has it.
        output: as the job has it.
        status: `ok`, in a batch, or else what was done; `failed`, with an error; `skipped`.
        error: one line, if it failed, or why it was skipped (unless its output is there, outside a batch).
        seconds: time that it took.
        width: of the output; None if none was written.
        height: of the output; None if none was written.
        sha256: of the output's bytes. From here to `worker` in a batch alone.
        seed: what `ClearSRPipeline` takes as `seed` to draw the same noise.
        version: of the input when it was planned.
        worker: machine and process that did it.
        warnings: what the output does not have as the input had it.
    """

    input: str
    output: str
    status: Status
    error: str | None = None
    seconds: float = 0.0
    width: int | None = None
    height: int | None = None
    sha256: str | None = None
    seed: int | None = None
    version: str = ""
    worker: str | None = None
    warnings: tuple[Notice, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The record in JSON's types."""
        record = dataclasses.asdict(self)
        return {**record, "warnings": list(record["warnings"])}


def is_done(job: Job) -> bool:
    """Whether the output is there already. (It is written whole or not at all.)"""
    return os.path.isfile(job.output)


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
    """Upscale one local file. A picture that cannot be read, written or held in memory is a failed record."""
    source, target = Path(job.input), Path(job.output)

    def work() -> tuple[int, int]:
        size = upscale_to_file(pipeline, source, target, sampling, output, on_step)
        keep_time(source, target, output)
        return size

    return record_of(job, "upscaled", work)


def keep_time(source: Path, target: Path, output: OutputConfig) -> None:
    """Give the result the times of its input, if that is asked for."""
    if output.keep_time:
        status = source.stat()
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def upscale_to_file(
    pipeline: "ClearSRPipeline",
    source: Path,
    target: Path,
    sampling: SamplingConfig,
    output: OutputConfig,
    on_step: "StepCallback | None" = None,
) -> tuple[int, int]:
    """Upscale one file; returns height and width of the result.

    One that has the size that is wanted, or more, is copied, shrunk or skipped, as `sampling.size` says.

    The noise is seeded by `sampling.seed` and the file's name (see `file_seed`), so the result depends on the
    picture, its name and the settings, and not on the folder it is in or on what else is upscaled.

    Raises:
        ClearSRError: the picture cannot be read, or the result not be written.
        LargeEnoughError: it is large enough, and to be skipped.
        OSError: a folder cannot be made.
        MemoryError, RuntimeError: memory ran out, however little was done at once.
    """
    from clearsr.pipeline.pipeline import worked_size
    from clearsr.pipeline.steps import MAX_OUTPUT_PIXELS, is_large_enough, result_size

    sampling = sampling.model_copy(update={"seed": file_seed(sampling.seed, source.name)})
    input_size, reading = read_header(source)
    name = display_name(source)
    is_large, size = is_large_enough(*input_size, sampling), result_size(*input_size, sampling, name)
    if output.frames == "all":
        _check_room(source, input_size, reading.whole, sampling.max_memory)
    if output.frames == "all" and (sequence := read_sequence(source)) is not None:
        is_skipped = sampling.size.when_large == "skip"
        if not (is_large and (is_skipped or _is_passed_on(source, target, sampling, output))):
            if is_large:
                _tell_of_size(source, input_size, size, sampling)
            return _upscale_frames(pipeline, source, target, sampling, output, sequence, on_step)
    if is_large:
        _check_room(source, input_size, reading.whole, sampling.max_memory)
        return settle_large(source, target, size, sampling, output)
    _check_room(source, input_size, reading.in_parts, sampling.max_memory)
    workload = pipeline.plan(worked_size(input_size, sampling), sampling, reading, name)
    if size[0] * size[1] > MAX_OUTPUT_PIXELS:
        workload = workload._replace(is_in_blocks=True)

    def attempt(workload: Workload) -> tuple[int, int]:
        if workload.is_in_blocks:
            return _upscale_in_blocks(pipeline, source, target, sampling, output, workload, on_step)
        image = read_image(source, allow_truncated=output.allow_truncated)
        checked = _open_folder(target, size)
        (result,) = pipeline.upscale_with([image], sampling, workload, on_step)
        write_image(result, checked, output)
        return result.height, result.width

    return with_less_on_failure(attempt, workload, sampling.tile.size, name)


def _upscale_frames(
    pipeline: "ClearSRPipeline",
    source: Path,
    target: Path,
    sampling: SamplingConfig,
    output: OutputConfig,
    sequence: FrameSequence,
    on_step: "StepCallback | None",
) -> tuple[int, int]:
    """Upscale every frame or page, with the same noise; returns height and width of the first result."""
    from clearsr.pipeline.pipeline import worked_size
    from clearsr.pipeline.steps import is_large_enough, result_size

    def sizes(image: ImageData) -> tuple[tuple[int, int], tuple[int, int]]:
        own = image.height, image.width
        return own, result_size(*own, sampling, display_name(source))

    def upscaled(number: int) -> ImageData:
        image = read_image(source, frame=number)
        own, size = sizes(image)
        if is_large_enough(*own, sampling):
            return resized(image, size)
        workload = pipeline.plan(worked_size(own, sampling), sampling, source=display_name(source))
        work = partial(pipeline.upscale_with, [image], sampling, on_step=on_step)
        return with_less_on_failure(work, workload, sampling.tile.size, display_name(source))[0]

    _, size = sizes(read_image(source, frame=sequence.numbers[0]))
    checked = _open_folder(target, size, are_frames=True)
    check_frames(checked, sequence.durations is None)
    count, free = len(sequence.numbers), free_bytes(sampling.max_memory, torch.device("cpu"))
    if not checked.has_pages and (needed := WHOLE_FILE_BYTES * size[0] * size[1] * count) > free > 0:
        raise ClearSRError(
            f"{display_name(target)}: {count} frames of {size[1]}x{size[0]} need {as_text(needed)} beside "
            f"the model, and {as_text(free)} are left; use --format tiff, which is written page by page, or "
            "raise --max-memory"
        )
    write_frames(map(upscaled, sequence.numbers), sequence.durations, sequence.loop, checked, output)
    return size


def settle_large(
    source: Path, target: Path, size: tuple[int, int], sampling: SamplingConfig, output: OutputConfig
) -> tuple[int, int]:
    """Copy or shrink a picture that has the size that is wanted, or more; returns the result's size.

    A copy is the file itself, byte by byte, where that is of the output's format and nothing of it is to be
    changed or left behind.

    Args:
        size: height and width of the result.

    Raises:
        LargeEnoughError: it is to be skipped.
        ClearSRError: it cannot be read, or the result not be written.
    """
    rule, name = sampling.size.when_large, display_name(source)
    if rule == "skip":
        flag = sampling.size.flag
        raise LargeEnoughError(f"{name}: is {size[1]}x{size[0]}, large enough for {flag}; skipped")
    is_passed_on = _is_passed_on(source, target, sampling, output)
    checked = _open_folder(target, size, are_frames=is_passed_on and output.frames == "all")
    with collected() as notices:
        image = read_image(source, allow_truncated=output.allow_truncated)  # a damaged one is not passed on
    if is_passed_on and not any(notice.kind == "truncated" for notice in notices):
        with source.open("rb") as file:
            write_whole(target, lambda copy: shutil.copyfileobj(file, copy))
    else:  # then what is left out of it is told of
        for notice in notices:
            notify(notice.kind, name, notice.text)
        write_image(resized(image, size), checked, output)
    _tell_of_size(source, (image.height, image.width), size, sampling)
    return (image.height, image.width) if rule == "copy" else size


def _tell_of_size(
    source: Path, given: tuple[int, int], size: tuple[int, int], sampling: SamplingConfig
) -> None:
    """Say of a picture that is large enough what was done with it."""
    is_copied = sampling.size.when_large == "copy"
    done = "copied as it is" if is_copied else f"shrunk to {size[1]}x{size[0]}"
    notify("size", display_name(source), f"it is {given[1]}x{given[0]}, large enough: {done}")


def _is_passed_on(source: Path, target: Path, sampling: SamplingConfig, output: OutputConfig) -> bool:
    """Whether a file that is large enough is the result, byte by byte: nothing of it is to be changed."""
    is_as_wanted = output.keep_metadata and output.bit_depth == "input"
    format = FORMATS.get(target.suffix.lower())
    is_copied = sampling.size.when_large == "copy" and is_as_wanted
    return is_copied and format is not None and stored_format(source) == format.name


def _upscale_in_blocks(
    pipeline: "ClearSRPipeline",
    source: Path,
    target: Path,
    sampling: SamplingConfig,
    output: OutputConfig,
    workload: Workload,
    on_part: "StepCallback | None",
) -> tuple[int, int]:
    """Read, upscale and write without the whole image in memory; returns the result's height and width.

    Raises:
        ClearSRError: input or output is of a format that is in memory as a whole, and does not fit there.
    """
    from clearsr.pipeline.steps import result_size

    with closing(open_source(source, allow_truncated=output.allow_truncated)) as image:
        size = result_size(image.height, image.width, sampling)
        checked = _open_folder(target, size)
        free = free_bytes(sampling.max_memory, torch.device("cpu"))
        if not checked.is_streamed and (needed := WHOLE_FILE_BYTES * size[0] * size[1]) > free:
            raise ClearSRError(
                f"{display_name(target)}: {size[1]}x{size[0]} needs {as_text(needed)} beside "
                "the model; use --format tiff or png, which are written in pieces, or raise --max-memory"
            )
        blocks = pipeline.upscale_in_blocks(
            image, workload.applied_to(sampling), size, workload, target.parent, on_part
        )
        write_blocks(checked, size, workload.piece, blocks, output)
    return size


def _check_room(path: Path, size: tuple[int, int], needed: int, max_memory: int | None) -> None:
    """See that a file of a format that is decoded whole fits into memory, before it is decoded.

    Raises:
        ClearSRError: it does not.
    """
    free = free_bytes(max_memory, torch.device("cpu"))
    if 0 < free < needed:  # where nothing is left, planning says so
        raise ClearSRError(
            f"{display_name(path)}: decoding {size[1]}x{size[0]} takes {as_text(needed)}, "
            f"{as_text(free)} are left beside the model; raise --max-memory, or make it a TIFF "
            "(grey or RGB, 8 or 16 bits, one page), which is read in parts"
        )


def _open_folder(target: Path, size: tuple[int, int], are_frames: bool = False) -> Target:
    """The output, checked for what it is to take; its folder is made, as the input is known to be a picture.

    Raises:
        ClearSRError: the output cannot be written there or hold a picture of that size.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    return check_output(target, size, are_frames)


def record_of(job: Job, done: Status, work: Callable[[], tuple[int, int]]) -> Result:
    """Do the work and say what became of it; `work` returns height and width of what it wrote."""
    start = time.monotonic()
    with collected() as notices:
        result = _outcome(job, done, work)
    return dataclasses.replace(result, seconds=time.monotonic() - start, warnings=tuple(notices))


def _outcome(job: Job, done: Status, work: Callable[[], tuple[int, int]]) -> Result:
    def failed(reason: str) -> Result:
        return Result(job.input, job.output, "failed", error=reason)

    try:
        height, width = work()
    except LargeEnoughError as error:
        return Result(job.input, job.output, "skipped", error=str(error))
    except ClearSRError as error:
        return failed(str(error))
    except OSError as error:
        return failed(f"{shown(job.output)}: cannot be written: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        release_cached_memory()
        name = shown(job.input)
        return failed(f"{name}: not enough memory; try a smaller --tile, a smaller --upscale or --device cpu")
    return Result(job.input, job.output, done, width=width, height=height)
