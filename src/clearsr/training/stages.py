"""What each stage learns: a module whose forward pass is the loss of a batch (Eq. 1, and our own).

Stage order of the compact preset: `autoencoder` (E and D), `lr_encoder` (a restoring E'), then, if one likes,
`prior` (the U-Net alone), `clearsr` (DPM, SPM, U-Net). Stable Diffusion 2.1 needs the last one only.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from clearsr.config.training import LossConfig, TrainConfig
from clearsr.data.crops import TrainingBatch
from clearsr.errors import ClearSRError
from clearsr.image import resize, to_signed, to_unit
from clearsr.models.classifier import Classifier, feature_distance
from clearsr.models.clearsr import ClearSRNetwork, set_scaling_factor
from clearsr.models.latent_lr_embedding import LatentLR
from clearsr.models.prediction import TRAIN_TIMESTEPS, network_input, predicted_z_0, training_target
from clearsr.sampling.denoise import denoise
from clearsr.sampling.guidance import Conditioning
from clearsr.seeds import make_generator
from clearsr.tiling import Window
from clearsr.training.adversary import Discriminator

Losses = dict[str, torch.Tensor]


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
        network, prediction = self.network, self.network.config.prediction
        target, lr_image = signed_pair(batch)
        with torch.no_grad():
            z_0 = network.latents.encode_hr(target).float()
        with torch.set_grad_enabled(self.trains_lr_encoder and torch.is_grad_enabled()):
            embedding = network.latents.embed_lr(lr_image).map(torch.Tensor.float)
        noise = sample_noise(z_0.shape, seed, batch.sample_ids).to(z_0)
        timestep, dropped = step_draws(seed, batch.sample_ids, self.loss, z_0.device)
        alpha_bar = network.alpha_bars[timestep].view(-1, 1, 1, 1)
        z_t = alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * noise
        prompt = network.image_prompt(lr_image)
        latent = network_input(prediction, z_t, alpha_bar, embedding)
        output = network(latent, timestep, embedding.start, prompt, dropped).float()
        wanted = training_target(prediction, z_0, noise, alpha_bar, embedding)
        squared = (output - wanted) ** 2
        if prediction == "lr_anchored":
            weight = embedding.std.detach() ** (2 * self.loss.residual_power)
            squared = squared * weight / weight.mean()
        elif self.loss.min_snr_gamma is not None:
            squared = squared * min_snr_weight(prediction, alpha_bar, self.loss.min_snr_gamma)
        predicted = predicted_z_0(prediction, output.detach(), z_t, alpha_bar, embedding)
        return {
            "loss": squared.mean(),
            "z_0_mse": F.mse_loss(predicted, z_0),
            "anchor_mse": F.mse_loss(embedding.mean.detach(), z_0),
        }


class PerceptualStage(StageModule):
    """The U-Net with DPM and SPM, and an E' that draws, by the picture drawn: L1, features, an adversary.

    In stage `clearsr` the sampler draws the picture, in stage `lr_encoder` E' alone. What E' says of x_lr
    goes on learning as it did: it stays the truest picture that the model knows.

    Each sample is judged on a part whose place is drawn, so that neither the classifier's strides nor the
    decoder's patches always meet the same pixels: their beat would be learnt as a grid.
    """

    def __init__(self, network: ClearSRNetwork, config: TrainConfig) -> None:
        """The sampler is `config.validation.sampling`: what is looked at is what is trained.

        Raises:
            ClearSRError: the classifier is not installed, or the overlap that is to be trained is not there.
        """
        super().__init__(network, config.loss)
        assert config.perceptual is not None, "build_stage looks at it"
        self.perceptual = perceptual = config.perceptual
        self._sampling, self._batch_size = config.validation.sampling, config.batch_size
        self._steps = config.steps
        self._by_encoder = config.stage == "lr_encoder"
        if not self._by_encoder:
            network.set_trainable()
        if network.config.lr_encoder.draws:
            network.latents.own_lr_encoder().requires_grad_(True)
        elif self._by_encoder:
            raise ClearSRError("perceptual: in stage lr_encoder it needs model.lr_encoder.draws")
        self._trains_encoder = any(p.requires_grad for p in network.latents.parameters())  # its LoRA, too
        if perceptual.decoder == "full":
            network.latents.vae.decoder.requires_grad_(True)
        elif perceptual.decoder == "overlap":
            overlap = network.latents.decoder_overlap()
            if overlap is None:
                raise ClearSRError("perceptual.decoder: overlap needs model.autoencoder.overlap_channels")
            overlap.requires_grad_(True)
        self.classifier = Classifier(perceptual.classifier, perceptual.blocks)
        self.discriminator = Discriminator(self.classifier.channels) if perceptual.adversarial else None

    def forward(self, batch: TrainingBatch, seed: int) -> Losses:
        network, weights = self.network, self.perceptual
        target, lr_image = signed_pair(batch)
        draws = network.config.lr_encoder.draws
        with torch.set_grad_enabled(self._trains_encoder and torch.is_grad_enabled()):
            embedding = network.latents.embed_lr(lr_image).map(torch.Tensor.float)
        drawn = embedding.start if self._by_encoder else self._sampled(embedding, lr_image, batch, seed)
        pixels = network.latents.decode(drawn).float()
        wanted = self._wanted(batch, target)
        absolute = F.l1_loss(pixels, wanted)
        logs = {"l1": absolute.detach(), "psnr": psnr_of(F.mse_loss(pixels.detach(), wanted))}
        total = weights.pixel * absolute
        if weights.grid:
            pattern = patch_pattern(pixels - wanted, network.latents.pixels_per_latent()).abs().mean()
            total = total + weights.grid * pattern
            logs["grid"] = pattern.detach()
        if draws:
            found = embedding_losses(network, self.loss, target, embedding)
            total = total + found.pop("loss")
            logs |= {f"x_lr_{name}": value for name, value in found.items()}
        if weights.features or self.discriminator is not None:
            total = total + self._judged(pixels, wanted, lr_image, batch.sample_ids, seed, logs)
        if weights.decoder != "frozen":
            anchor = anchor_losses(network, target, embedding.mean.detach(), batch.sample_ids)
            total = total + weights.anchor * anchor["loss"]
            logs |= {f"anchor_{name}": anchor[name] for name in ("hr", "lr")}
        return {"loss": total, **logs}

    def _wanted(self, batch: TrainingBatch, target: torch.Tensor) -> torch.Tensor:
        """The picture to be drawn, in [-1, 1]: the original, or the teacher's, or between them."""
        teacher = self.perceptual.teacher
        if teacher is None or batch.teacher is None:
            return target
        first, last = teacher.share
        share = first + (last - first) * min(1.0, self._step_of(batch.sample_ids) / max(1, self._steps - 1))
        return target + share * (to_signed(batch.teacher) - target)

    def _step_of(self, sample_ids: list[int]) -> int:
        """A sample's number tells the step."""
        return sample_ids[0] // self._batch_size

    def _sampled(
        self, embedding: LatentLR, lr_image: torch.Tensor, batch: TrainingBatch, seed: int
    ) -> torch.Tensor:
        """z_0 as the sampler draws it, some of the prompts dropped."""
        network = self.network
        _, dropped = step_draws(seed, batch.sample_ids, self.loss, lr_image.device)
        prompt = network.image_prompt(lr_image).float()
        if dropped is not None:
            prompt = torch.where(dropped[:, None, None], network.null_prompt, prompt)
        generators = [make_generator("noise", seed, i) for i in batch.sample_ids]
        return denoise(network, Conditioning(embedding, prompt), self._sampling, generators)

    def _judged(
        self,
        pixels: torch.Tensor,
        target: torch.Tensor,
        lr_image: torch.Tensor,
        sample_ids: list[int],
        seed: int,
        logs: Losses,
    ) -> torch.Tensor:
        """The terms that the classifier's features give; what they are worth is added to `logs`."""
        weights = self.perceptual
        ours, theirs, beside = shifted((pixels, target, lr_image), seed, sample_ids)
        drawn = self.classifier(to_unit(ours))
        with torch.no_grad():
            real = self.classifier(to_unit(theirs))
        distance = feature_distance(drawn, real).mean()
        logs["features"] = distance.detach()
        total = weights.features * distance
        if self.discriminator is None:
            return total
        ramp = min(1.0, self._step_of(sample_ids) / max(1, weights.adversarial_ramp))
        reward = self.discriminator.reward(drawn, beside)
        learned = self.discriminator.loss(drawn, real, beside)
        logs |= {"reward": reward.detach(), "discriminator": learned.detach()}
        return total - ramp * weights.adversarial * reward + learned


def embedding_losses(
    network: ClearSRNetwork, loss: LossConfig, target: torch.Tensor, embedding: LatentLR
) -> Losses:
    """What x_lr and its standard deviation learn from: L1 of latents and pictures, and a likelihood."""
    latents = network.latents
    with torch.no_grad():
        z_hr = latents.encode_hr(target).float()
    mean, std = embedding.mean.float(), embedding.std.float()
    latent_error = F.l1_loss(mean, z_hr)
    # Gaussian likelihood of the residual; the mean is detached so that only the variance learns from it.
    likelihood = (torch.log(std) + 0.5 * ((z_hr - mean.detach()) / std) ** 2).mean()
    total = loss.latent * latent_error + loss.variance * likelihood
    logs = {"latent": latent_error.detach(), "likelihood": likelihood.detach()}
    if loss.linear_pixel:
        error = latents.decode_linearly(mean - z_hr).abs().mean()
        total = total + loss.linear_pixel * error
        logs["linear_pixel"] = error.detach()
    if loss.pixel:  # decoding costs as much as encoding
        pixels = latents.decode(mean).float()
        total = total + loss.pixel * F.l1_loss(pixels, target)
        logs["psnr"] = psnr_of(F.mse_loss(pixels.detach(), target))
    return {"loss": total, **logs}


def signed_pair(batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The HR images and the LR images at their size, B×3×H×W in [-1, 1]."""
    assert batch.lr is not None, "the loader prepares LR images for this stage"
    target = to_signed(batch.hr)
    return target, to_signed(resize(batch.lr, (target.shape[-2], target.shape[-1])))


def anchor_losses(
    network: ClearSRNetwork, target: torch.Tensor, z_lr: torch.Tensor, sample_ids: list[int]
) -> Losses:
    """L1 of what D makes of latents of photographs (samples of even number) and of x_lr (the others).

    The number decides, not the place in the batch: how many processes share it must not matter.
    """
    is_hr = torch.tensor([number % 2 == 0 for number in sample_ids], device=target.device)
    with torch.no_grad():
        z_hr = network.latents.encode_hr(target).to(z_lr)
    latents = torch.where(is_hr.view(-1, 1, 1, 1), z_hr, z_lr)
    errors = 2 * (network.latents.decode(latents).float() - target).abs().mean((1, 2, 3))
    hr, lr = (torch.where(chosen, errors, 0).mean() for chosen in (is_hr, ~is_hr))
    return {"loss": hr + lr, "hr": hr.detach(), "lr": lr.detach()}


def patch_pattern(error: torch.Tensor, side: int) -> torch.Tensor:
    """What all patches of B×C×(side·h)×(side·w) have in common: their mean less its own, B×C×side×side."""
    mean = error.unflatten(3, (-1, side)).unflatten(2, (-1, side)).mean((2, 4))
    return mean - mean.mean((2, 3), keepdim=True)


def shifted(
    images: Sequence[torch.Tensor], seed: int, sample_ids: list[int], most: int = 8
) -> list[torch.Tensor]:
    """The same part of several batches, B×C×(H-most)×(W-most) each, every sample's at a place of its own."""
    drawn = [torch.randint(0, most, (2,), generator=make_generator("shift", seed, i)) for i in sample_ids]
    height, width = (length - most for length in images[0].shape[-2:])
    places = [Window(top, left, top + height, left + width) for top, left in (at.tolist() for at in drawn)]
    parts = [torch.stack([w.of(image) for image, w in zip(batch, places, strict=True)]) for batch in images]
    return [part.contiguous(memory_format=torch.channels_last) for part in parts]


def step_draws(
    seed: int, sample_ids: list[int], loss: LossConfig, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Timestep and whether the prompt is dropped (None: never), for each sample."""
    rows = torch.stack([torch.rand(2, generator=make_generator("timestep", seed, i)) for i in sample_ids])
    timestep = (TRAIN_TIMESTEPS * rows[:, 0] ** loss.timestep_power).long()
    if loss.prompt_dropout == 0:
        return timestep.to(device), None
    return timestep.to(device), (rows[:, 1] < loss.prompt_dropout).to(device)


def sample_noise(shape: torch.Size, seed: int, sample_ids: list[int]) -> torch.Tensor:
    """Standard normal noise in which row i depends only on (seed, sample_ids[i])."""
    rows = [torch.randn(shape[1:], generator=make_generator("noise", seed, i)) for i in sample_ids]
    return torch.stack(rows)


def min_snr_weight(prediction: str, alpha_bar: torch.Tensor, gamma: float) -> torch.Tensor:
    """min(SNR, gamma) as a weight of the loss on z_0, carried over to epsilon or v (Hang et al. 2023, 3.4).

    Steps with little noise are easy and plenty; the weight keeps them from drowning the others.
    """
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)


def frequency_distance(pixels: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the Fourier amplitudes; keeps texture that L1 alone smooths away."""
    amplitudes = [torch.fft.rfft2(image, norm="ortho").abs() for image in (pixels, target)]
    return F.l1_loss(amplitudes[0], amplitudes[1])


def psnr_of(squared_error: torch.Tensor) -> torch.Tensor:
    """PSNR in dB over RGB of a mean squared error between images in [-1, 1]."""
    return 10 * torch.log10(4 / squared_error.clamp_min(1e-12))
