"""DPM-Solver++ (Lu et al. 2022), multistep, of first or second order, for networks that predict z_0.

First order is DDIM. The same numbers as diffusers' `DPMSolverMultistepScheduler` (a test compares the two),
without the seconds that importing diffusers takes. Symbols: z_t = a·z_0 + s·noise, l = log(a/s).
"""

import math
from typing import NamedTuple

import torch


class Step(NamedTuple):
    """What a step returns, as in diffusers."""

    prev_sample: torch.Tensor


class DPMSolver:
    """One run's solver; the interface is that of a diffusers scheduler whose timesteps are set."""

    init_noise_sigma = 1.0

    def __init__(
        self, alpha_bars: torch.Tensor, timesteps: list[int], order: int, device: torch.device
    ) -> None:
        """`alpha_bars` of the training schedule; `timesteps` descending; `order` 1 or 2."""
        self.timesteps = torch.tensor(timesteps, device=device)
        self._alpha_bars, self._order = alpha_bars, order
        chosen = alpha_bars[timesteps].tolist()
        # Plain numbers, not tensors: some accelerators have no float64. The run ends at z_0, without noise.
        self._a = [*(math.sqrt(alpha_bar) for alpha_bar in chosen), 1.0]
        self._s = [*(math.sqrt(1 - alpha_bar) for alpha_bar in chosen), 0.0]
        self._done = 0
        self._earlier_z_0: torch.Tensor | None = None

    def scale_model_input(self, z_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """z_t itself."""
        return z_t

    def add_noise(self, z_0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """z_t at `timesteps`, one per row."""
        alpha_bar = self._alpha_bars[timesteps.cpu()].view(-1, 1, 1, 1).to(z_0)
        return alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * noise

    def step(self, z_0: torch.Tensor, t: torch.Tensor, z_t: torch.Tensor) -> Step:
        """z at the following timestep from the predicted z_0; steps are to be made in order."""
        now, after = self._done, self._done + 1
        a, s = self._a, self._s
        estimate = z_0
        if self._order == 2 and self._earlier_z_0 is not None and s[after] > 0:
            ratio = (self._l(now) - self._l(now - 1)) / (self._l(after) - self._l(now))
            estimate = z_0 + (z_0 - self._earlier_z_0) / (2 * ratio)
        decay = s[after] * a[now] / (a[after] * s[now])
        self._done, self._earlier_z_0 = after, z_0
        return Step(s[after] / s[now] * z_t + a[after] * (1 - decay) * estimate)

    def _l(self, index: int) -> float:
        return math.log(self._a[index] / self._s[index])
