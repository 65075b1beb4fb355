"""The five steps of the pipeline for an image that does not fit into memory, block by block.

Every step but denoising depends on a bounded neighbourhood, so it is done on parts with a margin; denoising
goes in tiles anyhow, and its latents lie on disk where they are many. The result is that of
`ClearSRPipeline.upscale` but for rounding. Bound for memory: nothing here has the size of the image.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from clearsr.config.sampling import SamplingConfig
from clearsr.image.color import (
    COLOR_REACH,
    ChannelStatistics,
    as_gray,
    channel_spread,
    counts_as_gray,
    match_color,
)
from clearsr.image.data import ImageData
from clearsr.image.geometry import fill_transparent, mirrored, resize_axis, resize_share, to_signed, to_unit
from clearsr.image.source import WRAP_FADE, ImageSource, Wrapping
from clearsr.models.latent_lr_embedding import LatentLR
from clearsr.pipeline.budget import Workload, give_back_freed_memory
from clearsr.pipeline.steps import PipelineSteps
from clearsr.pipeline.store import GridStore
from clearsr.sampling.denoise import StepCallback
from clearsr.sampling.guidance import Conditioning
from clearsr.tiling import Window, pieces, tile_windows

Blocks = Iterator[tuple[Window, ImageData]]

# Input pixels around a part whose colour is looked for where it is transparent; a power of two, so that the
# pyramid of `fill_transparent` has the same cells as the whole image's.
FILL_MARGIN = 64


class PreparedSource:
    """Step 1 for parts of an image: resized to the output's size and mirrored out, 3×H×W in [0, 1]."""

    def __init__(self, source: ImageSource, size: tuple[int, int], multiple: int) -> None:
        """`size` is the output's; what is added reaches up to the next multiple of `multiple`."""
        self.source, self.size = source, size
        self.spread = 0.0  # `channel_spread` of what was read so far; the survey reads all
        self.height, self.width = (-(-side // multiple) * multiple for side in size)

    def read(self, window: Window) -> torch.Tensor:
        """1×3×h×w of the padded image."""
        rows = mirrored(self.size[0], window.top, window.bottom)
        columns = mirrored(self.size[1], window.left, window.right)
        inside = Window(int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)
        color = self.part(inside).color
        return color[:, rows - inside.top][:, :, columns - inside.left][None]

    def part(self, window: Window) -> ImageData:
        """A part of the resized image, transparent where the input is, with the metadata of the whole."""
        source, (height, width) = self.source, self.size
        top, bottom, by_rows = resize_axis(source.height, height, window.top, window.bottom)
        left, right, by_columns = resize_axis(source.width, width, window.left, window.right)
        wanted = Window(top, left, bottom, right)
        around = Window(
            max(0, top // FILL_MARGIN - 1) * FILL_MARGIN,
            max(0, left // FILL_MARGIN - 1) * FILL_MARGIN,
            min(source.height, (bottom // FILL_MARGIN + 2) * FILL_MARGIN),
            min(source.width, (right // FILL_MARGIN + 2) * FILL_MARGIN),
        )
        found = source.read(wanted)
        color = found.color
        self.spread = max(self.spread, channel_spread(found.color, found.alpha))
        if found.alpha is not None and bool((found.alpha == 0).any()):
            wide = source.read(around)
            color = wanted.seen_from(around).of(fill_transparent(wide.color, wide.alpha))

        def resized(planes: torch.Tensor) -> torch.Tensor:
            return (by_rows @ (planes @ by_columns.T).clamp(0, 1)).clamp(0, 1)

        alpha = None if found.alpha is None else resized(found.alpha)
        return dataclasses.replace(found, color=resized(color.clamp(0, 1)), alpha=alpha)


class _Signed:
    """Pictures as a grid to read from, 1×C×H×W in [-1, 1]; `read` gives a window of them in [0, 1]."""

    def __init__(self, channels: int, size: tuple[int, int], read: Callable[[Window], torch.Tensor]) -> None:
        self.shape = torch.Size((1, channels, *size))
        self._read = read

    def __getitem__(self, index: tuple[Any, slice, slice]) -> torch.Tensor:
        _, rows, columns = index
        return to_signed(self._read(Window(rows.start, columns.start, rows.stop, columns.stop)))


@torch.no_grad()
def upscale_in_blocks(
    steps: PipelineSteps,
    sample: Callable[..., Any],
    source: ImageSource,
    config: SamplingConfig,
    size: tuple[int, int],
    workload: Workload,
    folder: Path,
    on_part: StepCallback | None = None,
) -> Blocks:
    """The upscaled image in blocks of side `workload.piece`, row by row: where each lies, and the block.

    Args:
        sample: step 3, `ClearSRPipeline.sample`.
        size: height and width of the output.
        workload: how much is encoded, decoded and given at once, and how many tiles are denoised.
        folder: where latents are laid aside if they are many.
        on_part: called after each part of the work; may raise to stop.
    """
    prepared = PreparedSource(source, size, steps.network.pixel_multiple())
    store = steps.grid_store(config, workload.piece, folder)
    work = _Work(steps, prepared, config, workload, store, on_part)
    prompt, colors = work.survey()
    embedding = work.embed()
    conditioning = Conditioning(embedding, prompt, steps.negative_prompt(config))
    latents = sample(conditioning, config, on_tile=work.advance, tiles_at_once=workload.tiles)
    del embedding, conditioning
    decode = work.painter(work.decoder(latents), steps.painting(config))
    statistics = (work.statistics(decode), colors) if config.color == "adain" else None
    for window in pieces(*size, workload.piece):
        outer = window.grown(COLOR_REACH[config.color], prepared.height, prepared.width)
        picture = match_color(decode(outer), prepared.read(outer), config.color, statistics)
        color = window.seen_from(outer).of(picture)[0]
        if counts_as_gray(prepared.spread, config.gray):
            color = as_gray(color)
        work.advance()
        yield window, dataclasses.replace(prepared.part(window), color=color.contiguous())


def unwrapped(image: ImageData, wrapping: Wrapping) -> ImageData:
    """A result without its margins, whose sides meet."""

    def cut(planes: torch.Tensor) -> torch.Tensor:
        return wrapping.faded(wrapping.faded(planes, 1), 0).contiguous()

    alpha = None if image.alpha is None else cut(image.alpha)
    return dataclasses.replace(image, color=cut(image.color), alpha=alpha)


def unwrapped_blocks(blocks: Blocks, wrapping: Wrapping, side: int) -> Blocks:
    """The same of a result in blocks of that side, of which a row is in memory at once."""
    (height, width), (above, _) = wrapping.size, wrapping.margin
    fade = min(WRAP_FADE, height) if above else 0
    strip: list[torch.Tensor] = []
    before = rows = torch.empty(0)
    given = 0
    for window, block in blocks:
        strip.append(block.color if block.alpha is None else torch.cat([block.color, block.alpha]))
        if window.right < wrapping.extended[1]:
            continue
        planes, strip = wrapping.faded(torch.cat(strip, 2), 1), []
        if above:
            kept = planes[:, max(0, above - fade - window.top) : max(0, above - window.top)]
            before = torch.cat([before, kept], 1) if before.ndim == 3 else kept
            planes = planes[:, max(0, above - window.top) : max(0, above + height - window.top)]
            first = max(window.top - above, 0)
            late = max(0, height - fade - first)  # from this row of them on
            if planes.shape[1] > late:
                start = first + late - (height - fade)
                end = planes[:, late:]
                end = wrapping.blended(end, before[:, start : start + end.shape[1]], 0, start)
                planes = torch.cat([planes[:, :late], end], 1)
        rows = torch.cat([rows, planes], 1) if rows.ndim == 3 else planes
        while rows.shape[1] >= side or (rows.shape[1] and given + rows.shape[1] == height):
            count = min(side, rows.shape[1])
            for where in pieces(count, width, side):
                part = where.of(rows)
                alpha = None if block.alpha is None else part[3:].contiguous()
                at = Window(given + where.top, where.left, given + where.bottom, where.right)
                yield at, dataclasses.replace(block, color=part[:3].contiguous(), alpha=alpha)
            rows, given = rows[:, count:], given + count


class _Work:
    """One image on its way through the steps, and how far it is."""

    def __init__(
        self,
        steps: PipelineSteps,
        prepared: PreparedSource,
        config: SamplingConfig,
        workload: Workload,
        store: GridStore,
        on_part: StepCallback | None,
    ) -> None:
        self._steps, self._prepared = steps, prepared
        self._piece, self._store = workload.piece, store
        self._latents = steps.network.latents
        self._fold = self._latents.pixels_per_latent()
        self._grid = prepared.height // self._fold, prepared.width // self._fold
        self._on_part, self._done = on_part, 0
        tiles = len(tile_windows(*self._grid, config.tile.size, config.tile.overlap))
        blocks = sum(1 for _ in pieces(*prepared.size, self._piece))
        whole = sum(1 for _ in pieces(prepared.height, prepared.width, self._piece))
        self._all = config.steps * tiles + blocks + (whole if config.color == "adain" else 0)
        latents, at_once = self._latents, (*self._grid, self._piece)
        self._margins = latents.adapter.encoder_margin, latents.adapter.decoder_margin
        self._all += latents.encoding_windows(*at_once) if self._margins[0] is None else whole
        self._all += latents.decoding_windows(*at_once) if self._margins[1] is None else 0
        painter = steps.network.painter
        if painter is not None and steps.painting(config):
            self._all += painter.windows(prepared.height, prepared.width, self._piece)

    def advance(self) -> None:
        """Another part is done; what it left on the heap would count in the budget."""
        give_back_freed_memory()
        self._done += 1
        if self._on_part is not None:
            self._on_part(self._done, self._all, None)

    def survey(self) -> tuple[torch.Tensor, ChannelStatistics]:
        """What step 2 wants to know of the whole image: the image prompt, and the colours."""
        height, width = self._prepared.height, self._prepared.width
        side = self._steps.network.image_prompt.side
        small, colors = torch.zeros(1, 3, side, side), ChannelStatistics()
        for window in pieces(height, width, self._piece):
            pixels = self._prepared.read(window)
            colors.add(pixels)
            rows, by_rows = resize_share(height, side, window.top, window.bottom)
            columns, by_columns = resize_share(width, side, window.left, window.right)
            small[:, :, rows, columns] += by_rows @ to_signed(pixels) @ by_columns.T
        return self._steps.prompt_of(small), colors

    def embed(self) -> LatentLR:
        """Steps 1 and 2: x_lr, as two grids."""
        prepared, latents, fold = self._prepared, self._latents, self._fold
        steps, network = self._steps, self._steps.network
        shape = (1, network.unet.config.in_channels, *self._grid)
        grids = [self._store.latents(shape) for _ in range(2)]
        embedding = LatentLR(*grids)
        if (margin := self._margins[0]) is not None:
            margin = -(-margin // fold) * fold
            for inner in pieces(prepared.height, prepared.width, self._piece):
                outer = inner.grown(margin, prepared.height, prepared.width)
                part = steps.embed(prepared.read(outer), max(outer.size))
                for whole, values in zip(grids, part, strict=True):
                    whole[inner.over(fold).cells] = inner.seen_from(outer).over(fold).of(values)
                self.advance()
            return embedding
        pixels, new_map = (
            _Signed(3, (prepared.height, prepared.width), prepared.read),
            self._store.feature_map,
        )
        with steps.running("latents"):
            both = latents.embed_in_windows(pixels, self._piece, steps.device, new_map, self.advance)
        for window in pieces(*self._grid, self._piece // fold):
            for whole, values in zip(grids, window.of(both).chunk(2, dim=1), strict=True):
                whole[window.cells] = values
        return embedding

    def decoder(self, latents: Any) -> Callable[[Window], torch.Tensor]:
        """Step 4: what gives the pixels in a window, 1×3×h×w in [0, 1]."""
        fold, decode = self._fold, self._steps.decode_signed
        if (margin := self._margins[1]) is not None:

            def decoded(window: Window) -> torch.Tensor:
                outer = window.over(fold).grown(margin, *self._grid)
                pixels = decode(outer.of(latents), fold * max(outer.size))
                return to_unit(window.seen_from(outer.times(fold)).of(pixels)).cpu()

            return decoded

        new_map, device = self._store.feature_map, self._steps.device
        with self._steps.running("latents"):
            pixels = self._latents.decode_in_windows(latents, self._piece, device, new_map, self.advance)
        return lambda window: to_unit(window.of(pixels).float()).cpu()

    def painter(
        self, decode: Callable[[Window], torch.Tensor], share: float
    ) -> Callable[[Window], torch.Tensor]:
        """`decode` with so much of the painter's picture."""
        steps, new_map = self._steps, self._store.feature_map
        if steps.network.painter is None or share == 0:
            return decode
        prepared = self._prepared

        def both(window: Window) -> torch.Tensor:
            return torch.cat([prepared.read(window), decode(window)], dim=1)

        pictures = _Signed(6, (prepared.height, prepared.width), both)
        with steps.running("painter"):
            painted = steps.network.painter.in_windows(
                pictures, self._piece, steps.device, new_map, self.advance
            )

        def mixed(window: Window) -> torch.Tensor:
            picture = (painted(window).float().cpu() + 1) / 2
            return torch.lerp(decode(window), picture, share).clamp(0, 1)

        return mixed

    def statistics(self, decode: Callable[[Window], torch.Tensor]) -> ChannelStatistics:
        """The colours of the whole result, which a local VAE decodes once more for this."""
        found = ChannelStatistics()
        for window in pieces(self._prepared.height, self._prepared.width, self._piece):
            found.add(decode(window))
            self.advance()
        return found
