"""Networks from a configuration: fresh parts of our own, or the frozen parts of a Stable Diffusion base.

What a base needs is imported in the functions that need it: diffusers and transformers take seconds.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from clearsr.config.model import SD21_BASE_MODELS, SD21_IMAGE_ENCODER, ModelConfig
from clearsr.errors import ClearSRError
from clearsr.models.base_model import (
    PART_NAMES,
    PartFolder,
    check_unet_and_vae,
    check_widths,
    has_part,
    locate_base,
    locate_image_encoder,
    read_part_config,
    read_prediction,
    weights_files,
)
from clearsr.models.clearsr import ClearSRNetwork, Components
from clearsr.models.image_prompt import VisionShape, VisionTower
from clearsr.models.patch_autoencoder import PatchAutoencoderKL, PatchEncoder
from clearsr.models.unet import UNet, UNetShape
from clearsr.seeds import derive_seed

logger = logging.getLogger(__name__)


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
        located = _locate_parts(config, with_text=null_prompt is None)
        parts = base_components(config, located, null_prompt)
        found = _named_base(config, *located) | {"null_prompt_tokens": parts.null_prompt.shape[1]}
        network = ClearSRNetwork(config.model_copy(update=found), parts)
        base, image_encoder = located
        folders = {
            "unet": base.folder / "unet",
            "vae": base.folder / "vae",
            "image_encoder": image_encoder.folder,
        }
        network.base_files = {part: weights_files(folder, part) for part, folder in folders.items()}
        return network


def _named_base(config: ModelConfig, base: PartFolder, image_encoder: PartFolder) -> dict[str, str | None]:
    """What finds the same base again from anywhere: absolute folders, or hub ids and commits."""
    own = config.image_encoder is None
    return {
        "base_model": base.source,
        "base_revision": base.revision,
        "image_encoder": None if own else image_encoder.name(),
    }


def own_components(config: ModelConfig) -> Components:
    """Fresh parts of our own (compact preset), small enough for a laptop."""
    autoencoder, lr_encoder, unet = config.autoencoder, config.lr_encoder, config.unet
    _refuse_misfits(config, len(unet.block_out_channels))
    vae = PatchAutoencoderKL(autoencoder)
    own_encoder = None
    if lr_encoder.kind == "separate":
        own_encoder = PatchEncoder(
            3,
            autoencoder.latent_channels,
            autoencoder.patch_size,
            lr_encoder.channels,
            lr_encoder.layers,
        )
    denoiser = UNet(
        UNetShape(
            in_channels=autoencoder.latent_channels,
            block_out_channels=unet.block_out_channels,
            attention=unet.attention,
            layers_per_block=unet.layers_per_block,
            attention_head_dim=tuple(width // unet.head_dim for width in unet.block_out_channels),
            cross_attention_dim=unet.cross_attention_dim,
            norm_num_groups=unet.norm_num_groups,
        )
    )
    for parameter in denoiser.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    tower = VisionShape(
        hidden_size=config.image_prompt.hidden_size,
        num_hidden_layers=config.image_prompt.layers,
        num_attention_heads=max(1, config.image_prompt.hidden_size // 32),
        image_size=config.image_prompt.image_size,
        patch_size=config.image_prompt.patch_size,
        projection_dim=unet.cross_attention_dim,
    )
    null_prompt = 0.02 * torch.randn(1, config.null_prompt_tokens, unet.cross_attention_dim)
    return Components(vae, own_encoder, denoiser, VisionTower(tower), null_prompt)


def base_components(
    config: ModelConfig, located: tuple[PartFolder, PartFolder], null_prompt: torch.Tensor | None = None
) -> Components:
    """The frozen parts of a Stable Diffusion 2.x base and of the CLIP image encoder, where they were found.

    Raises:
        ClearSRError: a part cannot be read, or the parts do not fit together or to `config`.
    """
    from clearsr.models.pretrained import encode_text, load_part

    with_text = null_prompt is None
    base, image_encoder = located
    configs = _read_configs(base, image_encoder, with_text)
    _refuse_misfits(config, len(configs["unet"]["block_out_channels"]))
    predicted = read_prediction(base.folder)
    if predicted is not None and predicted != config.prediction:
        raise ClearSRError(
            f"model.prediction: {config.prediction}, but the U-Net of {base.source} predicts {predicted}; "
            f"set it to {predicted} (`clearsr init` does)"
        )
    if null_prompt is None:
        null_prompt = encode_text(base.source, "", base.revision)
    vae, unet = (load_part(name, base.folder / name) for name in ("vae", "unet"))
    encoder = load_part("image_encoder", image_encoder.folder, "--image-encoder")
    return Components(vae, None, unet, encoder, null_prompt)


def resolve_base(config: ModelConfig, keep_image_encoder: bool = False) -> ModelConfig:
    """`config` with all settled that the base decides: what `clearsr init` builds and stores.

    Folders become absolute, hub revisions commits, and the prediction is the base's. A base that brings its
    own image encoder is read with that one, unless `keep_image_encoder`.

    Raises:
        ClearSRError: the base cannot be found, or the configuration contradicts it.
    """
    if config.preset != "sd21" or config.base_model is None:
        raise ClearSRError(
            f"model.preset: {config.preset} without a base starts with `clearsr train`; init builds on a "
            "Stable Diffusion 2.x base: preset sd21 and --base-model"
        )
    if config.base_revision is not None and Path(config.base_model).is_dir():
        raise ClearSRError(f"--revision {config.base_revision}: {config.base_model} is a folder and has none")
    parts = [*PART_NAMES, "tokenizer", "scheduler"]
    if keep_image_encoder:
        parts.remove("image_encoder")
    base = locate_base(config.base_model, config.base_revision, parts)
    for part in ("unet", "vae", "text_encoder"):
        read_part_config(base.folder / part)
    image_encoder = config.image_encoder
    if not keep_image_encoder and has_part(base.folder, "image_encoder"):
        image_encoder = None
    elif image_encoder is not None:
        image_encoder = locate_image_encoder(image_encoder).name()
    predicted = read_prediction(base.folder)
    if predicted is None:
        logger.warning("%s has no scheduler/; taking its U-Net to predict %s", base.source, config.prediction)
    elif "prediction" in config.model_fields_set and config.prediction != predicted:
        raise ClearSRError(
            f"prediction: {config.prediction}, but the U-Net of {base.source} predicts {predicted}"
        )
    return config.model_copy(
        update={
            "base_model": base.source,
            "base_revision": base.revision,
            "image_encoder": image_encoder,
            "prediction": predicted or config.prediction,
        }
    )


def meta_network(config: ModelConfig) -> ClearSRNetwork:
    """The network as shapes without memory; of a base on the hub only `config.json` files are fetched.

    Raises:
        ClearSRError: the base cannot be found, or the configuration cannot be built.
    """
    with torch.device("meta"):
        return ClearSRNetwork(config, _untrained_parts(config))


def random_network(config: ModelConfig, seed: int = 0) -> ClearSRNetwork:
    """The network at its size with random weights, those of a base too: to measure time and memory with.

    Of a base on the hub only `config.json` files are fetched.

    Raises:
        ClearSRError: the base cannot be found, or the configuration cannot be built.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("weights", seed))
        return ClearSRNetwork(config, _untrained_parts(config))


def _untrained_parts(config: ModelConfig) -> Components:
    """All parts with random weights, on torch's default device."""
    if config.base_model is None:
        return own_components(config)
    from clearsr.models.sd21 import untrained_components

    return untrained_components(base_configs(config), config.null_prompt_tokens)


def base_configs(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """What describes the parts of the base: the published descriptions for SD 2.1-base, else its own files.

    Raises:
        ClearSRError: the base cannot be found or read, or it does not fit `config`.
    """
    from clearsr.models.sd21 import PART_CONFIGS

    published = (config.image_encoder or "").partition("@")[0] == SD21_IMAGE_ENCODER
    if published and config.base_model in SD21_BASE_MODELS:
        configs = PART_CONFIGS
    else:
        configs = _read_configs(*_locate_parts(config, with_text=True, with_weights=False), with_text=True)
    _refuse_misfits(config, len(configs["unet"]["block_out_channels"]))
    return configs


def _refuse_misfits(config: ModelConfig, levels: int) -> None:
    """One line on what of `config` a U-Net of so many levels, or a frozen base, does not allow."""
    if config.base_model is not None:
        # A checkpoint on a base stores neither a trained U-Net nor an encoder of our own.
        if config.train_unet == "full":
            raise ClearSRError("model.train_unet: full needs a U-Net of our own; on a base: lora, frozen")
        if config.lr_encoder.kind == "separate":
            raise ClearSRError("model.lr_encoder.kind: separate needs a VAE of our own; on a base: lora")
        if config.prediction == "lr_anchored":
            raise ClearSRError(
                "model.prediction: lr_anchored needs a U-Net of our own; on a base: epsilon, v_prediction"
            )
    coarsest, window = 2 ** (levels - 1), config.control.window_size
    if config.control.cross_attention and window is not None and window % coarsest:
        raise ClearSRError(
            f"model.control.window_size: {window}; accepted: null, or a multiple of {coarsest}"
        )


def _locate_parts(
    config: ModelConfig, with_text: bool, with_weights: bool = True
) -> tuple[PartFolder, PartFolder]:
    """The base, and the folder of its or of a separate image encoder."""
    assert config.base_model is not None, "own_components builds networks without a base"
    parts = ["unet", "vae", "scheduler"]
    if with_text:
        parts += ["text_encoder", "tokenizer"]
    if config.image_encoder is None:
        parts.append("image_encoder")
    base = locate_base(config.base_model, config.base_revision, parts, with_weights)
    if config.image_encoder is None:
        return base, base._replace(folder=base.folder / "image_encoder")
    return base, locate_image_encoder(config.image_encoder, with_weights)


def _read_configs(base: PartFolder, image_encoder: PartFolder, with_text: bool) -> dict[str, dict[str, Any]]:
    """config.json of every part, checked against each other before any weights are read."""
    names = ("unet", "vae", "text_encoder") if with_text else ("unet", "vae")
    configs = {name: read_part_config(base.folder / name) for name in names}
    configs["image_encoder"] = read_part_config(image_encoder.folder, "--image-encoder")
    check_unet_and_vae(configs["unet"], configs["vae"], base.source)
    if with_text:
        label = f"--base-model {base.source}: its text_encoder"
        check_widths(configs["unet"], configs["text_encoder"], "hidden_size", label)
    label = f"--image-encoder {image_encoder.source}"
    check_widths(configs["unet"], configs["image_encoder"], "projection_dim", label)
    return configs
