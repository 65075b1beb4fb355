"""How much memory there is, how much a run may take, and what to do when it was not enough.

On a processor the budget is the peak of the whole process, with the program and the model in it. On an
accelerator it is the peak of what is allocated there; the rest of the process then keeps to the same figure.
"""

import ctypes
import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil
import torch

from clearsr.config.sampling import SamplingConfig, TileConfig
from clearsr.errors import ClearSRError
from clearsr.hardware import memory_of, release_cached_memory
from clearsr.image.data import IN_MEMORY, InputCost

logger = logging.getLogger(__name__)

T = TypeVar("T")

PIECE_SIDES = (1024, 768, 512, 384, 256)  # pixels; multiples of 128: of all foldings, and of a TIFF's 16
SHARE_OF_AVAILABLE = 0.8
# Bytes per output pixel when the image is in memory as a whole, beside the work on a piece. Both together are
# more than the compact model's peaks from 1 to 17 megapixels (docs/performance.md), whose line rises by 192.
IN_MEMORY_BYTES_PER_PIXEL = 185
# How many of its largest activations a VAE has at once while it works on a piece, with all that lives beside.
# The compact model's peaks under four budgets rise by 13.2; Stable Diffusion's was 8.6 at 256 pixels.
LOCAL_COPIES, WINDOWED_COPIES = 14, 10
# Of what the last convolution of a dense block reads: a painter of 8 blocks had 5.4 at 1024 pixels a side in
# fp32, 3.8 at 2016, and 3.0 and 2.6 in bf16.
PAINTER_COPIES = 5
# How many of its finest activations the denoising network has at once: Stable Diffusion 35, the compact 18.
DENOISING_COPIES = 36
# Latents that the denoising network takes as one batch of tiles; one of 64 x 64 has 4096. Measured on a
# processor alone, where two tiles take a twelfth less time than one by one (docs/hardware.md).
LATENTS_AT_ONCE_ON_CPU, LATENTS_AT_ONCE = 2 * 4096, 16 * 4096
BATCH_PIXELS = 2_000_000  # output pixels that are worked on at once, where there are several images
LOCAL_MARGIN = 320  # pixels around a piece of the compact model's VAE, both sides together
_SAMPLE_BYTES = 6  # RGB of 16 bits


class Workload(NamedTuple):
    """How much is done at once. Nothing of it changes the result by more than rounding, except `tile`.

    Attributes:
        images: that may share a batch.
        piece: pixels along a side of what the VAE takes at once, and of a block that is written.
        is_in_blocks: the image never is in memory as a whole.
        tile: a side for the denoising tiles that is smaller than the settings say; None leaves them.
        tiles: of each image, that the denoising network takes as one batch.
    """

    images: int = 8
    piece: int = PIECE_SIDES[0]
    is_in_blocks: bool = False
    tile: int | None = None
    tiles: int = 1

    def smaller(self, tile: int) -> "Workload | None":
        """About half the memory, None if it goes no further: fewer images and tiles at once, then blocks,
        smaller pieces, smaller tiles.

        `tile` is the side that the settings ask for.
        """
        if self.images > 1 or self.tiles > 1:
            return self._replace(images=max(1, self.images // 2), tiles=max(1, self.tiles // 2))
        if not self.is_in_blocks:
            return self._replace(is_in_blocks=True)
        if self.piece > PIECE_SIDES[-1]:
            return self._replace(piece=max(PIECE_SIDES[-1], self.piece // 2 // 128 * 128))
        side = (self.tile or tile) // 2 // 16 * 16
        return self._replace(tile=side) if side >= 32 else None

    def applied_to(self, config: SamplingConfig) -> SamplingConfig:
        """The settings with the smaller tile, if there is one."""
        if self.tile is None:
            return config
        overlap = min(config.tile.overlap, self.tile // 2 // 8 * 8)
        return config.model_copy(update={"tile": TileConfig(size=self.tile, overlap=overlap)})


class VaeCost(NamedTuple):
    """Memory that a VAE takes.

    Attributes:
        per_pixel: bytes for each pixel of a piece with its margin.
        margin: pixels around a piece, both sides together.
        kept_per_pixel: bytes for each pixel of an image larger than a piece, between its layers.
        painter: bytes for each pixel of a piece of the painter, which has its turn after it.
    """

    per_pixel: float
    margin: int = LOCAL_MARGIN
    kept_per_pixel: float = 0.0
    painter: float = 0.0

    def of_piece(self, side: int) -> int:
        """Bytes for a piece."""
        return int(max((side + self.margin) ** 2 * self.per_pixel, side**2 * self.painter))


class TileCost(NamedTuple):
    """Memory that denoising takes.

    Attributes:
        cells: latents of a tile.
        per_cell: bytes for each of them.
    """

    cells: int
    per_cell: float

    def at_once(self, size: tuple[int, int], room: int, device: torch.device) -> int:
        """How many tiles of an image make a batch, in `room` bytes.

        It depends on the size of the image and on what there is, not on which images share a batch with it:
        of several there are counted as many as may be.
        """
        images = images_at_once(*size)
        cells = LATENTS_AT_ONCE_ON_CPU if device.type == "cpu" else LATENTS_AT_ONCE
        return max(1, min(cells, int(room / self.per_cell)) // (self.cells * images))


def images_at_once(height: int, width: int) -> int:
    """How many images with results of that size may share a batch."""
    return max(1, BATCH_PIXELS // (height * width))


def plan_work(
    size: tuple[int, int],
    cost: VaeCost,
    max_memory: int | None,
    device: torch.device,
    reading: InputCost = IN_MEMORY,
    tile: TileCost | None = None,
    source: str = "this image",
) -> Workload:
    """The most that fits into the budget.

    Args:
        size: height and width of the output.
        cost: what the VAE takes.
        max_memory: the budget; None takes what is available now.
        reading: what reading the image takes.
        tile: what denoising takes; None plans one tile at a time.
        source: the image, for the error.

    Raises:
        ClearSRError: the budget is too small for anything.
    """
    free = free_bytes(max_memory, torch.device("cpu")) - reading.in_parts
    free_on_device = free if device.type == "cpu" else free_bytes(max_memory, device)
    height, width = size
    costs = {side: cost.of_piece(side) for side in PIECE_SIDES}
    rows = {side: _SAMPLE_BYTES * side * width for side in PIECE_SIDES}  # a row of blocks, as PNG holds it
    fitting = [
        side
        for side in PIECE_SIDES
        if costs[side] <= free_on_device and rows[side] + (costs[side] if device.type == "cpu" else 0) <= free
    ]
    if not fitting:
        least = (max_memory or free) - min(free, free_on_device)
        least += costs[PIECE_SIDES[-1]] + rows[PIECE_SIDES[-1]]
        raise ClearSRError(
            f"max_memory: {as_text(max_memory or free)} is too little; with the model in memory {source} "
            f"needs about {as_text(least)} (--max-memory)"
        )
    piece = fitting[0]
    per_pixel = IN_MEMORY_BYTES_PER_PIXEL + (cost.kept_per_pixel if max(size) > piece else 0)
    whole = height * width * per_pixel + costs[piece] + reading.whole - reading.in_parts <= free
    is_short = device.type == "cpu" and not whole  # a second tile is not worth its memory there
    # Denoising gets the room of the VAE, which is at rest then.
    tiles = 1 if tile is None or is_short else tile.at_once(size, costs[piece], device)
    return Workload(piece=piece, is_in_blocks=not whole, tiles=tiles)


def free_bytes(max_memory: int | None, device: torch.device) -> int:
    """What a run may still take on a device."""
    taken, available = memory_of(device) or (resident_bytes(), available_bytes())
    return int(SHARE_OF_AVAILABLE * available) if max_memory is None else max_memory - taken


def resident_bytes() -> int:
    """Memory that this process has now."""
    return int(psutil.Process().memory_info().rss)


def available_bytes() -> int:
    """Memory that this process could still get without swapping, by the machine and by its control group."""
    return min([psutil.virtual_memory().available, *_group_bytes()])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the processor or an accelerator (whose errors have no common class)."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(sign in text for sign in ("out of memory", "not enough memory", "can't allocate memory"))


def with_less_on_failure(work: Callable[[Workload], T], start: Workload, tile: int, source: str) -> T:
    """`work(start)`, tried again with a smaller workload each time memory runs out.

    Args:
        tile: side of the denoising tiles by the settings.
        source: the image, for the warning.
    """
    workload = start
    while True:
        try:
            return work(workload)
        except (MemoryError, RuntimeError) as error:
            less = workload.smaller(tile)
            if less is None or not is_out_of_memory(error):
                raise
        # Outside the handler: its traceback would hold on to what filled the memory.
        release_cached_memory()
        changed = ", ".join(f"{k} {v}" for k, v in less._asdict().items() if v != getattr(workload, k))
        note = "; smaller tiles change the result slightly" if less.tile != workload.tile else ""
        logger.warning("%s: memory ran out; trying again with less at once (%s)%s", source, changed, note)
        workload = less


def as_text(count: int) -> str:
    """Bytes for a message: 1.5 GB, 640 MB."""
    return f"{count / 1e9:.3g} GB" if abs(count) >= 1e9 else f"{count / 1e6:.0f} MB"


def _group_bytes() -> list[int]:
    """What the control group of a container leaves, version 2 and 1."""
    found = []
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            found.append(int(Path(limit).read_text("ascii")) - int(Path(used).read_text("ascii")))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return found


# Memory that was freed, given back to the system.
# glibc keeps what is freed between blocks that are in use. A run in pieces of changing sizes leaves hundreds
# of megabytes of such holes, which count as much as what is in use where memory is bounded.
def give_back_freed_memory() -> None:
    """Have the C library return what nobody uses; costs milliseconds. Does nothing where it is not glibc."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library, such as musl
        return None
