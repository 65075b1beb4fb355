"""ClearSRPipeline: a model, its settings, and images of any number and size through the numbered steps
(`pipeline/steps.py`). Command line, web, batch, evaluation and training validation all come through here.

An image's result depends on the image and the settings alone, never on the batch it is in: each image has its
own generator, seeded by `SamplingConfig.seed`. (For files, `files/upscale.py` puts the file's name into it.)
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from clearsr.config.base import build_config
from clearsr.config.sampling import SamplingConfig, with_given
from clearsr.errors import ClearSRError, optional
from clearsr.hardware import Precision, check_compiler, choose_device, choose_precision
from clearsr.image import ImageData
from clearsr.image.data import IN_MEMORY, InputCost
from clearsr.image.geometry import resized
from clearsr.image.modes import OutputType, images_in, images_out
from clearsr.image.source import DataSource, ImageSource, WrappedSource, Wrapping
from clearsr.models.checkpoint import load_network, save_network
from clearsr.models.clearsr import ClearSRNetwork, compile_network, store_for_inference
from clearsr.pipeline.budget import Workload, images_at_once, plan_work, with_less_on_failure
from clearsr.pipeline.steps import PipelineSteps, is_large_enough, output_size, result_size
from clearsr.pipeline.streaming import unwrapped, unwrapped_blocks, upscale_in_blocks
from clearsr.sampling.denoise import StepCallback, denoise
from clearsr.sampling.guidance import Conditioning
from clearsr.sampling.schedule import make_solver
from clearsr.seeds import make_generator
from clearsr.tiling import Window

# Called after each denoising step with the pipeline, the step, its timestep and {"latents": predicted z_0};
# for an image in blocks after each part of the work, with neither timestep nor latents.
EndOfStep = Callable[["ClearSRPipeline", int, int | None, dict[str, Any]], Any]


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
        self.steps = PipelineSteps(network, device, precision, offload)
        self._asked_precision = precision
        self.defaults = defaults or SamplingConfig()
        self.stages = list(stages)

    @property
    def network(self) -> ClearSRNetwork:
        """What is run."""
        return self.steps.network

    @property
    def device(self) -> torch.device:
        """Where it is run."""
        return self.steps.device

    @property
    def precision(self) -> torch.dtype:
        """What the denoising network computes in."""
        return self.steps.precision

    def to(
        self,
        *where: str | torch.device | torch.dtype,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> "ClearSRPipeline":
        """The pipeline itself, moved: `to("cuda")`, `to(torch.float16)`, `to("cuda", torch.bfloat16)`.

        Without a dtype the precision stays what was asked for, or is chosen anew for the device if that was
        `auto`. Weights that an accelerator has in 16 bits keep what that rounded away.

        Raises:
            ClearSRError: the device is not here, or does not compute in that dtype.
        """
        kinds = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        for each in where:
            if isinstance(each, torch.dtype):
                dtype = each
            else:
                device = each
        precision: Any = self._asked_precision if dtype is None else kinds.get(dtype, str(dtype))
        chosen = choose_device(str(self.device if device is None else device))
        computed_in = choose_precision(precision, chosen)
        if self.steps.offload and chosen.type == "cpu":
            raise ClearSRError("--offload: is for accelerators; this pipeline stays on one")
        if _is_halved(self.network):
            for parameter in self.network.parameters():
                parameter.data = parameter.data.float()
            if chosen.type != "cpu":
                store_for_inference(self.network, computed_in)
        self.steps = PipelineSteps(self.network, str(chosen), precision, self.steps.offload)
        self._asked_precision = precision
        return self

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
            device: `auto`, `cpu`, `cuda` (ROCm, too), `cuda:1`, `xpu`, `mps`.
            precision: of the denoising network and the VAE's convolutions.
            base_model: folder or hub id used in place of the base that the checkpoint names.
            merge_adapters: make the weights what inference needs, which is faster and cannot be saved again:
                the LoRAs folded in, and on an accelerator those of the network in 16 bits, as the precision.
            compile: have torch.compile translate the denoising network on its first use; takes minutes,
                for each size of image, and gains nothing on a CPU (docs/hardware.md).
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
        halved = _is_halved(self.network)
        if halved or self.network.has_merged_adapters():
            what = "the weights are stored in 16 bits" if halved else "the LoRA is merged"
            raise ClearSRError(f"save_pretrained: {what}; load with merge_adapters=False to save again")
        sampling = self.defaults.model_dump(mode="json", exclude_unset=True)
        save_network(self.network, Path(folder), self.stages, sampling, dtype)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the model to the hub; returns its address."""
        with optional("push_to_hub"):
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

    def __call__(
        self,
        images: Any,
        config: SamplingConfig | None = None,
        *,
        output_type: OutputType = "pil",
        generator: torch.Generator | None = None,
        callback_on_step_end: EndOfStep | None = None,
        **overrides: Any,
    ) -> Any:
        """Upscaled images: one for one, a list for a list.

        Args:
            images: one or several: Pillow's, arrays H×W×C, tensors C×H×W (uint8, uint16, floats in [0, 1]).
            output_type: `pil`; `np` for float arrays H×W×C; `pt` for float tensors C×H×W, as in diffusers.
            config: settings; unset: the model's own.
            generator: draws the seed, in place of `seed`; the next call with it has another.
            callback_on_step_end: called with the pipeline, the step, its timestep and `{"latents": z_0}` as
                predicted. As in diffusers, but what it returns changes nothing; it may raise to stop.
            overrides: single fields of `SamplingConfig`, such as `upscale=2`, `size={"width": 1920}` or
                `lsa={"preset": "fidelity"}`.

        Raises:
            ClearSRError: a setting or an image cannot be used.
        """
        if generator is not None:
            if not isinstance(generator, torch.Generator):
                what = type(generator).__name__
                raise ClearSRError(f"generator: expected one torch.Generator for all images, got {what}")
            drawn = torch.randint(2**62, (1,), generator=generator, device=generator.device)
            overrides["seed"] = int(drawn)
        settings = self.configure(config, **overrides)
        on_step = None if callback_on_step_end is None else self._reporter(callback_on_step_end, settings)
        if output_type not in get_args(OutputType):
            raise ClearSRError(f"output_type: accepted are pil, np, pt (got {output_type!r})")
        chosen, given = images_in(images)
        return images_out(self.upscale(chosen, settings, on_step), given, output_type)

    def _reporter(self, callback: EndOfStep, config: SamplingConfig) -> StepCallback:
        """diffusers' kind of callback as one of ours."""
        timesteps: Any = make_solver(config, torch.device("cpu")).timesteps if config.steps else ()

        def on_step(done: int, _steps: int, z_0: Any) -> None:
            timestep = None if z_0 is None else int(timesteps[done - 1])
            callback(self, done - 1, timestep, {} if z_0 is None else {"latents": z_0})

        return on_step

    def configure(self, config: SamplingConfig | None = None, **overrides: Any) -> SamplingConfig:
        """The model's defaults (or `config`) with single fields replaced; nested ones by nested mappings."""
        base = config or self.defaults
        return build_config(SamplingConfig, with_given(base.model_dump(exclude_unset=True), overrides))

    @torch.no_grad()
    def upscale(
        self,
        images: Sequence[ImageData],
        config: SamplingConfig | None = None,
        on_step: StepCallback | None = None,
    ) -> list[ImageData]:
        """Upscaled images with transparency, greyscale, depth and metadata kept. Equal sizes run as one
        batch. An image that has the size that is wanted, or more, stays as it is, or is shrunk.

        Args:
            on_step: called after each denoising step; may raise to stop.

        Raises:
            ClearSRError: the output would be empty or too large.
        """
        config = config or self.defaults
        sizes = [output_size(image, config) for image in images]  # refuses before any work
        results = {
            i: resized(image, sizes[i])
            for i, image in enumerate(images)
            if is_large_enough(image.height, image.width, config)
        }
        for group in _batches(images, [i for i in range(len(images)) if i not in results], config):
            chosen = [images[i] for i in group]
            workload = self.plan(worked_size((chosen[0].height, chosen[0].width), config), config)._replace(
                images=len(chosen)
            )
            upscale = functools.partial(self.upscale_with, chosen, config, on_step=on_step)
            done = with_less_on_failure(upscale, workload, config.tile.size, chosen[0].source)
            results.update(zip(group, done, strict=True))
        return [results[i] for i in range(len(images))]

    def plan(
        self,
        size: tuple[int, int],
        config: SamplingConfig,
        reading: InputCost = IN_MEMORY,
        source: str = "this image",
    ) -> Workload:
        """How much to do at once for a result of that height and width, within `config.max_memory`.

        Args:
            reading: what reading the input takes, unless it is in memory already.
            source: the image, for the error.

        Raises:
            ClearSRError: the budget is too small for anything.
        """
        tile, vae = self.steps.tile_cost(config), self.steps.vae_cost()
        return plan_work(size, vae, config.max_memory, self.device, reading, tile, source)

    @torch.no_grad()
    def upscale_with(
        self,
        images: Sequence[ImageData],
        config: SamplingConfig,
        workload: Workload,
        on_step: StepCallback | None = None,
    ) -> list[ImageData]:
        """`upscale` of images of equal size with a given workload, and no second try."""
        config, steps = workload.applied_to(config), self.steps
        if workload.is_in_blocks:
            return [self._assembled(image, config, workload, on_step) for image in images]
        results, folder = [], Path(tempfile.gettempdir())
        first, size = images[0], output_size(images[0], config)
        wrapping = Wrapping.of((first.height, first.width), size, config.wrap)
        if wrapping is not None:
            images, size = [_wrapped(image, wrapping) for image in images], wrapping.extended
        new_map = steps.grid_store(config, workload.piece, folder).feature_map
        for start in range(0, len(images), workload.images):
            batch = images[start : start + workload.images]
            prepared = [steps.prepare(image, config, size) for image in batch]  # 1
            pixels = torch.stack(prepared).to(self.device, memory_format=torch.channels_last)
            conditioning = steps.condition(pixels, config, workload.piece, new_map)  # 2
            latents = self.sample(conditioning, config, on_step, tiles_at_once=workload.tiles)  # 3
            pictures = steps.picture(pixels, latents, config, workload.piece, new_map)  # 4
            for picture, reference, image in zip(pictures, prepared, batch, strict=True):
                result = steps.finish(picture, reference, image, config, size)  # 5
                results.append(result if wrapping is None else unwrapped(result, wrapping))
        return results

    def sample(
        self,
        conditioning: Conditioning,
        config: SamplingConfig,
        on_step: StepCallback | None = None,
        on_tile: Callable[[], None] | None = None,
        tiles_at_once: int = 1,
    ) -> Any:
        """Step 3, the denoising loop: z_0, B×c×h×w; on disk if x_lr is."""
        generators = [make_generator("image", config.seed) for _ in conditioning.prompt]
        with self.steps.running("denoiser"):
            return denoise(self.network, conditioning, config, generators, on_step, on_tile, tiles_at_once)

    def upscale_in_blocks(
        self,
        source: ImageSource,
        config: SamplingConfig,
        size: tuple[int, int],
        workload: Workload,
        folder: Path,
        on_part: StepCallback | None = None,
    ) -> Iterator[tuple[Window, ImageData]]:
        """The upscaled image of that height and width in blocks, row by row: where each lies, and the block.

        Args:
            folder: where latents are laid aside if they are many.
            on_part: called after each part of the work; may raise to stop.
        """
        wrapping = Wrapping.of((source.height, source.width), size, config.wrap)
        if wrapping is not None:
            source, size = WrappedSource(source, wrapping.added), wrapping.extended
        blocks = upscale_in_blocks(self.steps, self.sample, source, config, size, workload, folder, on_part)
        return blocks if wrapping is None else unwrapped_blocks(blocks, wrapping, workload.piece)

    def _assembled(
        self, image: ImageData, config: SamplingConfig, workload: Workload, on_step: StepCallback | None
    ) -> ImageData:
        """An image upscaled block by block, where only the result is in memory as a whole."""
        height, width = size = result_size(image.height, image.width, config)
        color = torch.empty(3, height, width)
        alpha = None if image.alpha is None else torch.empty(1, height, width)
        folder = Path(tempfile.gettempdir())
        source = DataSource(image)
        for window, block in self.upscale_in_blocks(source, config, size, workload, folder, on_step):
            color[window.cells] = block.color
            if alpha is not None and block.alpha is not None:
                alpha[window.cells] = block.alpha
        return dataclasses.replace(image, color=color, alpha=alpha)


def worked_size(input_size: tuple[int, int], config: SamplingConfig) -> tuple[int, int]:
    """Height and width of what is worked on for an image of that size: the result, with margins to wrap."""
    size = result_size(*input_size, config)
    wrapping = Wrapping.of(input_size, size, config.wrap)
    return size if wrapping is None else wrapping.extended


def _wrapped(image: ImageData, wrapping: Wrapping) -> ImageData:
    source = WrappedSource(DataSource(image), wrapping.added)
    return source.read(Window(0, 0, source.height, source.width))


def _is_halved(network: ClearSRNetwork) -> bool:
    return any(parameter.dtype != torch.float32 for parameter in network.parameters())


def _batches(images: Sequence[ImageData], indices: Sequence[int], config: SamplingConfig) -> list[list[int]]:
    """These indices by images of equal size, as many together as may share a batch."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        groups.setdefault((images[index].height, images[index].width), []).append(index)
    batches = []
    for (height, width), group in groups.items():
        length = images_at_once(*result_size(height, width, config))
        batches += [group[start : start + length] for start in range(0, len(group), length)]
    return batches
