"""What frequencies features hold (Figures 4 and 9): around a window cross-attention, and from DPM and SPM.

Before and after: the tokens of a DPM block as they enter the window cross-attention, and with what it adds.
DPM and SPM: the shares of both in a control signal. Both pass the zero convolution, which is linear, so the
control signal is the sum of the two (and a bias, which has no frequency).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clearsr.config.evaluation import AnalysisConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.paper.figures.figure_pairs import Pair
from clearsr.paper.figures.figures_2_8_control import (
    control_signals,
    embed,
    shown_signal,
    visited_timesteps,
)
from clearsr.paper.figures.hooks import Recording, recording, window_attention_layers
from clearsr.pipeline.pipeline import ClearSRPipeline


# Power spectra of features and their radial profiles (Figures 4 and 9).
# Each channel loses its mean and is weighted with a Hann window, without which the jump between opposite
# borders would be the loudest high frequency; powers are averaged over the channels.
class Profile(NamedTuple):
    """A spectrum by distance from its centre.

    Attributes:
        frequencies: share of the Nyquist frequency, rising, the last is 1.
        power: mean power in the ring around each frequency.
    """

    frequencies: Tensor
    power: Tensor


def power_spectrum(features: Tensor) -> Tensor:
    """|FFT|² of C×h×w features, mean over the channels: h×w float64 on the CPU, frequency 0 at h//2, w//2."""
    values = features.detach().cpu().double()
    height, width = values.shape[-2:]
    window = _hann(height, values)[:, None] * _hann(width, values)
    mean = (values * window).sum(dim=(-2, -1), keepdim=True) / window.sum()
    power = torch.fft.fft2((values - mean) * window).abs().square().mean(dim=0)
    return torch.fft.fftshift(power)


def radial_profile(power: Tensor) -> Profile:
    """Means of an h×w spectrum over rings, one for each whole frequency that the short side can hold.

    Ring k holds what rounds to k cycles per short side, k = 1 to min(h, w) // 2; the zero frequency and the
    corners beyond the Nyquist frequency are left out.
    """
    rings = min(power.shape) // 2
    radius = (_radius(power) * 2 * rings).round().long()  # Nyquist is 0.5 cycles per cell
    inside = (radius >= 1) & (radius <= rings)
    sums = torch.zeros(rings + 1, dtype=power.dtype).index_add_(0, radius[inside], power[inside])
    counts = torch.bincount(radius[inside], minlength=rings + 1)
    frequencies = torch.arange(1, rings + 1, dtype=power.dtype) / rings
    return Profile(frequencies, sums[1:] / counts[1:].clamp_min(1))


def high_frequency_share(power: Tensor) -> float:
    """Share of the power beyond half the Nyquist frequency, corners included; 0.80 for white noise."""
    total = power.sum()
    return float(power[_radius(power) > 0.25].sum() / total) if total > 0 else 0.0


def _hann(size: int, like: Tensor) -> Tensor:
    """Hann window whose zeros lie just outside the features, so that every cell counts."""
    return torch.hann_window(size + 2, periodic=False, dtype=like.dtype, device=like.device)[1:-1]


def _radius(power: Tensor) -> Tensor:
    """Cycles per cell of each entry of an h×w spectrum with zero frequency at h//2, w//2."""
    vertical, horizontal = (torch.fft.fftshift(torch.fft.fftfreq(n, dtype=power.dtype)) for n in power.shape)
    return (vertical[:, None].square() + horizontal.square()).sqrt()


ROLES = ("before", "after", "detail", "structure")


@dataclass
class SpectraStudy:
    """Spectra of the features, image by image; powers are means over channels and timesteps.

    Attributes:
        layer: name of the cross-attention that is shown.
        signal: index of the control signal that is shown.
        images: names.
        shares: power beyond half the Nyquist frequency, per image: role -> layer or signal -> share.
        spectra: h×w of the shown layer and signal, by role, per image.
    """

    timesteps: list[int]
    layer: str
    signal: int
    images: list[str] = field(default_factory=list)
    shares: list[dict[str, dict[str, float]]] = field(default_factory=list)
    spectra: list[dict[str, torch.Tensor]] = field(default_factory=list)

    def mean_shares(self) -> dict[str, dict[str, float]]:
        """Shares averaged over the images, by role and place."""
        first = self.shares[0]
        return {
            role: {
                place: sum(s[role][place] for s in self.shares) / len(self.shares) for place in first[role]
            }
            for role in first
        }

    def profiles(self, role: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Frequencies F, and N×F: each image's radial profile relative to a flat spectrum of its power.

        Profiles of larger images are read at the frequencies of the smallest.
        """
        rings = [radial_profile(spectra[role] / spectra[role].mean()) for spectra in self.spectra]
        grid = min((ring.frequencies for ring in rings), key=len)
        rows = [np.interp(grid.numpy(), ring.frequencies.numpy(), ring.power.numpy()) for ring in rings]
        return grid, torch.from_numpy(np.stack(rows))

    def as_dict(self) -> dict[str, Any]:
        """Everything measured, in JSON's types."""
        profiles = {role: self.profiles(role) for role in self.spectra[0]}
        return {
            "timesteps": self.timesteps,
            "shown_layer": self.layer,
            "shown_signal": self.signal,
            "images": self.images,
            "high_frequency_share": {"mean": self.mean_shares(), "images": self.shares},
            "radial_profile": {
                role: {
                    "frequency": grid.tolist(),
                    "power": rows.mean(dim=0).tolist(),
                    "images": rows.tolist(),
                }
                for role, (grid, rows) in profiles.items()
            },
            "spectrum": [{role: s.tolist() for role, s in spectra.items()} for spectra in self.spectra],
        }


@torch.no_grad()
def study_spectra(
    pipeline: ClearSRPipeline,
    pairs: Iterable[Pair],
    sampling: SamplingConfig,
    config: AnalysisConfig,
    on_image: Callable[[str], None] | None = None,
) -> SpectraStudy:
    """Record the control branch at fixed timesteps of the run that `sampling` describes.

    Raises:
        ClearSRError: the model has no window cross-attention or no SPM, or not the layer asked for.
    """
    network = pipeline.network
    layers = list(window_attention_layers(network))
    if not layers or network.structure_preserving is None:
        raise ClearSRError("--figure spectra: needs a model with window cross-attention and SPM")
    if config.layer >= len(layers):
        raise ClearSRError(f"--layer {config.layer}: this model has layers 0 to {len(layers) - 1}")
    timesteps = visited_timesteps(sampling, config.timesteps)
    study = SpectraStudy(timesteps, layers[config.layer], shown_signal(network, config.signal))
    if study.signal == len(network.detail_preserving.zero_convs):
        raise ClearSRError(f"--signal {study.signal}: is the middle's, to which the SPM adds nothing")
    for pair in pairs:
        if on_image is not None:
            on_image(pair.name)
        spectra = _spectra(network, embed(pipeline, pair, sampling)[1], timesteps)
        study.images.append(pair.name)
        study.shares.append(
            {r: {p: high_frequency_share(s) for p, s in places.items()} for r, places in spectra.items()}
        )
        shown = {
            "before": study.layer,
            "after": study.layer,
            "detail": str(study.signal),
            "structure": str(study.signal),
        }
        study.spectra.append({role: spectra[role][place] for role, place in shown.items()})
    return study


def _spectra(
    network: ClearSRNetwork, z_lr: torch.Tensor, timesteps: list[int]
) -> dict[str, dict[str, torch.Tensor]]:
    """Spectra by role and place, means over the timesteps."""
    sums: dict[str, dict[str, torch.Tensor]] = {role: {} for role in ROLES}
    with recording(network) as record:
        for timestep in timesteps:
            control_signals(network, z_lr, timestep)
            features = _features(network, record)
            for role, place in [(r, p) for r, places in features.items() for p in places]:
                power = power_spectrum(features[role][place][0]) / len(timesteps)
                sums[role][place] = sums[role].get(place, torch.zeros_like(power)) + power
    return sums


def _features(network: ClearSRNetwork, record: Recording) -> dict[str, dict[str, torch.Tensor]]:
    """What was recorded, by role and place."""
    convolutions = network.detail_preserving.zero_convs

    def shares(features: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        pairs = zip(convolutions, features, strict=True)
        return {str(i): F.conv2d(feature, conv.weight) for i, (conv, feature) in enumerate(pairs)}

    return {
        "before": record.before,
        "after": record.after,
        "detail": shares(record.detail),
        "structure": shares(record.structure),
    }
