"""Settings of the second-order degradation (Real-ESRGAN, Wang et al. 2021), and the named sets for it.

`full` is Real-ESRGAN's own x4plus set, which SeeSR and OSEDiff use too; `light` is StableSR's milder one;
`camera` is ours: the slightly soft, nearly clean picture of a real camera; `real` is ours too, fitted to
pairs that cameras took (docs/training.md): their blur, their sharpening, their noise, and how soft the
originals are; `compressed` is `camera` behind a JPEG that shows, sharper or softer before it; `bicubic`
only shrinks.
A preset is no more than the values that the other fields start from. Ranges are (low, high), drawn per image.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from clearsr.config.base import FrozenConfig, merge

PresetName = Literal["full", "light", "camera", "real", "compressed", "bicubic"]
ResizeMode = Literal["area", "bilinear", "bicubic"]
KernelName = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]

Range = tuple[float, float]


def _within(minimum: float, maximum: float) -> Callable[[Range], Range]:
    """A validator of ranges: minimum <= low <= high <= maximum (which NaN fails too)."""

    def check(values: Range) -> Range:
        low, high = values
        if not low <= high:
            raise ValueError(f"the low end {low:g} is above the high end {high:g}; write [low, high]")
        if not (minimum <= low and high <= maximum):
            raise ValueError(f"must lie within {minimum:g} and {maximum:g}")
        return values

    return check


def _spans_one(values: Range) -> Range:
    if not values[0] <= 1.0 <= values[1]:
        raise ValueError("must include 1: one end is drawn below it, the other above")
    return values


def _is_odd(values: tuple[int, int]) -> tuple[int, int]:
    if any(value % 2 == 0 for value in values):
        raise ValueError("kernel sizes must be odd")
    return values


def _sums_to_one(values: tuple[float, ...]) -> tuple[float, ...]:
    if not math.isclose(sum(values), 1.0, abs_tol=1e-6):
        raise ValueError(f"the chances must add up to 1, not {sum(values):g}")
    return values


Probability = Annotated[float, Field(ge=0.0, le=1.0)]
ResizeProbabilities = Annotated[tuple[Probability, Probability, Probability], AfterValidator(_sums_to_one)]
KernelProbabilities = Annotated[
    tuple[Probability, Probability, Probability, Probability, Probability, Probability],
    AfterValidator(_sums_to_one),
]
KernelSizeRange = Annotated[tuple[int, int], AfterValidator(_within(3, 99)), AfterValidator(_is_odd)]
SigmaRange = Annotated[Range, AfterValidator(_within(0.05, 50.0))]
BetaRange = Annotated[Range, AfterValidator(_within(0.05, 20.0)), AfterValidator(_spans_one)]
FactorRange = Annotated[Range, AfterValidator(_within(0.01, 8.0)), AfterValidator(_spans_one)]
NoiseSigmaRange = Annotated[Range, AfterValidator(_within(0.0, 255.0))]
StrengthRange = Annotated[Range, AfterValidator(_within(0.0, 20.0))]
QualityRange = Annotated[tuple[int, int], AfterValidator(_within(1, 100))]


class BlurConfig(FrozenConfig):
    """Random blur kernels of one stage."""

    probability: Probability = Field(default=1.0, description="chance that the stage blurs at all")
    sinc_probability: Probability = Field(
        default=0.1, description="chance of a sinc (ringing) kernel instead"
    )
    kernel_size: KernelSizeRange = Field(default=(7, 21), description="odd widths of the kernel in pixels")
    kernel_probabilities: KernelProbabilities = Field(
        default=(0.45, 0.25, 0.12, 0.03, 0.12, 0.03),
        description="chances of iso, aniso, generalized_iso, generalized_aniso, plateau_iso, plateau_aniso",
    )
    sigma: SigmaRange = Field(default=(0.2, 3.0), description="standard deviation in pixels")
    beta_generalized: BetaRange = Field(
        default=(0.5, 4.0), description="shape of the generalized Gaussian kernels"
    )
    beta_plateau: BetaRange = Field(default=(1.0, 2.0), description="shape of the plateau kernels")


class NoiseConfig(FrozenConfig):
    """Additive Gaussian or signal-dependent Poisson noise of one stage."""

    probability: Probability = Field(default=1.0, description="chance that the stage adds noise at all")
    gaussian_probability: Probability = Field(
        default=0.5, description="chance of Gaussian noise, else Poisson"
    )
    gaussian_sigma: NoiseSigmaRange = Field(
        default=(1.0, 30.0), description="standard deviation on the 0-255 scale"
    )
    poisson_strength: StrengthRange = Field(default=(0.05, 3.0), description="factor on the Poisson noise")
    gray_probability: Probability = Field(
        default=0.4, description="chance that the three channels share the noise"
    )


class ResizeConfig(FrozenConfig):
    """Random resize of one stage; the second stage's factors multiply the size of the LR image."""

    probabilities: ResizeProbabilities = Field(
        default=(0.2, 0.7, 0.1), description="chances of up, down, keep"
    )
    factor: FactorRange = Field(
        default=(0.15, 1.5), description="smallest factor when shrinking, largest when growing"
    )
    modes: tuple[ResizeMode, ...] = Field(
        default=("area", "bilinear", "bicubic"),
        min_length=1,
        description="interpolations, drawn with equal chance",
    )
    antialias: bool = Field(
        default=False, description="low-pass before bilinear or bicubic shrinking, as Pillow does"
    )


class StageConfig(FrozenConfig):
    """One order of the model: blur, resize, noise, JPEG."""

    blur: BlurConfig = BlurConfig()
    resize: ResizeConfig = ResizeConfig()
    noise: NoiseConfig = NoiseConfig()
    jpeg_probability: Probability = Field(default=1.0, description="chance that the stage compresses at all")
    jpeg_quality: QualityRange = Field(default=(30, 95), description="JPEG quality, 1-100")


class SharpeningConfig(FrozenConfig):
    """Unsharp masking of the LR image, as a camera does it: x + amount·(x - Gaussian blur of x)."""

    probability: Probability = Field(default=0.0, description="chance that the picture is sharpened at all")
    amount: StrengthRange = Field(default=(0.4, 1.6), description="how much of the difference is added")
    sigma: SigmaRange = Field(default=(0.8, 1.8), description="standard deviation of the blur in LR pixels")


class DegradationConfig(FrozenConfig):
    """The whole second-order model that makes an LR image from an HR one."""

    preset: PresetName = Field(
        default="full", description="the named set that the fields not given start from"
    )
    original: BlurConfig = Field(
        default=BlurConfig(probability=0.0),
        description="blur of the HR image itself, in pairs to learn from: photographs are softer than what "
        "was shrunk until sharp",
    )
    first: StageConfig = StageConfig()
    second: StageConfig = StageConfig()
    sharpening: SharpeningConfig = SharpeningConfig()
    final_sinc_probability: Probability = Field(default=0.8, description="chance of the last sinc filter")

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: object) -> object:
        """Fill in what was not given from the named set, so that `{preset: light}` is enough."""
        if not isinstance(values, Mapping):
            return values
        return merge(_PRESETS.get(str(values.get("preset", "full")), {}), values)


class DegradationMix(FrozenConfig):
    """Several kinds of degradation side by side: each image draws the preset, or set, that makes its LR."""

    weights: dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] = Field(
        default={
            "real": 0.35,
            "compressed": 0.2,
            "light": 0.15,
            "full": 0.12,
            "bicubic": 0.1,
            "camera": 0.08,
        },
        description="relative frequency of each preset or set; one left out is never drawn",
    )
    sets: Mapping[str, DegradationConfig] = Field(
        default={}, description="sets of one's own by name, each with any settings of `clearsr degrade`"
    )
    usm: bool = Field(
        default=False,
        description="HR crops are sharpened as Real-ESRGAN does it, and LR images made of these",
    )

    @model_validator(mode="after")
    def _draws_something(self) -> "DegradationMix":
        if shadowed := [name for name in self.sets if name in _PRESETS]:
            raise ValueError(f"sets: {shadowed[0]} is a preset; give the set another name")
        known = [*_PRESETS, *self.sets]
        if unknown := [name for name in self.weights if name not in known]:
            raise ValueError(
                f"weights: {unknown[0]} is no preset and none of the sets; known: {', '.join(known)}"
            )
        if sum(self.weights.values()) <= 0:
            raise ValueError(f"weights: at least one must be above 0; presets are {', '.join(_PRESETS)}")
        return self

    def named(self, name: str) -> DegradationConfig:
        """The set or the preset of that name."""
        return self.sets[name] if name in self.sets else preset_config(name)

    def as_dict(self) -> dict[str, Any]:
        """What a record of it holds; what is not used is left out, so that older records stay valid."""
        unused = {name for name in ("sets", "usm") if not getattr(self, name)}
        return self.model_dump(mode="json", exclude=unused)


@cache
def preset_config(preset: str) -> DegradationConfig:
    """The named set with none of its fields changed; built once, for it is asked for with every image."""
    return DegradationConfig.model_validate({"preset": preset})


_SECOND_RESIZE: dict[str, object] = {"probabilities": (0.3, 0.4, 0.3)}
_LIGHT_SHAPES: dict[str, object] = {"beta_generalized": (0.5, 2.0), "beta_plateau": (1.0, 1.5)}
_KEEP_SIZE: dict[str, object] = {"probabilities": (0.0, 0.0, 1.0), "antialias": True}
_NO_STEPS: dict[str, object] = {
    "blur": {"probability": 0.0},
    "resize": {**_KEEP_SIZE, "modes": ("bicubic",)},
    "noise": {"probability": 0.0},
    "jpeg_probability": 0.0,
}
_CAMERA: dict[str, Any] = {
    "first": {
        **_NO_STEPS,
        # The lens and the demosaicing: pixels are the HR image's, so 1.6 is 0.4 LR pixels at x4.
        "blur": {
            "sinc_probability": 0.0,
            "kernel_probabilities": (0.6, 0.4, 0.0, 0.0, 0.0, 0.0),
            "sigma": (0.2, 1.6),
        },
    },
    "second": {
        **_NO_STEPS,
        "resize": {**_KEEP_SIZE, "modes": ("area", "bicubic")},
        # Poisson noise of strength 0.25 on mid-grey is as strong as Gaussian noise of sigma 3.
        "noise": {"gaussian_sigma": (0, 3), "poisson_strength": (0, 0.25)},
        "jpeg_probability": 0.5,
        "jpeg_quality": (85, 100),
    },
    "final_sinc_probability": 0.0,
}
_SOFT_ORIGINAL: dict[str, object] = {
    "sinc_probability": 0.0,
    "kernel_probabilities": (1.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "kernel_size": (9, 9),
}
_PRESETS: dict[str, dict[str, object]] = {
    "full": {
        "second": {
            "blur": {"probability": 0.8, "sigma": (0.2, 1.5)},
            "resize": {**_SECOND_RESIZE, "factor": (0.3, 1.2)},
            "noise": {"gaussian_sigma": (1, 25), "poisson_strength": (0.05, 2.5)},
        },
    },
    "light": {
        "first": {
            "blur": {"sigma": (0.2, 1.5), **_LIGHT_SHAPES},
            "resize": {"factor": (0.3, 1.5)},
            "noise": {"gaussian_sigma": (1, 15), "poisson_strength": (0.05, 2.0)},
            "jpeg_quality": (60, 95),
        },
        "second": {
            "blur": {"probability": 0.5, "sigma": (0.2, 1.0), **_LIGHT_SHAPES},
            "resize": {**_SECOND_RESIZE, "factor": (0.6, 1.2)},
            "noise": {"gaussian_sigma": (1, 12), "poisson_strength": (0.05, 1.0)},
            "jpeg_quality": (60, 100),
        },
    },
    "camera": _CAMERA,
    "real": {
        # Sharp photographs blurred so have the spectra that the originals of real pairs have.
        "original": {**_SOFT_ORIGINAL, "probability": 0.9, "sigma": (0.5, 1.3)},
        "first": {
            **_NO_STEPS,
            "blur": {
                "sinc_probability": 0.0,
                "kernel_probabilities": (0.5, 0.5, 0.0, 0.0, 0.0, 0.0),
                "kernel_size": (27, 33),
                "sigma": (2.0, 4.6),
            },
        },
        "second": {
            **_NO_STEPS,
            # The blur above is all there is: without a low-pass of its own, shrinking is sampling.
            "resize": {**_KEEP_SIZE, "antialias": False, "modes": ("bilinear", "bicubic")},
            "noise": {"gaussian_sigma": (0, 2.5), "poisson_strength": (0, 0.2)},
            "jpeg_probability": 0.4,
            "jpeg_quality": (80, 100),
        },
        "sharpening": {"probability": 0.85},
        "final_sinc_probability": 0.0,
    },
    "compressed": merge(
        _CAMERA,
        {
            "original": {**_SOFT_ORIGINAL, "probability": 0.5, "sigma": (0.3, 1.3)},
            "first": {"blur": {"sigma": (0.2, 3.0)}},
            "second": {"jpeg_probability": 1.0, "jpeg_quality": (25, 92)},
            "sharpening": {"probability": 0.5},
        },
    ),
    "bicubic": {"first": _NO_STEPS, "second": _NO_STEPS, "final_sinc_probability": 0.0},
}
