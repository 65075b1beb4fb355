"""What the sections of the benchmark have in common: the pipeline, a picture, one upscaling of it."""

import torch

from clearsr.config.benchmark import BenchmarkConfig
from clearsr.image import ImageData, resize
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.seeds import make_generator

UPSCALE = 4
SIDE = 512  # of the output, where a section has one size


def make_picture(height: int, width: int) -> ImageData:
    """Smooth colours with some grain, always the same; what is in a picture does not change the work."""
    generator = make_generator("benchmark", height, width)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    grain = 0.05 * torch.randn(3, height, width, generator=generator)
    return ImageData((resize(coarse, (height, width))[0] + grain).clamp(0, 1), source="benchmark")


def load_pipeline(config: BenchmarkConfig) -> ClearSRPipeline:
    """The model that is measured, on as many threads as asked for.

    Raises:
        ClearSRError: it cannot be loaded, or the device or precision is not to be had.
    """
    return ClearSRPipeline.from_pretrained(config.model, device=config.device, precision=config.precision)


def upscale_once(pipeline: ClearSRPipeline, side: int) -> ImageData:
    """A square picture of `side` pixels after x4, by the model's own settings."""
    picture = make_picture(side // UPSCALE, side // UPSCALE)
    return pipeline.upscale([picture], pipeline.configure(upscale=UPSCALE))[0]
