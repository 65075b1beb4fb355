"""Looking at a network in training: held-out crops through `ClearSRPipeline`, measures and a picture.

The crops and their degradation depend on the run's seed alone, so every validation of a run sees the same
images. Several processes share them, one after the other: each looks at its own, and all know of all.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch

from clearsr.config.evaluation import EvaluationConfig
from clearsr.config.sampling import LSAConfig, SamplingConfig
from clearsr.config.training import TrainConfig
from clearsr.data.photographs import Photographs
from clearsr.degradation import degrade_mixed
from clearsr.errors import ClearSRError, optional
from clearsr.evaluation.measures import Scorer, is_better
from clearsr.image import ImageData, resize, to_signed, to_unit
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.models.latent_lr_embedding import LatentLR
from clearsr.models.prediction import TRAIN_TIMESTEPS
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.sampling.denoise import denoise
from clearsr.sampling.guidance import Conditioning
from clearsr.seeds import make_generator

with optional("training"):
    from accelerate.utils import gather_object

_NIQE_SIDE = 192  # below, a picture has too few blocks for the measure to mean anything


class Seen(NamedTuple):
    """What a validation found.

    Attributes:
        scores: means of `validation.measures`, ours and bicubic's; NIQE is of crops of 192 pixels and more.
        picture: 3×H×W in [0, 1], one row per image: LR | bicubic | ours | HR. Of a prior: drawn from noise
            alone | denoised from where validation.sampling starts | HR.
    """

    scores: dict[str, float]
    picture: torch.Tensor


class Look(NamedTuple):
    """One held-out crop, looked at: its place among them, its scores, its pictures from left to right."""

    number: int
    scores: dict[str, float]
    pictures: list[torch.Tensor]


class Validation:
    """This process's share of the held-out crops, degraded once."""

    def __init__(
        self, config: TrainConfig, device: torch.device | str = "cpu", shard: tuple[int, int] = (0, 1)
    ) -> None:
        """Reads its share of `validation.count` images of `data.validation`.

        Args:
            device: for the networks that measures are of.
            shard: this process, and of how many.

        Raises:
            ClearSRError: an image cannot be read, or a measure cannot be had.
        """
        if config.validation.best.get("niqe") and config.validation.crop_size < _NIQE_SIDE:
            raise ClearSRError(
                f"validation.best: niqe is taken of crops of {_NIQE_SIDE} pixels and more; "
                f"validation.crop_size is {config.validation.crop_size}"
            )
        self._config = config
        measures = EvaluationConfig(measures=config.validation.measures)
        self._scorer = Scorer(measures, device=device, asked_by="validation.measures")
        photographs = Photographs(config.data.validation)
        count = min(config.validation.count, len(photographs))
        chosen = [i * len(photographs) // count for i in range(count)]
        self.numbers = range(count)[shard[0] :: shard[1]]
        own = [chosen[number] for number in self.numbers]
        crops = [_centre(photographs[i], config, photographs.items[i].label()) for i in own]
        generators = [make_generator("validation", config.seed, number) for number in self.numbers]
        pairs = [
            degrade_mixed(hr, config.degradation, generator, config.data.upscale)
            for hr, generator in zip(crops, generators, strict=True)
        ]
        self.hr, self.lr = [pair.hr for pair in pairs], [pair.lr for pair in pairs]
        self._bicubic = [resize(pair.lr[None], (pair.hr.shape[-2], pair.hr.shape[-1]))[0] for pair in pairs]
        self._of_bicubic = [
            {f"bicubic_{name}": value for name, value in self._measure(*pictures).items()}
            for pictures in zip(self._bicubic, self.hr, self.lr, strict=True)
        ]

    def run(self, network: ClearSRNetwork) -> Seen:
        """Measure a network; it is left as it was. All processes must ask, and all are told the same."""
        return summed_up(gather_object(self.look(network)))

    @torch.no_grad()
    def look(self, network: ClearSRNetwork) -> list[Look]:
        """What is seen of this process's crops."""
        ours = self._reconstruct(network)
        drawn = self._denoised(network, "noise") if self._config.stage == "prior" else []
        looks = []
        for place, (number, sr, lr, hr) in enumerate(zip(self.numbers, ours, self.lr, self.hr, strict=True)):
            scores = self._measure(sr, hr, lr)
            if drawn:
                shown = [drawn[place], sr, hr]
            else:
                scores |= self._of_bicubic[place]
                enlarged = torch.nn.functional.interpolate(lr[None], hr.shape[-2:])[0]
                shown = [enlarged, self._bicubic[place], sr, hr]
            looks.append(Look(number, scores, shown))
        return looks

    def _measure(self, picture: torch.Tensor, hr: torch.Tensor, lr: torch.Tensor) -> dict[str, float]:
        """What is defined of one picture."""
        values = self._scorer.score(picture, hr, lr)
        if min(hr.shape[1:]) < _NIQE_SIDE:
            values.pop("niqe", None)
        return {name: value for name, value in values.items() if not math.isnan(value)}

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
        # One by one, or the last bits would depend on how many a process has.
        return [pipeline.upscale([ImageData(lr)])[0].color for lr in self.lr]

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
        for number, hr in zip(self.numbers, self.hr, strict=True):
            z_hr = network.latents.encode_hr(to_signed(hr[None].to(device)))
            conditioning = Conditioning(LatentLR(z_hr, torch.zeros_like(z_hr)), network.null_prompt)
            generator = make_generator("validation", self._config.seed, number)
            z_0 = denoise(network, conditioning, sampling, [generator])
            pictures.append(to_unit(network.latents.decode(z_0)).float().cpu()[0])
        return pictures


def summed_up(looks: Iterable[Look]) -> Seen:
    """Means and one picture of all crops, in whatever order they come."""
    ordered = sorted(looks, key=lambda look: look.number)
    scores = [look.scores for look in ordered]
    names = [name for name in scores[0] if all(name in row for row in scores)]
    means = {name: sum(row[name] for row in scores) / len(scores) for name in names}
    widest = max(picture.shape[2] for look in ordered for picture in look.pictures)
    rows = [
        torch.cat([torch.nn.functional.pad(p, (0, widest - p.shape[2])) for p in look.pictures], dim=2)
        for look in ordered
    ]
    return Seen(means, torch.cat(rows, dim=1))


Scores = Mapping[str, float]


def is_preferred(new: Scores, held: Scores, others: Iterable[Scores], weights: Scores) -> bool:
    """Whether the measures, by their weights, rank the validation `new` before `held`.

    A measure's rank of a validation is how many of all that are given are better by it, so that units do not
    matter and a single measure decides by itself. What has no value of it is worse than all that have one.
    """
    everything = [new, held, *others]

    def rank(scores: Scores) -> float:
        """The weighted sum of the ranks; 0 if none is better by any measure."""
        return sum(
            weight * sum(_is_better(name, other, scores) for other in everything)
            for name, weight in weights.items()
        )

    return rank(new) < rank(held)


def _is_better(name: str, scores: Scores, than: Scores) -> bool:
    return name in scores and (name not in than or is_better(name, scores[name], than[name]))


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
