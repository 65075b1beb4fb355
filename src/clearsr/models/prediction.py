"""What the network's output means: epsilon, v, or our `lr_anchored`; each is read as a prediction of z_0.

`lr_anchored` is our own extension: x_lr and the posterior variance of E' are taken as a Gaussian guess of
z_hr, and the network learns only what is left. Symbols: a = alpha-bar(t), v² = (1-a)/a the noise variance of
z_t/√a, s² = variance of z_hr - x_lr (E''s posterior, per element), y = z_t/√a - x_lr = residual + v·noise.
With f the output:
    network input  y / √(s² + v²)                       (unit variance)
    z_0          = x_lr + s²/(s²+v²)·y + (s·v/√(s²+v²))·f
where f has unit variance and f = 0 is the best linear guess: the preconditioning of Karras et al. 2022 (EDM)
applied to the residual. Where E' is sure (s near 0: flat areas) z_0 is x_lr whatever the noise; at f = 0
everywhere it is never worse than E' alone.
"""

from typing import Literal

import torch

from clearsr.models.latent_lr_embedding import LatentLR

Prediction = Literal["epsilon", "v_prediction", "lr_anchored"]

# Stable Diffusion's noise schedule: the square roots of beta grow linearly.
TRAIN_TIMESTEPS = 1000
BETAS = 0.00085, 0.012


def alpha_bars(device: str | None = None) -> torch.Tensor:
    """alpha-bar(t) for t = 0..999, float32, on torch's default device or another."""
    first, last = BETAS[0] ** 0.5, BETAS[1] ** 0.5
    betas = torch.linspace(first, last, TRAIN_TIMESTEPS, dtype=torch.float32, device=device) ** 2
    return torch.cumprod(1 - betas, dim=0)


def network_input(
    prediction: Prediction, z_t: torch.Tensor, alpha_bar: torch.Tensor, embedding: LatentLR
) -> torch.Tensor:
    """What the U-Net sees of z_t (B×c×h×w); `alpha_bar` is B×1×1×1 or a scalar."""
    if prediction != "lr_anchored":
        return z_t
    noise_variance = (1 - alpha_bar) / alpha_bar
    return (z_t / alpha_bar.sqrt() - embedding.mean) / (embedding.std**2 + noise_variance).sqrt()


def predicted_z_0(
    prediction: Prediction,
    output: torch.Tensor,
    z_t: torch.Tensor,
    alpha_bar: torch.Tensor,
    embedding: LatentLR,
) -> torch.Tensor:
    """z_0 as the network's output says."""
    if prediction == "epsilon":
        return (z_t - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()
    if prediction == "v_prediction":
        return alpha_bar.sqrt() * z_t - (1 - alpha_bar).sqrt() * output
    linear, spread = _anchor(z_t, alpha_bar, embedding)
    return linear + spread * output


def training_target(
    prediction: Prediction,
    z_0: torch.Tensor,
    noise: torch.Tensor,
    alpha_bar: torch.Tensor,
    embedding: LatentLR,
) -> torch.Tensor:
    """The output that `predicted_z_0` would turn into the true z_0 (the paper's setting: Eq. 1's epsilon)."""
    if prediction == "epsilon":
        return noise
    if prediction == "v_prediction":
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * z_0
    z_t = alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * noise
    linear, spread = _anchor(z_t, alpha_bar, embedding)
    return (z_0 - linear) / spread


def _anchor(
    z_t: torch.Tensor, alpha_bar: torch.Tensor, embedding: LatentLR
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best linear guess of z_0 from z_t and x_lr, and the standard deviation of what it leaves open."""
    noise_variance = (1 - alpha_bar) / alpha_bar
    residual_variance = embedding.std**2
    total = residual_variance + noise_variance
    linear = embedding.mean + residual_variance / total * (z_t / alpha_bar.sqrt() - embedding.mean)
    return linear, (residual_variance * noise_variance / total).sqrt()
