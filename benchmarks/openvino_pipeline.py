"""The compact model with its networks in OpenVINO, against torch: one thread, bf16, in turn.

Needs `pip install openvino==2026.4.1`. Prints the CPU seconds of each part and of whole pictures, and their
ratios (CPU seconds, because they hold on a busy machine too). What came of it: docs/hardware.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
import torch
from torch import nn

from clearsr.image import ImageData
from clearsr.pipeline.pipeline import ClearSRPipeline

PROPERTIES = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "bf16"}


class Denoiser(nn.Module):
    """U-Net, DPM and zero convolutions as one function of tensors."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, latent: Any, timestep: Any, z_lr: Any, prompt: Any, *structure: Any) -> torch.Tensor:
        text = self.network.null_prompt
        control = self.network.control_signals(z_lr, timestep, text, list(structure))
        encoded = self.network.unet_encode(latent, timestep, text)
        return self.network.unet_decode(encoded, control, prompt)


class Converted(nn.Module):
    """A module compiled by OpenVINO; its attributes are those of the original."""

    def __init__(self, module: nn.Module, example: tuple[torch.Tensor, ...], any_size: bool) -> None:
        super().__init__()
        start = time.process_time()
        model = openvino.convert_model(module, example_input=example)
        shapes = [[*e.shape[:2], -1, -1] if any_size else list(e.shape) for e in example]
        model.reshape({i: openvino.PartialShape(shape) for i, shape in enumerate(shapes)})
        converted = time.process_time()
        self.compiled = openvino.Core().compile_model(model, "CPU", PROPERTIES)
        compiled = time.process_time()
        print(f"  CPU s: conversion {converted - start:.1f}, compilation {compiled - converted:.1f}")
        self.margin, self.side = getattr(module, "margin", None), getattr(module, "side", None)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        floats = (tensor.float() if tensor.is_floating_point() else tensor for tensor in inputs)
        arrays = [np.ascontiguousarray(tensor.numpy()) for tensor in floats]
        return torch.from_numpy(self.compiled(arrays)[0])


class Proxy:
    """A network whose three denoising calls end in one of OpenVINO's."""

    def __init__(self, network: Any, denoiser: Converted) -> None:
        self._network, self._denoiser = network, denoiser

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def control_signals(self, z_lr: Any, timestep: Any, text: Any, structure: Any) -> Any:
        return z_lr, structure

    def unet_encode(self, latent: Any, timestep: Any, text: Any) -> Any:
        return latent, timestep

    def unet_decode(self, encoded: Any, control: Any, prompt: Any) -> torch.Tensor:
        return self._denoiser(*encoded, control[0], prompt, *control[1])


def compare(name: str, runs: dict[str, Callable[[], Any]], rounds: int) -> None:
    """Print medians of CPU seconds, the runs taken in turn."""
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    for key in list(runs) * rounds:
        start = time.process_time()
        runs[key]()
        seconds[key].append(time.process_time() - start)
    ours, theirs = (statistics.median(values) for values in seconds.values())
    print(f"{name}: torch {ours:.3f} s, OpenVINO {theirs:.3f} s, ratio {ours / theirs:.2f}", flush=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"device": "cpu", "precision": "bf16"}
    plain, other = (ClearSRPipeline.from_pretrained("compact", **options) for _ in range(2))
    network, latents = plain.network, other.network.latents
    pixels = torch.rand(1, 3, 512, 512, generator=generator) * 2 - 1
    z, prompt = (
        torch.randn(1, 32, 64, 64, generator=generator),
        0.1 * torch.randn(1, 1, 96, generator=generator),
    )
    timestep = torch.tensor([500])
    structure = network.structure_features(z)
    latents.lr_encoder = Converted(network.latents.lr_encoder, (pixels,), any_size=True)
    latents.vae.decoder = Converted(network.latents.vae.decoder, (z,), any_size=True)
    inputs = (z, timestep, z, prompt, *structure)
    denoiser = Converted(Denoiser(network), inputs, any_size=False)

    def in_torch(module: Any, *tensors: torch.Tensor) -> Callable[[], Any]:
        def run() -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return module(*tensors)

        return run

    parts = (
        ("E', 512 px", network.latents.lr_encoder, latents.lr_encoder, (pixels,)),
        ("denoising network, one tile", Denoiser(network), denoiser, inputs),
        ("decoder, 512 px", network.latents.vae.decoder, latents.vae.decoder, (z,)),
    )
    for name, module, converted, tensors in parts:
        compare(
            name,
            {"torch": in_torch(module, *tensors), "openvino": lambda c=converted, t=tensors: c(*t)},
            rounds,
        )
    pipelines = {"torch": plain, "openvino": other}
    other.network = Proxy(other.network, denoiser)
    for side in (128, 512):
        picture = nn.functional.interpolate(
            torch.rand(1, 3, side // 8, side // 8, generator=generator), (side, side)
        )
        image = ImageData(picture[0])
        results = [pipeline.upscale([image])[0].color for pipeline in pipelines.values()]
        print(f"{side} px: mean difference {(results[0] - results[1]).abs().mean():.5f} of 1")
        runs = {key: lambda p=pipeline, i=image: p.upscale([i]) for key, pipeline in pipelines.items()}
        compare(
            f"whole picture, {side} -> {4 * side} px", runs, rounds if side == 128 else max(1, rounds // 2)
        )


if __name__ == "__main__":
    main()
