"""The network that a stage starts from: fresh parts, a base, what earlier stages left."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from clearsr.config.base import build_config, flat, merge
from clearsr.config.model import ModelConfig, preset_model_config
from clearsr.config.training import Stage, TrainConfig
from clearsr.errors import ClearSRError
from clearsr.hardware import store_in
from clearsr.models.build import build_network, own_components
from clearsr.models.checkpoint import (
    CONFIG_NAME,
    EMBEDDED_MODELS,
    locate,
    read_description,
    read_tensors,
    save_network,
    stages_of,
    start_from,
)
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.models.realesrgan import load_realesrgan
from clearsr.seeds import derive_seed
from clearsr.training.stages import StageModule, build_stage

logger = logging.getLogger(__name__)

# `prior` is not asked for: a compact model trains its U-Net together with the control branches.
_STAGES_BEFORE: dict[Stage, tuple[Stage, ...]] = {
    "autoencoder": (),
    "lr_encoder": ("autoencoder",),
    "decoder": ("autoencoder", "lr_encoder"),
    "painter": ("autoencoder", "lr_encoder"),
    "prior": ("autoencoder",),
    "clearsr": ("autoencoder", "lr_encoder"),
}


def prepare_network(config: TrainConfig) -> tuple[ClearSRNetwork, list[str]]:
    """The network before the first step, and the stages that its weights have been through.

    Raises:
        ClearSRError: the base or a model in `init_from` cannot be loaded, or does not fit the configuration.
    """
    network = build_network(model_of(config), config.seed)
    stages = _start_from_all(network, config.init_from)
    if config.stage == "prior" and "clearsr" in stages:
        raise ClearSRError(
            "init_from: has been through stage clearsr, whose control branches belong to its U-Net; stage "
            "prior comes before it"
        )
    if "prior" in stages and "clearsr" not in stages:
        # DPM and SPM were copied from the untrained U-Net, before the prior was there.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("control", config.seed))
            network.copy_encoder()
    for missing in missing_stages(config, stages):
        logger.warning("init_from: brings no stage %s; training on that part as it is built", missing)
    if config.stage == "lr_encoder" and "lr_encoder" not in stages:
        # E' starts where the VAE encoder's linear path is, so that its first output is the bicubic picture.
        linear = network.latents.own_lr_encoder().get_submodule("linear")
        linear.load_state_dict(network.latents.vae.encoder.linear.state_dict())
    teacher = None if config.perceptual is None else config.perceptual.teacher
    if teacher is not None and teacher.blocks and network.painter is not None and "painter" not in stages:
        network.painter.start_from(load_realesrgan(), teacher.blocks)
    return network, stages


_BASE_FIELDS = ("base_model", "base_revision", "image_encoder", "prediction", "null_prompt_tokens")


def model_of(config: TrainConfig) -> ModelConfig:
    """The recipe's model; on the base of what `clearsr init` wrote, where `init_from` names that.

    Raises:
        ClearSRError: the recipe asks for another model than was initialised.
    """
    model = config.model
    if not config.init_from:
        return model
    source = _locate_start(config.init_from[0])
    description = read_description(source)
    if description["stages"]:
        return model
    initial = build_config(ModelConfig, description["model"])
    usual = preset_model_config(model.preset)
    taken = [name for name in _BASE_FIELDS if getattr(model, name) == getattr(usual, name)]
    model = model.model_copy(update={name: getattr(initial, name) for name in taken})
    asked, there = (flat(each.model_dump(mode="json")) for each in (model, initial))
    if other := [name for name in asked if asked[name] != there.get(name)]:
        listed = ", ".join(f"model.{n} ({there.get(n)!r} there, {asked[n]!r} here)" for n in other[:3])
        raise ClearSRError(
            f"init_from: {source} was initialised with other settings: {listed}; set them as they are there, "
            "or run `clearsr init` with these"
        )
    return model


def _locate_start(source: Path) -> Path:
    """The folder of a model that training starts from: embedded, or what an earlier stage exported.

    Raises:
        ClearSRError: it is neither.
    """
    if str(source) not in EMBEDDED_MODELS and not (source / CONFIG_NAME).is_file():
        raise ClearSRError(
            f"init_from: {source} holds no model yet; train the stage before, which exports it, or name an "
            f"embedded model ({', '.join(EMBEDDED_MODELS)}) or another folder"
        )
    return locate(source)


def _start_from_all(network: ClearSRNetwork, sources: Sequence[Path]) -> list[str]:
    """Load one model after the other; returns the stages that they have been through."""
    stages: list[str] = []
    first, before = Path(), None
    for source in map(_locate_start, sources):
        brought = start_from(network, source)
        stages += brought
        if "autoencoder" not in brought:
            continue
        own = {
            name: value.clone()
            for name, value in network.latents.vae.state_dict().items()
            if "lora_" not in name and "autoencoder" in stages_of(f"latents.vae.{name}")
        }
        if before is not None and any(not torch.equal(before[name], value) for name, value in own.items()):
            logger.warning(
                "init_from: %s and %s bring different VAEs; that of the latter is taken, and what else the "
                "former brings was trained on other latents", first, source,
            )  # fmt: skip
        first, before = source, own
    return stages


def stages_of_run(config: TrainConfig) -> list[str]:
    """The stages whose tensors a run trains: its own, and what it trains along by pictures."""
    along = []
    if config.perceptual is not None and config.stage != "painter":
        if config.perceptual.decoder != "frozen" and config.model.autoencoder.overlap_channels:
            along.append("decoder")
        if config.model.painter.blocks:
            along.append("painter")
    return [config.stage, *along]


def missing_stages(config: TrainConfig, stages: list[str]) -> list[str]:
    """Stages that a network of our own should have been through before this one."""
    if config.model.base_model is not None:
        return []
    before = list(_STAGES_BEFORE[config.stage])
    if config.stage == "clearsr" and config.model.painter.blocks:
        before.append("painter")
    if config.model.lr_encoder.kind == "lora" and "lr_encoder" in before:
        before.remove("lr_encoder")
    return [stage for stage in before if stage not in stages]


def prepare_stage(config: TrainConfig, network: ClearSRNetwork, device: torch.device) -> StageModule:
    """The stage as it is trained: what is frozen is set, memory is saved, and it is on its device.

    Raises:
        ClearSRError: crops do not fit the network.
    """
    require_crop_fits(config, network)
    stage = build_stage(config, network)
    save_memory(network, config)
    stage = stage.to(device)
    stage.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return stage


def require_crop_fits(config: TrainConfig, network: ClearSRNetwork) -> None:
    """Refuse crops that are no whole number of latents.

    Raises:
        ClearSRError: says what to choose.
    """
    side = network.latents.pixels_per_latent()
    if config.data.crop_size % side:
        raise ClearSRError(f"data.crop_size: {config.data.crop_size}; accepted: a multiple of {side}")


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def save_memory(network: ClearSRNetwork, config: TrainConfig) -> None:
    """Apply `gradient_checkpointing` and `frozen_precision`; after the stage has set what is trained."""
    if config.gradient_checkpointing:
        recompute_activations(network)
    if config.frozen_precision != "fp32":
        store_in(network, DTYPES[config.frozen_precision])


def recompute_activations(network: ClearSRNetwork) -> None:
    """Have the blocks of U-Net, DPM, SPM and VAE compute activations again for gradients, not keep them.

    diffusers' blocks, and ours after them (`models.recomputing`), look at `gradient_checkpointing` and call
    `_gradient_checkpointing_func`.
    """
    function = partial(checkpoint, use_reentrant=False)
    parts = (network.unet, network.detail_preserving, network.structure_preserving, network.latents.vae)
    for part in parts:
        modules: list[Any] = [] if part is None else list(part.modules())
        for module in modules:
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = True
                module._gradient_checkpointing_func = function


# A start for ablations of a model of our own: its trained parts stand in for the frozen base.
# The control (DPM, SPM) is fresh, copied from its U-Net, in whatever shape a row of a table asks for.
def model_beside(source: str, changes: dict[str, object]) -> ModelConfig:
    """The configuration of a model of our own with some switches changed.

    Raises:
        ClearSRError: there is no such model, it stands on a base, or a switch is unknown.
    """
    described = read_description(locate(source))["model"]
    if described.get("base_model") is not None:
        raise ClearSRError(f"--from {source}: stands on {described['base_model']}; its base needs no --from")
    return build_config(ModelConfig, merge(described, changes))


def write_start(source: str, config: ModelConfig, folder: Path, seed: int = 0) -> None:
    """Write a model folder for `init_from`: VAE, E', U-Net and image encoder of `source`, all else fresh.

    Args:
        source: `compact`, a folder or a hub id, without LoRA on its U-Net.
        config: differs from that of `source` in its control, its LoRAs and the kind of E' alone.

    Raises:
        ClearSRError: the model cannot be read, or its parts do not fit.
    """
    tensors = read_tensors(locate(source))
    if any("lora_" in name for name in tensors):
        raise ClearSRError(f"--from {source}: has LoRA layers; expected a model trained without")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("weights", seed))
        parts = own_components(config)
        taken = {
            "latents.vae.": parts.vae,
            "latents.lr_encoder.": parts.lr_encoder,
            "unet.": parts.unet,
            "image_prompt.encoder.": parts.image_encoder,
        }
        for prefix, module in taken.items():
            own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            if module is not None:
                _load(module, own, f"--from {source}: {prefix}")
        network = ClearSRNetwork(config, parts._replace(null_prompt=tensors["null_prompt"]))
    stages = ["autoencoder", "clearsr"] + (["lr_encoder"] if parts.lr_encoder is not None else [])
    save_network(network, folder, stages)


def _load(module: torch.nn.Module, tensors: dict[str, torch.Tensor], label: str) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ClearSRError(f"{label} does not fit the recipe's model ({reason[:200]})") from None
