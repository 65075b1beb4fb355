"""The terms of the losses: of latents, of pictures, of noise; and what their draws come from."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from clearsr.config.training import LossConfig, PerceptualConfig
from clearsr.data.crops import TrainingBatch
from clearsr.image import resize, to_signed, to_unit
from clearsr.models.classifier import Classifier, feature_distance
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.models.latent_lr_embedding import LatentLR
from clearsr.models.prediction import TRAIN_TIMESTEPS
from clearsr.seeds import make_generator
from clearsr.tiling import Window

Losses = dict[str, torch.Tensor]


class PictureLosses(nn.Module):
    """What a picture costs: L1, features, an adversary, beside the picture that is wanted.

    Each sample is judged on a part whose place is drawn, so that neither the classifier's strides nor a
    decoder's patches always meet the same pixels: their beat would be learnt as a grid.
    """

    def __init__(self, config: PerceptualConfig, batch_size: int, steps: int) -> None:
        """The whole run has so many steps of so many samples.

        Raises:
            ClearSRError: the classifier is not installed.
        """
        super().__init__()
        self.config, self._batch_size, self._steps = config, batch_size, steps
        self.classifier = Classifier(config.classifier, config.blocks)
        self.discriminator = Discriminator(self.classifier.channels) if config.adversarial else None

    def forward(
        self,
        pixels: torch.Tensor,
        wanted: torch.Tensor,
        lr_image: torch.Tensor,
        sample_ids: list[int],
        seed: int,
    ) -> Losses:
        """`loss` and its terms, for pixels, what they should be and the LR image, B×3×H×W in [-1, 1] each."""
        absolute = F.l1_loss(pixels, wanted)
        logs = {"l1": absolute.detach(), "psnr": psnr_of(F.mse_loss(pixels.detach(), wanted))}
        total = self.config.pixel * absolute
        if self.config.features or self.discriminator is not None:
            total = total + self._judged(pixels, wanted, lr_image, sample_ids, seed, logs)
        return {"loss": total, **logs}

    def wanted(self, batch: TrainingBatch) -> torch.Tensor:
        """The picture to be drawn, in [-1, 1]: the original, or the teacher's, or between them."""
        target, teacher = to_signed(batch.hr), self.config.teacher
        if teacher is None or batch.teacher is None:
            return target
        first, last = teacher.share
        done = min(1.0, self._step_of(batch.sample_ids) / max(1, self._steps - 1))
        return target + (first + (last - first) * done) * (to_signed(batch.teacher) - target)

    def _step_of(self, sample_ids: list[int]) -> int:
        """A sample's number tells the step."""
        return sample_ids[0] // self._batch_size

    def _judged(
        self,
        pixels: torch.Tensor,
        wanted: torch.Tensor,
        lr_image: torch.Tensor,
        sample_ids: list[int],
        seed: int,
        logs: Losses,
    ) -> torch.Tensor:
        """The terms that the classifier's features give; what they are worth is added to `logs`."""
        weights = self.config
        ours, theirs, beside = shifted((pixels, wanted, lr_image), seed, sample_ids)
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


# Projected discriminators (Sauer et al. 2021): small heads that tell photographs from drawn pictures. They
# see no pixels but what a frozen classifier sees of them, at several scales, and the LR image beside it. So
# they need thousands of steps where others need millions.
_WIDTH, _GROUPS = 64, 8


class Head(nn.Module):
    """Features B×C×h×w of one scale and the LR image -> how photographic each place looks, B×1×h×w."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels + 3, _WIDTH, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
            nn.GroupNorm(_GROUPS, _WIDTH),
            nn.LeakyReLU(0.2),
            nn.Conv2d(_WIDTH, 1, 3, padding=1),
        )

    def forward(self, features: torch.Tensor, lr_image: torch.Tensor) -> torch.Tensor:
        scaled = F.normalize(features.float(), dim=1) * features.shape[1] ** 0.5
        beside = F.interpolate(lr_image, size=features.shape[-2:], mode="bilinear", antialias=True)
        return self.layers(torch.cat([scaled, beside.to(scaled)], dim=1))


class Discriminator(nn.Module):
    """A head for each of the features that a `Classifier` gives, with hinge losses (Lim & Ye 2017)."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(count) for count in channels)

    def loss(
        self, drawn: Sequence[torch.Tensor], real: Sequence[torch.Tensor], lr_image: torch.Tensor
    ) -> torch.Tensor:
        """What the heads learn from: mean of max(0, 1 - real) + max(0, 1 + drawn), a gradient to them alone.

        Args:
            drawn, real: features by scale, B×C×h×w each.
            lr_image: B×3×H×W in [-1, 1], the part of the picture that the features are of.
        """
        terms = []
        for head, ours, theirs in zip(self.heads, drawn, real, strict=True):
            terms.append(F.relu(1 - head(theirs.detach(), lr_image)).mean())
            terms.append(F.relu(1 + head(ours.detach(), lr_image)).mean())
        return torch.stack(terms).sum() / len(self.heads)

    def reward(self, drawn: Sequence[torch.Tensor], lr_image: torch.Tensor) -> torch.Tensor:
        """How much the pictures look like photographs to the heads; a gradient to the pictures alone."""
        scores = []
        for head, ours in zip(self.heads, drawn, strict=True):
            fixed = {name: parameter.detach() for name, parameter in head.named_parameters()}
            scores.append(functional_call(head, fixed, (ours, lr_image)).mean())
        return torch.stack(scores).mean()
