"""How far control signals lie from x_lr: the Kullback-Leibler divergences of Figures 2 and 8, written down.

The paper names D_kl "between the control signals and the latent LR embeddings" and gives no formula; the two
tensors share neither channels nor grid. Two readings are measured here, both D(P ‖ Q) = Σ P·ln(P/Q) in nats,
P from the control signal and Q from x_lr. Neither changes when a tensor is scaled, or a channel is shifted.

spatial  where there is activity. P(i) ∝ the root mean square over channels of the signal at cell i, after
         each channel's mean over the cells is taken off; Q likewise from x_lr, whose mean squares are first
         averaged over the cells that each cell of the signal covers. 0: both are lively in the same places.
values   which values occur. Each tensor is standardised per channel; P and Q are the histograms of its values
         in 64 bins of equal width over [-4, 4], the outer two open, with half a count added to each bin.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

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
