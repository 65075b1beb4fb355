"""What happens to a picture in the queue: `upscale_to_file` as on the command line, with a watch over it."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from clearsr.config.output import OutputConfig
from clearsr.config.sampling import SamplingConfig, check_negative_prompt
from clearsr.config.serving import ServingConfig
from clearsr.errors import ClearSRError, Notice, collected
from clearsr.files.comparison import side_by_side
from clearsr.files.upscale import upscale_to_file
from clearsr.image import check_output, from_pil, read_image, read_size, resize, to_pil, write_image
from clearsr.image.data import ImageData
from clearsr.pipeline.budget import is_out_of_memory
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.seeds import file_seed
from clearsr.web.errors import RequestError, where
from clearsr.web.estimate import Estimate, Estimator, MemoryWatch, checked
from clearsr.web.fields import in_field_names, sampling_of
from clearsr.web.jobs import Ticket

logger = logging.getLogger(__name__)

_ANY_SIZE = 2**62  # pixels; only the header is read, and judged by the server's own limits
_PREVIEW_SIDE = 64  # latents; a preview is decoded from no more
_PREVIEW_EVERY = 0.8  # seconds
GRID_SIDE = 96  # input pixels that the comparison of settings takes from the middle


@dataclass(frozen=True)
class Upscaler:
    """What every picture needs: the pipeline, what is expected of it, and how much is allowed."""

    pipeline: ClearSRPipeline
    estimator: Estimator
    limits: ServingConfig

    def check(self, path: Path, upscale: float) -> tuple[int, int]:
        """Height and width of a picture by its header, if it and its result are small enough.

        Raises:
            RequestError: 400, not an image; 413, too many pixels.
        """
        try:
            height, width = read_size(path, _ANY_SIZE)
        except ClearSRError as error:
            raise RequestError(400, "not_an_image", in_client_words(str(error), path)) from None
        limits = self.limits
        if height * width > limits.max_megapixels * 1e6:
            raise _too_many("the picture", height, width, limits.max_megapixels)
        larger = (round(height * upscale), round(width * upscale))
        if larger[0] * larger[1] > limits.max_output_megapixels * 1e6:
            raise _too_many("the result", *larger, limits.max_output_megapixels)
        return height, width

    @property
    def takes_text(self) -> bool:
        """Whether the model has a text encoder, for the negative prompt."""
        return self.pipeline.network.config.base_model is not None

    def sampling(self, fields: Mapping[str, Any]) -> SamplingConfig:
        """The model's settings with those of a request over them.

        Raises:
            RequestError: 400, text for a model that takes none; 422, a value is not accepted.
        """
        sampling = sampling_of(self.pipeline.defaults, fields, self.limits)
        try:
            check_negative_prompt(sampling, self.pipeline.network.config.base_model)
        except ClearSRError as error:
            status, code = (422, "bad_setting") if self.takes_text else (400, "no_text")
            raise RequestError(status, code, in_field_names(str(error))) from None
        return sampling

    def estimate(self, size: tuple[int, int], sampling: SamplingConfig) -> Estimate:
        """Time and memory for a picture of that height and width."""
        return self.estimator.estimate(size[0] * size[1] * sampling.upscale**2 / 1e6, sampling.steps)

    def upscale(
        self,
        ticket: Ticket,
        source: Path,
        target: Path,
        sampling: SamplingConfig,
        output: OutputConfig,
        with_preview: bool = False,
    ) -> tuple[Notice, ...]:
        """Upscale one file; returns what the result does not have as the picture had it.

        Raises:
            RequestError: why there is no result.
        """
        watch, last = MemoryWatch(self.pipeline.device), 0.0

        def on_layer() -> None:
            ticket.check()
            watch.look()

        def on_step(done: int, steps: int, z_0: Any) -> None:
            nonlocal last
            preview = None
            if with_preview and z_0 is not None and time.monotonic() - last > _PREVIEW_EVERY:
                preview = target.with_name(f"preview-{done}.jpg")
                write_image(self.preview(z_0), preview, OutputConfig(jpeg_quality=90))
                last = time.monotonic()
            ticket.report(done, steps, source.name, preview)

        start = time.monotonic()
        ticket.report(0, max(1, sampling.steps), source.name)
        with failures_told(source), checked(self.pipeline.network, on_layer), collected() as notices:
            height, width = upscale_to_file(self.pipeline, source, target, sampling, output, on_step)
        seconds = time.monotonic() - start
        self.estimator.learn(height * width / 1e6, sampling.steps, seconds, watch.peak)
        return tuple(notices)

    def preview(self, z_0: torch.Tensor) -> ImageData:
        """An early look at the first picture of a batch: its latents, shrunk before they are decoded."""
        share = _PREVIEW_SIDE / max(z_0.shape[-2:])
        small = F.interpolate(z_0[:1], scale_factor=share, mode="area") if share < 1 else z_0[:1]
        return ImageData(self.pipeline.steps.decode(small)[0])

    def compare(
        self,
        ticket: Ticket,
        source: Path,
        sampling: SamplingConfig,
        grid: tuple[Sequence[float], Sequence[float]],
        target: Path,
    ) -> None:
        """Write a sheet: the middle of a picture at every alpha (rows) and beta (columns).

        Raises:
            RequestError: why there is none.
        """
        seed = file_seed(sampling.seed, source.name)
        pairs = [(alpha, beta) for alpha in grid[0] for beta in grid[1]]
        cells = []
        with failures_told(source):
            middle = _middle(read_image(source, int(self.limits.max_megapixels * 1e6)))
            with checked(self.pipeline.network, ticket.check):
                for done, (alpha, beta) in enumerate(pairs):
                    ticket.report(done, len(pairs), f"alpha {alpha:g}, beta {beta:g}")
                    lsa = {"alpha": alpha, "beta": beta}
                    config = self.pipeline.configure(sampling, lsa=lsa, seed=seed)
                    picture = to_pil(self.pipeline.upscale([middle], config)[0])
                    cells.append((f"alpha {alpha:g}, beta {beta:g}", picture))
            write_image(from_pil(side_by_side(cells, columns=len(grid[1]))), target)


@contextmanager
def failures_told(source: Path) -> Iterator[None]:
    """Within the block what goes wrong with a picture becomes what the client is told of it.

    Raises:
        RequestError: for all that is not a bug of ours.
    """
    try:
        yield
    except RequestError:
        raise
    except (ClearSRError, OSError, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            message = "not enough memory for this picture; use a smaller upscale or tile"
            raise RequestError(503, "out_of_memory", message, {"Retry-After": "30"}) from error
        if isinstance(error, ClearSRError):
            raise RequestError(400, "bad_image", in_client_words(str(error), source)) from error
        if isinstance(error, OSError):
            logger.error("a result could not be written: %s", where(error))
            raise RequestError(507, "no_storage", "the server could not write the result") from error
        raise


def before_picture(source: Path, target: Path, size: tuple[int, int]) -> None:
    """Write the input enlarged by bicubic interpolation to the result's height and width, to compare with."""
    image = read_image(source)
    larger = resize(image.color[None], size)[0].clamp(0, 1)
    plain = ImageData(larger, metadata=image.metadata, source=image.source)
    write_image(plain, target, OutputConfig(jpeg_quality=92, keep_metadata=False))


def copy_of(result: Path, target: Path, output: OutputConfig) -> None:
    """Write a lossless result in another format too, with its metadata."""
    write_image(read_image(result), target, output)


def can_hold(path: Path, size: tuple[int, int]) -> bool:
    """Whether the format of a file can hold a picture of that height and width."""
    try:
        check_output(path, size)
    except ClearSRError:
        return False
    return True


def in_client_words(message: str, path: Path) -> str:
    """The message without the server's folders."""
    return message.replace(f"{path.parent}/", "").replace(str(path.parent), "the server")


def _middle(image: ImageData) -> ImageData:
    """The middle of a picture, at most `GRID_SIDE` a side, without transparency."""
    side = GRID_SIDE
    top, left = max(0, image.height - side) // 2, max(0, image.width - side) // 2
    color = image.color[:, top : top + side, left : left + side].contiguous()
    return ImageData(color, source=image.source)


def _too_many(what: str, height: int, width: int, limit: float) -> RequestError:
    message = (
        f"{what} would have {height * width / 1e6:.1f} megapixels ({width}x{height}); "
        f"at most {limit:g} are accepted here"
    )
    return RequestError(413, "too_many_pixels", message)
