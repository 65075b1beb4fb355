"""The architecture of Stable Diffusion 2.1-base and of CLIP ViT-H/14, from their `config.json`.

From these the network can be built on the meta device (shapes without memory), to count parameters or to
check a configuration before gigabytes are fetched, or with random weights, to measure it. No trained weights.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from clearsr.errors import optional
from clearsr.models.clearsr import Components

if TYPE_CHECKING:
    from transformers import CLIPTextModel

UNET_CONFIG: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": [
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": [5, 10, 20, 20],  # diffusers' misnomer: the number of heads per level
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "act_fn": "silu",
}
VAE_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "act_fn": "silu",
    "sample_size": 768,
    "scaling_factor": 0.18215,
}
# OpenCLIP ViT-H/14's text tower without its last layer (23 of 24), which Stable Diffusion 2 reads.
TEXT_ENCODER_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
IMAGE_ENCODER_CONFIG: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "projection_dim": 1024,
}
PART_CONFIGS: dict[str, dict[str, Any]] = {
    "unet": UNET_CONFIG,
    "vae": VAE_CONFIG,
    "text_encoder": TEXT_ENCODER_CONFIG,
    "image_encoder": IMAGE_ENCODER_CONFIG,
}

# The paper samples 50 steps with guidance; its scale is not given, SeeSR's (whose setting it follows) is 5.5.
PAPER_SAMPLING: dict[str, Any] = {"steps": 50, "guidance_scale": 5.5}


def untrained_components(
    configs: Mapping[str, Mapping[str, Any]] = PART_CONFIGS, null_prompt_tokens: int = 77
) -> Components:
    """The frozen parts of a base with random weights, of torch's global generator, on its default device.

    On the meta device (`with torch.device("meta")`) they are shapes only.

    Args:
        configs: `unet`, `vae` and `image_encoder` in the words of their `config.json`.
    """
    with optional("a base of Stable Diffusion"):
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    unet = UNet2DConditionModel.from_config(dict(configs["unet"]))
    vae = AutoencoderKL.from_config(dict(configs["vae"]))
    image_encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**configs["image_encoder"]))
    null_prompt = torch.randn(1, null_prompt_tokens, unet.config.cross_attention_dim)
    return Components(vae.eval(), None, unet.eval(), image_encoder.eval(), null_prompt)


def meta_text_encoder(configs: Mapping[str, Mapping[str, Any]] = PART_CONFIGS) -> "CLIPTextModel":
    """The base's text encoder as shapes only; the network itself keeps no more of it than the null prompt."""
    with optional("a base of Stable Diffusion"):
        from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        return CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
