"""The whole network (paper, Figure 3): latents, DPM + SPM -> control signals -> U-Net.

The U-Net is run in two halves, `unet_encode` and `unet_decode`, because only the second sees the image prompt
and the control signals: both branches of classifier-free guidance then share the first, exactly. Training
and sampling go through the same methods.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from clearsr.config.model import ModelConfig
from clearsr.hardware import check_compiler, store_in
from clearsr.models.detail_preserving import DetailPreservingModule
from clearsr.models.image_prompt import ImagePrompt, mixed_prompts
from clearsr.models.latent_lr_embedding import LatentLREmbedding
from clearsr.models.lora import (
    UNET_DECODER_TARGETS,
    VAE_ENCODER_TARGETS,
    add_lora,
    lora_layers,
    merge_lora,
)
from clearsr.models.painter import Painter
from clearsr.models.prediction import alpha_bars
from clearsr.models.structure_preserving import StructurePreservingModule
from clearsr.models.transformer import shorten_attention
from clearsr.models.unet import EncodedLatent, run_encoder


class ControlSignals(NamedTuple):
    """x_c: what is added to the U-Net's skip connections, finest first, and to its middle."""

    skips: list[torch.Tensor]
    middle: torch.Tensor


class Components(NamedTuple):
    """The pretrained or newly built parts that a network is assembled from."""

    vae: nn.Module
    lr_encoder: nn.Module | None
    unet: Any  # diffusers' `UNet2DConditionModel`, or a `UNet` of our own
    image_encoder: nn.Module
    null_prompt: torch.Tensor  # 1×tokens×D


class ClearSRNetwork(nn.Module):
    """All parts of ClearSR, assembled from a base and a configuration; untrained, it equals the base."""

    def __init__(self, config: ModelConfig, parts: Components) -> None:
        super().__init__()
        self.config = config
        self.base_files: dict[str, list[Path]] = {}  # of a frozen base, the weights of each part
        self.latents = LatentLREmbedding(parts.vae, parts.lr_encoder)
        self.unet: Any = parts.unet
        self.copy_encoder()
        self.image_prompt = ImagePrompt(parts.image_encoder, config.image_prompt.mode)
        self.null_prompt = nn.Parameter(parts.null_prompt)
        self.alpha_bars: torch.Tensor
        self.register_buffer("alpha_bars", alpha_bars(), persistent=False)
        if config.lr_encoder.kind == "lora" and config.lr_encoder.lora_rank:
            add_lora(self.latents.vae, VAE_ENCODER_TARGETS, config.lr_encoder.lora_rank)
        if config.unet_lora_rank:
            add_lora(self.unet, UNET_DECODER_TARGETS, config.unet_lora_rank)
        shorten_attention(self.unet)
        self.painter = Painter(config.painter.blocks) if config.painter.blocks else None

    def copy_encoder(self) -> None:
        """Begin DPM and SPM as copies of the U-Net's encoder as it now is (section 3.2), the rest fresh."""
        control = self.config.control
        self.detail_preserving = DetailPreservingModule(self.unet, control, head_dimension(self.unet))
        self.structure_preserving = (
            StructurePreservingModule(self.unet) if control.structure_preserving else None
        )
        shorten_attention(self.detail_preserving)

    def set_trainable(self) -> None:
        """Leave exactly what the `clearsr` stage trains with gradients on.

        DPM, SPM and the LoRAs; with `train_unet: full` also the U-Net, the image encoder and the null prompt,
        which are then ours and not a frozen base.
        """
        self.requires_grad_(False)
        self.detail_preserving.requires_grad_(True)
        if self.structure_preserving is not None:
            self.structure_preserving.requires_grad_(True)
        if self.config.train_unet == "full":
            for part in (self.unet, self.image_prompt, self.null_prompt):
                part.requires_grad_(True)
        for name, parameter in self.named_parameters():
            if "lora_" in name and (self.config.train_unet != "frozen" or not name.startswith("unet.")):
                parameter.requires_grad_(True)

    def pixel_multiple(self) -> int:
        """What the sides of an image must be a multiple of: the VAE's folding times the U-Net's."""
        return self.latents.pixels_per_latent() * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def merge_adapters(self) -> None:
        """Fold both LoRAs into their weights: faster, and for inference alone, as E is then gone."""
        merge_lora(self.unet)
        self.latents.merge_adapter()

    def has_merged_adapters(self) -> bool:
        """Whether the configuration has a LoRA that is no longer there to be saved."""
        unet_is_merged = self.config.unet_lora_rank > 0 and not lora_layers(self.unet)
        return unet_is_merged or self.latents.is_merged

    def structure_features(self, z_lr: torch.Tensor) -> list[torch.Tensor] | None:
        """The SPM's features, which hold for every step; None without SPM."""
        return None if self.structure_preserving is None else self.structure_preserving(z_lr)

    def control_signals(
        self,
        z_lr: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        structure: list[torch.Tensor] | None,
    ) -> ControlSignals:
        """x_c = zero convolutions of DPM + SPM features (section 3.2)."""
        features, middle = self.detail_preserving(z_lr, timestep, text)
        if structure is not None:
            features = [detail + shape for detail, shape in zip(features, structure, strict=True)]
        return ControlSignals(*self.detail_preserving.project(features, middle))

    def unet_encode(self, latent: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> EncodedLatent:
        """Encoder and middle of the U-Net, under the null text (B×tokens×D) and without control."""
        return run_encoder(self.unet, latent, timestep, text)

    def unet_decode(
        self,
        encoded: EncodedLatent,
        control: ControlSignals | None,
        prompt: torch.Tensor,
        counts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decoder of the U-Net: control is added where ControlNet adds it, p replaces the null text.

        Without control it is the base's own decoder. `counts` are the tokens of the prompt that are attended
        to, B×T of bool; None: all.
        """
        unet = self.unet
        skips, hidden = encoded.skips, encoded.middle
        if control is not None:
            skips = [skip + signal for skip, signal in zip(skips, control.skips, strict=True)]
            hidden = hidden + control.middle
        for block in unet.up_blocks:
            taken = len(block.resnets)
            given, skips = tuple(skips[-taken:]), skips[:-taken]
            # Sizes that are not a multiple of 2**levels: upsample to the next skip connection's size.
            size = skips[-1].shape[-2:] if skips else None
            if getattr(block, "has_cross_attention", False):
                hidden = block(
                    hidden,
                    res_hidden_states_tuple=given,
                    temb=encoded.time,
                    encoder_hidden_states=prompt,
                    encoder_attention_mask=counts,
                    upsample_size=size,
                )
            else:
                hidden = block(hidden, res_hidden_states_tuple=given, temb=encoded.time, upsample_size=size)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))

    def forward(
        self,
        latent: torch.Tensor,
        timestep: torch.Tensor,
        z_lr: torch.Tensor,
        prompt: torch.Tensor,
        dropped: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The U-Net's output for one branch, everything computed anew: the training pass.

        Args:
            latent: B×c×h×w, what `network_input` makes of z_t.
            timestep: B, int64.
            z_lr: x_lr, B×c×h×w.
            prompt: B×T×D for the decoder.
            dropped: B, bool; samples whose decoder gets the null prompt, so that guidance works.
        """
        text = self.null_prompt.expand(latent.shape[0], -1, -1).to(latent.dtype)
        control = self.control_signals(z_lr, timestep, text, self.structure_features(z_lr))
        encoded = self.unet_encode(latent, timestep, text)
        if dropped is None:
            return self.unet_decode(encoded, control, prompt)
        return self.unet_decode(encoded, control, *mixed_prompts(prompt, text, dropped))


def head_dimension(unet: Any) -> int:
    """Channels of an attention head of the base (64 in SD 2.1).

    diffusers' `attention_head_dim` holds the number of heads, per level or for all.
    """
    heads = unet.config.attention_head_dim
    first = heads[0] if isinstance(heads, (list, tuple)) else heads
    return unet.config.block_out_channels[0] // first


def store_for_inference(network: ClearSRNetwork, precision: torch.dtype) -> None:
    """Halve the denoising network and the image encoder; the VAE, which is small, keeps its fp32 weights."""
    if precision == torch.float32:
        return
    for part in (*denoising_parts(network), network.image_prompt):
        store_in(part, precision)


def denoising_parts(network: ClearSRNetwork) -> list[nn.Module]:
    """What runs at every step."""
    parts = (network.unet, network.detail_preserving, network.structure_preserving)
    return [part for part in parts if part is not None]


def denoising_blocks(network: ClearSRNetwork) -> list[nn.Module]:
    """What of the denoising network torch.compile is given, each for itself."""
    unet = network.unet
    return [*unet.down_blocks, unet.mid_block, *unet.up_blocks, *denoising_parts(network)[1:]]


def compile_network(network: ClearSRNetwork) -> None:
    """Have torch.compile translate the denoising network on its first use, block by block.

    Raises:
        ClearSRError: there is no compiler for this device.
    """
    check_compiler(next(network.parameters()).device)
    for block in denoising_blocks(network):
        block.compile()


def set_scaling_factor(network: ClearSRNetwork, factor: float) -> None:
    """Set the scaling factor of a VAE of our own, in the module and in the configuration."""
    autoencoder = network.config.autoencoder.model_copy(update={"scaling_factor": factor})
    network.latents.vae.config = autoencoder
    network.config = network.config.model_copy(update={"autoencoder": autoencoder})
