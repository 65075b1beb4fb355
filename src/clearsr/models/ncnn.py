"""Weights as ncnn stores them: a text that lists layers (`.param`), and their numbers in that order (`.bin`).

Convolutions alone have numbers here; a layer of another kind that would have some is refused. What the layers
compute is not looked at. The format: https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clearsr.errors import ClearSRError

_MAGIC = "7767517"  # the first line of a .param file
_WITHOUT_NUMBERS = ("Input", "Split", "Concat", "Eltwise", "BinaryOp", "Interp")
# What the weights that follow are stored in.
_TAGS: dict[int, np.dtype[Any]] = {0x01306B47: np.dtype("<f2"), 0: np.dtype("<f4")}


@torch.no_grad()
def load_convolutions(network: nn.Module, param: Path, bin: Path) -> None:
    """Fill a network's convolutions, in the order in which they are registered, from the two files.

    Args:
        network: its parameters are those of `nn.Conv2d` with a bias, and nothing else.

    Raises:
        ClearSRError: a file cannot be read, or its layers or sizes are not the network's. The network may be
            filled in part then.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    _check_sizes(_listed(param), layers, param)
    try:
        content = bin.read_bytes()
    except OSError as error:
        raise ClearSRError(f"{bin}: cannot be read ({error.strerror})") from None
    position = 0
    for layer in layers:
        assert layer.bias is not None, "a convolution without a bias is stored otherwise"
        tag = _numbers(content, position, 1, np.dtype("<u4"), bin)
        dtype = _TAGS.get(int(tag[0]))
        if dtype is None:
            accepted = ", ".join(f"{tag:#010x}" for tag in _TAGS)
            raise ClearSRError(
                f"{bin}: has weights of the kind {int(tag[0]):#010x} at byte {position}; accepted: {accepted}"
            )
        position += 4
        weight = _numbers(content, position, layer.weight.numel(), dtype, bin)
        position += -(-weight.nbytes // 4) * 4  # filled up to whole words
        bias = _numbers(content, position, layer.bias.numel(), np.dtype("<f4"), bin)
        position += bias.nbytes
        layer.weight.copy_(torch.from_numpy(weight.astype(np.float32)).view_as(layer.weight))
        layer.bias.copy_(torch.from_numpy(bias.astype(np.float32)))
    if position != len(content):
        raise ClearSRError(f"{bin}: {len(content) - position} bytes are left over after the last layer")


def _check_sizes(listed: Sequence[tuple[int, int, int]], layers: Sequence[nn.Conv2d], param: Path) -> None:
    """See that the listed convolutions are the network's, one by one."""
    if len(listed) != len(layers):
        raise ClearSRError(f"{param}: lists {len(listed)} convolutions; expected {len(layers)}")
    for number, (found, layer) in enumerate(zip(listed, layers, strict=True), 1):
        expected = (layer.out_channels, layer.kernel_size[0], layer.weight.numel())
        if found != expected:
            raise ClearSRError(
                f"{param}: convolution {number} has {found[0]} outputs, a kernel of {found[1]} and "
                f"{found[2]} weights; expected {expected[0]}, {expected[1]} and {expected[2]}"
            )


def _listed(param: Path) -> list[tuple[int, int, int]]:
    """(outputs, side of the kernel, number of weights) of every convolution, in order."""
    try:
        lines = param.read_text("ascii").splitlines()
    except OSError as error:
        raise ClearSRError(f"{param}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ClearSRError(f"{param}: is no list of ncnn's layers (not a text)") from None
    if len(lines) < 2 or lines[0].strip() != _MAGIC:
        raise ClearSRError(f"{param}: is no list of ncnn's layers (it starts with {_MAGIC})")
    layers = [line.split() for line in lines[2:] if line.strip()]
    if lines[1].split()[:1] != [str(len(layers))]:
        raise ClearSRError(f"{param}: has {len(layers)} layers, and says {lines[1]!r}; it may be cut off")
    return [found for fields in layers if (found := _convolution(fields, param)) is not None]


def _convolution(fields: Sequence[str], param: Path) -> tuple[int, int, int] | None:
    """What a line says of a convolution; None for a layer without numbers.

    A line has type, name, how many inputs and outputs there are, their names, and then `key=value`.
    """
    unclear = ClearSRError(f"{param}: a layer cannot be understood: {' '.join(fields)}")
    try:
        names = int(fields[2]) + int(fields[3])
        values = dict(field.split("=", 1) for field in fields[4 + names :])
    except (ValueError, IndexError):
        raise unclear from None
    if len(fields) < 4 + names:
        raise unclear
    if fields[0] in _WITHOUT_NUMBERS:
        return None
    if fields[0] != "Convolution":
        known = ", ".join(("Convolution", *_WITHOUT_NUMBERS))
        raise ClearSRError(f"{param}: has a layer {fields[0]}; accepted: {known}")
    try:
        outputs, kernel, has_bias, weights = (int(values.get(key, "0")) for key in ("0", "1", "5", "6"))
    except ValueError:
        raise unclear from None
    if not has_bias:
        raise ClearSRError(f"{param}: has a convolution without a bias: {' '.join(fields)}")
    return outputs, kernel, weights


def _numbers(content: bytes, position: int, count: int, dtype: np.dtype, bin: Path) -> np.ndarray:
    """`count` numbers from a position on; they are finite, and the file has them."""
    if position + count * dtype.itemsize > len(content):
        raise ClearSRError(f"{bin}: ends early, at byte {len(content)}; it may be cut off")
    values = np.frombuffer(content, dtype, count, position)
    if not np.isfinite(values).all():
        raise ClearSRError(f"{bin}: has weights that are no numbers, from byte {position} on")
    return values
