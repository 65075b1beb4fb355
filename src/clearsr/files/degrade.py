"""One photograph file as a low-resolution file: the work of `clearsr degrade`."""

import dataclasses
from pathlib import Path

from clearsr.config.degradation import DegradationConfig
from clearsr.degradation.degrade import crop_to_multiple, degrade
from clearsr.errors import ClearSRError
from clearsr.files.upscale import Job, Result, record_of
from clearsr.image import fill_transparent, read_image, write_image
from clearsr.seeds import make_generator


def degrade_file(
    job: Job, config: DegradationConfig, seed: int, upscale: int, hr_output: Path | None = None
) -> Result:
    """Write the LR image of one file; a picture that cannot be read or written is a failed record.

    The draws depend on the seed and on the file's path below the folder that was named, so the result is the
    same whatever else is degraded. Width and height are cropped to multiples of `upscale`; transparency is
    dropped, and grey becomes RGB, since noise may be coloured.

    Args:
        hr_output: where to write the cropped HR image too.
    """

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
