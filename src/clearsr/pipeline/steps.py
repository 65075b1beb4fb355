"""The numbered steps from an image to its upscaled self, on one device at one precision.

`ClearSRPipeline` (`pipeline.py`) does them for images that fit into memory, `streaming.py` part by part for
those that do not. Step 3 is the denoising loop, `sampling.denoise`; nothing here chooses settings or how much
to do at once.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch

from clearsr.config.sampling import MAX_UPSCALE, SamplingConfig, check_negative_prompt
from clearsr.errors import ClearSRError
from clearsr.hardware import (
    Precision,
    choose_device,
    choose_precision,
    mixed_precision,
    on_device,
    vae_precision,
)
from clearsr.image.color import as_gray, channel_spread, counts_as_gray, match_color
from clearsr.image.data import ImageData
from clearsr.image.geometry import (
    crop,
    fill_transparent,
    pad_to_multiple,
    resize,
    resize_alpha,
    to_signed,
    to_unit,
)
from clearsr.models.clearsr import ClearSRNetwork, denoising_parts
from clearsr.models.latent_lr_embedding import PIECE_PIXELS, LatentLR
from clearsr.models.windowed_layers import NewMap, beside
from clearsr.pipeline.budget import (
    DENOISING_COPIES,
    LOCAL_COPIES,
    LOCAL_MARGIN,
    PAINTER_COPIES,
    WINDOWED_COPIES,
    TileCost,
    VaeCost,
)
from clearsr.pipeline.store import GridStore
from clearsr.sampling.guidance import Conditioning
from clearsr.sampling.latent_space_adjustment import total
from clearsr.tiling import Window

MAX_OUTPUT_PIXELS = 300_000_000  # of results that are held in memory


def output_size(image: ImageData, config: SamplingConfig) -> tuple[int, int]:
    """Height and width of the result, as `result_size` has them.

    Raises:
        ClearSRError: more pixels than `MAX_OUTPUT_PIXELS`, or as `result_size`.
    """
    height, width = result_size(image.height, image.width, config, image.source)
    if height * width > MAX_OUTPUT_PIXELS:
        raise ClearSRError(
            f"{image.source}: {width}x{height} would be {height * width / 1e6:.0f} megapixels, at most "
            f"{MAX_OUTPUT_PIXELS / 1e6:.0f} are accepted in memory; choose a smaller {config.size.flag}, or "
            "let files.upscale_file write it block by block"
        )
    return height, width


def result_size(
    height: int, width: int, config: SamplingConfig, source: str = "the picture"
) -> tuple[int, int]:
    """Height and width of the result of an image of that size, however large: rounded, at least one pixel.

    The image's own where it has the size that is wanted, or more, and is not to be shrunk to it.

    Raises:
        ClearSRError: the size that is wanted is too many times the image's.
    """
    if is_large_enough(height, width, config) and config.size.when_large != "shrink":
        return height, width
    wanted = config.size.factor(height, width)
    factor = config.upscale if wanted is None else wanted
    if factor > MAX_UPSCALE:
        raise ClearSRError(
            f"{source}: {config.size.flag} would enlarge {width}x{height} {factor:.0f} times; at most "
            f"{MAX_UPSCALE:.0f} times are accepted"
        )
    return max(1, round(height * factor)), max(1, round(width * factor))


def is_large_enough(height: int, width: int, config: SamplingConfig) -> bool:
    """Whether an image of that size needs no network, as it has the size that is wanted, or more."""
    wanted = config.size.factor(height, width)
    return wanted is not None and wanted <= 1


class PipelineSteps:
    """A network on its device, and what is done with it, in the order in which it is done."""

    def __init__(
        self,
        network: ClearSRNetwork,
        device: str = "auto",
        precision: Precision = "auto",
        offload: bool = False,
    ) -> None:
        """`network` is moved to the device; with `offload` its parts are copied there while they run."""
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.offload = offload
        self.network: ClearSRNetwork = network if offload else network.to(self.device)
        network.null_prompt.data = network.null_prompt.data.to(self.device)  # these are no part's, and small
        network.alpha_bars = network.alpha_bars.to(self.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def prepare(
        self, image: ImageData, config: SamplingConfig, size: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """1. The LR image, bicubic-upsampled to the output size and padded to what the network needs.

        Returns:
            3×H×W in [0, 1] on the CPU, H and W multiples of `network.pixel_multiple()`.
        """
        size = size or output_size(image, config)
        visible = fill_transparent(image.color, image.alpha)
        upsampled = resize(visible[None].clamp(0, 1), size)
        return pad_to_multiple(upsampled, self.network.pixel_multiple())[0]

    def condition(
        self,
        pixels: torch.Tensor,
        config: SamplingConfig,
        piece: int = PIECE_PIXELS,
        new_map: NewMap | None = None,
    ) -> Conditioning:
        """2. x_lr by E', the image prompt p, and the negative prompt if there is one. `pixels`: B×3×H×W in
        [0, 1]; `piece` and `new_map` as in `LatentLREmbedding.embed_lr`.
        """
        with self.running("image_prompt"):
            prompt = self.network.image_prompt(to_signed(pixels))
        embedding = self.embed(pixels, piece, new_map)
        return Conditioning(embedding, prompt.float(), self.negative_prompt(config))

    def embed(
        self, pixels: torch.Tensor, piece: int = PIECE_PIXELS, new_map: NewMap | None = None
    ) -> LatentLR:
        """x_lr of B×3×H×W in [0, 1]."""
        signed = to_signed(pixels.to(self.device, memory_format=torch.channels_last))
        with self.running("latents"):
            embedding = self.network.latents.embed_lr(signed, piece, new_map)
        return embedding.map(torch.Tensor.float)

    def prompt_of(self, resized: torch.Tensor) -> torch.Tensor:
        """p of an image that has the size which the image encoder sees, B×3×side×side in [-1, 1]."""
        with self.running("image_prompt"):
            return self.network.image_prompt.of_resized(resized.to(self.device)).float()

    def negative_prompt(self, config: SamplingConfig) -> torch.Tensor | None:
        """The embedding of the negative prompt, if there is one.

        Raises:
            ClearSRError: the model has no text encoder, or there is no guidance to act through.
        """
        base = self.network.config.base_model
        check_negative_prompt(config, base)
        if base is None or not config.negative_prompt:
            return None
        from clearsr.models.pretrained import encode_text  # with diffusers and transformers

        return encode_text(base, config.negative_prompt, self.network.config.base_revision).to(self.device)

    def decode(
        self, latents: torch.Tensor, piece: int = PIECE_PIXELS, new_map: NewMap | None = None
    ) -> torch.Tensor:
        """D of latents: pixels B×3×H×W in [0, 1] on the CPU."""
        return to_unit(self.decode_signed(latents, piece, new_map)).cpu()

    def painting(self, config: SamplingConfig) -> float:
        """How much of the painter's picture is in the result: `config.painting`, as far as LSA leaves it."""
        return 0.0 if self.network.painter is None else config.painting * total(config.steps, config.lsa)

    def picture(
        self,
        pixels: torch.Tensor,
        latents: torch.Tensor,
        config: SamplingConfig,
        piece: int = PIECE_PIXELS,
        new_map: NewMap | None = None,
    ) -> torch.Tensor:
        """4. D(z_0) with as much of the painter's picture as LSA leaves, B×3×H×W in [0, 1] on the CPU.

        Args:
            pixels: the enlarged LR image, B×3×H×W in [0, 1].
            latents: z_0.
            piece: pixels a side that are decoded and painted at once; larger pictures go in parts.
            new_map: where feature maps of those lie; unset: with the picture.
        """
        decoded, share, painter = (
            self.decode(latents, piece, new_map),
            self.painting(config),
            self.network.painter,
        )
        if painter is None or share == 0:
            return decoded
        pictures = torch.cat([pixels.to(self.device), decoded.to(self.device)], dim=1)
        signed = to_signed(pictures.contiguous(memory_format=torch.channels_last))
        with self.running("painter"):
            if max(signed.shape[-2:]) <= piece:
                painted = painter(signed)
            else:
                read = painter.in_windows(signed, piece, self.device, new_map or beside(signed))
                painted = read(Window(0, 0, *signed.shape[-2:]))
        return torch.lerp(decoded, (painted.float().cpu() + 1) / 2, share).clamp(0, 1)

    def decode_signed(
        self, latents: torch.Tensor, piece: int = PIECE_PIXELS, new_map: NewMap | None = None
    ) -> torch.Tensor:
        """Pixels B×3×H×W, about [-1, 1], as the decoder gives them."""
        with self.running("latents"):
            return self.network.latents.decode(latents, piece, new_map).float()

    def finish(
        self,
        picture: torch.Tensor,
        reference: torch.Tensor,
        image: ImageData,
        config: SamplingConfig,
        size: tuple[int, int] | None = None,
    ) -> ImageData:
        """5. Crop, match colours to the bicubic-upsampled input, grey if it is, put transparency back."""
        size = size or output_size(image, config)
        matched = match_color(picture[None], reference[None], config.color)[0]
        if counts_as_gray(channel_spread(image.color, image.alpha), config.gray):
            matched = as_gray(matched)
        alpha = None if image.alpha is None else resize_alpha(image.alpha, size)
        return dataclasses.replace(image, color=crop(matched, *size).contiguous(), alpha=alpha)

    def vae_cost(self) -> VaeCost:
        """What encoding, decoding and painting take."""
        vae, painter = self.network.latents.adapter, self.network.painter
        copies, margin = (WINDOWED_COPIES, 0) if vae.decoder_margin is None else (LOCAL_COPIES, LOCAL_MARGIN)
        kept = vae.map_bytes_per_pixel
        if painter is None:
            return VaeCost(copies * vae.bytes_per_pixel, margin, kept)
        painted = PAINTER_COPIES * painter.bytes_per_pixel
        return VaeCost(copies * vae.bytes_per_pixel, margin, max(kept, painter.map_bytes_per_pixel), painted)

    def tile_cost(self, config: SamplingConfig) -> TileCost:
        """What denoising a tile takes."""
        finest = self.network.unet.config.block_out_channels[0]
        return TileCost(config.tile.size**2, DENOISING_COPIES * finest * self.precision.itemsize)

    def grid_store(self, config: SamplingConfig, piece: int, folder: Path) -> GridStore:
        """Where what is as large as the image lies while it is worked on in pieces of that side."""
        return GridStore(self.device, config.max_memory, folder, self.vae_cost().of_piece(piece))

    @contextmanager
    def running(self, what: Literal["latents", "image_prompt", "denoiser", "painter"]) -> Iterator[None]:
        """Within the block a part of the network is on the device, and computes in mixed precision."""
        network, precision = self.network, self.precision
        parts = denoising_parts(network) if what == "denoiser" else [getattr(network, what)]
        if what == "latents":
            precision = vae_precision(precision, self.device)
        moved = on_device(parts, self.device) if self.offload else nullcontext()
        with moved, mixed_precision(self.device, precision):
            yield
