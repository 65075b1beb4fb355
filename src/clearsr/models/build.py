"""Networks from a configuration: fresh parts of our own, or the frozen parts of a Stable Diffusion base."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

from clearsr.config.model import SD21_BASE_MODELS, ModelConfig
from clearsr.errors import ClearSRError
from clearsr.models.clearsr import ClearSRNetwork, Components
from clearsr.models.patch_autoencoder import PatchAutoencoderKL, PatchEncoder
from clearsr.seeds import derive_seed


def build_network(
    config: ModelConfig, seed: int = 0, null_prompt: torch.Tensor | None = None
) -> ClearSRNetwork:
    """An untrained network: DPM and SPM copied from the U-Net, every LoRA and zero convolution at zero.

    Args:
        seed: of the fresh weights; the global random state is left as it was.
        null_prompt: stored embedding of the empty prompt, 1×tokens×D; unset: the base's text encoder
            computes it.

    Raises:
        ClearSRError: the base cannot be found or loaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("weights", seed))
        if config.base_model is None:
            return ClearSRNetwork(config, own_components(config))
        return ClearSRNetwork(config, base_components(config, null_prompt))


def own_components(config: ModelConfig) -> Components:
    """Fresh parts of our own (compact preset), small enough for a laptop."""
    autoencoder, lr_encoder, unet = config.autoencoder, config.lr_encoder, config.unet
    vae = PatchAutoencoderKL(**autoencoder.model_dump())
    own_encoder = None
    if lr_encoder.kind == "separate":
        own_encoder = PatchEncoder(
            3, autoencoder.latent_channels, autoencoder.patch_size, lr_encoder.channels, lr_encoder.layers
        )
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in unet.attention]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(unet.attention)]
    denoiser = UNet2DConditionModel(
        in_channels=autoencoder.latent_channels,
        out_channels=autoencoder.latent_channels,
        block_out_channels=unet.block_out_channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=unet.layers_per_block,
        # diffusers' misnomer: this is the number of heads at each level.
        attention_head_dim=tuple(width // unet.head_dim for width in unet.block_out_channels),
        cross_attention_dim=unet.cross_attention_dim,
        norm_num_groups=unet.norm_num_groups,
        use_linear_projection=True,
    )
    torch.nn.init.zeros_(denoiser.conv_out.weight)
    torch.nn.init.zeros_(denoiser.conv_out.bias)
    tower = CLIPVisionConfig(
        hidden_size=config.image_prompt.hidden_size,
        intermediate_size=4 * config.image_prompt.hidden_size,
        num_hidden_layers=config.image_prompt.layers,
        num_attention_heads=max(1, config.image_prompt.hidden_size // 32),
        image_size=config.image_prompt.image_size,
        patch_size=config.image_prompt.patch_size,
        projection_dim=unet.cross_attention_dim,
    )
    null_prompt = 0.02 * torch.randn(1, config.null_prompt_tokens, unet.cross_attention_dim)
    return Components(vae, own_encoder, denoiser, CLIPVisionModelWithProjection(tower), null_prompt)


def base_components(config: ModelConfig, null_prompt: torch.Tensor | None = None) -> Components:
    """The frozen parts of a Stable Diffusion 2.x base and of the CLIP image encoder, from folders or the hub.

    Raises:
        ClearSRError: a part cannot be found; names the mirrors and the flag.
    """
    source, revision = config.base_model, config.base_revision
    assert source is not None, "own_components builds networks without a base"
    vae = _load(AutoencoderKL, source, "vae", revision)
    unet = _load(UNet2DConditionModel, source, "unet", revision)
    if null_prompt is None:
        null_prompt = encode_text(source, "", revision)
    image_source = config.image_encoder or source
    subfolder = None if config.image_encoder else "image_encoder"
    image_encoder = _load(CLIPVisionModelWithProjection, image_source, subfolder, None)
    width = unet.config.cross_attention_dim
    if image_encoder.config.projection_dim != width:
        raise ClearSRError(
            f"--image-encoder {image_source}: projects to {image_encoder.config.projection_dim} channels, "
            f"the U-Net of {source} takes {width} (SD 2.1: a CLIP ViT-H/14)"
        )
    return Components(vae, None, unet, image_encoder, null_prompt)


def encode_text(source: str, text: str, revision: str | None = None) -> torch.Tensor:
    """The embedding of a prompt by the base's text encoder, 1×tokens×D.

    Raises:
        ClearSRError: the base has no text encoder or tokenizer.
    """
    tokenizer = _load(CLIPTokenizer, source, "tokenizer", revision)
    encoder = _load(CLIPTextModel, source, "text_encoder", revision)
    tokens = tokenizer(
        text,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        return encoder(tokens.input_ids).last_hidden_state.float()


def _load(cls: Any, source: str, subfolder: str | None, revision: str | None) -> Any:
    """`cls.from_pretrained` from safetensors only; the default base falls back to its mirror."""
    mirrors = SD21_BASE_MODELS if source == SD21_BASE_MODELS[0] else (source,)
    reasons = []
    for mirror in mirrors:
        arguments: dict[str, Any] = {} if cls is CLIPTokenizer else {"use_safetensors": True}
        try:
            return cls.from_pretrained(mirror, subfolder=subfolder or "", revision=revision, **arguments)
        except (OSError, ValueError) as error:
            reasons.append(f"{mirror}: {str(error).splitlines()[0]}")
    part = subfolder or "model"
    kind = "folder has no such part" if Path(source).is_dir() else "tried " + " and ".join(mirrors)
    raise ClearSRError(
        f"--base-model {source}: its {part} cannot be loaded ({kind}; {reasons[-1]}); "
        "give a local folder in the Stable Diffusion 2.x layout with safetensors weights"
    )
