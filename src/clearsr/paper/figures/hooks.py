"""Reading a network while it runs: forward hooks, installed and removed by context managers.

Nothing in a model is written to. What switches a part off replaces its output within the block only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from clearsr.models.clearsr import ClearSRNetwork
from clearsr.models.window_attention import WindowCrossAttention


@dataclass
class Recording:
    """What the control branch computed in its last pass.

    Attributes:
        detail: the DPM's features before the zero convolutions, one B×C×h×w per skip connection.
        structure: the SPM's, likewise; empty without SPM.
        before: features before each window cross-attention, B×C×h×w, by the layer's name.
        after: the same features after it (the layer adds to them).
    """

    detail: list[torch.Tensor] = field(default_factory=list)
    structure: list[torch.Tensor] = field(default_factory=list)
    before: dict[str, torch.Tensor] = field(default_factory=dict)
    after: dict[str, torch.Tensor] = field(default_factory=dict)


@contextmanager
def recording(network: ClearSRNetwork) -> Iterator[Recording]:
    """Within the block, each pass of the DPM and the SPM overwrites the recording."""
    record = Recording()

    def keep_detail(
        _module: nn.Module, _inputs: Any, output: tuple[list[torch.Tensor], torch.Tensor]
    ) -> None:
        record.detail = list(output[0])

    def keep_structure(_module: nn.Module, _inputs: Any, output: list[torch.Tensor]) -> None:
        record.structure = list(output)

    handles = [network.detail_preserving.register_forward_hook(keep_detail)]
    if network.structure_preserving is not None:
        handles.append(network.structure_preserving.register_forward_hook(keep_structure))
    for name, layer in window_attention_layers(network).items():
        handles.append(layer.register_forward_hook(_keep_attention(record, name)))
    with _removed(handles):
        yield record


@contextmanager
def without_cross_attention(network: ClearSRNetwork) -> Iterator[None]:
    """Within the block the window cross-attentions add nothing: the DPM is a plain ControlNet."""

    def nothing(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(output)

    layers = window_attention_layers(network).values()
    with _removed([layer.register_forward_hook(nothing) for layer in layers]):
        yield


def window_attention_layers(network: ClearSRNetwork) -> dict[str, WindowCrossAttention]:
    """The DPM's window cross-attentions in the order in which they run, by short names.

    `level 1a` is the first on the grid that is half as fine as the latent one (which is level 0), `level 1b`
    the second, `middle a` that of the middle block.
    """
    counts: dict[str, int] = {}
    layers = {}
    for name, module in network.detail_preserving.named_modules():
        if isinstance(module, WindowCrossAttention):
            place = f"level {name.split('.')[1]}" if name.startswith("down_blocks.") else "middle "
            layers[place + ascii_lowercase[counts.get(place, 0)]] = module
            counts[place] = counts.get(place, 0) + 1
    return layers


def _keep_attention(record: Recording, name: str) -> Any:
    """A hook that keeps features B×L×C before and after a layer as B×C×h×w."""

    def keep(
        layer: WindowCrossAttention, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor
    ) -> None:
        hidden, z_lr = inputs
        rows, columns = (-(-side // layer.ratio) for side in z_lr.shape[-2:])

        def as_map(tokens: torch.Tensor) -> torch.Tensor:
            return tokens.transpose(1, 2).unflatten(2, (rows, columns))

        record.before[name], record.after[name] = as_map(hidden), as_map(hidden + output)

    return keep


@contextmanager
def _removed(handles: list[RemovableHandle]) -> Iterator[None]:
    """Hooks that are removed at the end of the block, however it ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
