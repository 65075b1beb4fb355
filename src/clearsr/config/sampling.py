"""Settings of one super-resolution run: schedule, guidance, Latent Space Adjustment, colour (section 3.3)."""

from typing import Annotated, Literal

from pydantic import ByteSize, Field, field_validator, model_validator

from clearsr.config.base import FrozenConfig
from clearsr.errors import ClearSRError

SchedulerName = Literal["ddpm", "ddim", "dpm++", "unipc", "euler"]
Spacing = Literal["linspace", "leading", "trailing", "quadratic"]
LSAName = Literal["clearsr", "fidelity", "off"]
ColorMethod = Literal["wavelet", "adain", "none"]
GrayRule = Literal["near", "exact", "off"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=1)]

# (alpha, beta) of the paper's settings; `fidelity` is its ClearSR*.
LSA_PRESETS: dict[LSAName, tuple[float, float]] = {
    "clearsr": (0.01, 0.01),
    "fidelity": (0.03, 0.01),
    "off": (0.0, 0.0),
}


class LSAConfig(FrozenConfig):
    """Latent Space Adjustment (Eq. 3, 4): early steps are pulled to x_lr, late ones pushed away from it."""

    preset: LSAName = Field("clearsr", description="paper's setting that alpha and beta default to")
    alpha: Strength | None = Field(None, description="ELA: pull to x_lr per step, at 50 steps; more is truer")
    beta: Strength | None = Field(
        None, description="LLA: push from x_lr per step, at 50 steps; more is crisper"
    )
    ela_end: Fraction = Field(0.2, description="share of the steps, from the start, that ELA acts on")
    lla_start: Fraction = Field(0.8, description="share of the steps after which LLA acts")
    target: Literal["step", "z_0"] = Field(
        "step", description="adjust the step's output, or the predicted z_0"
    )

    @field_validator("preset", mode="before")
    @classmethod
    def _read_yaml_off(cls, value: object) -> object:
        """YAML 1.1 reads a bare `off` as false."""
        return "off" if value is False else value

    @property
    def strengths(self) -> tuple[float, float]:
        """(alpha, beta): as given, else the preset's."""
        alpha, beta = LSA_PRESETS[self.preset]
        return (
            alpha if self.alpha is None else self.alpha,
            beta if self.beta is None else self.beta,
        )


class TileConfig(FrozenConfig):
    """Large images are denoised in overlapping tiles of the latent grid."""

    size: Annotated[int, Field(ge=32, multiple_of=16)] = Field(
        64, description="side in latents (8 pixels each)"
    )
    overlap: Annotated[int, Field(ge=0, multiple_of=8)] = Field(
        16, description="latents shared by neighbours"
    )

    @model_validator(mode="after")
    def _advances(self) -> "TileConfig":
        if self.overlap > self.size // 2:
            raise ValueError(f"overlap must be at most half the size, {self.size // 2}")
        return self


class SamplingConfig(FrozenConfig):
    """How an LR image becomes an HR one."""

    upscale: Annotated[float, Field(gt=0, le=64)] = Field(4.0, description="output size over input size")
    steps: Annotated[int, Field(ge=0, le=1000)] = Field(
        50, description="denoising steps; 0 shows x_lr as it is, without diffusion"
    )
    scheduler: SchedulerName = Field("ddpm", description="denoising scheme")
    spacing: Spacing | None = Field(
        None, description="timestep spacing; unset: linspace for ddpm, else trailing"
    )
    start: Literal["lr", "noise"] = Field(
        "lr", description="start from noised x_lr (LRE), or from noise alone"
    )
    start_timestep: Annotated[int, Field(ge=1, le=999)] = Field(
        999, description="first timestep; lower is nearer x_lr"
    )
    noise_scale: Annotated[float, Field(ge=0, le=2)] = Field(1.0, description="factor on the initial noise")
    guidance_scale: Annotated[float, Field(ge=1, le=30)] = Field(
        1.0, description="classifier-free guidance; 1 is off"
    )
    negative_prompt: str = Field("", description="text of the unconditional branch (Stable Diffusion only)")
    lsa: LSAConfig = LSAConfig()
    tile: TileConfig = TileConfig()
    max_memory: Annotated[ByteSize, Field(ge=1_000_000)] | None = Field(
        None, description="peak memory, such as 1.5GB; unset: what is free"
    )
    color: ColorMethod = Field("wavelet", description="match the colours to the input's")
    gray: GrayRule = Field(
        "near", description="keep a grey RGB picture grey; near: to 2 levels of 255; exact: R = G = B; off"
    )
    seed: int = Field(0, description="seed of the noise; a file's name goes into it too")

    @field_validator("gray", mode="before")
    @classmethod
    def _read_yaml_off(cls, value: object) -> object:
        """YAML 1.1 reads a bare `off` as false."""
        return "off" if value is False else value

    @model_validator(mode="after")
    def _start_fits(self) -> "SamplingConfig":
        if self.start_timestep != 999 and self.scheduler == "unipc":
            raise ValueError("start_timestep below 999 needs scheduler ddpm, ddim, dpm++ or euler")
        if self.spacing == "quadratic" and self.scheduler == "unipc":
            raise ValueError("spacing quadratic needs scheduler ddpm, ddim, dpm++ or euler")
        if self.start_timestep != 999 and self.start == "noise":
            raise ValueError("start_timestep below 999 needs start lr; with noise give --start-timestep 999")
        if self.start == "noise" and self.noise_scale == 0:
            raise ValueError("start noise needs noise_scale above 0 (--noise-scale 1)")
        return self


def check_negative_prompt(config: SamplingConfig, base_model: str | None) -> None:
    """See that a negative prompt has a text encoder (models on a base have one) and guidance to act through.

    Raises:
        ClearSRError: it has not.
    """
    if not config.negative_prompt:
        return
    if base_model is None:
        raise ClearSRError("--negative-prompt: this model has no text encoder; leave it out")
    if config.guidance_scale == 1:
        raise ClearSRError("--negative-prompt: acts through guidance; give --guidance-scale above 1 too")


# What the command line and the HTTP API call the fields that are asked for most.
SAMPLING_FLAGS = {
    "--upscale": "upscale",
    "--steps": "steps",
    "--seed": "seed",
    "--lsa": "lsa.preset",
    "--alpha": "lsa.alpha",
    "--beta": "lsa.beta",
    "--guidance-scale": "guidance_scale",
    "--negative-prompt": "negative_prompt",
    "--color": "color",
    "--gray": "gray",
    "--scheduler": "scheduler",
    "--start": "start",
    "--start-timestep": "start_timestep",
    "--noise-scale": "noise_scale",
    "--tile": "tile.size",
    "--max-memory": "max_memory",
}
