"""Training batches as a pure function of (seed, step): random crops and their degraded LR versions.

Sample g of the run (counted over all steps and processes) is the same whatever the number of processes,
workers or interruptions, which is what makes a resumed run equal the uninterrupted one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from clearsr.config.degradation import DegradationMix
from clearsr.config.training import DataConfig
from clearsr.data.photographs import Photographs
from clearsr.degradation import degrade_mixed
from clearsr.seeds import derive_seed, make_generator


class TrainingBatch(NamedTuple):
    """One process's share of a step."""

    hr: torch.Tensor  # B×3×H×W, RGB, in [0, 1]
    lr: torch.Tensor | None  # B×3×(H/upscale)×(W/upscale), RGB, in [0, 1]; None where the stage needs none
    sample_ids: list[int]  # the global number of each sample, from which its noise is seeded


class CropDataset(Dataset[TrainingBatch]):
    """Item `step` is the whole batch of that step."""

    def __init__(
        self,
        data: DataConfig,
        degradation: DegradationMix | None,
        batch_size: int,
        seed: int,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        """`batch_size` counts all processes; `shard` is (rank, world size) and divides it evenly."""
        self.photographs = Photographs(data.train, data.cache_megabytes)
        self._data, self._degradation, self._seed = data, degradation, seed
        self._batch_size, (self._rank, self._world) = batch_size, shard

    def __getitem__(self, step: int) -> TrainingBatch:
        share = self._batch_size // self._world
        first = step * self._batch_size + self._rank * share
        sample_ids = list(range(first, first + share))
        pairs = [self._sample(sample_id) for sample_id in sample_ids]
        lr_images = [lr for _, lr in pairs if lr is not None]
        lr = torch.stack(lr_images) if lr_images else None
        return TrainingBatch(torch.stack([hr for hr, _ in pairs]), lr, sample_ids)

    def _sample(self, sample_id: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """HR crop in [0, 1] and, where the stage wants one, its degraded version."""
        epoch, position = divmod(sample_id, len(self.photographs))
        order = torch.randperm(len(self.photographs), generator=make_generator("order", self._seed, epoch))
        generator = make_generator("sample", self._seed, sample_id)
        crop = random_crop(self.photographs[int(order[position])], self._data, generator).float() / 255
        if self._degradation is None:
            return crop, None
        return crop, degrade_mixed(crop, self._degradation, generator, self._data.upscale)


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


def make_loader(dataset: CropDataset, steps: Sequence[int], workers: int) -> DataLoader[TrainingBatch]:
    """Batches of the given steps in order, prepared ahead by worker processes."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=steps,  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="spawn" if workers else None,  # a forked worker deadlocks in OpenMP
        worker_init_fn=_single_threaded,
        generator=torch.Generator().manual_seed(
            derive_seed("loader")
        ),  # keeps the global generator untouched
    )


def _single_threaded(_: int) -> None:
    """A worker must not fight the training process for cores."""
    torch.set_num_threads(1)
