"""How many pictures are gone through: who works, on what, and what is done again."""

from typing import Annotated, Any, Literal

from pydantic import Field

from clearsr.config.base import FrozenConfig
from clearsr.config.output import OutputConfig
from clearsr.config.sampling import SamplingConfig

Count = Annotated[int, Field(ge=1)]


class WorkConfig(FrozenConfig):
    """All that a worker has to know to turn a file into its result."""

    model: str = Field(description="compact, a folder or a hub id")
    pipeline: dict[str, Any] = Field({}, description="further arguments of ClearSRPipeline.from_pretrained")
    sampling: SamplingConfig | None = Field(None, description="unset: the model's own")
    output: OutputConfig = OutputConfig()
    suffix: str = Field(".png", description="of the files to write, with its dot; .*: the input's")


class BatchConfig(FrozenConfig):
    """Who works, and what is done again."""

    engine: Literal["auto", "ray", "local"] = Field(
        "auto", description="ray: Ray Data; local: this machine without Ray; auto: ray where it is installed"
    )
    address: str | None = Field(
        None, description="a Ray cluster, such as auto, 10.0.0.1:6379 or ray://head:10001"
    )
    workers: Count | None = Field(
        None, description="each holds a model; unset: one per GPU, else one per two cores"
    )
    threads_per_worker: Count | None = Field(
        None, description="processor threads of each; unset: OMP_NUM_THREADS, else the cores shared evenly"
    )
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = Field(
        None, description="GPUs of each, may be a fraction; unset: 1 where there are GPUs"
    )
    max_attempts: Count = Field(
        3, description="workers that a picture may cost before it is recorded as failed"
    )
    retry_failed: bool = Field(False, description="do again what failed in an earlier run")
    overwrite: bool = Field(False, description="do all again, with a new manifest")
