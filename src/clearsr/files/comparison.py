"""The side-by-side that `clearsr upscale --compare` writes beside each result, made from the two files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clearsr.errors import ClearSRError
from clearsr.files.compare import side_by_side
from clearsr.files.plan import COMPARISON_MARK
from clearsr.files.upscale import Job, Result, record_of
from clearsr.image import (
    ImageData,
    ImageMetadata,
    from_pil,
    read_image,
    read_size,
    resize,
    to_pil,
    write_image,
)
from clearsr.image.data import display_name
from clearsr.image.writing import on_white

if TYPE_CHECKING:
    from clearsr.evaluation.methods import Method

_MAX_PIXELS = 60_000_000  # of the result; the sheet has three or more of that size in memory


def comparison_of(job: Job) -> Path:
    """The file that shows a job's result beside its input."""
    return job.output.with_name(f"{job.output.stem}{COMPARISON_MARK}.png")


def check_comparisons(jobs: Sequence[Job]) -> None:
    """See that no comparison is in the place of a result, an input or another comparison.

    Raises:
        ClearSRError: one is.
    """
    taken = {job.output for job in jobs} | {job.input for job in jobs}
    for job in jobs:
        if (target := comparison_of(job)) in taken:
            raise ClearSRError(
                f"--compare: {display_name(target)} would be a comparison and is also another "
                "file of this run; choose another -o"
            )
        taken.add(target)


def compare_file(job: Job, result: Result, always: bool = True, others: "Sequence[Method]" = ()) -> Result:
    """Write a job's comparison; the record, failed if that was not possible.

    Args:
        always: also where there is one already.
        others: what is shown between bicubic and the result.
    """
    target = comparison_of(job)
    if result.status == "failed" or (not always and target.is_file()):
        return result

    def work() -> tuple[int, int]:
        height, width = read_size(job.output)
        if height * width > _MAX_PIXELS:
            raise ClearSRError(
                f"{display_name(target)}: {width}x{height} is too large for a comparison "
                f"(at most {_MAX_PIXELS:,} pixels); leave --compare out"
            )
        lr, sr = read_image(job.input), read_image(job.output)
        shown = on_white(lr).color
        bicubic = resize(shown[None], (height, width))[0]
        theirs = [(m.name, m.upscale(ImageData(shown, source=lr.source), (height, width), 0)) for m in others]
        pictures = (("input", shown), ("bicubic", bicubic), *theirs, ("ClearSR", on_white(sr).color))
        sheet = side_by_side([(caption, to_pil(ImageData(color))) for caption, color in pictures])
        profile = None if sr.is_gray else sr.metadata.icc_profile
        write_image(dataclasses.replace(from_pil(sheet), metadata=ImageMetadata(profile)), target)
        return height, width

    record = record_of(dataclasses.replace(job, output=target), result.status, work)
    if record.status == "failed":
        return dataclasses.replace(result, status="failed", error=record.error)
    return dataclasses.replace(result, seconds=result.seconds + record.seconds)
