"""Files that are made of pictures in other ways than by the model: side by side under captions, as `upscale
--compare` writes beside a result, by another method in our place, and degraded.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from PIL import Image, ImageDraw, ImageFont

from clearsr.config.output import OutputConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError, display_name
from clearsr.files.plan import COMPARISON_MARK
from clearsr.files.upscale import Job, Result, keep_time, record_of, settle_large
from clearsr.image import (
    ImageData,
    ImageMetadata,
    check_output,
    fill_transparent,
    from_pil,
    read_image,
    read_size,
    resize,
    resize_alpha,
    to_pil,
    write_image,
)
from clearsr.image.writing import on_white
from clearsr.seeds import file_seed, make_generator

if TYPE_CHECKING:
    from clearsr.config.degradation import DegradationConfig

_MAX_PIXELS = 60_000_000  # of the result; the sheet has three or more of that size in memory


class Enlarger(Protocol):
    """Another way to enlarge a picture, such as `evaluation.methods.Method`."""

    @property
    def name(self) -> str:
        """What its picture is captioned with."""
        ...

    @property
    def upscale(self) -> Callable[[ImageData, tuple[int, int], int], torch.Tensor]:
        """The picture of that height and width, 3×H×W, given a seed."""
        ...


def comparison_of(job: Job) -> Path:
    """The file that shows a job's result beside its input."""
    output = Path(job.output)
    return output.with_name(f"{output.stem}{COMPARISON_MARK}.png")


def check_comparisons(jobs: Sequence[Job]) -> None:
    """See that no comparison is in the place of a result, an input or another comparison.

    Raises:
        ClearSRError: one is.
    """
    taken = {Path(location) for job in jobs for location in (job.output, job.input)}
    for job in jobs:
        if (target := comparison_of(job)) in taken:
            raise ClearSRError(
                f"--compare: {display_name(target)} would be a comparison and is also another "
                "file of this run; choose another -o"
            )
        taken.add(target)


def compare_file(job: Job, result: Result, always: bool = True, others: Sequence[Enlarger] = ()) -> Result:
    """Write a job's comparison; the record, failed if that was not possible.

    Args:
        always: also where there is one already.
        others: what is shown between bicubic and the result.
    """
    target = comparison_of(job)
    is_there = os.path.isfile(target)
    if result.status == "failed" or (is_there and not always) or not os.path.isfile(job.output):
        return result

    def work() -> tuple[int, int]:
        height, width = read_size(Path(job.output))
        if height * width > _MAX_PIXELS:
            raise ClearSRError(
                f"{display_name(target)}: {width}x{height} is too large for a comparison "
                f"(at most {_MAX_PIXELS:,} pixels); leave --compare out"
            )
        lr, sr = read_image(Path(job.input), allow_truncated=True), read_image(Path(job.output))
        shown = on_white(lr).color
        bicubic = resize(shown[None], (height, width))[0]
        theirs = [(m.name, m.upscale(ImageData(shown, source=lr.source), (height, width), 0)) for m in others]
        pictures = (("input", shown), ("bicubic", bicubic), *theirs, ("ClearSR", on_white(sr).color))
        sheet = side_by_side([(caption, to_pil(ImageData(color))) for caption, color in pictures])
        profile = None if sr.is_gray else sr.metadata.icc_profile
        write_image(dataclasses.replace(from_pil(sheet), metadata=ImageMetadata(profile)), target)
        return height, width

    record = record_of(job._replace(output=str(target)), result.status, work)
    if record.status == "failed":
        return dataclasses.replace(result, status="failed", error=record.error)
    return dataclasses.replace(result, seconds=result.seconds + record.seconds)


def enlarge_file(method: Enlarger, job: Job, sampling: SamplingConfig, output: OutputConfig) -> Result:
    """Upscale one file by another method, with transparency, depth and metadata kept as ours are.

    The method takes the picture as a whole. One that cannot be read, written or held is a failed record.
    """

    def work() -> tuple[int, int]:
        from clearsr.pipeline.steps import is_large_enough, result_size

        source, output_path = Path(job.input), Path(job.output)
        image = read_image(source, allow_truncated=output.allow_truncated)
        size = result_size(image.height, image.width, sampling, image.source)
        if is_large_enough(image.height, image.width, sampling):
            settle_large(source, output_path, size, sampling, output)
            keep_time(source, output_path, output)
            return size
        output_path.parent.mkdir(parents=True, exist_ok=True)
        target = check_output(output_path, size)
        visible = dataclasses.replace(image, color=fill_transparent(image.color, image.alpha), alpha=None)
        color = method.upscale(visible, size, file_seed(sampling.seed, source.name)).clamp(0, 1)
        alpha = None if image.alpha is None else resize_alpha(image.alpha, size)
        write_image(dataclasses.replace(image, color=color, alpha=alpha), target, output)
        keep_time(source, output_path, output)
        return size

    return record_of(job, "upscaled", work)


def degrade_file(
    job: Job, config: "DegradationConfig", seed: int, upscale: int, hr_output: Path | None = None
) -> Result:
    """Write the LR image of one file; a picture that cannot be read or written is a failed record.

    The draws depend on the seed and on the file's path below the folder that was named, so the result is the
    same whatever else is degraded. Width and height are cropped to multiples of `upscale`; transparency is
    dropped, and grey becomes RGB, since noise may be coloured.

    Args:
        hr_output: where to write the cropped HR image too.
    """
    from clearsr.degradation.degrade import crop_to_multiple, degrade

    def work() -> tuple[int, int]:
        image = read_image(Path(job.input))
        try:
            hr = crop_to_multiple(fill_transparent(image.color, image.alpha), upscale).contiguous()
        except ClearSRError as error:
            raise ClearSRError(f"{image.source}: {error}") from None
        lr = degrade(hr, config, make_generator("degrade", seed, job.relative), upscale)
        image = dataclasses.replace(image, color=hr, alpha=None, is_gray=False)
        if hr_output is not None:
            hr_output.parent.mkdir(parents=True, exist_ok=True)
            write_image(image, hr_output)
        output = Path(job.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_image(dataclasses.replace(image, color=lr, bit_depth=8), output)
        return lr.shape[1], lr.shape[2]

    return record_of(job, "degraded", work)


_MARGIN, _BACKGROUND, _INK = 12, (255, 255, 255), (20, 20, 20)


def side_by_side(
    pictures: Sequence[tuple[str, Image.Image]], height: int | None = None, columns: int | None = None
) -> Image.Image:
    """One RGB picture with all of them in rows, each under its caption.

    Args:
        pictures: caption and picture. A smaller one is enlarged without smoothing, so that its
            own pixels can be seen; nothing is ever shrunk.
        height: of the pictures; unset: the tallest one's.
        columns: pictures in a row; unset: all of them.
    """
    if not pictures:
        raise ValueError("side_by_side: there must be at least one picture")
    height = max([height or 1, *(picture.height for _, picture in pictures)])
    shown = [(caption, _enlarged(picture.convert("RGB"), height)) for caption, picture in pictures]
    columns = min(columns or len(shown), len(shown))
    width = max(picture.width for _, picture in shown)
    font = ImageFont.load_default(size=max(14, height // 22))
    caption_height = round(1.8 * max(14, height // 22))
    rows = -(-len(shown) // columns)
    cell_width, cell_height = width + _MARGIN, caption_height + height + _MARGIN
    sheet = Image.new("RGB", (columns * cell_width + _MARGIN, rows * cell_height + _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for index, (caption, picture) in enumerate(shown):
        left = _MARGIN + index % columns * cell_width
        top = _MARGIN + index // columns * cell_height
        draw.text((left, top), caption, fill=_INK, font=font)
        sheet.paste(picture, (left, top + caption_height))
    return sheet


def _enlarged(picture: Image.Image, height: int) -> Image.Image:
    """The picture at that height, its pixels as squares."""
    if picture.height == height:
        return picture
    width = max(1, round(picture.width * height / picture.height))
    return picture.resize((width, height), Image.Resampling.NEAREST)
