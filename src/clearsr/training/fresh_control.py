"""A start for ablations of a model of our own: its trained parts stand in for the frozen base.

The control (DPM, SPM) is fresh, copied from its U-Net, in whatever shape a row of a table asks for.
"""

from pathlib import Path

import torch

from clearsr.config.base import build_config, merge
from clearsr.config.model import ModelConfig
from clearsr.errors import ClearSRError
from clearsr.models.build import own_components
from clearsr.models.checkpoint import locate, read_description, read_tensors, save_network
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.seeds import derive_seed


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
