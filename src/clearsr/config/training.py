"""Settings of a training run: `clearsr train CONFIG` reads one `TrainConfig`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from clearsr.config.base import FrozenConfig
from clearsr.config.degradation import DegradationMix
from clearsr.config.model import ModelConfig
from clearsr.config.sampling import SamplingConfig

Stage = Literal["autoencoder", "lr_encoder", "clearsr"]
PositiveFloat = Annotated[float, Field(gt=0)]


class DataConfig(FrozenConfig):
    """Where the photographs are and how crops are taken from them."""

    train: tuple[Path, ...] = Field(description="image files or folders (recursive)")
    validation: tuple[Path, ...] = Field((), description="held-out image files or folders")
    crop_size: PositiveInt = Field(512, description="side of the HR crop in pixels")
    upscale: PositiveInt = Field(4, description="HR size over LR size")
    rotate: bool = Field(True, description="also turn crops by 90 degrees, besides mirroring")
    cache_megabytes: NonNegativeInt = Field(2048, description="decoded images kept in memory, per worker")
    workers: NonNegativeInt = Field(
        1, description="processes that prepare batches; 0 is the training process"
    )


class OptimizerConfig(FrozenConfig):
    """AdamW (Adam at weight_decay 0, the paper's) and its learning-rate schedule."""

    learning_rate: PositiveFloat = Field(5e-5, description="peak learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="decoupled weight decay")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam's moment decays")
    schedule: Literal["constant", "cosine", "linear"] = Field("constant", description="after the warm-up")
    warmup_steps: NonNegativeInt = Field(0, description="steps of linear warm-up")
    gradient_clip: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm; 0 is none")


class LossConfig(FrozenConfig):
    """Weights of the terms of the loss; each stage reads its own."""

    kl: Annotated[float, Field(ge=0)] = Field(
        1e-4, description="autoencoder: KL divergence per latent element"
    )
    frequency: Annotated[float, Field(ge=0)] = Field(0.0, description="autoencoder: L1 on Fourier amplitudes")
    pixel: Annotated[float, Field(ge=0)] = Field(1.0, description="lr_encoder: L1 of the decoded image")
    latent: Annotated[float, Field(ge=0)] = Field(1.0, description="lr_encoder: L1 of the latents")
    variance: Annotated[float, Field(ge=0)] = Field(
        0.1, description="lr_encoder: likelihood of the residual under the posterior variance"
    )
    prompt_dropout: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="clearsr: chance that the image prompt is replaced by the null prompt"
    )
    timestep_power: Annotated[float, Field(ge=1)] = Field(
        1.0, description="clearsr: timesteps are 1000·u**power; 1 is uniform, more dwells on little noise"
    )
    residual_power: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5,
        description="clearsr, lr_anchored: weight (posterior std)**(2*power), 1 is plain MSE on z_0's scale",
    )


class ValidationConfig(FrozenConfig):
    """What is looked at during training, and how."""

    count: PositiveInt = Field(6, description="held-out images, spread evenly over data.validation")
    crop_size: PositiveInt = Field(256, description="side of the central crop that is used of each")
    sampling: SamplingConfig = SamplingConfig(steps=10)


class TrainConfig(FrozenConfig):
    """One stage of training."""

    stage: Stage = Field(description="what is trained")
    output: Path = Field(description="folder of the run")
    model: ModelConfig = ModelConfig()
    init_from: tuple[Path, ...] = Field((), description="exported models to start from; later ones win")
    data: DataConfig
    degradation: DegradationMix = DegradationMix()
    validation: ValidationConfig = ValidationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    steps: PositiveInt = Field(150_000, description="optimizer steps")
    batch_size: PositiveInt = Field(8, description="images per step over all processes")
    accumulation: PositiveInt = Field(1, description="micro-batches that a step is split into")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="autocast precision")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="weight averaging; 0 is none")
    seed: int = Field(0, description="every draw follows from it")
    log_every: PositiveInt = Field(50, description="steps between log lines")
    validate_every: NonNegativeInt = Field(1000, description="steps between validations; 0 is none")
    checkpoint_every: PositiveInt = Field(500, description="steps between checkpoints")
    keep_checkpoints: PositiveInt = Field(2, description="newest checkpoints kept")
