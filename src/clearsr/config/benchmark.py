"""What `clearsr bench` measures, and on what."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from clearsr.config.base import FrozenConfig

Section = Literal["speed", "pixels", "memory", "workers", "macs", "sd21"]
SECTIONS: tuple[Section, ...] = ("speed", "pixels", "memory", "workers", "macs", "sd21")
Side = Annotated[int, Field(ge=64, le=16384, multiple_of=4)]


class BenchmarkConfig(FrozenConfig):
    """Settings of one run of the benchmark."""

    only: tuple[Section, ...] = Field(SECTIONS[:-1], description="sections to run; sd21 must be asked for")
    model: str = Field("compact", description="model to measure: compact, a folder or a hub id")
    device: str = Field("auto", description="auto, cpu, cuda, mps")
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
