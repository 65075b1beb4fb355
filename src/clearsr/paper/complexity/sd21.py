"""Stable Diffusion 2.1's size with random weights, with and without guidance: seconds per step and per image,
peak memory, and how far from what the machine could do at best.
"""

import itertools
import statistics
import time
from typing import Any

import torch
from torch import nn

from clearsr.config.base import build_config
from clearsr.config.evaluation import BenchmarkConfig
from clearsr.config.model import ModelConfig, preset_model_config
from clearsr.config.sampling import SamplingConfig
from clearsr.hardware import choose_device, choose_precision, mixed_precision, store_in
from clearsr.image import resize, to_signed
from clearsr.models.build import meta_network
from clearsr.models.clearsr import ClearSRNetwork, compile_network
from clearsr.models.prediction import alpha_bars
from clearsr.models.sd21 import PAPER_SAMPLING
from clearsr.paper.complexity.child import peak_bytes, reset_peak
from clearsr.paper.complexity.macs import count_macs
from clearsr.paper.complexity.timing import SIDE, Timing, interleave, make_picture, synchronize
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.sampling.denoise import StepCallback, denoise
from clearsr.sampling.guidance import Conditioning
from clearsr.seeds import make_generator


def measure_sd21(
    config: BenchmarkConfig, model: ModelConfig | None = None, side: int | None = None
) -> dict[str, Any]:
    """For each batch size, guided and not: seconds per step and image, peak memory, this device's floors.

    Args:
        model: a base of another size (`benchmarks/gpu.py --tiny`); unset: Stable Diffusion 2.1.
        side: of the pictures; unset: 512.

    Raises:
        ClearSRError: the device or precision is not to be had.
    """
    model, side = model or preset_model_config("sd21"), side or SIDE
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    network = random_network(device, dtype, model)
    settings = {**PAPER_SAMPLING, "steps": config.steps}
    pipeline = ClearSRPipeline(network, build_config(SamplingConfig, settings), str(device), config.precision)
    rates = device_rates(device, dtype)
    macs, weights = {}, {}  # of a step, by whether it is guided
    for guided in (True, False):
        per_step = count_macs(model, (side, side), guided=guided).per_step.values()
        macs[guided] = sum(part.total for part in per_step)
        weights[guided] = _bytes_per_step(network, guided)
    runs: dict[str, dict[str, Any]] = {}
    modes = ["eager", "compiled"] if config.compile else ["eager"]
    for mode in modes:
        if mode == "compiled":
            compile_network(network)
        for batch, guided in itertools.product(config.batches, (True, False)):
            warm_up = mode == "compiled" or device.type != "cpu"
            row = _measure_batch(pipeline, _pixels(batch, side, device), guided, warm_up)
            row["arithmetic_floor"] = macs[guided] * batch / rates["macs_per_second"]
            row["bandwidth_floor"] = weights[guided] / rates["bytes_per_second"]
            runs[f"{mode}, batch {batch}" + ("" if guided else ", no guidance")] = row
    return {
        "steps": config.steps,
        "dtype": str(dtype).removeprefix("torch."),
        "rates": rates,
        "weights_per_step": weights[True],
        "runs": runs,
    }


def random_network(
    device: torch.device, dtype: torch.dtype, model: ModelConfig | None = None
) -> ClearSRNetwork:
    """The whole network with random weights, convolutions and linear layers in `dtype`, LoRAs merged."""
    network = meta_network(model or preset_model_config("sd21")).requires_grad_(False).eval()
    network.merge_adapters()
    if dtype != torch.float32:
        store_in(network, dtype)
    network.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for module in network.modules():
        is_norm = isinstance(module, nn.GroupNorm | nn.LayerNorm)
        for parameter in module.parameters(recurse=False):
            if is_norm:
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.02, generator=generator)
        for name, buffer in module.named_buffers(recurse=False):  # made at construction, lost on meta
            if name == "position_ids":
                buffer.copy_(torch.arange(buffer.shape[-1], device=device).expand(buffer.shape))
    network.alpha_bars = alpha_bars().to(device)
    return network


def device_rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What the device reaches at best: MACs per second in a large matrix product, bytes per second read."""
    n = 8192 if device.type == "cuda" else 2048
    a = torch.ones(n, n, device=device, dtype=dtype)
    block = torch.ones(2**30 // 4 if device.type == "cuda" else 2**28 // 4, device=device)
    runs = {"product": lambda: a @ a, "sum": lambda: block.sum()}
    fastest = {name: _least_seconds(timing, device) for name, timing in interleave(runs, 5, device).items()}
    return {
        "macs_per_second": n**3 / fastest["product"],
        "bytes_per_second": block.numel() * 4 / fastest["sum"],
    }


def _least_seconds(timing: Timing, device: torch.device) -> float:
    """The fastest round; on a processor by the work of its threads, which a busy machine does not stretch."""
    if device.type != "cpu":
        return min(timing.seconds)
    return min(timing.cpu_seconds) / torch.get_num_threads()


def _pixels(batch: int, side: int, device: torch.device) -> torch.Tensor:
    """A batch of enlarged pictures as E' takes them."""
    picture = resize(make_picture(side // 4, side // 4).color[None], (side, side))
    return to_signed(picture).expand(batch, -1, -1, -1).to(device, memory_format=torch.channels_last)


def _measure_batch(
    pipeline: ClearSRPipeline, pixels: torch.Tensor, guided: bool, warm_up: bool
) -> dict[str, Any]:
    """A batch of pictures from x_lr to pixels, each step timed; `warm_up`: after two steps that are not."""
    device, batch = pipeline.device, len(pixels)
    settings = pipeline.defaults if guided else pipeline.configure(guidance_scale=1)
    marks: list[tuple[float, float]] = []  # on the wall, of the processor

    def mark(*_: object) -> None:
        synchronize(device)
        marks.append((time.perf_counter(), time.process_time()))

    if warm_up:
        _upscale(pipeline, pixels, settings.model_copy(update={"steps": 2}), mark)
        marks.clear()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_peak()
    start, cpu_start = time.perf_counter(), time.process_time()
    _upscale(pipeline, pixels, settings, mark)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()
    steps = [(end - begin, cpu_end - cpu) for (begin, cpu), (end, cpu_end) in itertools.pairwise(marks)]
    wall, cpu = (statistics.median(times) for times in zip(*steps, strict=True)) if steps else (None, None)
    return {
        "seconds_per_step": wall,
        "cpu_seconds_per_step": cpu,
        "seconds_per_image": seconds / batch,
        "cpu_seconds_per_image": cpu_seconds / batch,
        "peak_bytes": peak,
    }


@torch.no_grad()
def _upscale(
    pipeline: ClearSRPipeline, pixels: torch.Tensor, config: SamplingConfig, on_step: StepCallback
) -> torch.Tensor:
    """The five steps of the pipeline without files and colours, the whole batch at once."""
    network = pipeline.network
    with mixed_precision(pipeline.device, pipeline.precision):
        embedding, prompt = network.latents.embed_lr(pixels), network.image_prompt(pixels)
        conditioning = Conditioning(embedding.map(torch.Tensor.float), prompt.float())
        generators = [make_generator("benchmark", index) for index in range(len(pixels))]
        return network.latents.decode(denoise(network, conditioning, config, generators, on_step)).cpu()


def _bytes_per_step(network: ClearSRNetwork, guided: bool) -> int:
    """Weights that a step reads: U-Net and DPM, with guidance the decoder once for each branch."""

    def size(module: nn.Module) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())

    again = size(network.unet.up_blocks) if guided else 0
    return size(network.unet) + again + size(network.detail_preserving)
