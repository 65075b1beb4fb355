"""What changes during training: the trained parameters, their moving average, the optimizer's moments.

The learning rate is a function of the step alone.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from clearsr.config.training import OptimizerConfig, TrainConfig
from clearsr.errors import ClearSRError, first_line, installing

FINAL_SHARE = 0.01  # of the peak: where cosine and linear end


def make_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW, with its moments in fp32 or in 8 bits.

    Raises:
        ClearSRError: 8 bits are asked for and bitsandbytes is not installed, or does not work here.
    """
    settings = {"lr": config.learning_rate, "betas": config.betas, "weight_decay": config.weight_decay}
    if config.kind == "adamw":
        return torch.optim.AdamW(parameters, **settings)  # type: ignore[arg-type]
    try:
        optimizers: Any = import_module("bitsandbytes.optim")
    except ImportError:
        raise ClearSRError(
            "optimizer.kind: adamw8bit needs bitsandbytes (accepted without it: adamw); "
            f"{installing('adamw8bit')}"
        ) from None
    except (OSError, RuntimeError) as error:  # a build that does not fit the accelerator's libraries
        reason = first_line(error)
        raise ClearSRError(
            f"optimizer.kind: bitsandbytes does not work here ({reason}); accepted: adamw"
        ) from None
    return optimizers.AdamW8bit(list(parameters), **settings)


def learning_rate_at(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` (0-based) of `steps`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * progress))
    elif config.schedule == "linear":
        share = 1 - progress
    else:
        return config.learning_rate
    return config.learning_rate * (FINAL_SHARE + (1 - FINAL_SHARE) * share)


Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class TrainingState:
    """Everything that a checkpoint holds.

    Attributes:
        parameters: the parameters that the stage trains, by name.
        average: their exponential moving average, empty where `ema_decay` is 0.
        optimizer: AdamW over them; with weight_decay 0 it is Adam, as in the paper.
    """

    parameters: dict[str, nn.Parameter]
    average: Tensors
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, stage: nn.Module, config: TrainConfig) -> "TrainingState":
        """The state before the first step.

        Raises:
            ClearSRError: the optimizer needs a package that is not installed.
        """
        parameters = {name: p for name, p in stage.named_parameters() if p.requires_grad}
        average = {name: p.detach().clone() for name, p in parameters.items()} if config.ema_decay else {}
        return cls(parameters, average, make_optimizer(parameters.values(), config.optimizer))

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Move the average towards the parameters: average = decay·average + (1 - decay)·parameters."""
        if self.average:
            current: list[torch.Tensor] = [self.parameters[name] for name in self.average]
            torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the parameters hold their moving average; afterwards they are as they were."""
        kept = {name: self.parameters[name].detach().clone() for name in self.average}
        try:
            self._set_parameters(self.average)
            yield
        finally:
            self._set_parameters(kept)

    def tensors(self) -> dict[str, Tensors]:
        """All tensors by group, as a checkpoint stores them; moments are named `<parameter>/<moment>`."""
        moments = {
            f"{name}/{key}": value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value)
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        groups = {"parameters": {n: p.detach() for n, p in self.parameters.items()}, "optimizer": moments}
        return groups | ({"average": self.average} if self.average else {})

    def load(self, groups: dict[str, Tensors]) -> None:
        """Take over what `tensors` gave."""
        self._set_parameters(groups["parameters"])
        for name, value in groups.get("average", {}).items():
            self.average[name].copy_(value)
        for key, value in groups["optimizer"].items():
            name, _, moment = key.rpartition("/")
            parameter = self.parameters[name]
            self.optimizer.state[parameter][moment] = self._placed(moment, value, parameter)

    def _placed(self, moment: str, value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor | int:
        """A moment as the optimizer keeps it: torch's Adam counts steps in a CPU tensor, others in an int."""
        if moment != "step":
            return value.to(parameter.device)
        return value if isinstance(self.optimizer, torch.optim.AdamW) else int(value)

    @torch.no_grad()
    def _set_parameters(self, values: Tensors) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)


def average_decay(ema_decay: float, step: int) -> float:
    """The decay of the moving average after `step` steps; it grows, so that the start fades fast."""
    return min(ema_decay, (1 + step) / (10 + step))
