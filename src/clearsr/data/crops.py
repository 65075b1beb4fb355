"""Training batches as a pure function of (seed, step): random crops and their degraded LR versions.

Sample g of the run (counted over all steps and processes) is the same whatever the number of processes,
workers or interruptions, which is what makes a resumed run equal the uninterrupted one. Every epoch has an
order of its own; where `data.skip_unreadable` allows it, an image that cannot be read is replaced by the one
that follows it in the order of the epoch (round to its beginning), and reported with the batch.
"""

import signal
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from clearsr.config.degradation import DegradationMix
from clearsr.config.training import DataConfig
from clearsr.data.photographs import Photographs
from clearsr.degradation import degrade_mixed
from clearsr.errors import ClearSRError
from clearsr.seeds import derive_seed, make_generator


class TrainingBatch(NamedTuple):
    """One process's share of a step."""

    hr: torch.Tensor  # B×3×H×W, RGB, in [0, 1]
    lr: torch.Tensor | None  # B×3×(H/upscale)×(W/upscale), RGB, in [0, 1]; None where the stage needs none
    sample_ids: list[int]  # the global number of each sample, from which its noise is seeded
    unreadable: tuple[str, ...] = ()  # one line for each image that was replaced


class CropDataset(Dataset[TrainingBatch]):
    """Item `step` is this process's share of the whole batch of that step."""

    def __init__(
        self,
        data: DataConfig,
        degradation: DegradationMix | None,
        batch_size: int,
        seed: int,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        """`batch_size` counts all processes; `shard` is (rank, world size) and divides it evenly.

        Raises:
            ClearSRError: a source in `data.train` is missing or holds no image.
        """
        self.photographs = Photographs(data.train, data.cache_megabytes)
        self._data, self._degradation, self._seed = data, degradation, seed
        self._batch_size, (self._rank, self._world) = batch_size, shard

    def __getitem__(self, step: int) -> TrainingBatch:
        """Raises ClearSRError as `batch` does."""
        share = self._batch_size // self._world
        first = step * self._batch_size + self._rank * share
        return self.batch(list(range(first, first + share)))

    def batch(self, sample_ids: list[int]) -> TrainingBatch:
        """The samples of the given numbers.

        Raises:
            ClearSRError: images cannot be decoded and must not be replaced; says how many, names the first.
        """
        unreadable: list[str] = []
        pairs = [self._sample(sample_id, unreadable) for sample_id in sample_ids]
        if unreadable and not self._data.skip_unreadable:
            more = f" (and {len(unreadable) - 1} more in this batch)" if len(unreadable) > 1 else ""
            raise ClearSRError(
                f"{unreadable[0]}{more}; `clearsr data check` lists all such files, and "
                "data.skip_unreadable: true trains on without them"
            )
        samples = [pair for pair in pairs if pair is not None]
        lr_images = [lr for _, lr in samples if lr is not None]
        lr = torch.stack(lr_images) if lr_images else None
        return TrainingBatch(torch.stack([hr for hr, _ in samples]), lr, sample_ids, tuple(unreadable))

    def names_of(self, sample_ids: Sequence[int]) -> list[str]:
        """The images that samples are taken from."""
        return [self.photographs.items[index].label() for index in map(self._index_of, sample_ids)]

    def _index_of(self, sample_id: int, skipped: int = 0) -> int:
        """The image that a sample is taken from: the next of the epoch's order, `skipped` places on."""
        count = len(self.photographs)
        epoch, position = divmod(sample_id, count)
        return int(_order(self._seed, epoch, count)[(position + skipped) % count])

    def _sample(
        self, sample_id: int, unreadable: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """HR crop in [0, 1] and, where the stage wants one, its degraded version; None if there is none."""
        image = self._readable(sample_id, unreadable)
        if image is None:
            return None
        generator = make_generator("sample", self._seed, sample_id)
        crop = random_crop(image, self._data, generator).float() / 255
        if self._degradation is None:
            return crop, None
        return crop, degrade_mixed(crop, self._degradation, generator, self._data.upscale)

    def _readable(self, sample_id: int, unreadable: list[str]) -> torch.Tensor | None:
        """The image of a sample, or its replacement; what could not be read is added to `unreadable`.

        Raises:
            ClearSRError: no image at all can be read.
        """
        for skipped in range(len(self.photographs)):
            index = self._index_of(sample_id, skipped)
            try:
                image = self.photographs[index]
                self._require_crop(image, index)
            except ClearSRError as error:
                unreadable.append(str(error))
                if not self._data.skip_unreadable:
                    return None
                continue
            return image
        raise ClearSRError(f"data.train: none of its {len(self.photographs)} images can be read")

    def _require_crop(self, image: torch.Tensor, index: int) -> None:
        if min(image.shape[1:]) < self._data.crop_size:
            size = f"{image.shape[2]}x{image.shape[1]}"
            name = self.photographs.items[index].label()
            raise ClearSRError(f"{name}: is {size}, smaller than data.crop_size, {self._data.crop_size}")


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> torch.Tensor:
    """The order of the images in an epoch."""
    return torch.randperm(count, generator=make_generator("order", seed, epoch))


def random_crop(image: torch.Tensor, data: DataConfig, generator: torch.Generator) -> torch.Tensor:
    """A random square of `crop_size` of a 3×H×W image, mirrored and turned at random."""
    size = data.crop_size
    limits = torch.tensor([image.shape[1] - size + 1, image.shape[2] - size + 1])
    top, left = (torch.rand(2, generator=generator) * limits).long().tolist()
    crop = image[:, top : top + size, left : left + size]
    mirror, turn = torch.randint(0, 2, (2,), generator=generator).tolist()
    if mirror:
        crop = crop.flip(2)
    if turn and data.rotate:
        crop = crop.transpose(1, 2).flip(1)
    return crop.contiguous()


def make_loader(
    dataset: CropDataset, steps: Sequence[int], workers: int
) -> "DataLoader[TrainingBatch | ClearSRError]":
    """Batches of the given steps in order, prepared ahead by workers; an error stands in its batch's place.

    It is not raised here because torch would wrap a worker's traceback around it: see `iterate`.
    """
    return DataLoader(
        _Guarded(dataset),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="spawn" if workers else None,  # a forked worker deadlocks in OpenMP
        worker_init_fn=_prepare_worker,
        generator=torch.Generator().manual_seed(
            derive_seed("loader")
        ),  # keeps the global generator untouched
    )


def iterate(loader: "DataLoader[TrainingBatch | ClearSRError]") -> Iterator[TrainingBatch]:
    """The batches of a loader.

    Raises:
        ClearSRError: the next batch cannot be made.
    """
    for batch in loader:
        if isinstance(batch, ClearSRError):
            raise batch
        yield batch


class _Guarded(Dataset[TrainingBatch | ClearSRError]):
    """A data set whose errors are values."""

    def __init__(self, dataset: CropDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, step: int) -> TrainingBatch | ClearSRError:
        try:
            return self._dataset[step]
        except ClearSRError as error:
            return error


def _prepare_worker(_: int) -> None:
    """A worker must not fight the training process for cores, and leaves when that does, not on a signal.

    Ctrl-C and a scheduler's SIGTERM reach every process of the group; the training process still needs the
    batch in hand to finish its step and save.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
