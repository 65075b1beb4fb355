"""The optimizer and its learning rate, which is a function of the step alone."""

import math
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from clearsr.config.training import OptimizerConfig
from clearsr.errors import ClearSRError, first_line

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
            "optimizer.kind: adamw8bit needs bitsandbytes, pip install 'clearsr[adamw8bit]'; accepted "
            "without it: adamw"
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
