"""Settings of an evaluation: which measures, and by which of the field's conventions."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from clearsr.config.base import FrozenConfig

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
    "fid",
    "niqe",
    "niqe_pyiqa",
    "musiq",
    "maniqa",
    "clipiqa",
    "sharpness",
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
