"""What frequencies features hold (Figures 4 and 9): around a window cross-attention, and from DPM and SPM.

Before and after: the tokens of a DPM block as they enter the window cross-attention, and with what it adds.
DPM and SPM: the shares of both in a control signal. Both pass the zero convolution, which is linear, so the
control signal is the sum of the two (and a bias, which has no frequency).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from clearsr.config.analysis import AnalysisConfig
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
from clearsr.paper.figures.spectra import high_frequency_share, power_spectrum, radial_profile
from clearsr.pipeline.pipeline import ClearSRPipeline

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
