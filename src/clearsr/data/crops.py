"""Training batches as a pure function of (seed, step): random crops and their degraded LR versions.

Sample g of the run (counted over all steps and processes) is the same whatever the number of processes,
workers or interruptions, which is what makes a resumed run equal the uninterrupted one. Every epoch has an
order of its own; where `data.skip_unreadable` allows it, an image that cannot be read is replaced by the one
that follows it in the order of the epoch (round to its beginning), and reported with the batch.
"""

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from clearsr.config.degradation import DegradationMix
from clearsr.config.training import DataConfig
from clearsr.data.labels import Labels
from clearsr.data.photographs import Epochs, Photographs
from clearsr.degradation import degrade_mixed
from clearsr.errors import ClearSRError
from clearsr.image import resize
from clearsr.quiet import own_stderr
from clearsr.seeds import derive_seed, make_generator
from clearsr.tiling import Window


class TrainingBatch(NamedTuple):
    """One process's share of a step."""

    hr: torch.Tensor  # B×3×H×W, RGB, in [0, 1]
    lr: torch.Tensor | None  # B×3×(H/upscale)×(W/upscale), RGB, in [0, 1]; None: not wanted, or not yet made
    sample_ids: list[int]  # the global number of each sample, from which its noise is seeded
    unreadable: tuple[str, ...] = ()  # one line for each image that was replaced
    teacher: torch.Tensor | None = None  # what a teacher makes of `lr`, as `hr`; None: there is none


class CropDataset(Dataset[TrainingBatch]):
    """Item `step` is this process's share of the whole batch of that step."""

    def __init__(
        self,
        data: DataConfig,
        degradation: DegradationMix | None,
        batch_size: int,
        seed: int,
        shard: tuple[int, int] = (0, 1),
        labels: Labels | None = None,
        sizes: Path | None = None,
    ) -> None:
        """`batch_size` counts all processes; `shard` is (rank, world size) and divides it evenly.

        Without `degradation` no LR images are made; with `data.degrade_on` "device" they wait for `with_lr`.
        With `labels` the run goes through the samples that have some again and again, each time turned
        or mirrored in another way. In the file `sizes` is kept what the images' headers say.

        Raises:
            ClearSRError: a source in `data.train` is missing or holds no image.
        """
        paths = [source.path for source in data.train]
        self.photographs = Photographs(paths, data.cache_megabytes, sizes)
        self._small: dict[int, str] = {}
        if data.small == "skip":
            self._small = self.photographs.smaller_than(data.crop_size, data.skip_unreadable)
            self._small_by_source = self.photographs.by_source(self._small)
            self.photographs.leave_out(self._small)
            if not self.photographs.items:
                count = len(self._small)
                raise ClearSRError(
                    f"data.train: all {count} images are smaller than data.crop_size, {data.crop_size}"
                )
        self.epochs = Epochs(seed, data.train, self.photographs.counts)
        self._data, self._degradation, self._seed = data, degradation, seed
        self._batch_size, (self._rank, self._world) = batch_size, shard
        self._labels = labels

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
        crops = [self._crop(sample_id, unreadable) for sample_id in sample_ids]
        if unreadable and not self._data.skip_unreadable:
            more = f" (and {len(unreadable) - 1} more in this batch)" if len(unreadable) > 1 else ""
            raise ClearSRError(
                f"{unreadable[0]}{more}; `clearsr data check` lists all such files, and "
                "data.skip_unreadable: true trains on without them"
            )
        hr = torch.stack([crop for crop in crops if crop is not None]).float() / 255
        batch = TrainingBatch(hr, None, sample_ids, tuple(unreadable))
        if self._data.degrade_on == "worker":
            batch = self.with_lr(batch)
        return batch if self._labels is None else self._labelled(batch, self._labels)

    def with_lr(self, batch: TrainingBatch) -> TrainingBatch:
        """The batch with LR images, and HR images as soft as these say.

        They are made on the device of its HR images, unless it has or needs none.

        Every draw depends on the seed and the sample's number alone: on a CPU the LR images are the same bit
        for bit whichever process makes them; an accelerator's arithmetic differs from it in the last bits.
        """
        if self._degradation is None or batch.lr is not None:
            return batch
        mix, upscale = self._degradation, self._data.upscale
        pairs = []
        for hr, sample_id in zip(batch.hr, batch.sample_ids, strict=True):
            generator = make_generator("sample", self._seed, self._number(sample_id))
            draw_place(generator)  # what comes next follows the draws of the crop
            pairs.append(degrade_mixed(hr.contiguous(), mix, generator, upscale))
        hr_images, lr_images = zip(*pairs, strict=True)
        return batch._replace(hr=torch.stack(hr_images), lr=torch.stack(lr_images))

    def check_sizes(self) -> list[str]:
        """Lines on the images that are smaller than a crop, by source, and what is done about them.

        Raises:
            ClearSRError: there are some, and they are to be refused; names them.
        """
        side, rule = self._data.crop_size, self._data.small
        if rule == "skip":
            small, found = self._small, self._small_by_source if self._small else []
        else:
            small = self.photographs.smaller_than(side, self._data.skip_unreadable)
            found = self.photographs.by_source(small)
        if small and rule == "refuse":
            names = list(small.values())
            listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise ClearSRError(
                f"data.crop_size: {side} is larger than {listed}; choose a smaller crop, or set "
                "data.small to skip or resize"
            )
        done = "left out" if rule == "skip" else "enlarged to it"
        return [
            f"data.train: {source.path}: {less} of {count + less * (rule == 'skip')} images are smaller than "
            f"{side} pixels, and {done}"
            for source, less, count in zip(self._data.train, found, self.photographs.counts, strict=False)
            if less
        ]

    def fingerprint(self) -> str:
        """A hash of what decides which image a sample is taken from."""
        names = self.photographs.fingerprint()
        mix = [(source.weight, source.crops) for source in self._data.train]
        if set(mix) <= {(None, 1)}:
            return names
        return hashlib.blake2b(f"{names} {mix}".encode(), digest_size=16).hexdigest()

    def names_of(self, sample_ids: Sequence[int]) -> list[str]:
        """The images that samples are taken from."""
        return [self.photographs.items[index].label() for index in map(self._index_of, sample_ids)]

    def _index_of(self, sample_id: int, skipped: int = 0) -> int:
        """The image that a sample is taken from: the next of the epoch's order, `skipped` places on."""
        return self.epochs.image(self._number(sample_id), skipped)

    def _number(self, sample_id: int) -> int:
        """What a sample is drawn from: its own number, or that of the labelled one which comes again."""
        return sample_id if self._labels is None else sample_id % self._labels.count

    def _labelled(self, batch: TrainingBatch, labels: Labels) -> TrainingBatch:
        """The batch with the teacher's pictures, all images of a sample turned in the way of its round."""
        pictures = torch.stack([labels.picture(self._number(i)) for i in batch.sample_ids]).float() / 255
        views = [i // labels.count % 8 for i in batch.sample_ids]

        def turned(images: torch.Tensor) -> torch.Tensor:
            return torch.stack([_turn(x, v, self._data.rotate) for x, v in zip(images, views, strict=True)])

        assert batch.lr is not None, "the configuration sees to it"
        return batch._replace(hr=turned(batch.hr), lr=turned(batch.lr), teacher=turned(pictures))

    def _crop(self, sample_id: int, unreadable: list[str]) -> torch.Tensor | None:
        """The HR crop of a sample, uint8, of its image or of the one that replaces it.

        What cannot be read is added to `unreadable`; None if it must not be replaced.

        Raises:
            ClearSRError: no image at all can be read.
        """
        place = draw_place(make_generator("sample", self._seed, self._number(sample_id)))
        for skipped in range(self.epochs.length):
            index = self._index_of(sample_id, skipped)
            try:
                crop = self.photographs.crop(index, partial(self._window, index, place))
            except ClearSRError as error:
                unreadable.append(str(error))
                if not self._data.skip_unreadable:
                    return None
                continue
            if min(crop.shape[1:]) < self._data.crop_size:
                crop = _enlarged(crop, self._data.crop_size)
                crop = place.window(crop.shape[1], crop.shape[2], self._data.crop_size).of(crop)
            return place.view(crop, self._data.rotate)
        raise ClearSRError(f"data.train: none of its {len(self.photographs)} images can be read")

    def _window(self, index: int, place: "Place", height: int, width: int) -> Window:
        """Where the crop lies in an image of such a size; all of one that will be enlarged.

        Raises:
            ClearSRError: the image is smaller than the crop.
        """
        size = self._data.crop_size
        if min(height, width) < size:
            if self._data.small == "resize":
                return Window(0, 0, height, width)
            name = self.photographs.items[index].label()
            raise ClearSRError(f"{name}: is {width}x{height}, smaller than data.crop_size, {size}")
        return place.window(height, width, size)


def _enlarged(image: torch.Tensor, side: int) -> torch.Tensor:
    """The uint8 image with its shorter side `side` pixels long."""
    height, width = image.shape[1:]
    factor = side / min(height, width)
    size = (max(side, round(height * factor)), max(side, round(width * factor)))
    return (255 * resize(image[None].float() / 255, size)[0]).round().byte()


class Place(NamedTuple):
    """Where a crop is taken from and how it is turned, drawn before the size of the image is known."""

    at: torch.Tensor  # 2, how far down and to the right of what the image allows, in [0, 1)
    mirrored: bool
    turned: bool

    def window(self, height: int, width: int, size: int) -> Window:
        """The square of side `size` in an image of height×width."""
        top, left = (self.at * torch.tensor([height - size + 1, width - size + 1])).long().tolist()
        return Window(top, left, top + size, left + size)

    def view(self, crop: torch.Tensor, rotate: bool) -> torch.Tensor:
        """The crop, 3×size×size, mirrored and, if `rotate` allows it, turned by 90 degrees."""
        if self.mirrored:
            crop = crop.flip(2)
        if self.turned and rotate:
            crop = crop.transpose(1, 2).flip(1)
        return crop.contiguous()


def _turn(image: torch.Tensor, view: int, rotate: bool) -> torch.Tensor:
    """View 0 to 7 of an image C×H×H: mirrored where it is odd and, if allowed, turned by quarters."""
    mirrored = image.flip(2) if view % 2 else image
    return mirrored.rot90(view // 2, (1, 2)) if rotate else mirrored


def draw_place(generator: torch.Generator) -> Place:
    """A place, each as likely as any other."""
    at = torch.rand(2, generator=generator)
    mirrored, turned = torch.randint(0, 2, (2,), generator=generator).tolist()
    return Place(at, bool(mirrored), bool(turned))


def make_loader(
    dataset: CropDataset, steps: Sequence[int], workers: int, pinned: bool = False
) -> "DataLoader[TrainingBatch | ClearSRError]":
    """Batches of the given steps in order, prepared ahead by workers; an error stands in its batch's place.

    It is not raised here because torch would wrap a worker's traceback around it: see `iterate`. `pinned`
    batches lie in memory that CUDA copies from while the processor goes on.
    """
    return DataLoader(
        _Guarded(dataset),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        pin_memory=pinned,
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
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # killed meanwhile: torch would not notice any more
        os._exit(1)
    torch.set_num_threads(1)
    own_stderr()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
