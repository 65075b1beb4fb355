"""Settings of a training run: `clearsr train CONFIG` reads one `TrainConfig`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from clearsr.config.base import FrozenConfig
from clearsr.config.degradation import DegradationMix
from clearsr.config.evaluation import MeasureName
from clearsr.config.model import ModelConfig
from clearsr.config.sampling import SamplingConfig

Stage = Literal["autoencoder", "lr_encoder", "decoder", "painter", "prior", "clearsr"]
Precision = Literal["fp32", "bf16", "fp16"]
PositiveFloat = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Source(FrozenConfig):
    """Photographs to learn from, and their part in the whole; a path alone is one with the defaults."""

    path: Path = Field(description="an image file, a folder (recursive), a .txt list of these, a .tar shard")
    weight: PositiveFloat | None = Field(
        None, description="its share of the samples, beside the weights of the others; null: by its crops"
    )
    crops: PositiveInt = Field(1, description="crops that are taken of each of its images in an epoch")

    @model_validator(mode="before")
    @classmethod
    def _read_path(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str | Path) else value


class DataConfig(FrozenConfig):
    """Where the photographs are and how crops are taken from them."""

    train: tuple[Source, ...] = Field(min_length=1, description="where the photographs are")
    validation: tuple[Path, ...] = Field((), description="held-out images, named in the same ways")
    crop_size: PositiveInt = Field(512, description="side of the HR crop in pixels")
    small: Literal["refuse", "skip", "resize"] = Field(
        "refuse", description="images smaller than a crop: stop, leave them out, or enlarge them to it"
    )
    upscale: PositiveInt = Field(4, description="HR size over LR size")
    rotate: bool = Field(True, description="also turn crops by 90 degrees, besides mirroring")
    skip_unreadable: bool = Field(
        False, description="report and count unreadable images and train on, in place of stopping"
    )
    cache_megabytes: NonNegativeInt = Field(
        2048, description="decoded images kept in memory, per worker; the first that fit"
    )
    degrade_on: Literal["worker", "device"] = Field(
        "worker",
        description="LR images are made by the workers, or on the device that trains (JPEG and draws stay on "
        "the processor)",
    )
    workers: NonNegativeInt = Field(
        1, description="processes that prepare batches; 0 is the training process"
    )

    @model_validator(mode="after")
    def _crop_fits(self) -> "DataConfig":
        if self.crop_size % self.upscale:
            raise ValueError(f"crop_size must be a multiple of upscale, {self.upscale}")
        if len({source.weight is None for source in self.train}) > 1:
            raise ValueError("train: give all sources a weight, or none")
        return self


class OptimizerConfig(FrozenConfig):
    """AdamW (Adam at weight_decay 0, the paper's) and its learning-rate schedule."""

    kind: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="adamw8bit keeps the moments in 8 bits; needs the extra adamw8bit"
    )
    learning_rate: PositiveFloat = Field(5e-5, description="peak learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="decoupled weight decay")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="Adam's moment decays")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="after the warm-up; cosine and linear fall to 1 % of the peak"
    )
    warmup_steps: NonNegativeInt = Field(0, description="steps of linear warm-up")
    gradient_clip: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm; 0 is none")


class LossConfig(FrozenConfig):
    """Weights of the terms of the loss; each stage reads its own."""

    kl: Annotated[float, Field(ge=0)] = Field(
        1e-4, description="autoencoder: KL divergence per latent element"
    )
    frequency: Annotated[float, Field(ge=0)] = Field(0.0, description="autoencoder: L1 on Fourier amplitudes")
    pixel: Annotated[float, Field(ge=0)] = Field(1.0, description="lr_encoder: L1 of the decoded image")
    linear_pixel: Annotated[float, Field(ge=0)] = Field(
        0.0, description="lr_encoder: L1 of the image by the compact VAE's linear path, at almost no cost"
    )
    latent: Annotated[float, Field(ge=0)] = Field(1.0, description="lr_encoder: L1 of the latents")
    variance: Annotated[float, Field(ge=0)] = Field(
        0.1, description="lr_encoder: likelihood of the residual under the posterior variance"
    )
    prompt_dropout: Annotated[float, Field(ge=0, le=1)] = Field(
        0.1, description="clearsr: chance that the image prompt is replaced by the null prompt"
    )
    timestep_power: Annotated[float, Field(ge=1)] = Field(
        1.0,
        description="clearsr, prior: timesteps are 1000·u**power; 1 is uniform, more dwells on little noise",
    )
    residual_power: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5,
        description="clearsr, lr_anchored: weight (posterior std)**(2*power), 1 is plain MSE on z_0's scale",
    )
    min_snr_gamma: PositiveFloat | None = Field(
        None,
        description="clearsr, prior; epsilon, v: min-SNR weight (Hang et al. 2023), 5 is usual; null is none",
    )


class TeacherConfig(FrozenConfig):
    """Pictures that another network makes of the LR images of the first samples, learnt from again and again.

    What it makes of an LR image is one picture, what was there one of many: L1 to the first blurs less.
    """

    network: Literal["realesrgan"] | Path = Field(
        "realesrgan", description="`realesrgan`, or a weights file that spandrel reads"
    )
    labels: Path = Field(description="folder where its pictures are kept; made once, shared by runs")
    samples: PositiveInt = Field(
        8192, description="samples that have such a picture; later rounds show them turned and mirrored"
    )
    blocks: tuple[NonNegativeInt, ...] = Field(
        (), description="painter: blocks of Real-ESRGAN (0 to 22) that it starts from; (): from noise"
    )
    share: tuple[Probability, Probability] = Field(
        (1.0, 1.0),
        description="its part in the picture to be drawn, beside the original; first and last step",
    )


class PerceptualConfig(FrozenConfig):
    """Losses on pictures, in place of Eq. 1 (our own): what the sampler or the painter draws."""

    pixel: Annotated[float, Field(ge=0)] = Field(1.0, description="L1 of the picture, in [-1, 1]")
    features: Annotated[float, Field(ge=0)] = Field(
        0.5, description="distance to the picture to be drawn in what a frozen classifier sees"
    )
    adversarial: Annotated[float, Field(ge=0)] = Field(
        0.0, description="reward by projected discriminators, which learn to know the picture to be drawn"
    )
    adversarial_ramp: NonNegativeInt = Field(
        2000, description="steps in which the weight of that reward rises from 0"
    )
    grid: Annotated[float, Field(ge=0)] = Field(
        0.0, description="L1 of the mean error at each place of the VAE's patches, which a grid raises"
    )
    decoded: Annotated[float, Field(ge=0)] = Field(
        0.0, description="L1 of D(z_0), where a painter draws the picture from it"
    )
    denoising: Annotated[float, Field(ge=0)] = Field(
        0.0, description="clearsr: Eq. 1 beside them, so that runs of other lengths go on working"
    )
    decoder: Literal["frozen", "overlap", "full"] = Field(
        "frozen", description="what of a decoder of our own is trained along"
    )
    anchor: Annotated[float, Field(ge=0)] = Field(
        1.0, description="L1 of decoded z_hr and x_lr, where the decoder is trained along"
    )
    classifier: Literal["lite1", "lite2"] = Field(
        "lite1", description="EfficientNet-Lite that looks at the pictures; Lite0 judges, and never trains"
    )
    blocks: tuple[NonNegativeInt, ...] = Field(
        (0, 3, 6, 13), min_length=1, description="the classifier's blocks whose outputs are compared"
    )
    teacher: TeacherConfig | None = Field(
        None, description="a network whose pictures are to be drawn at first; null draws the originals"
    )


class ValidationConfig(FrozenConfig):
    """What is looked at during training, and how."""

    count: PositiveInt = Field(6, description="held-out images, spread evenly over data.validation")
    crop_size: PositiveInt = Field(256, description="side of the central crop that is used of each")
    measures: tuple[MeasureName, ...] = Field(
        ("psnr", "ssim", "niqe"), min_length=1, description="what is measured, by the names of `evaluate`"
    )
    best: Mapping[MeasureName, Annotated[float, Field(ge=0)]] = Field(
        {"psnr": 1.0},
        description="weights of the measures whose ranks say which validation `export-best` is of",
    )
    sampling: SamplingConfig = SamplingConfig(steps=10)

    @model_validator(mode="after")
    def _measures_what_decides(self) -> "ValidationConfig":
        if "fid" in self.measures:
            raise ValueError("measures: fid judges thousands of pictures together; leave it to evaluate")
        if unmeasured := [name for name in self.best if name not in self.measures]:
            raise ValueError(f"best: {unmeasured[0]} is not among the measures, {', '.join(self.measures)}")
        if not any(self.best.values()):
            raise ValueError("best: give at least one measure a weight above 0")
        return self

    @field_validator("sampling")
    @classmethod
    def _takes_no_size(cls, value: SamplingConfig) -> SamplingConfig:
        if value.size.wish is not None:
            raise ValueError("size: results are as large as the originals here; leave it out")
        return value


class TrainConfig(FrozenConfig):
    """One stage of training."""

    stage: Stage = Field(description="what is trained")
    output: Path = Field(description="folder of the run")
    model: ModelConfig = ModelConfig()
    init_from: tuple[Path, ...] = Field(
        (), description="exported models to start from, or compact; later ones win"
    )
    data: DataConfig
    degradation: DegradationMix = DegradationMix()
    validation: ValidationConfig = ValidationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    perceptual: PerceptualConfig | None = Field(
        None, description="clearsr: losses on drawn pictures in place of Eq. 1; null keeps to the paper"
    )
    steps: PositiveInt = Field(150_000, description="optimizer steps")
    batch_size: PositiveInt = Field(8, description="images per step over all processes")
    accumulation: PositiveInt = Field(1, description="micro-batches that a step is split into")
    precision: Precision = Field("fp32", description="autocast precision; fp16 needs an accelerator")
    frozen_precision: Precision = Field(
        "fp32", description="storage of a base's frozen weights; fp32, or the same as precision"
    )
    gradient_checkpointing: bool = Field(
        False,
        description="clearsr, prior: recompute activations in the backward pass: less memory, 1/3 slower",
    )
    compile: bool = Field(
        False, description="steps run what torch.compile makes of the networks, which takes minutes at first"
    )
    tf32: bool | None = Field(
        None,
        description="on CUDA, fp32 in TF32, products of matrices and convolutions; null: as torch has it, "
        "convolutions alone",
    )
    cudnn_benchmark: bool = Field(
        False, description="on CUDA, cuDNN tries its algorithms out on the first of each size of batch"
    )
    skip_loss_above: Annotated[float, Field(gt=1)] | None = Field(
        50.0,
        description="steps whose loss is more than so many times the median of the last 101 are left out, as "
        "those whose loss is not finite are; null: only these",
    )
    ema_decay: Decay = Field(0.999, description="weight averaging; 0 is none")
    seed: int = Field(0, description="every draw follows from it")
    export_precision: Literal["fp32", "fp16"] = Field(
        "fp32", description="storage of the exported weights; fp16 is half the size, rounded once"
    )
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        ("tensorboard",), description="what shows metrics and pictures beside metrics.jsonl and samples/"
    )
    wandb_project: str = Field("clearsr", min_length=1, description="project of Weights & Biases")
    log_every: PositiveInt = Field(50, description="steps between log lines")
    validate_every: NonNegativeInt = Field(1000, description="steps between validations; 0 is none")
    checkpoint_every: PositiveInt = Field(500, description="steps between checkpoints")
    background_checkpoints: bool = Field(
        False, description="write them beside the steps that follow, from a copy in the processor's memory"
    )
    keep_checkpoints: PositiveInt = Field(2, description="newest checkpoints kept")

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainConfig":
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size must be a multiple of accumulation, {self.accumulation}")
        if self.frozen_precision != "fp32":
            if self.frozen_precision != self.precision:
                raise ValueError(f"frozen_precision must be fp32 or the same as precision, {self.precision}")
            if self.model.base_model is None:
                raise ValueError("frozen_precision other than fp32 needs a frozen base: set model.base_model")
        if self.loss.min_snr_gamma is not None and self.model.prediction == "lr_anchored":
            raise ValueError("loss.min_snr_gamma needs model.prediction epsilon or v_prediction")
        if self.perceptual is not None and self.stage not in ("painter", "clearsr"):
            raise ValueError(f"perceptual belongs to stages painter and clearsr, not to {self.stage}")
        if self.stage == "painter" and (self.perceptual is None or not self.model.painter.blocks):
            raise ValueError("stage painter needs model.painter.blocks, and perceptual for its losses")
        if self.stage == "painter" and self.perceptual and self.perceptual.decoder != "frozen":
            raise ValueError("perceptual.decoder: a painter has none; leave it frozen")
        if self.stage == "painter" and self.perceptual and self.perceptual.grid:
            raise ValueError("perceptual.grid: a painter has no patches; leave it 0")
        if self.perceptual is not None and self.perceptual.decoder != "frozen" and self.model.base_model:
            raise ValueError("perceptual.decoder: a base's decoder stays frozen, and no checkpoint stores it")
        if self.perceptual is not None and self.perceptual.teacher and self.data.degrade_on == "device":
            raise ValueError(
                "perceptual.teacher: its LR images are made by workers; set data.degrade_on to worker"
            )
        teacher = None if self.perceptual is None else self.perceptual.teacher
        if teacher is not None and teacher.blocks:
            if self.stage != "painter":
                raise ValueError(f"perceptual.teacher.blocks belong to stage painter, not to {self.stage}")
            named, wanted = len(teacher.blocks), self.model.painter.blocks
            if named != wanted:
                raise ValueError(
                    f"perceptual.teacher.blocks: names {named}, model.painter.blocks is {wanted}"
                )
            if max(teacher.blocks) > 22:
                raise ValueError(f"perceptual.teacher.blocks: {max(teacher.blocks)}; the last one is 22")
        if self.stage == "prior":
            if self.model.base_model is not None:
                raise ValueError("stage prior trains a U-Net of our own: model.base_model must be null")
            if self.model.prediction == "lr_anchored":
                raise ValueError(
                    "stage prior sees no LR image: model.prediction must be epsilon or v_prediction"
                )
        return self
