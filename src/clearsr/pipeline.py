"""ClearSRPipeline: image -> latents -> image, in numbered steps. Command line, web, batch, evaluation and
training validation all come through here.

An image's result depends on the image and the settings alone, never on the batch it is in: each image has its
own generator, seeded by `SamplingConfig.seed`. (For files, `files.py` puts the file's name into it.)
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, overload

import torch
from PIL import Image

from clearsr.checkpoint import load_network, save_network
from clearsr.color import match_color
from clearsr.config.base import build_config, merge
from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError
from clearsr.hardware import (
    Precision,
    check_compiler,
    choose_device,
    choose_precision,
    compile_network,
    denoising_parts,
    mixed_precision,
    on_device,
    store_for_inference,
    vae_precision,
)
from clearsr.image import (
    ImageData,
    crop,
    fill_transparent,
    from_pil,
    pad_to_multiple,
    resize,
    resize_alpha,
    to_pil,
    to_signed,
    to_unit,
)
from clearsr.image.source import DataSource
from clearsr.memory import ACTIVATION_COPIES, Workload, plan_work, with_less_on_failure
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.models.latent_lr_embedding import PIECE_PIXELS, LatentLR
from clearsr.sampling import Conditioning, StepCallback, denoise
from clearsr.seeds import make_generator
from clearsr.streaming import upscale_in_blocks

MAX_OUTPUT_PIXELS = 300_000_000  # of results that are held in memory
BATCH_PIXELS = 2_000_000  # output pixels that are worked on at once, where there are several images


class ClearSRPipeline:
    """A trained network with what it takes to run it on images.

    Build one with `from_pretrained`. `defaults` are the settings that suit the model; every call may override
    them.
    """

    def __init__(
        self,
        network: ClearSRNetwork,
        defaults: SamplingConfig | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        stages: Sequence[str] = (),
        offload: bool = False,
    ) -> None:
        """`network` is moved to the device and otherwise left as it is (see `from_pretrained`).

        With `offload` its parts stay where they are and copies are on the device while they run.
        """
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.offload = offload
        self.network: ClearSRNetwork = network if offload else network.to(self.device)
        network.null_prompt.data = network.null_prompt.data.to(self.device)  # these are no part's, and small
        network.alpha_bars = network.alpha_bars.to(self.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.defaults = defaults or SamplingConfig()
        self.stages = list(stages)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "compact",
        *,
        device: str = "auto",
        precision: Precision = "auto",
        base_model: str | None = None,
        merge_adapters: bool = True,
        compile: bool = False,
        offload: bool = False,
    ) -> "ClearSRPipeline":
        """A pipeline from `compact` (inside the package), a folder, or a hub id.

        Args:
            device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
            precision: of the denoising network and the VAE's convolutions.
            base_model: folder or hub id used in place of the base that the checkpoint names.
            merge_adapters: make the weights what inference needs, which is faster and cannot be saved again:
                the LoRAs folded in, and on an accelerator those of the network in 16 bits, as the precision.
            compile: have torch.compile translate the denoising network on its first use; takes a minute or
                more, which many images of one size pay back.
            offload: keep the parts in the computer's memory and on the accelerator only while they run.

        Raises:
            ClearSRError: the model cannot be found or loaded, or the device or precision is not to be had.
        """
        chosen = choose_device(device)
        dtype = choose_precision(precision, chosen)  # refuse before anything is loaded
        if offload and chosen.type == "cpu":
            raise ClearSRError("--offload: is for accelerators, and this runs on the CPU; leave it out")
        if compile:
            check_compiler(chosen)
        network, sampling, stages = load_network(source, base_model)
        if merge_adapters:
            network.merge_adapters()
            if chosen.type != "cpu":  # there it gains nothing
                store_for_inference(network, dtype)
        defaults = build_config(SamplingConfig, sampling)
        pipeline = cls(network, defaults, device, precision, stages, offload)
        if compile:
            compile_network(network)
        return pipeline

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the model so that `from_pretrained` reads it back.

        Raises:
            ClearSRError: the folder cannot be written, or the weights were changed on loading.
        """
        halved = any(parameter.dtype != torch.float32 for parameter in self.network.parameters())
        if halved or self.network.has_merged_adapters():
            what = "the weights are stored in 16 bits" if halved else "the LoRA is merged"
            raise ClearSRError(f"save_pretrained: {what}; load with merge_adapters=False to save again")
        sampling = self.defaults.model_dump(mode="json", exclude_unset=True)
        save_network(self.network, Path(folder), self.stages, sampling, dtype)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the model to the hub; returns its address."""
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api = HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(
                api.upload_folder(
                    repo_id=repo_id, folder_path=folder, commit_message="Upload a ClearSR model"
                )
            )

    @overload
    def __call__(
        self, images: Image.Image, config: SamplingConfig | None = ..., **overrides: Any
    ) -> Image.Image: ...

    @overload
    def __call__(
        self, images: Sequence[Image.Image], config: SamplingConfig | None = ..., **overrides: Any
    ) -> list[Image.Image]: ...

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image],
        config: SamplingConfig | None = None,
        **overrides: Any,
    ) -> Image.Image | list[Image.Image]:
        """Upscaled images: one for one, a list for a list.

        Args:
            config: settings; unset: the model's own.
            overrides: single fields of `SamplingConfig`, such as `upscale=2` or `lsa={"preset": "fidelity"}`.

        Raises:
            ClearSRError: a setting or an image cannot be used.
        """
        settings = self.configure(config, **overrides)
        if isinstance(images, Image.Image):
            return to_pil(self.upscale([from_pil(images)], settings)[0])
        return [to_pil(result) for result in self.upscale([from_pil(image) for image in images], settings)]

    def configure(self, config: SamplingConfig | None = None, **overrides: Any) -> SamplingConfig:
        """The model's defaults (or `config`) with single fields replaced; nested ones by nested mappings."""
        base = config or self.defaults
        return build_config(SamplingConfig, merge(base.model_dump(exclude_unset=True), overrides))

    @torch.no_grad()
    def upscale(
        self,
        images: Sequence[ImageData],
        config: SamplingConfig | None = None,
        on_step: StepCallback | None = None,
    ) -> list[ImageData]:
        """Upscaled images with transparency, greyscale, depth and metadata kept. Equal sizes run as one
        batch.

        Args:
            on_step: called after each denoising step; may raise to stop.

        Raises:
            ClearSRError: the output would be empty or too large.
        """
        config = config or self.defaults
        for image in images:
            output_size(image, config)  # refuse before any work
        results: dict[int, ImageData] = {}
        for group in _batches(images, config):
            chosen = [images[i] for i in group]
            size = result_size(chosen[0].height, chosen[0].width, config)
            workload = self.plan(size, config)._replace(images=len(chosen))
            upscale = functools.partial(self.upscale_with, chosen, config, on_step=on_step)
            done = with_less_on_failure(upscale, workload, config.tile.size, chosen[0].source)
            results.update(zip(group, done, strict=True))
        return [results[i] for i in range(len(images))]

    def plan(self, size: tuple[int, int], config: SamplingConfig) -> Workload:
        """How much to do at once for a result of that height and width, within `config.max_memory`.

        Raises:
            ClearSRError: the budget is too small for anything.
        """
        per_pixel = ACTIVATION_COPIES * self.network.latents.bytes_per_pixel()
        return plan_work(size, per_pixel, config.max_memory, self.device)

    @torch.no_grad()
    def upscale_with(
        self,
        images: Sequence[ImageData],
        config: SamplingConfig,
        workload: Workload,
        on_step: StepCallback | None = None,
    ) -> list[ImageData]:
        """`upscale` of images of equal size with a given workload, and no second try."""
        config = workload.applied_to(config)
        if workload.is_in_blocks:
            return [self._assembled(image, config, workload, on_step) for image in images]
        results = []
        for start in range(0, len(images), workload.images):
            batch = images[start : start + workload.images]
            prepared = [self.prepare(image, config) for image in batch]  # 1
            pixels = torch.stack(prepared).to(self.device, memory_format=torch.channels_last)
            conditioning = self.condition(pixels, config, workload.piece)  # 2
            latents = self.sample(conditioning, config, on_step)  # 3
            decoded = self.decode(latents, workload.piece)  # 4
            for picture, reference, image in zip(decoded, prepared, batch, strict=True):
                results.append(self.finish(picture, reference, image, config))  # 5
        return results

    def _assembled(
        self, image: ImageData, config: SamplingConfig, workload: Workload, on_step: StepCallback | None
    ) -> ImageData:
        """An image upscaled block by block, where only the result is in memory as a whole."""
        height, width = size = result_size(image.height, image.width, config)
        color = torch.empty(3, height, width)
        alpha = None if image.alpha is None else torch.empty(1, height, width)
        folder = Path(tempfile.gettempdir())
        source = DataSource(image)
        for window, block in upscale_in_blocks(self, source, config, size, workload.piece, folder, on_step):
            color[window.cells] = block.color
            if alpha is not None and block.alpha is not None:
                alpha[window.cells] = block.alpha
        return dataclasses.replace(image, color=color, alpha=alpha)

    def prepare(self, image: ImageData, config: SamplingConfig) -> torch.Tensor:
        """1. The LR image, bicubic-upsampled to the output size and padded to what the network needs.

        Returns:
            3×H×W in [0, 1] on the CPU, H and W multiples of `network.pixel_multiple()`.
        """
        size = output_size(image, config)
        visible = fill_transparent(image.color, image.alpha)
        upsampled = resize(visible[None].clamp(0, 1), size)
        return pad_to_multiple(upsampled, self.network.pixel_multiple())[0]

    def condition(
        self, pixels: torch.Tensor, config: SamplingConfig, piece: int = PIECE_PIXELS
    ) -> Conditioning:
        """2. x_lr by E', the image prompt p, and the negative prompt if there is one. `pixels`: B×3×H×W in
        [0, 1].
        """
        with self._running("image_prompt"):
            prompt = self.network.image_prompt(to_signed(pixels))
        return Conditioning(self.embed(pixels, piece), prompt.float(), self.negative_prompt(config))

    def embed(self, pixels: torch.Tensor, piece: int = PIECE_PIXELS) -> LatentLR:
        """x_lr of B×3×H×W in [0, 1]."""
        signed = to_signed(pixels.to(self.device, memory_format=torch.channels_last))
        with self._running("latents"):
            embedding = self.network.latents.embed_lr(signed, piece)
        return LatentLR(*(part.float() for part in embedding))

    def prompt_of(self, resized: torch.Tensor) -> torch.Tensor:
        """p of an image that has the size which the image encoder sees, B×3×side×side in [-1, 1]."""
        with self._running("image_prompt"):
            return self.network.image_prompt.of_resized(resized.to(self.device)).float()

    def negative_prompt(self, config: SamplingConfig) -> torch.Tensor | None:
        """The embedding of the negative prompt, if there is one.

        Raises:
            ClearSRError: the model has no text encoder, or there is no guidance to act through.
        """
        if not config.negative_prompt:
            return None
        base = self.network.config.base_model
        if base is None:
            raise ClearSRError("--negative-prompt: this model has no text encoder; leave it out")
        if config.guidance_scale == 1:
            raise ClearSRError("--negative-prompt: acts through guidance; give --guidance-scale above 1")
        from clearsr.models.pretrained import encode_text  # with diffusers and transformers

        return encode_text(base, config.negative_prompt, self.network.config.base_revision).to(self.device)

    def sample(
        self,
        conditioning: Conditioning,
        config: SamplingConfig,
        on_step: StepCallback | None = None,
        on_tile: Callable[[], None] | None = None,
    ) -> Any:
        """3. The denoising loop: z_0, B×c×h×w; on disk if x_lr is."""
        batch = len(conditioning.embedding.mean)
        generators = [make_generator("image", config.seed) for _ in range(batch)]
        with self._running("denoiser"):
            return denoise(self.network, conditioning, config, generators, on_step, on_tile)

    def decode(self, latents: torch.Tensor, piece: int = PIECE_PIXELS) -> torch.Tensor:
        """4. Pixels B×3×H×W in [0, 1] on the CPU."""
        return to_unit(self.decode_signed(latents, piece)).cpu()

    def decode_signed(self, latents: torch.Tensor, piece: int = PIECE_PIXELS) -> torch.Tensor:
        """Pixels B×3×H×W, about [-1, 1], as the decoder gives them."""
        with self._running("latents"):
            return self.network.latents.decode(latents, piece).float()

    def finish(
        self, picture: torch.Tensor, reference: torch.Tensor, image: ImageData, config: SamplingConfig
    ) -> ImageData:
        """5. Crop, match colours to the bicubic-upsampled input, put transparency back."""
        size = output_size(image, config)
        matched = match_color(picture[None], reference[None], config.color)[0]
        alpha = None if image.alpha is None else resize_alpha(image.alpha, size)
        return dataclasses.replace(image, color=crop(matched, *size).contiguous(), alpha=alpha)

    @contextmanager
    def _running(self, what: Literal["latents", "image_prompt", "denoiser"]) -> Iterator[None]:
        """Within the block a part of the network is on the device, and computes in mixed precision."""
        network, precision = self.network, self.precision
        parts = denoising_parts(network) if what == "denoiser" else [getattr(network, what)]
        if what == "latents":
            precision = vae_precision(precision, self.device)
        moved = on_device(parts, self.device) if self.offload else nullcontext()
        with moved, mixed_precision(self.device, precision):
            yield


def output_size(image: ImageData, config: SamplingConfig) -> tuple[int, int]:
    """Height and width of the result: the input's times `upscale`, rounded, at least one pixel.

    Raises:
        ClearSRError: more pixels than `MAX_OUTPUT_PIXELS`.
    """
    height, width = result_size(image.height, image.width, config)
    if height * width > MAX_OUTPUT_PIXELS:
        raise ClearSRError(
            f"{image.source}: {width}x{height} would be {height * width / 1e6:.0f} megapixels, at most "
            f"{MAX_OUTPUT_PIXELS / 1e6:.0f} are accepted in memory; choose a smaller --upscale, or "
            "let files.upscale_file write it block by block"
        )
    return height, width


def result_size(height: int, width: int, config: SamplingConfig) -> tuple[int, int]:
    """Height and width of the result of an image of that size, however large."""
    return max(1, round(height * config.upscale)), max(1, round(width * config.upscale))


def _batches(images: Sequence[ImageData], config: SamplingConfig) -> list[list[int]]:
    """Indices of images of equal size, as many together as make `BATCH_PIXELS` of output."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault((image.height, image.width), []).append(index)
    batches = []
    for (height, width), group in groups.items():
        length = max(1, int(BATCH_PIXELS / (height * width * config.upscale**2)))
        batches += [group[start : start + length] for start in range(0, len(group), length)]
    return batches
