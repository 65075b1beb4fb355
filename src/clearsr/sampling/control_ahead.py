"""Control signals for several timesteps at once (the DPM sees x_lr and t, but not z_t).

The work is the same, in fewer and larger passes: on small pictures, where a pass is mostly overhead, that is
several times faster. The result is that of one timestep at a time, up to rounding.
"""

import torch

from clearsr.models.clearsr import ClearSRNetwork, ControlSignals

# Latents in one pass; a pass over more of them is no faster per latent. 64 x 64 is a picture of 512 pixels.
CELLS_AT_ONCE = 4096


def chunk_length(height: int, width: int) -> int:
    """How many timesteps of a grid of latents make a pass of `CELLS_AT_ONCE`; 1 for large pictures.

    It does not depend on how many pictures are in a batch: nor must the result.
    """
    return max(1, CELLS_AT_ONCE // (height * width))


class ControlAhead:
    """x_c of a run's timesteps under the null prompt, held for one chunk of them."""

    def __init__(
        self,
        network: ClearSRNetwork,
        z_lr: torch.Tensor,
        structure: list[torch.Tensor] | None,
        timesteps: torch.Tensor,
        length: int,
    ) -> None:
        """`z_lr` is x_lr, B×c×h×w; `structure` the SPM's features of it; `length` timesteps make a chunk."""
        self._network, self._z_lr, self._structure = network, z_lr, structure
        self._timesteps = timesteps.to(z_lr.device).round().long()
        self._length = length
        self._first, self._chunk = -1, ControlSignals([], z_lr)

    def at(self, step: int) -> ControlSignals:
        """Those of one step, counted from 0; steps may be asked for in any order and more than once."""
        first = step // self._length * self._length
        if first != self._first:
            self._first, self._chunk = first, self._compute(first)
        batch = len(self._z_lr)
        rows = slice((step - first) * batch, (step - first + 1) * batch)
        return ControlSignals([skip[rows] for skip in self._chunk.skips], self._chunk.middle[rows])

    def _compute(self, first: int) -> ControlSignals:
        """A chunk as one batch: all pictures at the first timestep, all at the second, and so on."""
        network, batch = self._network, len(self._z_lr)
        timesteps = self._timesteps[first : first + self._length]
        count = len(timesteps)
        text = network.null_prompt.expand(count * batch, -1, -1).to(self._z_lr.dtype)
        structure = None
        if self._structure is not None:
            structure = [_repeat(features, count) for features in self._structure]
        return network.control_signals(
            _repeat(self._z_lr, count), timesteps.repeat_interleave(batch), text, structure
        )


def _repeat(rows: torch.Tensor, count: int) -> torch.Tensor:
    """B×... -> (count·B)×..., the whole batch again and again."""
    return rows.repeat(count, *[1] * (rows.ndim - 1))
