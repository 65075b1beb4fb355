"""The network that a stage starts from: fresh parts, a base, and what earlier stages left."""

from clearsr.checkpoint import start_from
from clearsr.config.training import TrainConfig
from clearsr.models.build import build_network
from clearsr.models.clearsr import ClearSRNetwork


def prepare_network(config: TrainConfig) -> tuple[ClearSRNetwork, list[str]]:
    """The network before the first step, and the stages that its weights have been through.

    Raises:
        ClearSRError: the base or a model in `init_from` cannot be loaded, or does not fit the configuration.
    """
    network = build_network(config.model, config.seed)
    stages: list[str] = []
    for source in config.init_from:
        stages += start_from(network, source)
    if config.stage == "lr_encoder" and "lr_encoder" not in stages:
        # E' starts where the VAE encoder's linear path is, so that its first output is the bicubic picture.
        linear = network.latents.own_lr_encoder().get_submodule("linear")
        linear.load_state_dict(network.latents.vae.encoder.linear.state_dict())
    return network, stages
