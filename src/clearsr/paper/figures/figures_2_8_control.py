"""Control signals and the constraint that x_lr puts on them (Figures 2 and 8; section 3.2 and appendix B).

The constraint is what ClearSR adds to a ControlNet: the window cross-attentions in the DPM, and the SPM. The
paper compares its model with a ControlNet trained without both. With one model at hand each can be switched
off in it: that shows what they do in this model, not what a ControlNet trained alone would have learnt; with
a second, so trained model the comparison is the paper's.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clearsr.config.evaluation import AnalysisConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError
from clearsr.image import resize
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.paper.figures.figure_pairs import Pair
from clearsr.paper.figures.hooks import window_attention_layers, without_cross_attention
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.sampling.schedule import make_solver

# How far control signals lie from x_lr: the Kullback-Leibler divergences of Figures 2 and 8, written down.
#
# The paper names D_kl "between the control signals and the latent LR embeddings" and gives no formula; the
# two tensors share neither channels nor grid. Two readings are measured here, both in nats and
# D(P ‖ Q) = Σ P·ln(P/Q), P from the control signal and Q from x_lr. Neither changes when a tensor is scaled,
# or a channel is shifted.
#
# spatial  where there is activity. P(i) ∝ the root mean square over channels of the signal at cell i, after
#          each channel's mean over the cells is taken off; Q likewise from x_lr, whose mean squares are first
#          averaged over the cells that each cell of the signal covers. 0: both are lively in the same places.
# values   which values occur. Each tensor is standardised per channel; P and Q are the histograms of its
#          values in 64 bins of equal width over [-4, 4], the outer two open, with half a count added to each.
DEFINITIONS = ("spatial", "values")
BINS, REACH = 64, 4.0
_FLOOR = 1e-6  # share of the mean activity that every cell has at least, so that no cell has none


def divergences(signal: Tensor, z_lr: Tensor) -> dict[str, float]:
    """Both divergences of one control signal, C×h×w, from x_lr, c×H×W, in nats, by their names."""
    grid = (signal.shape[-2], signal.shape[-1])
    return {
        "spatial": kl_divergence(activity(signal), activity(z_lr, grid)),
        "values": kl_divergence(value_histogram(signal), value_histogram(z_lr)),
    }


def kl_divergence(p: Tensor, q: Tensor) -> float:
    """D(P ‖ Q) in nats of two distributions of one shape; both sum to one and Q is nowhere zero."""
    return float(torch.special.xlogy(p, p / q).sum())


def activity(features: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """Where C×H×W features are lively, as a distribution over `grid` (unset: their own H×W), float64."""
    values = features.detach().cpu().double()
    deviation = values - values.mean(dim=(-2, -1), keepdim=True)
    energy = deviation.square().mean(dim=0, keepdim=True)
    if grid is not None:
        energy = F.adaptive_avg_pool2d(energy, grid)
    magnitude = energy[0].sqrt()
    mean = magnitude.mean()
    if mean == 0:
        return torch.full_like(magnitude, 1 / magnitude.numel())
    raised = magnitude + _FLOOR * mean
    return raised / raised.sum()


def value_histogram(features: Tensor) -> Tensor:
    """Histogram of C×H×W features standardised per channel, as a distribution over `BINS` values, float64.

    A channel that is constant counts as zeros.
    """
    values = features.detach().cpu().double()
    deviation = values - values.mean(dim=(-2, -1), keepdim=True)
    spread = deviation.square().mean(dim=(-2, -1), keepdim=True).sqrt()
    standard = torch.where(spread > 0, deviation / spread.clamp_min(1e-300), 0.0)
    inside = standard.flatten().clamp(-REACH, REACH)
    counts = torch.histc(inside, BINS, -REACH, REACH) + 0.5
    return counts / counts.sum()


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


Variant = Literal["full", "no_cross_attention", "no_structure", "controlnet"]
VARIANTS: dict[Variant, str] = {
    "full": "as it is",
    "no_cross_attention": "cross-attention off",
    "no_structure": "SPM off",
    "controlnet": "both off: its ControlNet alone",
}
AGAINST = "against"  # the second model, as it is

Divergences = dict[str, list[float]]  # by definition: one value per control signal, the middle's last


@dataclass(frozen=True)
class ControlPictures:
    """One image of Figure 2; pictures are 3×H×W in [0, 1].

    Attributes:
        lr: the bicubic-upsampled LR image.
        embedding: principal components of x_lr.
        signals: those of the shown control signal, by variant.
        explained: share of the variance that the three components hold, by variant and for `embedding`.
    """

    lr: torch.Tensor
    embedding: torch.Tensor
    signals: dict[str, torch.Tensor]
    explained: dict[str, float]


@dataclass
class ControlStudy:
    """Divergences of the control signals from x_lr, image by image.

    Attributes:
        timesteps: at which control signals were computed; divergences are means over them.
        shown: index of the control signal in the pictures.
        images: names.
        divergence: by variant, one entry per image.
        pictures: of the first images.
    """

    timesteps: list[int]
    shown: int
    images: list[str] = field(default_factory=list)
    divergence: dict[str, list[Divergences]] = field(default_factory=dict)
    pictures: list[ControlPictures] = field(default_factory=list)

    @property
    def without(self) -> str:
        """The variant that stands for the model without the constraint."""
        return AGAINST if AGAINST in self.divergence else "controlnet"

    def means(self, variant: str, definition: str) -> list[float]:
        """D_kl per image: the mean over all control signals."""
        return [sum(d[definition]) / len(d[definition]) for d in self.divergence[variant]]

    def differences(self, definition: str) -> list[float]:
        """Diff per image (Eq. 5): D_kl without the constraint less D_kl with it."""
        pairs = zip(self.means(self.without, definition), self.means("full", definition), strict=True)
        return [without - with_ for without, with_ in pairs]

    def as_dict(self) -> dict[str, Any]:
        """Everything measured, in JSON's types."""
        return {
            "timesteps": self.timesteps,
            "shown_signal": self.shown,
            "without_constraint": self.without,
            "images": self.images,
            "divergence_per_signal": self.divergence,
            "divergence": {v: {d: self.means(v, d) for d in DEFINITIONS} for v in self.divergence},
            "difference": {d: self.differences(d) for d in DEFINITIONS},
            "explained_variance": [picture.explained for picture in self.pictures],
        }


def study_control(
    pipeline: ClearSRPipeline,
    pairs: Iterable[Pair],
    sampling: SamplingConfig,
    config: AnalysisConfig,
    against: ClearSRPipeline | None = None,
    on_image: Callable[[str], None] | None = None,
) -> ControlStudy:
    """Measure every variant on every image, at fixed timesteps of the run that `sampling` describes.

    Args:
        against: a model without the constraint; its control signals are measured against its own x_lr.
        on_image: called with the name of each image before it is worked on.
    """
    timesteps = visited_timesteps(sampling, config.timesteps)
    study = ControlStudy(timesteps, shown_signal(pipeline.network, config.signal))
    for pair in pairs:
        if on_image is not None:
            on_image(pair.name)
        pixels, z_lr = embed(pipeline, pair, sampling)
        sources: dict[str, tuple[ClearSRNetwork, torch.Tensor, Variant]] = {
            variant: (pipeline.network, z_lr, variant) for variant in VARIANTS
        }
        if against is not None:
            sources[AGAINST] = (against.network, embed(against, pair, sampling)[1], "full")
        to_show: dict[str, torch.Tensor] = {"x_lr": z_lr[0]}
        for name, (network, embedding, variant) in sources.items():
            measured, to_show[name] = _measure(network, embedding, variant, timesteps, study.shown)
            study.divergence.setdefault(name, []).append(measured)
        study.images.append(pair.name)
        if len(study.pictures) < config.rows:
            components = {name: principal_components(features) for name, features in to_show.items()}
            study.pictures.append(_pictures(pixels, components))
    return study


def visited_timesteps(sampling: SamplingConfig, count: int) -> list[int]:
    """At most `count` of the timesteps of a run, from its first to its last at equal distances.

    Raises:
        ClearSRError: the run has no steps.
    """
    if sampling.steps == 0:
        raise ClearSRError("--steps 0: there is no run to look into; give 1 or more")
    timesteps = [round(float(t)) for t in make_solver(sampling, torch.device("cpu")).timesteps]
    count = min(count, len(timesteps))
    places = [round(i * (len(timesteps) - 1) / max(1, count - 1)) for i in range(count)]
    return [timesteps[place] for place in places]


def embed(
    pipeline: ClearSRPipeline, pair: Pair, sampling: SamplingConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The upsampled LR image, 3×H×W in [0, 1], and x_lr, 1×c×h×w."""
    pixels = pipeline.steps.prepare(pair.lr, sampling)
    return pixels, pipeline.steps.condition(pixels[None].to(pipeline.device), sampling).embedding.mean


@torch.no_grad()
def control_signals(
    network: ClearSRNetwork, z_lr: torch.Tensor, timestep: int, variant: Variant = "full"
) -> list[torch.Tensor]:
    """x_c of one variant at a timestep: B×C×h×w per skip connection, finest first, and the middle's."""
    times = torch.full((len(z_lr),), timestep, device=z_lr.device)
    text = network.null_prompt.expand(len(z_lr), -1, -1).to(z_lr.dtype)
    structure = None if variant in ("no_structure", "controlnet") else network.structure_features(z_lr)
    is_off = variant in ("no_cross_attention", "controlnet")
    with without_cross_attention(network) if is_off else nullcontext():
        signals = network.control_signals(z_lr, times, text, structure)
    return [*signals.skips, signals.middle]


def shown_signal(network: ClearSRNetwork, chosen: int | None = None) -> int:
    """Index of the control signal to show: `chosen`, or the last on the grid of the first cross-attention.

    Raises:
        ClearSRError: there is no control signal of that number.
    """
    ratios = signal_ratios(network)
    if chosen is not None:
        if chosen >= len(ratios):
            raise ClearSRError(f"--signal {chosen}: this model has control signals 0 to {len(ratios) - 1}")
        return chosen
    layers = list(window_attention_layers(network).values())
    finest = layers[0].ratio if layers else 1
    return max(index for index, ratio in enumerate(ratios[:-1]) if ratio == finest)


def signal_ratios(network: ClearSRNetwork) -> list[int]:
    """How many times coarser than the latent grid each control signal is; the middle's is last."""
    ratios, ratio = [1], 1
    for block in network.detail_preserving.down_blocks:
        ratios += [ratio] * len(block.resnets)
        if block.downsamplers:
            ratio *= 2
            ratios.append(ratio)
    return [*ratios, ratio]


def _measure(
    network: ClearSRNetwork, z_lr: torch.Tensor, variant: Variant, timesteps: list[int], shown: int
) -> tuple[Divergences, torch.Tensor]:
    """Divergences per signal, means over the timesteps, and the shown signal C×h×w at the middle timestep."""
    passes: list[list[dict[str, float]]] = []
    kept = torch.empty(0)
    for index, timestep in enumerate(timesteps):
        signals = control_signals(network, z_lr, timestep, variant)
        passes.append([divergences(signal[0], z_lr[0]) for signal in signals])
        if index == len(timesteps) // 2:
            kept = signals[min(shown, len(signals) - 1)][0]
    mean = {
        definition: [
            sum(values) / len(values)
            for values in zip(*([s[definition] for s in p] for p in passes), strict=True)
        ]
        for definition in DEFINITIONS
    }
    return mean, kept


def _pictures(pixels: torch.Tensor, components: dict[str, Components]) -> ControlPictures:
    """Components turned so that they are bright where the LR image is."""
    luma = pixels.mean(dim=0)[None, None]

    def draw(part: Components) -> torch.Tensor:
        return component_picture(part, resize(luma, (part.maps.shape[1], part.maps.shape[2]))[0, 0])

    signals = {name: draw(part) for name, part in components.items() if name != "x_lr"}
    explained = {name: float(part.explained.sum()) for name, part in components.items()}
    return ControlPictures(pixels, draw(components["x_lr"]), signals, explained)
