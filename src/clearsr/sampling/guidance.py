"""z_0 as the network predicts it: guided, adjusted, and from tiles where the images are large.

The prompts are the whole image's; x_lr is cut with the tiles.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from clearsr.config.sampling import SamplingConfig
from clearsr.models.clearsr import ClearSRNetwork, ControlSignals
from clearsr.models.latent_lr_embedding import LatentLR
from clearsr.models.prediction import network_input, predicted_z_0
from clearsr.sampling.latent_space_adjustment import adjust
from clearsr.sampling.solver import Solver
from clearsr.tiling import Grid, Window, blend_tiles, stack_windows, tile_windows

KEPT_TILES = 32  # with more, the SPM runs again at each step instead of holding its features for all tiles
# Latents in one pass; a pass over more of them is no faster per latent. 64 x 64 is a picture of 512 pixels.
CELLS_AT_ONCE = 4096

Prompt = tuple[torch.Tensor, torch.Tensor | None]  # tokens B×T×D, and which of them count


class Conditioning(NamedTuple):
    """Everything that the loop knows of the images."""

    embedding: LatentLR  # x_lr, B×c×h×w
    prompt: torch.Tensor  # image prompt p, B×T×D
    negative: torch.Tensor | None = None  # embedding of a non-empty negative prompt, 1×tokens×D
    counts: torch.Tensor | None = None  # tokens of `prompt` that are attended to, B×T, bool; None: all


class Tiles(NamedTuple):
    """The images' share of some windows of equal size: all images at the first, all at the second, ..."""

    conditioning: Conditioning
    structure: list[torch.Tensor] | None  # the SPM's features, which hold for every step; None: not kept

    @classmethod
    def cut(
        cls, network: ClearSRNetwork, whole: Conditioning, windows: Sequence[Window], keep: bool
    ) -> "Tiles":
        """x_lr is cut with the windows; the prompts are the whole image's."""
        embedding = whole.embedding.map(lambda part: stack_windows(part, windows))
        structure = network.structure_features(embedding.mean) if keep else None
        prompt = whole.prompt.repeat(len(windows), 1, 1)
        counts = None if whole.counts is None else whole.counts.repeat(len(windows), 1)
        return cls(Conditioning(embedding, prompt, whole.negative, counts), structure)


class Predictor:
    """The network on some images: z_0 as it predicts it at each step of a run."""

    def __init__(
        self,
        network: ClearSRNetwork,
        conditioning: Conditioning,
        config: SamplingConfig,
        solver: Solver,
        tiles_at_once: int = 1,
        on_tile: Callable[[], None] | None = None,
    ) -> None:
        """`tiles_at_once` of each image make a batch; `on_tile` is called after each."""
        self._network, self._conditioning, self._config = network, conditioning, config
        self._solver, self._on_tile = solver, on_tile
        height, width = conditioning.embedding.mean.shape[-2:]
        self._windows = windows = tile_windows(height, width, config.tile.size, config.tile.overlap)
        starts = range(0, len(windows), tiles_at_once)
        self._groups = [tuple(windows[i : i + tiles_at_once]) for i in starts]
        is_kept = len(solver.timesteps) > 1 and len(windows) <= KEPT_TILES
        self._kept = {group: self._cut(group, keep=True) for group in self._groups if is_kept}
        self._ahead = self._control_ahead()

    def __call__(self, z_t: Grid, i: int) -> Any:
        """z_0 of all images from their z_t, B×c×h×w, at step `i`; a grid as z_t."""
        return blend_tiles(self._tiles(z_t, i), z_t, self._windows)

    def _tiles(self, z_t: Grid, i: int) -> Iterator[torch.Tensor]:
        lsa, t, steps = self._config.lsa, self._solver.timesteps[i], len(self._solver.timesteps)
        control = None if self._ahead is None else self._ahead.at(i)
        for group in self._groups:
            tiles = self._kept.get(group) or self._cut(group, keep=False)
            seen = self._solver.seen(stack_windows(z_t, group), i)
            z_0 = guided_z_0(self._network, tiles, seen, t, self._config, control)
            if lsa.target == "z_0":  # before blending, which is all the same: both are means
                z_0 = adjust(z_0, tiles.conditioning.embedding.mean, i, steps, lsa)
            for tile in z_0.chunk(len(group)):
                if self._on_tile is not None:
                    self._on_tile()
                yield tile

    def _cut(self, windows: Sequence[Window], keep: bool) -> Tiles:
        return Tiles.cut(self._network, self._conditioning, windows, keep)

    def _control_ahead(self) -> "ControlAhead | None":
        """x_c of several timesteps at a time, where the picture is one small tile; else None."""
        timesteps = self._solver.timesteps
        if [len(group) for group in self._kept] != [1] or len(timesteps) == 1:
            return None
        (tile,) = self._kept.values()
        z_lr = tile.conditioning.embedding.mean
        length = chunk_length(*z_lr.shape[-2:])
        return ControlAhead(self._network, z_lr, tile.structure, timesteps, length) if length > 1 else None


def guided_z_0(
    network: ClearSRNetwork,
    tiles: Tiles,
    z_t: torch.Tensor,
    t: torch.Tensor,
    config: SamplingConfig,
    control: ControlSignals | None = None,
) -> torch.Tensor:
    """z_0 as predicted at timestep `t`, with classifier-free guidance (Ho & Salimans 2022) if it is on.

    Both branches of guidance share the U-Net encoder, the DPM and the SPM, because the image prompt enters in
    the decoder only: exact, and nearly a third less work. A non-empty negative prompt needs its own full
    pass.

    Args:
        control: x_c of the null prompt at `t`; unset: it is computed.
    """
    embedding, prompt, negative, counts = tiles.conditioning
    structure = tiles.structure
    if structure is None and (control is None or negative is not None):
        structure = network.structure_features(embedding.mean)
    prediction = network.config.prediction
    batch = len(z_t)
    timestep = t.to(z_t.device).round().long().expand(batch)
    alpha_bar = network.alpha_bars[timestep].view(-1, 1, 1, 1)
    latent = network_input(prediction, z_t, alpha_bar, embedding)

    def decode(
        text: torch.Tensor, prompts: list[Prompt], control: ControlSignals | None = None
    ) -> list[torch.Tensor]:
        """Outputs for several decoder prompts under one text in the encoder and the DPM."""
        text = text.expand(batch, -1, -1).to(latent.dtype)
        if control is None:
            control = network.control_signals(embedding.mean, timestep, text, structure)
        encoded = network.unet_encode(latent, timestep, text)
        return [network.unet_decode(encoded, control, p.to(latent.dtype), which) for p, which in prompts]

    own, null = (prompt, counts), (network.null_prompt.expand(batch, -1, -1), None)
    if config.guidance_scale == 1:
        (output,) = decode(network.null_prompt, [own], control)
    else:
        if negative is None:
            conditional, unconditional = decode(network.null_prompt, [own, null], control)
        else:
            (conditional,) = decode(network.null_prompt, [own], control)
            (unconditional,) = decode(negative, [(negative.expand(batch, -1, -1), None)])
        output = unconditional + config.guidance_scale * (conditional - unconditional)
    return predicted_z_0(prediction, output.to(z_t.dtype), z_t, alpha_bar, embedding)


# Control signals for several timesteps at once (the DPM sees x_lr and t, but not z_t). The work is the same,
# in fewer and larger passes, up to rounding: on small pictures, where a pass is mostly overhead, that is
# several times faster.


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
