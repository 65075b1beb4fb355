"""Settings of one super-resolution run: schedule, guidance, Latent Space Adjustment, colour (section 3.3)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, field_validator, model_validator

from clearsr.config.base import FrozenConfig, merge
from clearsr.errors import ClearSRError

SchedulerName = Literal["ddpm", "ddim", "dpm++", "unipc", "euler"]
Spacing = Literal["linspace", "leading", "trailing", "quadratic"]
LSAName = Literal["clearsr", "fidelity", "off"]
ColorMethod = Literal["wavelet", "adain", "none"]
GrayRule = Literal["near", "exact", "off"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=1_000_000)]

MAX_UPSCALE = 64.0

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


class SizeConfig(FrozenConfig):
    """The size that is wanted, in place of a factor: one of these. The picture's shape stays."""

    width: Side | None = Field(None, description="pixels across of the result, in place of --upscale")
    height: Side | None = Field(None, description="pixels down of the result, in place of --upscale")
    longest_side: Side | None = Field(None, description="pixels of its longer side, in place of --upscale")
    shortest_side: Side | None = Field(None, description="pixels of its shorter side, in place of --upscale")
    megapixels: Annotated[float, Field(gt=0, le=100_000)] | None = Field(
        None, description="about so many million pixels, in place of --upscale"
    )
    fit: str | None = Field(
        None, description="WxH such as 1920x1080: the largest that fits into it, in place of --upscale"
    )
    when_large: Literal["copy", "shrink", "skip"] = Field(
        "copy",
        description="what has that size already, or more: copy it as it is, shrink it (bicubic), or skip it",
    )

    @field_validator("fit")
    @classmethod
    def _is_a_box(cls, value: str | None) -> str | None:
        sides = [] if value is None else value.split("x")
        if value is not None and (len(sides) != 2 or not all(_is_side(side) for side in sides)):
            raise ValueError("must be width x height in pixels, such as 1920x1080")
        return value

    @model_validator(mode="after")
    def _is_one(self) -> "SizeConfig":
        if len(wishes := [name for name in WISHES if getattr(self, name) is not None]) > 1:
            raise ValueError(f"only one size can be had; give {' or '.join(wishes)}")
        return self

    @property
    def wish(self) -> str | None:
        """Which size is wanted: the name of its field; None if a factor is."""
        return next((name for name in WISHES if getattr(self, name) is not None), None)

    @property
    def flag(self) -> str:
        """The flag of the size that is wanted."""
        return f"--{(self.wish or 'upscale').replace('_', '-')}"

    def factor(self, height: int, width: int) -> float | None:
        """Output size over input size for a picture of that height and width; None if there is no wish."""
        if self.width is not None:
            return self.width / width
        if self.height is not None:
            return self.height / height
        if self.longest_side is not None:
            return self.longest_side / max(height, width)
        if self.shortest_side is not None:
            return self.shortest_side / min(height, width)
        if self.megapixels is not None:
            return float((self.megapixels * 1e6 / height / width) ** 0.5)
        if self.fit is not None:
            across, down = map(int, self.fit.split("x"))
            return min(across / width, down / height)
        return None


WISHES = tuple(name for name in SizeConfig.model_fields if name != "when_large")


def _is_side(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 1 <= int(text[:8]) <= 1_000_000


class SamplingConfig(FrozenConfig):
    """How an LR image becomes an HR one."""

    upscale: Annotated[float, Field(gt=0, le=MAX_UPSCALE)] = Field(
        4.0, description="output size over input size"
    )
    size: SizeConfig = SizeConfig()
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
    painting: Annotated[float, Field(ge=0, le=4)] = Field(
        1.0, description="the painter's share where alpha and beta are 0; more is crisper"
    )
    tile: TileConfig = TileConfig()
    max_memory: Annotated[ByteSize, Field(ge=1_000_000)] | None = Field(
        None, description="peak memory, such as 1.5GB; unset: what is free"
    )
    color: ColorMethod = Field("wavelet", description="match the colours to the input's")
    gray: GrayRule = Field(
        "near", description="keep a grey RGB picture grey; near: to 2 levels of 255; exact: R = G = B; off"
    )
    wrap: Literal["off", "x", "y", "xy"] = Field(
        "off", description="sides that meet, as in textures (xy) and panoramas (x): they stay seamless"
    )
    seed: int = Field(0, description="seed of the noise; a file's name goes into it too")

    @field_validator("gray", "wrap", mode="before")
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


def with_given(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with given values over it, where a factor takes the place of a size and a size of a factor.

    Raises:
        ClearSRError: several sizes are given.
    """
    _check_one_size(given, {})
    size = base.get("size")
    if isinstance(size, Mapping) and sizes_in(given):
        base = {**base, "size": {name: value for name, value in size.items() if name not in WISHES}}
    return merge(base, given)


def sizes_in(values: Mapping[str, Any]) -> list[str]:
    """The dotted names of the values that say how large the result is to be."""
    size = values.get("size")
    wishes = [name for name in WISHES if isinstance(size, Mapping) and size.get(name) is not None]
    return [*(["upscale"] if "upscale" in values else []), *(f"size.{name}" for name in wishes)]


def check_sizes(values: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """See that all that a user says says only once how large the result is to be, and nothing of no size.

    Args:
        names: what the user wrote in place of dotted names.

    Raises:
        ClearSRError: it says it several times, or what large pictures are to become without a size.
    """
    _check_one_size(values, names)
    size, rule = values.get("size"), "size.when_large"
    if isinstance(size, Mapping) and "when_large" in size and sizes_in(values) in ([], ["upscale"]):
        raise ClearSRError(f"{names.get(rule, rule)}: is for a size, such as --width 1920; give one")


def _check_one_size(values: Mapping[str, Any], names: Mapping[str, str]) -> None:
    if len(found := sizes_in(values)) > 1:
        written = [names.get(name, name) for name in found]
        raise ClearSRError(f"{', '.join(written)}: only one size can be had; leave the others out")


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
    **{f"--{name.replace('_', '-')}": f"size.{name}" for name in SizeConfig.model_fields},
    "--steps": "steps",
    "--seed": "seed",
    "--lsa": "lsa.preset",
    "--alpha": "lsa.alpha",
    "--beta": "lsa.beta",
    "--guidance-scale": "guidance_scale",
    "--negative-prompt": "negative_prompt",
    "--color": "color",
    "--gray": "gray",
    "--wrap": "wrap",
    "--scheduler": "scheduler",
    "--start": "start",
    "--start-timestep": "start_timestep",
    "--noise-scale": "noise_scale",
    "--tile": "tile.size",
    "--max-memory": "max_memory",
}
