"""The denoising loop (paper, sections 3.1 and 3.3): predict z_0, guide, adjust, step.

All images of a batch are independent: each brings its own generator. The network sees tiles; all else goes
cell by cell and is done in bands of rows, so that latents on disk (`DiskTensor`) come out as in memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from clearsr.config.sampling import SamplingConfig
from clearsr.control_ahead import ControlAhead, chunk_length
from clearsr.disk_tensor import DiskTensor
from clearsr.latent_space_adjustment import adjust
from clearsr.models.clearsr import ClearSRNetwork, ControlSignals
from clearsr.models.latent_lr_embedding import LatentLR
from clearsr.models.prediction import network_input, predicted_z_0
from clearsr.schedule import generator_argument, make_scheduler
from clearsr.seeds import make_generator
from clearsr.tiling import Window, blend_tiles, stack_windows, tile_windows


class Conditioning(NamedTuple):
    """Everything that the loop knows of the images."""

    embedding: LatentLR  # x_lr, B×c×h×w
    prompt: torch.Tensor  # image prompt p, B×T×D
    negative: torch.Tensor | None = None  # embedding of a non-empty negative prompt, 1×tokens×D


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
        structure = network.structure_features(embedding.start) if keep else None
        prompt = whole.prompt.repeat(len(windows), 1, 1)
        return cls(Conditioning(embedding, prompt, whole.negative), structure)


KEPT_TILES = 32  # with more, the SPM runs again at each step instead of holding its features for all tiles
BAND_ROWS = 64  # latent rows that are noised and stepped at once; with the seed it decides the noise

# (steps done, all steps, z_0 as now predicted); where an image is done in blocks: (parts done, parts, None).
StepCallback = Callable[[int, int, Any], None]


def denoise(
    network: ClearSRNetwork,
    conditioning: Conditioning,
    config: SamplingConfig,
    generators: Sequence[torch.Generator],
    on_step: StepCallback | None = None,
    on_tile: Callable[[], None] | None = None,
    tiles_at_once: int = 1,
) -> Any:
    """z_0, B×c×h×w, of the images that `conditioning` describes: a tensor, or on disk if their x_lr is.

    Training takes gradients through it; all others call it without.

    Args:
        generators: one CPU generator per image.
        on_step: called after each step; may raise to stop the run.
        on_tile: called after each tile of each step; may raise as well.
        tiles_at_once: tiles of each image that the network takes as one batch; changes rounding alone.
    """
    z_lr: Any = conditioning.embedding.mean
    if config.steps == 0:
        return z_lr
    height, width = z_lr.shape[-2:]
    windows = tile_windows(height, width, config.tile.size, config.tile.overlap)
    tops = range(0, height, BAND_ROWS)
    rows = [Window(top, 0, min(top + BAND_ROWS, height), width) for top in tops]
    bands = [Band(part, config, generators, z_lr) for part in rows]
    scheduler, timesteps = bands[0].scheduler, bands[0].scheduler.timesteps
    is_kept = len(timesteps) > 1 and len(windows) <= KEPT_TILES
    groups = [tuple(windows[i : i + tiles_at_once]) for i in range(0, len(windows), tiles_at_once)]
    kept = {group: Tiles.cut(network, conditioning, group, keep=True) for group in groups if is_kept}
    z_t = z_lr.new_zeros(z_lr.shape)
    for band in bands:
        z_t[band.rows.cells] = band.start(band.rows.of(conditioning.embedding.start))
    ahead = control_ahead(network, kept, timesteps)
    for step, t in enumerate(timesteps):

        def predict(step: int = step, t: torch.Tensor = t) -> Iterator[torch.Tensor]:
            for group in groups:
                tiles = kept.get(group) or Tiles.cut(network, conditioning, group, keep=False)
                scaled = scheduler.scale_model_input(stack_windows(z_t, group), t)
                z_0 = guided_z_0(network, tiles, scaled, t, config, None if ahead is None else ahead.at(step))
                if config.lsa.target == "z_0":  # before blending, which is all the same: both are means
                    z_0 = adjust(z_0, tiles.conditioning.embedding.mean, step, len(timesteps), config.lsa)
                for tile in z_0.chunk(len(group)):
                    if on_tile is not None:
                        on_tile()
                    yield tile

        z_0 = blend_tiles(predict(), z_t, windows)
        for band in bands:
            part = band.rows
            z_t[part.cells] = band.step(part.of(z_0), part.of(z_t).clone(), part.of(z_lr), step)
        if on_step is not None:
            on_step(step + 1, len(timesteps), z_0)
    return z_t


def control_ahead(
    network: ClearSRNetwork, kept: Mapping[tuple[Window, ...], Tiles], timesteps: torch.Tensor
) -> ControlAhead | None:
    """x_c of several timesteps at a time, where the picture is one small tile; else None."""
    if [len(group) for group in kept] != [1] or len(timesteps) == 1:
        return None
    (tile,) = kept.values()
    z_lr = tile.conditioning.embedding.start
    length = chunk_length(*z_lr.shape[-2:])
    return ControlAhead(network, z_lr, tile.structure, timesteps, length) if length > 1 else None


class Band:
    """Some rows of the latents, with the noise and the state of the scheduler that belong to them."""

    def __init__(
        self,
        rows: Window,
        config: SamplingConfig,
        generators: Sequence[torch.Generator],
        z_lr: Any,
    ) -> None:
        """Bands other than the first get generators of their own from `generators`, one per image.

        `z_lr` is the whole image's; the scheduler's state of a band is kept where that is.
        """
        self.rows, self._config, self._whole = rows, config, z_lr
        own = [make_generator("band", g.initial_seed(), rows.top) for g in generators]
        self._generators = own if rows.top else list(generators)
        self.scheduler = make_scheduler(config, z_lr.device)
        self._drawing = generator_argument(self.scheduler, self._generators)

    def start(self, z_lr: torch.Tensor) -> torch.Tensor:
        """z_T of these rows, given their x_lr, B×c×h×w."""
        noise = self._config.noise_scale * draw_noise(z_lr, self._generators)
        if self._config.start == "lr":  # LRE: the start carries x_lr
            return self.scheduler.add_noise(z_lr, noise, self.scheduler.timesteps[:1].expand(len(z_lr)))
        return noise * self.scheduler.init_noise_sigma

    def step(self, z_0: torch.Tensor, z_t: torch.Tensor, z_lr: torch.Tensor, step: int) -> torch.Tensor:
        """The next z_t of these rows, adjusted (LSA)."""
        timesteps, lsa = self.scheduler.timesteps, self._config.lsa
        self._convert_state(lambda value: value.read() if isinstance(value, DiskTensor) else value)
        self.scheduler.scale_model_input(z_t[..., :1, :1], timesteps[step])  # Euler complains if it is not
        z_t = self.scheduler.step(z_0, timesteps[step], z_t, **self._drawing).prev_sample
        if step + 1 == len(timesteps):  # or all bands together would keep a latent in memory
            self._convert_state(lambda value: None if _is_latent(value) else value)
        elif isinstance(disk := self._whole, DiskTensor):
            self._convert_state(lambda value: disk.holding(value) if _is_latent(value) else value)
        return adjust(z_t, z_lr, step, len(timesteps), lsa) if lsa.target == "step" else z_t

    def _convert_state(self, convert: Callable[[Any], Any]) -> None:
        """Replace all that the scheduler remembers of earlier steps."""
        for name, value in vars(self.scheduler).items():
            is_list = isinstance(value, list)
            setattr(self.scheduler, name, [convert(v) for v in value] if is_list else convert(value))


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
    embedding, prompt, negative = tiles.conditioning
    structure = tiles.structure
    if structure is None and (control is None or negative is not None):
        structure = network.structure_features(embedding.start)
    prediction = network.config.prediction
    batch = len(z_t)
    timestep = t.to(z_t.device).round().long().expand(batch)
    alpha_bar = network.alpha_bars[timestep].view(-1, 1, 1, 1)
    latent = network_input(prediction, z_t, alpha_bar, embedding)

    def decode(
        text: torch.Tensor, prompts: list[torch.Tensor], control: ControlSignals | None = None
    ) -> list[torch.Tensor]:
        """Outputs for several decoder prompts under one text in the encoder and the DPM."""
        text = text.expand(batch, -1, -1).to(latent.dtype)
        if control is None:
            control = network.control_signals(embedding.start, timestep, text, structure)
        encoded = network.unet_encode(latent, timestep, text)
        return [network.unet_decode(encoded, control, p.to(latent.dtype)) for p in prompts]

    null = network.null_prompt.expand(batch, -1, -1)
    if config.guidance_scale == 1:
        (output,) = decode(network.null_prompt, [prompt], control)
    else:
        if negative is None:
            conditional, unconditional = decode(network.null_prompt, [prompt, null], control)
        else:
            (conditional,) = decode(network.null_prompt, [prompt], control)
            (unconditional,) = decode(negative, [negative.expand(batch, -1, -1)])
        output = unconditional + config.guidance_scale * (conditional - unconditional)
    return predicted_z_0(prediction, output.to(z_t.dtype), z_t, alpha_bar, embedding)


def draw_noise(like: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Standard normal noise of the shape of `like`, row i from generator i, drawn on the CPU."""
    rows = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
    return torch.stack(rows).to(like)


def _is_latent(value: object) -> bool:
    """Whether what a scheduler remembers is B×c×h×w, and not one of its tables."""
    return isinstance(value, torch.Tensor) and value.ndim == 4
