"""Looking at a network in training: held-out crops through `ClearSRPipeline`, measures and a picture.

The crops and their degradation depend on the run's seed alone, so every validation of a run sees the same
images.
"""

import math
from typing import Any, Literal, NamedTuple

import torch

from clearsr.config.sampling import LSAConfig, SamplingConfig
from clearsr.config.training import TrainConfig
from clearsr.data.photographs import Photographs
from clearsr.degradation import degrade_mixed
from clearsr.errors import ClearSRError
from clearsr.evaluation.metrics import psnr, ssim
from clearsr.evaluation.niqe import niqe
from clearsr.image import ImageData, resize, to_signed, to_unit
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.models.latent_lr_embedding import LatentLR
from clearsr.models.prediction import TRAIN_TIMESTEPS
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.sampling.denoise import denoise
from clearsr.sampling.guidance import Conditioning
from clearsr.seeds import make_generator

_NIQE_SIDE = 192  # below, a picture has too few blocks for the measure to mean anything


class Seen(NamedTuple):
    """What a validation found.

    Attributes:
        scores: means of PSNR-Y, SSIM-Y and NIQE (of crops of 192 pixels and more), ours and bicubic's.
        picture: 3×H×W in [0, 1], one row per image: LR | bicubic | ours | HR. Of a prior: drawn from noise
            alone | denoised from where validation.sampling starts | HR.
    """

    scores: dict[str, float]
    picture: torch.Tensor


class Validation:
    """Held-out crops, degraded once."""

    def __init__(self, config: TrainConfig) -> None:
        """Reads `validation.count` images of `data.validation`.

        Raises:
            ClearSRError: an image cannot be read.
        """
        self._config = config
        photographs = Photographs(config.data.validation)
        count = min(config.validation.count, len(photographs))
        chosen = [i * len(photographs) // count for i in range(count)]
        crops = [_centre(photographs[i], config, photographs.items[i].label()) for i in chosen]
        generators = [make_generator("validation", config.seed, i) for i in range(count)]
        pairs = [
            degrade_mixed(hr, config.degradation, generator, config.data.upscale)
            for hr, generator in zip(crops, generators, strict=True)
        ]
        self.hr, self.lr = [pair.hr for pair in pairs], [pair.lr for pair in pairs]

    @torch.no_grad()
    def run(self, network: ClearSRNetwork) -> Seen:
        """Measure a network; it is left as it was."""
        ours = self._reconstruct(network)
        drawn = self._denoised(network, "noise") if self._config.stage == "prior" else []
        rows: list[torch.Tensor] = []
        scores: list[dict[str, float]] = []
        widest = max(hr.shape[2] for hr in self.hr)
        for sr, lr, hr in zip(ours, self.lr, self.hr, strict=True):
            size = (hr.shape[-2], hr.shape[-1])
            bicubic = resize(lr[None], size)[0]
            enlarged = torch.nn.functional.interpolate(lr[None], size)[0]
            shown, score = [enlarged, bicubic, sr, hr], _measure(sr, hr)
            if drawn:
                shown = [drawn[len(rows)], sr, hr]
            else:
                score |= {f"bicubic_{k}": v for k, v in _measure(bicubic, hr).items()}
            row = [torch.nn.functional.pad(p, (0, widest - size[1])) for p in shown]
            rows.append(torch.cat(row, dim=2))
            scores.append(score)
        names = [name for name in scores[0] if all(name in row for row in scores)]
        means = {name: sum(row[name] for row in scores) / len(scores) for name in names}
        return Seen(means, torch.cat(rows, dim=1))

    def _reconstruct(self, network: ClearSRNetwork) -> list[torch.Tensor]:
        """What the stage in training makes of the crops: the autoencoder of HR, everything else of LR."""
        if self._config.stage == "autoencoder":
            device = next(network.parameters()).device
            latents = [network.latents.encode_hr(to_signed(hr[None].to(device))) for hr in self.hr]
            return [to_unit(network.latents.decode(z)).float().cpu()[0] for z in latents]
        if self._config.stage == "prior":
            return self._denoised(network, "lr")
        pipeline = ClearSRPipeline(
            network,
            sampling_of(self._config),
            device=str(next(network.parameters()).device),
            precision=self._config.precision,
        )
        return [result.color for result in pipeline.upscale([ImageData(lr) for lr in self.lr])]

    def _denoised(self, network: ClearSRNetwork, start: Literal["lr", "noise"]) -> list[torch.Tensor]:
        """What a prior makes of noise alone, or of the crops themselves under noise in place of LR images.

        Its control branches are untrained: their zero convolutions keep the crops from it.
        """
        changes = {"start": start, "lsa": LSAConfig(preset="off"), "guidance_scale": 1.0}
        sampling = self._config.validation.sampling.model_copy(update=changes)
        if start == "noise":
            sampling = sampling.model_copy(update={"start_timestep": TRAIN_TIMESTEPS - 1})
        device = next(network.parameters()).device
        pictures = []
        for number, hr in enumerate(self.hr):
            z_hr = network.latents.encode_hr(to_signed(hr[None].to(device)))
            conditioning = Conditioning(LatentLR(z_hr, torch.zeros_like(z_hr)), network.null_prompt)
            generator = make_generator("validation", self._config.seed, number)
            z_0 = denoise(network, conditioning, sampling, [generator])
            pictures.append(to_unit(network.latents.decode(z_0)).float().cpu()[0])
        return pictures


def sampling_of(config: TrainConfig) -> SamplingConfig:
    """How a run's pictures are drawn from LR images: in stage `lr_encoder` without diffusion."""
    changes: dict[str, Any] = {"upscale": config.data.upscale}
    if config.stage == "lr_encoder":
        changes["steps"] = 0
    return config.validation.sampling.model_copy(update=changes)


def exported_sampling(config: TrainConfig) -> dict[str, Any]:
    """What of `sampling_of` a run's export keeps: all but defaults, and what is no model's own.

    Nothing after stages whose network cannot upscale yet.
    """
    if config.stage in ("autoencoder", "prior"):
        return {}
    return sampling_of(config).model_dump(mode="json", exclude_defaults=True, exclude={"max_memory", "seed"})


def _centre(image: torch.Tensor, config: TrainConfig, name: str) -> torch.Tensor:
    """The central `validation.crop_size` of a uint8 3×H×W image, or as much as there is, in [0, 1].

    Whole LR pixels, and whole latents of 8 pixels.

    Raises:
        ClearSRError: the image is too small to be of use.
    """
    step = math.lcm(config.data.upscale, 8)
    height, width = (min(config.validation.crop_size, side) // step * step for side in image.shape[-2:])
    if min(height, width) < 16:
        raise ClearSRError(f"data.validation: {name} is too small, {image.shape[2]}x{image.shape[1]} pixels")
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[:, top : top + height, left : left + width].float() / 255


def _measure(picture: torch.Tensor, hr: torch.Tensor) -> dict[str, float]:
    values = {"psnr": psnr(picture, hr).item(), "ssim": ssim(picture, hr).item()}
    if min(hr.shape[1:]) < _NIQE_SIDE:
        return values
    try:
        return values | {"niqe": niqe(picture)}
    except ClearSRError:  # flat all over
        return values
