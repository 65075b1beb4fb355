"""What a run will take, before it is started: `clearsr train --dry-run`.

Nothing is loaded: the network is built of shapes, and one step is played through on tensors without memory,
counting what would be alive at its fullest moment.
"""

import os
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clearsr.config.training import TrainConfig
from clearsr.data.crops import CropDataset, TrainingBatch
from clearsr.models.build import meta_network
from clearsr.models.parameters import PART_LABELS, part_of
from clearsr.training.setup import DTYPES, model_of, prepare_stage
from clearsr.training.stages import StageModule
from clearsr.training.step import to_device

_GIB = 2**30


class TrainingPlan(NamedTuple):
    """What a run will take.

    Attributes:
        trainable: trained parameters by part, keys of `PART_LABELS`.
        frozen: parameters that are only used.
        processes: that share a batch.
        micro_batch: images that one process takes at once.
        memory: bytes in each process, by what they hold; `step` is the peak of activations and gradients,
            with what several processes share them by.
        checkpoint_bytes: of one checkpoint on disk.
        images: in `data.train`.
        image_bytes: their size on disk.
        steps_per_epoch: until every image has been seen once.
        epochs: that the run lasts.
    """

    trainable: dict[str, int]
    frozen: int
    processes: int
    micro_batch: int
    memory: dict[str, int]
    checkpoint_bytes: int
    images: int
    image_bytes: int
    steps_per_epoch: float
    epochs: float

    def lines(self) -> list[str]:
        """The plan for people."""
        count = sum(self.trainable.values())
        parts = ", ".join(f"{PART_LABELS[part]} {n / 1e6:.2f} M" for part, n in self.trainable.items())
        memory = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in self.memory.items())
        total = sum(self.memory.values()) / _GIB
        return [
            f"trainable parameters: {count:,} ({count / 1e6:.2f} M): {parts}",
            f"frozen parameters: {self.frozen:,} ({self.frozen / 1e6:.2f} M)",
            f"memory: about {total:.2f} GiB in each of {self.processes} process(es) "
            f"with {self.micro_batch} image(s) at a time ({memory}; the libraries' own needs come on top)",
            f"checkpoint: {self.checkpoint_bytes / 1e9:.2f} GB on disk, and briefly one more than are kept",
            f"data: {self.images} images, {self.image_bytes / 1e6:.1f} MB",
            f"steps per epoch: {self.steps_per_epoch:.1f}; the run lasts {self.epochs:.1f} epochs",
        ]


def plan_run(config: TrainConfig, processes: int | None = None) -> TrainingPlan:
    """What the run that `config` describes will take.

    Args:
        processes: that will share the batch; unset: as many as torchrun has started, else one.

    Raises:
        ClearSRError: the configuration cannot be built, the base cannot be found, or the data is missing.
    """
    processes = processes or int(os.environ.get("WORLD_SIZE", "1"))
    micro_batch = max(1, config.batch_size // (config.accumulation * processes))
    dataset = CropDataset(config.data, None, config.batch_size, config.seed)
    photographs, epoch = dataset.photographs, dataset.epochs.length
    network = meta_network(model_of(config))
    stage = prepare_stage(config, network, torch.device("meta"))
    parameters = list(network.named_parameters())
    trainable: Counter[str] = Counter()
    for name, parameter in parameters:
        if parameter.requires_grad:
            trainable[part_of(name)] += parameter.numel()
    count = sum(trainable.values())
    moments = 2 * count * (1 if config.optimizer.kind == "adamw8bit" else 4)
    average = 4 * count if config.ema_decay else 0
    weights = sum(p.numel() * p.element_size() for _, p in parameters)
    memory = {"weights": weights, "moments": moments, "average": average}
    memory["step"] = peak_of_step(stage, config, micro_batch, shares=processes > 1)
    if torch.accelerator.is_available() and config.optimizer.kind == "adamw":
        memory["step"] = max(memory["step"], 8 * count)  # there it makes a root of all second moments at once
    images_per_step = config.batch_size
    return TrainingPlan(
        trainable={part: trainable[part] for part in PART_LABELS if trainable[part]},
        frozen=sum(p.numel() for _, p in parameters) - count,
        processes=processes,
        micro_batch=micro_batch,
        memory={name: size for name, size in memory.items() if size},
        checkpoint_bytes=4 * count + moments + average,
        images=len(photographs),
        image_bytes=photographs.byte_count(),
        steps_per_epoch=epoch / images_per_step,
        epochs=config.steps * images_per_step / epoch,
    )


def peak_of_step(stage: StageModule, config: TrainConfig, micro_batch: int, shares: bool = False) -> int:
    """Bytes of activations and gradients at the fullest moment of a step.

    Args:
        stage: on the meta device; it is left on tensors without memory.
        shares: it shares its gradients with other processes.
    """
    size, lr_size = config.data.crop_size, config.data.crop_size // config.data.upscale
    micro_batches = min(2, config.accumulation)  # a second one meets the gradients of the first
    with FakeTensorMode(allow_non_fake_inputs=True):
        stage.to_empty(device="cpu")
        with _LiveMemory() as memory:
            buckets = _Buckets(stage) if shares else None
            for number in range(micro_batches):
                hr = torch.empty(micro_batch, 3, size, size)
                lr = torch.empty(micro_batch, 3, lr_size, lr_size) if stage.needs_lr else None
                batch = to_device(TrainingBatch(hr, lr, list(range(micro_batch))), torch.device("cpu"))
                with torch.autocast("cpu", DTYPES[config.precision], enabled=config.precision != "fp32"):
                    loss = stage(batch, config.seed)["loss"]
                if buckets is not None and number == micro_batches - 1:
                    buckets.take_gradients()
                loss.backward()
    return memory.peak


class _Buckets:
    """The memory that data-parallel training exchanges gradients in: there from the start, one for all."""

    def __init__(self, stage: StageModule) -> None:
        self._parameters = [p for p in stage.parameters() if p.requires_grad]
        memory = torch.empty(sum(p.numel() for p in self._parameters))
        self._parts = memory.split([p.numel() for p in self._parameters])

    def take_gradients(self) -> None:
        """Have each gradient of the next backward pass move here as soon as it is whole."""
        for parameter, part in zip(self._parameters, self._parts, strict=True):

            def move(parameter: torch.Tensor, part: torch.Tensor = part) -> None:
                parameter.grad = part.view(parameter.shape)

            parameter.register_post_accumulate_grad_hook(move)


class _LiveMemory(TorchDispatchMode):
    """Within the block counts the bytes of the tensors that are made and not yet freed.

    Attributes:
        peak: the most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._alive = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        taken = {_identity(value) for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)}
        for value in tree_leaves(made):
            if isinstance(value, torch.Tensor) and _identity(value) not in taken:
                self._add(value.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._alive += size
        self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._alive -= size


def _identity(tensor: torch.Tensor) -> int:
    """The same for all views of one memory."""
    return tensor.untyped_storage()._cdata
