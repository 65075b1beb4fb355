"""The network that a stage starts from: fresh parts, a base, and what earlier stages left."""

import logging

from clearsr.checkpoint import start_from
from clearsr.config.training import TrainConfig
from clearsr.errors import ClearSRError
from clearsr.models.build import build_network
from clearsr.models.clearsr import ClearSRNetwork

logger = logging.getLogger(__name__)


def prepare_network(config: TrainConfig) -> tuple[ClearSRNetwork, list[str]]:
    """The network before the first step, and the stages that its weights have been through.

    Raises:
        ClearSRError: the base or a model in `init_from` cannot be loaded, or does not fit the configuration.
    """
    network = build_network(config.model, config.seed)
    stages: list[str] = []
    for source in config.init_from:
        stages += start_from(network, source)
    for missing in missing_stages(config, stages):
        logger.warning("init_from: brings no stage %s; training on that part as it is built", missing)
    if config.stage == "lr_encoder" and "lr_encoder" not in stages:
        # E' starts where the VAE encoder's linear path is, so that its first output is the bicubic picture.
        linear = network.latents.own_lr_encoder().get_submodule("linear")
        linear.load_state_dict(network.latents.vae.encoder.linear.state_dict())
    return network, stages


def missing_stages(config: TrainConfig, stages: list[str]) -> list[str]:
    """Stages that a network of our own should have been through before this one."""
    if config.model.base_model is not None:
        return []
    order = ["autoencoder", "lr_encoder", "clearsr"]
    if config.model.lr_encoder.kind == "lora":
        order.remove("lr_encoder")
    before = order[: order.index(config.stage)] if config.stage in order else []
    return [stage for stage in before if stage not in stages]


def require_crop_fits(config: TrainConfig, network: ClearSRNetwork) -> None:
    """Refuse crops that are no whole number of latents.

    Raises:
        ClearSRError: says what to choose.
    """
    side = network.latents.pixels_per_latent()
    if config.data.crop_size % side:
        raise ClearSRError(f"data.crop_size: {config.data.crop_size}; accepted: a multiple of {side}")
