"""128 -> 512 beside bicubic, the network of Real-ESRGAN and the naive way of running the same modules; and
how the time grows with the picture.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch

from clearsr.config.base import build_config
from clearsr.config.evaluation import BenchmarkConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.hardware import mixed_precision
from clearsr.image import resize, to_signed
from clearsr.models.realesrgan import RRDBNet, load_realesrgan, published_weights
from clearsr.paper.complexity.naive import naive_denoise
from clearsr.paper.complexity.timing import (
    SIDE,
    UPSCALE,
    interleave,
    load_pipeline,
    make_picture,
    ratio,
    upscale_once,
)
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.sampling.denoise import denoise
from clearsr.sampling.guidance import Conditioning
from clearsr.seeds import make_generator

SMALL_SIDE = 128  # where control signals of many timesteps are computed at once
# A diffusion upscaler at work: in the model's own two steps there is little to be shared.
MANY_STEPS = {"steps": 10, "scheduler": "dpm++", "guidance_scale": 2.0, "lsa": {"preset": "off"}}


def measure_speed(config: BenchmarkConfig) -> dict[str, Any]:
    """Seconds of each contender, and the ratios that matter."""
    pipeline = load_pipeline(config)
    picture = make_picture(SIDE // UPSCALE, SIDE // UPSCALE).color[None].to(pipeline.device)
    runs: dict[str, Callable[[], object]] = {
        "clearsr": lambda: upscale_once(pipeline, SIDE),
        "bicubic": lambda: resize(picture, (SIDE, SIDE)),
        **_rrdbnets(pipeline, picture),
        **_loops(pipeline, SIDE),
        **_loops(pipeline, SMALL_SIDE),
    }
    timings = interleave(runs, config.rounds, pipeline.device)
    others = [name for name in timings if name.startswith(("bicubic", "rrdbnet"))]
    pairs = {f"clearsr over {name}": (timings["clearsr"], timings[name]) for name in others}
    for side in (SIDE, SMALL_SIDE):
        pairs[f"naive over our loop, {side}"] = (timings[f"naive loop, {side}"], timings[f"our loop, {side}"])
    return {
        "side": SIDE,
        "precision": str(pipeline.precision).removeprefix("torch."),
        "loop": MANY_STEPS,
        "rrdbnet": published_weights() or "random weights",
        "timings": {name: timing.as_dict() for name, timing in timings.items()},
        "ratios": {
            name: {"wall": ratio(*pair), "cpu": ratio(*pair, of_cpu=True)} for name, pair in pairs.items()
        },
    }


def measure_pixels(config: BenchmarkConfig) -> dict[str, Any]:
    """Seconds of whole upscalings to squares of growing sides; per megapixel they should not grow."""
    pipeline = load_pipeline(config)
    upscale_once(pipeline, min(config.sides))  # to warm up
    runs = {str(side): lambda side=side: upscale_once(pipeline, side) for side in config.sides}
    timings = interleave(runs, max(1, config.rounds // 2), pipeline.device, warm_ups=0)
    rows = {}
    for side, timing in zip(config.sides, timings.values(), strict=True):
        megapixels = side**2 / 1e6
        rows[str(side)] = {
            "megapixels": megapixels,
            "seconds_per_megapixel": timing.median / megapixels,
            "cpu_seconds_per_megapixel": timing.median_cpu / megapixels,
            **timing.as_dict(),
        }
    return {"sides": rows}


def _rrdbnets(pipeline: ClearSRPipeline, picture: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The baseline in fp32, as Real-ESRGAN runs it on a CPU, and in the precision that our model runs in.

    With the published weights, or random ones where they are not installed, which take the same time.
    """
    network: Any = _random_rrdbnet() if published_weights() is None else load_realesrgan()
    network = network.to(pipeline.device, memory_format=torch.channels_last)
    runs: dict[str, Callable[[], object]] = {"rrdbnet, fp32": lambda: network(picture)}
    if (dtype := pipeline.precision) != torch.float32:
        small, low = copy.deepcopy(network).to(dtype), picture.to(dtype)
        runs[f"rrdbnet, {str(dtype).removeprefix('torch.')}"] = lambda: small(low)
    return runs


def _random_rrdbnet() -> RRDBNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RRDBNet().requires_grad_(False).eval()


def _loops(pipeline: ClearSRPipeline, side: int) -> dict[str, Callable[[], object]]:
    """The denoising loop alone, ours and the naive one, on the same x_lr."""
    network, config = pipeline.network, build_config(SamplingConfig, MANY_STEPS)
    signed = to_signed(make_picture(side, side).color[None].to(pipeline.device))
    with torch.no_grad(), mixed_precision(pipeline.device, pipeline.precision):
        embedding, prompt = network.latents.embed_lr(signed), network.image_prompt(signed)
    conditioning = Conditioning(embedding.map(torch.Tensor.float), prompt.float())

    def run(loop: Callable[..., Any]) -> torch.Tensor:
        with mixed_precision(pipeline.device, pipeline.precision):
            return loop(network, conditioning, config, [make_generator("benchmark", 0)])

    return {f"our loop, {side}": lambda: run(denoise), f"naive loop, {side}": lambda: run(naive_denoise)}
