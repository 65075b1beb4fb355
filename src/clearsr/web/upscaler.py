"""What happens to a picture in the queue: `upscale_to_file` as on the command line, with a watch over it.

This is the part of the server that needs torch: it is imported with the model, behind the open door.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from clearsr.config.output import OutputConfig
from clearsr.config.sampling import MAX_UPSCALE, SamplingConfig, check_negative_prompt
from clearsr.config.serving import ServingConfig
from clearsr.errors import ClearSRError, LargeEnoughError, Notice, collected
from clearsr.files.plan import mark_of
from clearsr.files.upscale import settle_large, upscale_to_file
from clearsr.image import check_output, read_image, read_size, resized, write_image
from clearsr.image.data import ImageData
from clearsr.pipeline.budget import is_out_of_memory
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.pipeline.steps import is_large_enough, result_size
from clearsr.seeds import file_seed
from clearsr.web.errors import RequestError, where
from clearsr.web.estimate import BusyError, Estimate, Estimator, MemoryWatch, checked
from clearsr.web.fields import bad_setting, in_field_names, sampling_of
from clearsr.web.jobs import Ticket

logger = logging.getLogger(__name__)

_ANY_SIZE = 2**62  # pixels; only the header is read, and judged by the server's own limits
_PREVIEW_SIDE = 128  # latents; a preview is decoded from no more
_PREVIEW_EVERY = 0.8  # seconds
_PREVIEW_SHARE = 0.1  # of the time, at most
_LOOK_SIDE = 2048  # pixels of a picture that is only to be looked at
GRID_SIDE = 96  # input pixels that the comparison of settings takes from the middle


class Outcome(NamedTuple):
    """A result.

    Attributes:
        path: its file.
        size: its height and width.
        warnings: what it does not have as the picture had it.
        seconds: time at work.
        copied: the picture itself, where it was large enough and the result is a copy of it.
    """

    path: Path
    size: tuple[int, int]
    warnings: tuple[Notice, ...]
    seconds: float
    copied: Path | None = None


@dataclass(frozen=True)
class Upscaler:
    """What every picture needs: the pipeline, what is expected of it, and how much is allowed."""

    pipeline: ClearSRPipeline
    estimator: Estimator
    limits: ServingConfig

    def check(self, path: Path, sampling: SamplingConfig | None) -> tuple[int, int]:
        """Height and width of a picture by its header, if it and its result (if any) are small enough.

        Raises:
            RequestError: 400, not an image; 413, too many pixels; 422, as `check_size`.
        """
        try:
            height, width = read_size(path, _ANY_SIZE)
        except ClearSRError as error:
            raise RequestError(400, "not_an_image", in_client_words(str(error), path)) from None
        self.check_size((height, width), sampling)
        return height, width

    def check_size(self, size: tuple[int, int], sampling: SamplingConfig | None) -> tuple[int, int]:
        """The size of the result of a picture of that height and width, if both are small enough.

        Raises:
            RequestError: 413, too many pixels; 422, a size that is too many times the picture's.
        """
        (height, width), limits = size, self.limits
        if height * width > limits.max_megapixels * 1e6:
            raise _too_many("the picture", height, width, limits.max_megapixels)
        if sampling is None:
            return size
        try:
            larger = result_size(height, width, sampling)
        except ClearSRError as error:
            raise bad_setting(in_field_names(str(error))) from None
        if larger[0] * larger[1] > limits.max_output_megapixels * 1e6:
            raise _too_many("the result", *larger, limits.max_output_megapixels)
        return larger

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

    def estimate(self, size: tuple[int, int], sampling: SamplingConfig) -> Estimate | None:
        """Time and memory for a picture of that height and width; None while nothing is known."""
        if is_large_enough(*size, sampling):
            return Estimate(0.0, 0.0)
        height, width = result_size(*size, sampling)
        return self.estimator.estimate(height * width / 1e6, sampling)

    def measure(self, is_wanted: Callable[[], bool]) -> None:
        """Find out what to expect of a picture, unless there is one to be worked on first."""

        def check() -> None:
            if is_wanted():
                raise BusyError

        with suppress(BusyError):
            self.estimator.measure(self.pipeline, check)

    def output_name(self, source: Path, sampling: SamplingConfig, suffix: str) -> str:
        """The file that a picture becomes, as the command line calls it."""
        return f"{source.stem}{mark_of(sampling)}{suffix}"

    def upscale(
        self,
        ticket: Ticket,
        source: Path,
        target: Path,
        sampling: SamplingConfig,
        output: OutputConfig,
        with_preview: bool = False,
    ) -> Outcome:
        """Upscale one file; returns its size, and what it does not have as the picture had it.

        Raises:
            RequestError: why there is no result.
        """
        watch, next_preview = MemoryWatch(self.pipeline.device), 0.0

        def on_layer() -> None:
            ticket.check()
            watch.look()

        def on_step(done: int, steps: int, z_0: Any) -> None:
            nonlocal next_preview
            preview, begin = None, time.monotonic()
            if with_preview and z_0 is not None and done < steps and begin > next_preview:
                preview = target.with_name("preview.jpg")
                write_image(self.preview(z_0), preview, OutputConfig(jpeg_quality=90))
                end = time.monotonic()
                next_preview = end + max(_PREVIEW_EVERY, (end - begin) / _PREVIEW_SHARE)
            ticket.report(done, steps, source.name, preview)

        start = time.monotonic()
        ticket.report(0, max(1, sampling.steps), source.name)
        with failures_told(source), checked(self.pipeline.network, on_layer), collected() as notices:
            size = upscale_to_file(self.pipeline, source, target, sampling, output, on_step)
        seconds = time.monotonic() - start
        is_settled = any(notice.kind == "size" for notice in notices)  # without the network
        if not is_settled:
            self.estimator.learn(size[0] * size[1] / 1e6, sampling, seconds, watch.peak)
        is_copy = is_settled and sampling.size.when_large == "copy"
        return Outcome(target, size, tuple(notices), seconds, source if is_copy else None)

    def preview(self, z_0: torch.Tensor) -> ImageData:
        """An early look at the first picture of a batch: its latents, shrunk before they are decoded."""
        share = _PREVIEW_SIDE / max(z_0.shape[-2:])
        small = F.interpolate(z_0[:1], scale_factor=share, mode="area") if share < 1 else z_0[:1]
        picture = self.pipeline.steps.decode(small)
        if share < 1:  # averaged latents decode to blocks of one colour each: nothing finer is worth showing
            picture = F.interpolate(picture, scale_factor=0.25, mode="area")
        return ImageData(picture[0])

    def compare(
        self,
        ticket: Ticket,
        source: Path,
        folder: Path,
        sampling: SamplingConfig,
        grid: tuple[Sequence[float], Sequence[float]],
    ) -> Outcome:
        """Write cell-0.png and so on: the middle of a picture at every alpha (rows) and beta (columns).

        Raises:
            RequestError: why there is none.
        """
        start, size = time.monotonic(), (0, 0)
        seed = file_seed(sampling.seed, source.name)
        pairs = [(alpha, beta) for alpha in grid[0] for beta in grid[1]]
        ticket.report(0, len(pairs), source.name)
        with failures_told(source), collected():
            image = read_image(source, int(self.limits.max_megapixels * 1e6))
            middle = _middle(image)
            factor = sampling.size.factor(image.height, image.width)
            if factor is not None:  # the middle is smaller than the picture
                sampling = self.pipeline.configure(sampling, upscale=min(max(1.0, factor), MAX_UPSCALE))
            with checked(self.pipeline.network, ticket.check):
                for done, (alpha, beta) in enumerate(pairs):
                    lsa = {"alpha": alpha, "beta": beta}
                    config = self.pipeline.configure(sampling, lsa=lsa, seed=seed)
                    picture = self.pipeline.upscale([middle], config)[0]
                    write_image(picture, folder / f"cell-{done}.png")
                    size = picture.height, picture.width
                    ticket.report(done + 1, len(pairs), source.name)
        return Outcome(folder / "cell-0.png", size, (), time.monotonic() - start)

    def look(self, source: Path, target: Path) -> tuple[int, int]:
        """Write a picture as a PNG that every browser shows, smaller if need be; returns its own size.

        Raises:
            RequestError: it is none, or too large.
        """
        height, width = self.check(source, None)
        with failures_told(source), collected():
            image = read_image(source)
            share = min(1.0, _LOOK_SIDE / max(height, width))
            size = max(1, round(image.height * share)), max(1, round(image.width * share))
            write_image(
                resized(image, size),
                target,
                OutputConfig(bit_depth=8, png_compression=1, keep_metadata=False),
            )
        return height, width


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
        if isinstance(error, LargeEnoughError):
            message = in_field_names(in_client_words(str(error), source))
            raise RequestError(422, "large_enough", message) from None
        if isinstance(error, ClearSRError):
            message = in_field_names(in_client_words(str(error), source))
            raise RequestError(400, "bad_image", message) from error
        if isinstance(error, OSError):
            logger.error("a result could not be written: %s", where(error))
            raise RequestError(507, "no_storage", "the server could not write the result") from error
        raise


def copy_of(
    outcome: Outcome, target: Path, sampling: SamplingConfig, output: OutputConfig
) -> tuple[Notice, ...]:
    """Write a lossless result in another format too, with its metadata; returns what the copy lacks.

    Raises:
        RequestError: 422, the format cannot hold a picture of that height and width.
    """
    try:
        check_output(target, outcome.size)
    except ClearSRError as error:
        raise RequestError(422, "bad_setting", in_client_words(f"format: {error}", target)) from None
    with failures_told(outcome.path), collected() as notices:
        if outcome.copied is not None:
            settle_large(outcome.copied, target, outcome.size, sampling, output)
        else:
            write_image(read_image(outcome.path), target, output)
    return tuple(notices)


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
