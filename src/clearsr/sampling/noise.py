"""Noise, and the bands of rows that have a generator each: with the seed they decide what is drawn.

All else in a step goes cell by cell, so that bands change nothing else, and one band at a time is in memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from clearsr.seeds import make_generator
from clearsr.tiling import Grid, Window

BAND_ROWS = 64  # latent rows


class Bands:
    """The rows of some images' latents, band by band."""

    def __init__(self, like: Grid, generators: Sequence[torch.Generator]) -> None:
        """Bands other than the first get generators of their own from `generators`, one per image.

        `like` is B×c×h×w; what is computed is a grid of its kind.
        """
        self._like, (height, width) = like, like.shape[-2:]
        tops = range(0, height, BAND_ROWS)
        self._rows = [Window(top, 0, min(top + BAND_ROWS, height), width) for top in tops]
        self._generators = [
            [make_generator("band", g.initial_seed(), top) for g in generators] if top else list(generators)
            for top in tops
        ]

    def map(self, apply: Callable[..., Sequence[torch.Tensor]], *grids: Grid) -> list[Any]:
        """What `apply(generators, *parts)` returns for each band's parts of the grids, put together."""
        wholes: list[Any] = []
        for rows, generators in zip(self._rows, self._generators, strict=True):
            parts = apply(generators, *(rows.of(grid) for grid in grids))
            wholes = wholes or [self._like.new_zeros(self._like.shape) for _ in parts]
            for whole, part in zip(wholes, parts, strict=True):
                whole[rows.cells] = part
        return wholes


def draw_noise(like: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Standard normal noise of the shape of `like`, row i from generator i, drawn on the CPU."""
    rows = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
    return torch.stack(rows).to(like)
