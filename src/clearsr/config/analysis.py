"""Settings of `clearsr analyze` and `clearsr calibrate`: which pictures, and what of the network."""

from typing import Annotated

from pydantic import Field

from clearsr.config.base import FrozenConfig
from clearsr.config.degradation import PresetName
from clearsr.config.evaluation import EvaluationConfig


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
