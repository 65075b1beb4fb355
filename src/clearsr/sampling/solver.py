"""Solvers: one step from z_t to the following timestep, for networks that predict z_0. They hold no state.

What a step wants to know of earlier ones is given to it and returned by it, as large as the latents: whoever
runs the loop decides where that lies and how many rows are stepped at once. Our own DPM-Solver++ gives the
same numbers as diffusers' `DPMSolverMultistepScheduler` (a test compares the two), without the seconds that
importing diffusers takes; its other schedulers stand behind the same signature.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch


class Solver(Protocol):
    """A run's solver; `i` counts its steps from 0.

    Attributes:
        timesteps: of the run, descending.
    """

    timesteps: torch.Tensor

    def start(self, noise: torch.Tensor, z_0: torch.Tensor | None = None) -> torch.Tensor:
        """z_T: `noise` as strong as the first timestep has it, on `z_0` if there is one."""
        ...

    def seen(self, z_t: torch.Tensor, i: int) -> torch.Tensor:
        """z_t on the scale that the network knows."""
        ...

    def step(
        self,
        z_0: torch.Tensor,
        z_t: torch.Tensor,
        i: int,
        previous: Sequence[torch.Tensor] = (),
        generators: Sequence[torch.Generator] = (),
    ) -> list[torch.Tensor]:
        """z at the following timestep, and what the next step takes as `previous`.

        Args:
            z_0: as predicted, B×c×h×w.
            previous: what the step before returned behind its z; nothing at first.
            generators: one per image, for solvers that draw.
        """
        ...


class DPMSolver:
    """DPM-Solver++ (Lu et al. 2022), multistep, of first or second order; the first is DDIM.

    Symbols: z_t = a·z_0 + s·noise, l = log(a/s).
    """

    def __init__(
        self, alpha_bars: torch.Tensor, timesteps: list[int], order: int, device: torch.device
    ) -> None:
        """`alpha_bars` of the training schedule; `timesteps` descending; `order` 1 or 2."""
        self.timesteps = torch.tensor(timesteps, device=device)
        self._order, self._first = order, alpha_bars[timesteps[:1]].view(-1, 1, 1, 1)
        chosen = alpha_bars[timesteps].tolist()
        # Plain numbers, not tensors: some accelerators have no float64. The run ends at z_0, without noise.
        self._a = [*(math.sqrt(alpha_bar) for alpha_bar in chosen), 1.0]
        self._s = [*(math.sqrt(1 - alpha_bar) for alpha_bar in chosen), 0.0]

    def start(self, noise: torch.Tensor, z_0: torch.Tensor | None = None) -> torch.Tensor:
        """See `Solver`."""
        if z_0 is None:
            return noise
        alpha_bar = self._first.to(z_0)
        return alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * noise

    def seen(self, z_t: torch.Tensor, i: int) -> torch.Tensor:
        """z_t itself."""
        return z_t

    def step(
        self,
        z_0: torch.Tensor,
        z_t: torch.Tensor,
        i: int,
        previous: Sequence[torch.Tensor] = (),
        generators: Sequence[torch.Generator] = (),
    ) -> list[torch.Tensor]:
        """See `Solver`; `previous` is the z_0 of the step before, where the order is 2."""
        a, s, after = self._a, self._s, i + 1
        estimate = z_0
        if previous and s[after] > 0:
            ratio = (self._l(i) - self._l(i - 1)) / (self._l(after) - self._l(i))
            estimate = z_0 + (z_0 - previous[0]) / (2 * ratio)
        decay = s[after] * a[i] / (a[after] * s[i])
        z_next = s[after] / s[i] * z_t + a[after] * (1 - decay) * estimate
        is_wanted = self._order == 2 and after < len(self.timesteps)
        return [z_next, z_0] if is_wanted else [z_next]

    def _l(self, index: int) -> float:
        return math.log(self._a[index] / self._s[index])


class DiffusersSolver:
    """A scheduler of diffusers. Each step is that of a copy, which is told where the run is."""

    def __init__(self, scheduler: Any, draws: bool = False, order: int = 1) -> None:
        """`scheduler` has its timesteps set.

        Args:
            draws: its steps take generators.
            order: 2 for UniPC, the one that remembers earlier predictions.
        """
        self.timesteps: torch.Tensor = scheduler.timesteps
        self._scheduler, self._draws, self._order = scheduler, draws, order

    def start(self, noise: torch.Tensor, z_0: torch.Tensor | None = None) -> torch.Tensor:
        """See `Solver`."""
        if z_0 is None:
            return noise * self._scheduler.init_noise_sigma
        return self._scheduler.add_noise(z_0, noise, self.timesteps[:1].expand(len(z_0)))

    def seen(self, z_t: torch.Tensor, i: int) -> torch.Tensor:
        """See `Solver`."""
        return self._at(i).scale_model_input(z_t, self.timesteps[i])

    def step(
        self,
        z_0: torch.Tensor,
        z_t: torch.Tensor,
        i: int,
        previous: Sequence[torch.Tensor] = (),
        generators: Sequence[torch.Generator] = (),
    ) -> list[torch.Tensor]:
        """See `Solver`; for UniPC `previous` is its last predictions of z_0 and the z_t that it corrects."""
        scheduler, t = self._at(i), self.timesteps[i]
        if self._order > 1:
            self._recall(scheduler, i, previous)
        scheduler.scale_model_input(z_t[..., :1, :1], t)  # Euler complains if it is not
        drawing = {"generator": list(generators)} if self._draws else {}
        z_next = scheduler.step(z_0, t, z_t, **drawing).prev_sample
        if self._order == 1 or i + 1 == len(self.timesteps):
            return [z_next]
        outputs = [output for output in scheduler.model_outputs if output is not None]
        return [z_next, *outputs, scheduler.last_sample]

    def _at(self, i: int) -> Any:
        """A copy that stands before step `i`; DDPM's knows that from the timestep."""
        scheduler = copy.copy(self._scheduler)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(i)
        return scheduler

    def _recall(self, scheduler: Any, i: int, previous: Sequence[torch.Tensor]) -> None:
        """Have UniPC remember what it would after `i` steps: its orders follow from how many there were."""
        order, left = self._order, len(self.timesteps) - i
        *outputs, scheduler.last_sample = previous or (None,)
        scheduler.model_outputs = [None] * (order - len(outputs)) + outputs
        scheduler.lower_order_nums = min(i, order)
        scheduler.this_order = min(order, left + 1, i)
