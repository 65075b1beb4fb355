"""What training steps change: a hash of every tensor before and after, and the gradients of each part.

`Watch` is put around the steps; `report` says in words what it saw and `is_as_intended` judges it.
"""

import hashlib
from typing import Any

import torch
from torch import nn

from clearsr.config.training import TrainConfig
from clearsr.models.parameters import part_of

Seen = dict[str, Any]


class Watch:
    """Looks at the tensors of a stage before its steps, after each, and at the end."""

    def __init__(self, stage: nn.Module) -> None:
        self._stage = stage
        self._trained = {name: p for name, p in stage.named_parameters() if p.requires_grad}
        self._before = digests(stage)
        self._gradients: list[dict[str, tuple[float, int, int]]] = []
        self._silent: set[str] = set(self._trained)

    def after_step(self) -> None:
        """Look at the gradients, which stay until the next step."""
        norms = {n: 0.0 if p.grad is None else p.grad.norm().item() for n, p in self._trained.items()}
        self._silent -= {name for name, norm in norms.items() if norm > 0}
        groups: dict[str, list[float]] = {}
        for name, norm in norms.items():
            groups.setdefault(group_of(name), []).append(norm)
        self._gradients.append(
            {
                group: (sum(n * n for n in values) ** 0.5, sum(n > 0 for n in values), len(values))
                for group, values in groups.items()
            }
        )

    def finish(self) -> Seen:
        """What was seen, in JSON's types.

        `tensors` are trained and `frozen` are not (counts); `changed` of the former are no longer what they
        were, and `changed_though_frozen` (names) of the latter. `gradients` has for each step and group the
        norm after clipping, how many tensors have a gradient that is not zero, and how many there are.
        `silent` (names) never had one, but for `idle` ones, whose gradient is zero by the mathematics.
        """
        after = digests(self._stage)
        changed = {name for name, digest in after.items() if self._before[name] != digest}
        return {
            "tensors": len(self._trained),
            "frozen": len(after) - len(self._trained),
            "changed": len(changed & self._trained.keys()),
            "changed_though_frozen": sorted(changed - self._trained.keys()),
            "gradients": self._gradients,
            "silent": sorted(name for name in self._silent if not may_be_idle(name)),
            "idle": sorted(name for name in self._silent if may_be_idle(name)),
        }


def digests(module: nn.Module) -> dict[str, str]:
    """A hash of the bits of every parameter and buffer."""
    return {name: _digest(value) for name, value in [*module.named_parameters(), *module.named_buffers()]}


def _digest(value: torch.Tensor) -> str:
    flat = value.detach().cpu().reshape(-1).contiguous().view(torch.uint8)
    return hashlib.blake2b(flat.numpy().data, digest_size=16).hexdigest()


def group_of(name: str) -> str:
    """The part that a parameter of a stage belongs to; what starts at zero and LoRA's A and B are apart."""
    part = part_of(name.removeprefix("network."))
    if ".lora_" in name:
        return f"{part} {'A' if '.lora_A' in name else 'B'}"
    if "zero_conv" in name:
        return "zero_convolutions"
    return f"{part} out" if ".lr_attention.to_out" in name else part


def may_be_idle(name: str) -> bool:
    """Whether it makes queries or keys of the prompt: with a single token the softmax over it is always 1."""
    return ".attn2.to_q." in name or ".attn2.to_k." in name


def steps_until_all_learn(config: TrainConfig) -> int:
    """Steps after which every trained tensor must have had a gradient.

    Zero convolutions and LoRA's B in the U-Net learn first; only then is there a gradient for DPM, SPM and B
    of the VAE's LoRA behind them, and one step later for what lies behind a zero there: A, and the window
    attention behind its output projection. A U-Net of our own ends in a zero convolution: a step more.
    """
    return 3 if config.model.base_model is not None else 4


def is_as_intended(seen: Seen, config: TrainConfig) -> bool:
    """Whether nothing frozen changed, something trained did and, after enough steps, all of it learns."""
    complete = not seen["silent"] or len(seen["gradients"]) < steps_until_all_learn(config)
    return not seen["changed_though_frozen"] and seen["changed"] > 0 and complete


def report(seen: Seen) -> str:
    """Sentences, and a table of the gradient's norm by group and step."""
    frozen, silent = seen["changed_though_frozen"], seen["silent"]
    steps = range(1, len(seen["gradients"]) + 1)
    lines = [
        f"trained tensors: {seen['changed']} of {seen['tensors']} changed; {len(silent)} never had a gradient"
        f"{_names(silent)}, {len(seen['idle'])} cannot have one with a single prompt token",
        f"frozen tensors: {len(frozen)} of {seen['frozen']} changed{_names(frozen)}",
        "",
        "| gradient's norm (tensors with one) | " + " | ".join(f"step {n}" for n in steps) + " |",
        "|---|" + "---|" * len(steps),
    ]
    for group in seen["gradients"][0]:
        cells = [f"{norm:.2e} ({k}/{of})" for norm, k, of in (step[group] for step in seen["gradients"])]
        lines.append(f"| {group} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _names(names: list[str]) -> str:
    return f" ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})" if names else ""
