"""What each stage learns: a module whose forward pass is the loss of a batch (Eq. 1, and our own).

Stage order of the compact preset: `autoencoder` (E and D), `lr_encoder` (a restoring E'), then, if one likes,
`prior` (the U-Net alone), `clearsr` (DPM, SPM, U-Net). Stable Diffusion 2.1 needs the last one only.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from clearsr.config.training import LossConfig, TrainConfig
from clearsr.data.crops import TrainingBatch
from clearsr.errors import ClearSRError
from clearsr.image import to_signed
from clearsr.models.clearsr import ClearSRNetwork, set_scaling_factor
from clearsr.models.image_prompt import mixed_prompts
from clearsr.models.latent_lr_embedding import LatentLR
from clearsr.models.prediction import network_input, predicted_z_0, training_target
from clearsr.sampling.denoise import denoise
from clearsr.sampling.guidance import Conditioning
from clearsr.seeds import make_generator
from clearsr.training.losses import (
    Losses,
    PictureLosses,
    anchor_losses,
    embedding_losses,
    frequency_distance,
    min_snr_weight,
    patch_pattern,
    psnr_of,
    sample_noise,
    signed_pair,
    step_draws,
)


class StageModule(nn.Module):
    """Forward: batch and seed -> loss terms, of which `loss` is what is minimised.

    Constructing one leaves exactly the parameters that the stage trains with gradients on.
    """

    needs_lr = True

    def __init__(self, network: ClearSRNetwork, loss: LossConfig) -> None:
        super().__init__()
        self.network, self.loss = network, loss
        network.requires_grad_(False)

    def finish(self, batches: Iterable[TrainingBatch]) -> None:
        """What remains to be measured once the stage is trained."""


def build_stage(config: TrainConfig, network: ClearSRNetwork) -> StageModule:
    """The stage that the configuration names."""
    stages: dict[str, type[StageModule]] = {
        "autoencoder": AutoencoderStage,
        "lr_encoder": LREncoderStage,
        "decoder": DecoderStage,
        "prior": PriorStage,
        "clearsr": ClearSRStage,
    }
    if config.perceptual is not None:
        return PerceptualStage(network, config)
    return stages[config.stage](network, config.loss)


class AutoencoderStage(StageModule):
    """The VAE on HR crops: L1, an optional Fourier term, and a light KL."""

    needs_lr = False

    def __init__(self, network: ClearSRNetwork, loss: LossConfig) -> None:
        super().__init__(network, loss)
        network.latents.vae.requires_grad_(True)
        if (overlap := network.latents.decoder_overlap()) is not None:
            overlap.requires_grad_(False)  # starts as the identity, and is the decoder stage's

    def forward(self, batch: TrainingBatch, seed: int) -> Losses:
        target = to_signed(batch.hr)
        posterior = self.network.latents.vae.encode(target).latent_dist
        noise = sample_noise(posterior.mean.shape, seed, batch.sample_ids).to(posterior.mean)
        pixels = self.network.latents.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        absolute = F.l1_loss(pixels, target)
        divergence = 0.5 * (posterior.mean.float() ** 2 + posterior.var - 1 - posterior.logvar).mean()
        total = absolute + self.loss.kl * divergence
        if self.loss.frequency:
            total = total + self.loss.frequency * frequency_distance(pixels, target)
        error = F.mse_loss(pixels.detach(), target)
        return {"loss": total, "l1": absolute.detach(), "kl": divergence.detach(), "psnr": psnr_of(error)}

    @torch.no_grad()
    def finish(self, batches: Iterable[TrainingBatch]) -> None:
        """Measure the scaling factor: one over the standard deviation of latents of photographs."""
        vae = self.network.latents.vae
        device = next(vae.parameters()).device
        latents = [vae.encode(to_signed(batch.hr.to(device))).latent_dist.mode() for batch in batches]
        set_scaling_factor(self.network, 1 / float(torch.cat(latents).std()))


class LREncoderStage(StageModule):
    """E' on degraded crops: the HR crop's latent, the decoded picture, and how far off it expects to be."""

    def __init__(self, network: ClearSRNetwork, loss: LossConfig) -> None:
        super().__init__(network, loss)
        network.latents.own_lr_encoder().requires_grad_(True)

    def forward(self, batch: TrainingBatch, seed: int) -> Losses:
        target, lr_image = signed_pair(batch)
        embedding = self.network.latents.embed_lr(lr_image)
        return embedding_losses(self.network, self.loss, target, embedding)


class DecoderStage(StageModule):
    """The decoder's overlap on latents of photographs and on predicted ones: L1 of the picture; D stays."""

    def __init__(self, network: ClearSRNetwork, loss: LossConfig) -> None:
        super().__init__(network, loss)
        overlap = network.latents.decoder_overlap()
        if overlap is None:
            raise ClearSRError("model.autoencoder.overlap_channels: the decoder stage needs more than 0")
        overlap.requires_grad_(True)

    def forward(self, batch: TrainingBatch, seed: int) -> Losses:
        target, lr_image = signed_pair(batch)
        with torch.no_grad():
            embedding = self.network.latents.embed_lr(lr_image)
        return anchor_losses(self.network, target, embedding.mean, batch.sample_ids)


class PriorStage(StageModule):
    """A U-Net of our own on HR crops alone: what Stable Diffusion would have brought.

    Denoising under the null prompt, without LR image and without control branches, on epsilon or v.
    """

    needs_lr = False

    def __init__(self, network: ClearSRNetwork, loss: LossConfig) -> None:
        super().__init__(network, loss)
        network.null_prompt.requires_grad_(True)
        for name, parameter in network.unet.named_parameters():
            parameter.requires_grad_("lora_" not in name)  # a LoRA is what the clearsr stage adds

    def forward(self, batch: TrainingBatch, seed: int) -> Losses:
        network, prediction = self.network, self.network.config.prediction
        with torch.no_grad():
            z_0 = network.latents.encode_hr(to_signed(batch.hr)).float()
        noise = sample_noise(z_0.shape, seed, batch.sample_ids).to(z_0)
        timestep, _ = step_draws(seed, batch.sample_ids, self.loss, z_0.device)
        alpha_bar = network.alpha_bars[timestep].view(-1, 1, 1, 1)
        z_t = alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * noise
        text = network.null_prompt.expand(len(z_t), -1, -1)
        output = network.unet_decode(network.unet_encode(z_t, timestep, text), None, text).float()
        unknown = LatentLR(torch.zeros_like(z_0), torch.ones_like(z_0))  # neither epsilon nor v looks at x_lr
        squared = (output - training_target(prediction, z_0, noise, alpha_bar, unknown)) ** 2
        if self.loss.min_snr_gamma is not None:
            squared = squared * min_snr_weight(prediction, alpha_bar, self.loss.min_snr_gamma)
        predicted = predicted_z_0(prediction, output.detach(), z_t, alpha_bar, unknown)
        return {"loss": squared.mean(), "z_0_mse": F.mse_loss(predicted, z_0)}


class ClearSRStage(StageModule):
    """DPM, SPM and the U-Net on degraded crops: Eq. 1, on the target that the prediction type names."""

    def __init__(self, network: ClearSRNetwork, loss: LossConfig) -> None:
        super().__init__(network, loss)
        network.set_trainable()
        self.trains_lr_encoder = any(p.requires_grad for p in network.latents.parameters())

    def forward(self, batch: TrainingBatch, seed: int) -> Losses:
        pair = signed_pair(batch)
        with torch.set_grad_enabled(self.trains_lr_encoder and torch.is_grad_enabled()):
            embedding = self.network.latents.embed_lr(pair[1]).map(torch.Tensor.float)
        return denoising_losses(self.network, self.loss, pair, embedding, batch.sample_ids, seed)


def denoising_losses(
    network: ClearSRNetwork,
    loss: LossConfig,
    pair: tuple[torch.Tensor, torch.Tensor],
    embedding: LatentLR,
    sample_ids: list[int],
    seed: int,
) -> Losses:
    """Eq. 1 of a batch: what `signed_pair` gives, and x_lr."""
    prediction, (target, lr_image) = network.config.prediction, pair
    with torch.no_grad():
        z_0 = network.latents.encode_hr(target).float()
    noise = sample_noise(z_0.shape, seed, sample_ids).to(z_0)
    timestep, dropped = step_draws(seed, sample_ids, loss, z_0.device)
    alpha_bar = network.alpha_bars[timestep].view(-1, 1, 1, 1)
    z_t = alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * noise
    prompt = network.image_prompt(lr_image)
    latent = network_input(prediction, z_t, alpha_bar, embedding)
    output = network(latent, timestep, embedding.mean, prompt, dropped).float()
    wanted = training_target(prediction, z_0, noise, alpha_bar, embedding)
    squared = (output - wanted) ** 2
    if prediction == "lr_anchored":
        weight = embedding.std.detach() ** (2 * loss.residual_power)
        squared = squared * weight / weight.mean()
    elif loss.min_snr_gamma is not None:
        squared = squared * min_snr_weight(prediction, alpha_bar, loss.min_snr_gamma)
    predicted = predicted_z_0(prediction, output.detach(), z_t, alpha_bar, embedding)
    return {
        "loss": squared.mean(),
        "z_0_mse": F.mse_loss(predicted, z_0),
        "anchor_mse": F.mse_loss(embedding.mean.detach(), z_0),
    }


class PerceptualStage(StageModule):
    """What lies between the LR image and the picture, by the picture: L1, features, an adversary.

    Stage `painter` trains the painter, on x_lr. Stage `clearsr` trains DPM, SPM and the U-Net by what the
    sampler draws, and the painter, where there is one, along.
    """

    def __init__(self, network: ClearSRNetwork, config: TrainConfig) -> None:
        """The sampler is `config.validation.sampling`: what is looked at is what is trained.

        Raises:
            ClearSRError: the classifier is not installed, or the overlap that is to be trained is not there.
        """
        super().__init__(network, config.loss)
        assert config.perceptual is not None, "build_stage looks at it"
        self.perceptual = perceptual = config.perceptual
        self._sampling = config.validation.sampling if config.stage == "clearsr" else None
        if self._sampling is not None:
            network.set_trainable()
        if network.painter is not None:
            network.painter.requires_grad_(True)
        self._trains_encoder = any(p.requires_grad for p in network.latents.parameters())  # its LoRA, too
        if perceptual.decoder == "full":
            network.latents.vae.decoder.requires_grad_(True)
        elif perceptual.decoder == "overlap":
            overlap = network.latents.decoder_overlap()
            if overlap is None:
                raise ClearSRError("perceptual.decoder: overlap needs model.autoencoder.overlap_channels")
            overlap.requires_grad_(True)
        self.pictures = PictureLosses(perceptual, config.batch_size, config.steps)

    def forward(self, batch: TrainingBatch, seed: int) -> Losses:
        network, weights = self.network, self.perceptual
        target, lr_image = signed_pair(batch)
        with torch.set_grad_enabled(self._trains_encoder and torch.is_grad_enabled()):
            embedding = network.latents.embed_lr(lr_image).map(torch.Tensor.float)
        decoded = network.latents.decode(self._sampled(embedding, lr_image, batch, seed)).float()
        pixels = decoded
        if network.painter is not None:
            pixels = network.painter(torch.cat([lr_image, decoded.clamp(-1, 1)], dim=1)).float()
        wanted = self.pictures.wanted(batch)
        logs = self.pictures(pixels, wanted, lr_image, batch.sample_ids, seed)
        total = logs.pop("loss")
        if weights.grid:
            pattern = patch_pattern(pixels - wanted, network.latents.pixels_per_latent()).abs().mean()
            total = total + weights.grid * pattern
            logs["grid"] = pattern.detach()
        if weights.decoded:
            error = F.l1_loss(decoded, target)
            total = total + weights.decoded * error
            logs["decoded"] = error.detach()
        if weights.denoising:
            found = denoising_losses(
                network, self.loss, (target, lr_image), embedding, batch.sample_ids, seed
            )
            total = total + weights.denoising * found["loss"]
            logs["denoising"] = found["loss"].detach()
        if weights.decoder != "frozen":
            anchor = anchor_losses(network, target, embedding.mean.detach(), batch.sample_ids)
            total = total + weights.anchor * anchor["loss"]
            logs |= {f"anchor_{name}": anchor[name] for name in ("hr", "lr")}
        return {"loss": total, **logs}

    def _sampled(
        self, embedding: LatentLR, lr_image: torch.Tensor, batch: TrainingBatch, seed: int
    ) -> torch.Tensor:
        """z_0 as the sampler draws it, some of the prompts dropped; x_lr where no sampler is trained."""
        if self._sampling is None:
            return embedding.mean
        network = self.network
        _, dropped = step_draws(seed, batch.sample_ids, self.loss, lr_image.device)
        prompt, counts = network.image_prompt(lr_image).float(), None
        if dropped is not None:
            null = network.null_prompt.expand(len(prompt), -1, -1)
            prompt, counts = mixed_prompts(prompt, null, dropped)
        generators = [make_generator("noise", seed, i) for i in batch.sample_ids]
        conditioning = Conditioning(embedding, prompt, counts=counts)
        return denoise(network, conditioning, self._sampling, generators)
