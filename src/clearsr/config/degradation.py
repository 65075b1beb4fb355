"""Settings of the second-order degradation (Real-ESRGAN, Wang et al. 2021), and the named sets in circulation.

`full` is Real-ESRGAN's own x4plus set, which SeeSR and OSEDiff use too; `light` is StableSR's milder one;
`bicubic` has no degradation but the downscaling. Ranges are (low, high), drawn uniformly per image.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from clearsr.config.base import FrozenConfig

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Range = tuple[float, float]
PresetName = Literal["full", "light", "bicubic"]


class BlurConfig(FrozenConfig):
    """Random blur kernels of one stage."""

    probability: Probability = Field(1.0, description="chance that the stage blurs at all")
    sinc_probability: Probability = Field(0.1, description="chance of a sinc (ringing) kernel instead")
    sigma: Range = Field((0.2, 3.0), description="standard deviation in pixels")
    beta_generalized: Range = Field((0.5, 4.0), description="shape of the generalized Gaussian kernels")
    beta_plateau: Range = Field((1.0, 2.0), description="shape of the plateau kernels")


class NoiseConfig(FrozenConfig):
    """Additive Gaussian or signal-dependent Poisson noise of one stage."""

    gaussian_probability: Probability = Field(0.5, description="chance of Gaussian noise, else Poisson")
    gaussian_sigma: Range = Field((1.0, 30.0), description="standard deviation on the 0-255 scale")
    poisson_strength: Range = Field((0.05, 3.0), description="factor on the Poisson noise")
    gray_probability: Probability = Field(0.4, description="chance that the three channels share the noise")


class ResizeConfig(FrozenConfig):
    """Random resize of one stage by area, bilinear or bicubic interpolation."""

    probabilities: tuple[float, float, float] = Field((0.2, 0.7, 0.1), description="chances of up, down, keep")
    factor: Range = Field((0.15, 1.5), description="smallest factor when shrinking, largest when growing")


class StageConfig(FrozenConfig):
    """One order of the model: blur, resize, noise, JPEG."""

    blur: BlurConfig = BlurConfig()
    resize: ResizeConfig = ResizeConfig()
    noise: NoiseConfig = NoiseConfig()
    jpeg_quality: Range = Field((30, 95), description="JPEG quality, 1-100")


class DegradationConfig(FrozenConfig):
    """The whole second-order model that makes an LR image from an HR one."""

    preset: PresetName = Field("full", description="the named set that the other fields start from")
    first: StageConfig = StageConfig()
    second: StageConfig = StageConfig()
    final_sinc_probability: Probability = Field(0.8, description="chance of the last sinc filter")

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: object) -> object:
        """Fill in what was not given from the named set, so that `{preset: light}` is enough."""
        if not isinstance(values, dict):
            return values
        from clearsr.config.base import merge

        return merge(_PRESETS.get(str(values.get("preset", "full")), {}), values)


_SECOND_RESIZE = {"probabilities": (0.3, 0.4, 0.3)}
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
            "blur": {"sigma": (0.2, 1.5), "beta_generalized": (0.5, 2.0), "beta_plateau": (1.0, 1.5)},
            "resize": {"factor": (0.3, 1.5)},
            "noise": {"gaussian_sigma": (1, 15), "poisson_strength": (0.05, 2.0)},
            "jpeg_quality": (60, 95),
        },
        "second": {
            "blur": {
                "probability": 0.5,
                "sigma": (0.2, 1.0),
                "beta_generalized": (0.5, 2.0),
                "beta_plateau": (1.0, 1.5),
            },
            "resize": {**_SECOND_RESIZE, "factor": (0.6, 1.2)},
            "noise": {"gaussian_sigma": (1, 12), "poisson_strength": (0.05, 1.0)},
            "jpeg_quality": (60, 100),
        },
    },
    "bicubic": {},
}
