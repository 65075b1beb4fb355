"""Settings of all that measures: `evaluate` (which measures, by which convention), `analyze`, `bench`."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from clearsr.config.base import FrozenConfig
from clearsr.config.degradation import PresetName

MeasureName = Literal[
    "psnr",
    "psnr_pyiqa",
    "psnr_rounded",
    "psnr_rgb",
    "ssim",
    "ssim_rounded",
    "ssim_rgb",
    "lpips",
    "dists",
    "features",
    "features_vgg",
    "fid",
    "niqe",
    "niqe_pyiqa",
    "musiq",
    "maniqa",
    "clipiqa",
    "sharpness",
    "lr_consistency",
    "grid_8",
    "grid_4",
    "grid_8_3",
]


BaselineName = Literal["bicubic", "lanczos", "realesrgan"]


class EvaluationConfig(FrozenConfig):
    """What is measured, and how."""

    measures: tuple[MeasureName, ...] = Field(
        (), description="comma-separated; unset: all that can be had, the others are named"
    )
    crop_border: Annotated[int, Field(ge=0, le=64)] = Field(
        0, description="pixels left out on each side for PSNR and SSIM; classical tables leave out the factor"
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="level of the intervals")

    @field_validator("measures", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """`psnr,ssim` as a list."""
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )


class PairConfig(FrozenConfig):
    """How photographs become pairs of LR and HR."""

    degradation: PresetName = Field("light", description="how the LR images are made of the photographs")
    side: Annotated[int, Field(ge=32)] = Field(
        512, description="at most so many pixels a side, from the middle of each photograph"
    )


class AnalysisConfig(FrozenConfig):
    """What is read of a network and shown."""

    pairs: PairConfig = PairConfig()
    evaluation: EvaluationConfig = EvaluationConfig(measures=("psnr", "niqe", "sharpness"))
    timesteps: Annotated[int, Field(ge=1)] = Field(
        5, description="average control signals over so many of the run's timesteps"
    )
    signal: Annotated[int, Field(ge=0)] | None = Field(
        None, description="control signal to show; unset: the finest that has passed a cross-attention"
    )
    layer: Annotated[int, Field(ge=0)] = Field(0, description="window cross-attention layer to show")
    rows: Annotated[int, Field(ge=1, le=8)] = Field(3, description="images shown in full")


Section = Literal["speed", "pixels", "memory", "workers", "macs", "serve", "sd21"]
SECTIONS: tuple[Section, ...] = ("speed", "pixels", "memory", "workers", "macs", "serve", "sd21")
Side = Annotated[int, Field(ge=64, le=16384, multiple_of=4)]


class BenchmarkConfig(FrozenConfig):
    """Settings of one run of the benchmark."""

    only: tuple[Section, ...] = Field(SECTIONS[:-1], description="sections to run; sd21 must be asked for")
    model: str = Field("compact", description="model to measure: compact, a folder or a hub id")
    device: str = Field("auto", description="auto, cpu, cuda, xpu, mps")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="of the networks")
    threads: PositiveInt | None = Field(None, description="processor threads; unset: as many as torch takes")
    rounds: PositiveInt = Field(5, description="times that each thing is measured; the median counts")
    sides: tuple[Side, ...] = Field(
        (256, 512, 1024, 2048, 4096), description="sides of the output for `pixels` and `memory`"
    )
    workers: tuple[PositiveInt, ...] = Field((1, 2, 4), description="processes for `workers`")
    images: PositiveInt = Field(6, description="pictures that each worker upscales")
    batches: tuple[PositiveInt, ...] = Field((1,), description="batch sizes for `sd21`")
    steps: PositiveInt = Field(2, description="denoising steps that `sd21` takes")
    compile: bool = Field(False, description="also measure `sd21` compiled")
