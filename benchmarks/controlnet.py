"""What diffusers' ControlNet trainer trains, as a stage for our steps: to time beside ClearSR's.

The U-Net and the VAE are those of the recipe's base, frozen and in `frozen_precision`; the ControlNet is
made of the U-Net, in fp32 under autocast, and sees the enlarged LR crop. Data, draws, clipping and AdamW are
those of our steps, so that nothing but the networks differs. In favour of diffusers': the text is given and
not encoded.
"""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from torch import nn

from clearsr.config.training import TrainConfig
from clearsr.data.crops import TrainingBatch
from clearsr.image import resize, to_signed
from clearsr.models.build import base_configs
from clearsr.seeds import derive_seed, make_generator
from clearsr.training.losses import Losses, sample_noise, step_draws
from clearsr.training.setup import DTYPES


class ControlNetStage(nn.Module):
    """Forward as a training stage's: batch and seed -> the loss, MSE of the noise."""

    needs_lr = True

    def __init__(self, config: TrainConfig) -> None:
        """Random weights, but that the ControlNet's encoder is a copy of the U-Net's."""
        super().__init__()
        configs, self._loss = base_configs(config.model), config.loss
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("weights", config.seed))
            self.unet = UNet2DConditionModel.from_config(configs["unet"])
            self.vae = AutoencoderKL.from_config(configs["vae"])
            self.controlnet = ControlNetModel.from_unet(self.unet)
            width = self.unet.config.cross_attention_dim
            self.register_buffer("text", torch.randn(1, config.model.null_prompt_tokens, width))
        for frozen in (self.unet, self.vae):
            frozen.requires_grad_(False).to(DTYPES[config.frozen_precision])
        if config.gradient_checkpointing:
            self.controlnet.enable_gradient_checkpointing()
        self._noising = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

    def forward(self, batch: TrainingBatch, seed: int) -> Losses:
        dtype, ids = self.unet.dtype, batch.sample_ids
        with torch.no_grad():
            posterior = self.vae.encode(to_signed(batch.hr).to(dtype)).latent_dist
            z_0 = posterior.sample(make_generator("posterior", seed, *ids)) * self.vae.config.scaling_factor
        noise = sample_noise(z_0.shape, seed, ids).to(z_0)
        timestep, _ = step_draws(seed, ids, self._loss, z_0.device)
        z_t = self._noising.add_noise(z_0, noise, timestep)
        text = self.text.expand(len(z_0), -1, -1).to(dtype)
        condition = resize(batch.lr, (batch.hr.shape[-2], batch.hr.shape[-1]))
        skips, middle = self.controlnet(z_t, timestep, text, condition, return_dict=False)
        output = self.unet(
            z_t,
            timestep,
            text,
            down_block_additional_residuals=[skip.to(dtype) for skip in skips],
            mid_block_additional_residual=middle.to(dtype),
            return_dict=False,
        )[0]
        return {"loss": F.mse_loss(output.float(), noise.float())}
