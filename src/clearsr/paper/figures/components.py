"""Features as pictures: their first three principal components as red, green and blue (Figure 2)."""

from typing import NamedTuple

import torch
from torch import Tensor

_LOWEST, _HIGHEST = 0.01, 0.99  # quantiles that become black and full colour


class Components(NamedTuple):
    """Principal components of a map.

    Attributes:
        maps: k×h×w, the features projected on the components, strongest first.
        explained: k shares of the features' variance.
    """

    maps: Tensor
    explained: Tensor


def principal_components(features: Tensor, count: int = 3) -> Components:
    """The first components of C×h×w features, whose cells are the samples; float64 on the CPU.

    Where there are fewer than `count`, the rest is zero. The sign of a component is arbitrary.
    """
    channels, height, width = features.shape
    samples = features.detach().cpu().double().reshape(channels, -1).T
    samples = samples - samples.mean(dim=0)
    left, strengths, _ = torch.linalg.svd(samples, full_matrices=False)
    maps = torch.zeros(count, height * width, dtype=torch.float64)
    explained = torch.zeros(count, dtype=torch.float64)
    found = min(count, len(strengths))
    maps[:found] = (left[:, :found] * strengths[:found]).T
    energy = strengths.square()
    explained[:found] = energy[:found] / energy.sum().clamp_min(1e-300)
    return Components(maps.reshape(count, height, width), explained)


def component_picture(components: Components, guide: Tensor) -> Tensor:
    """Components as a picture 3×h×w in [0, 1]; each is turned so that it is bright where `guide` (h×w) is.

    Without that, two pictures of like features could differ by inverted colours.
    """
    shade = guide.detach().cpu().double()
    deviation = shade - shade.mean()
    signs = torch.sign((components.maps * deviation).sum(dim=(-2, -1))).masked_fill_(
        components.explained == 0, 1
    )
    turned = components.maps * torch.where(signs == 0, 1.0, signs)[:, None, None]
    ends = torch.quantile(turned.flatten(1), torch.tensor([_LOWEST, _HIGHEST], dtype=torch.float64), dim=1)
    low, high = ends[0][:, None, None], ends[1][:, None, None]
    return ((turned - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
