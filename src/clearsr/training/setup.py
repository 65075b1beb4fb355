"""The network that a stage starts from: fresh parts, a base, and what earlier stages left."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from clearsr.checkpoint import stages_of, start_from
from clearsr.config.training import Stage, TrainConfig
from clearsr.errors import ClearSRError
from clearsr.models.build import build_network
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.seeds import derive_seed
from clearsr.training.memory import save_memory
from clearsr.training.stages import StageModule, build_stage

logger = logging.getLogger(__name__)

# `prior` is not asked for: a compact model trains its U-Net together with the control branches.
_STAGES_BEFORE: dict[Stage, tuple[Stage, ...]] = {
    "autoencoder": (),
    "lr_encoder": ("autoencoder",),
    "decoder": ("autoencoder", "lr_encoder"),
    "prior": ("autoencoder",),
    "clearsr": ("autoencoder", "lr_encoder"),
}


def prepare_network(config: TrainConfig) -> tuple[ClearSRNetwork, list[str]]:
    """The network before the first step, and the stages that its weights have been through.

    Raises:
        ClearSRError: the base or a model in `init_from` cannot be loaded, or does not fit the configuration.
    """
    network = build_network(config.model, config.seed)
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
    return network, stages


def _start_from_all(network: ClearSRNetwork, sources: Sequence[Path]) -> list[str]:
    """Load one model after the other; returns the stages that they have been through."""
    stages: list[str] = []
    first, before = Path(), None
    for source in sources:
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


def missing_stages(config: TrainConfig, stages: list[str]) -> list[str]:
    """Stages that a network of our own should have been through before this one."""
    if config.model.base_model is not None:
        return []
    before = list(_STAGES_BEFORE[config.stage])
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
