"""The losses of the stages beside Eq. 1, term by term, against torch's distributions, NumPy and Pillow."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.distributions import Normal, kl_divergence

from clearsr.config.training import LossConfig
from clearsr.data.crops import TrainingBatch
from clearsr.image import to_signed
from clearsr.models.latent_lr_embedding import LatentLR
from clearsr.training.losses import Discriminator, embedding_losses, psnr_of, sample_noise
from clearsr.training.stages import build_stage

OVERLAP = {"autoencoder": {"overlap_channels": 4, "overlap_layers": 1}}


@pytest.fixture
def batch(make_picture):
    hr = torch.stack([make_picture(32, 32, seed) for seed in range(2)])
    return TrainingBatch(hr, torch.stack([make_picture(8, 8, seed) for seed in (5, 6)]), [10, 11])


def psnr(ours, theirs):
    """Over pictures in [-1, 1], by their values in [0, 1]."""
    return -10 * ((ours - theirs) / 2).square().mean().log10()


def moments(encoder, pixels):
    """The posterior that an encoder's output stands for."""
    mean, log_variance, *_ = encoder(pixels).split(8, dim=1)
    return Normal(mean, (log_variance / 2).exp())


@torch.no_grad()
def test_the_autoencoders_loss_is_l1_of_a_sample_of_the_posterior_and_its_divergence(
    batch, make_run, make_network
):
    network = make_network()
    weights = {"kl": 0.3, "frequency": 0.2}
    stage = build_stage(make_run("autoencoder", loss=weights), network)
    terms = stage(batch, 4)
    vae, target = network.latents.vae, 2 * batch.hr - 1
    posterior = moments(vae.encoder, target)
    noise = sample_noise(posterior.loc.shape, 4, [10, 11])
    pixels = vae.decode(posterior.loc + posterior.scale * noise).sample
    divergence = kl_divergence(posterior, Normal(0.0, 1.0)).mean()
    amplitudes = [np.abs(np.fft.rfft2(image.double().numpy(), norm="ortho")) for image in (pixels, target)]
    frequency = float(np.abs(amplitudes[0] - amplitudes[1]).mean())
    absolute = (pixels - target).abs().mean()
    torch.testing.assert_close(terms["l1"], absolute)
    torch.testing.assert_close(terms["kl"], divergence)
    torch.testing.assert_close(terms["loss"], absolute + 0.3 * divergence + 0.2 * frequency)
    torch.testing.assert_close(terms["psnr"], psnr(pixels, target))
    without = build_stage(make_run("autoencoder", loss={**weights, "frequency": 0.0}), network)
    torch.testing.assert_close(without(batch, 4)["loss"], absolute + 0.3 * divergence)


@torch.no_grad()
def test_once_trained_the_autoencoders_latents_are_scaled_to_unit_deviation(batch, make_run, make_network):
    network = make_network()
    batches = [batch, batch._replace(hr=batch.hr.flip(-1))]
    build_stage(make_run("autoencoder"), network).finish(batches)
    latents = torch.cat([network.latents.encode_hr(to_signed(b.hr)) for b in batches])
    assert float(latents.std()) == pytest.approx(1)
    assert network.config.autoencoder.scaling_factor == network.latents.scaling_factor != 0.8


def test_the_loss_of_x_lr_is_its_distance_and_a_likelihood_that_the_deviation_alone_learns_from(
    batch, make_network, normal
):
    network, target = make_network(), to_signed(batch.hr)
    mean = normal(2, 8, 4, 4).requires_grad_()
    std = (normal(2, 8, 4, 4, seed=1).abs() + 0.3).requires_grad_()
    weights = LossConfig(latent=0.7, variance=0.3, pixel=0.0, linear_pixel=0.0)
    terms = embedding_losses(network, weights, target, LatentLR(mean, std))
    z_hr = network.latents.encode_hr(target)
    distance = (z_hr - mean).abs().mean()
    missed = -Normal(mean.detach(), std).log_prob(z_hr).mean() - 0.5 * np.log(2 * np.pi)
    torch.testing.assert_close(terms["latent"], distance.detach())
    torch.testing.assert_close(terms["likelihood"], missed.detach())
    torch.testing.assert_close(terms["loss"], 0.7 * distance + 0.3 * missed)
    found = torch.autograd.grad(terms["loss"], (mean, std))
    wanted = torch.autograd.grad(0.7 * distance + 0.3 * missed, (mean, std))
    torch.testing.assert_close(found, wanted)
    assert set(terms) == {"loss", "latent", "likelihood"}


@torch.no_grad()
def test_pictures_of_x_lr_count_by_the_decoder_and_by_its_linear_path(batch, make_network, normal):
    network, target = make_network(), to_signed(batch.hr)
    latents = network.latents
    embedding = LatentLR(normal(2, 8, 4, 4), normal(2, 8, 4, 4, seed=1).abs() + 0.3)
    weights = LossConfig(latent=0.0, variance=0.0, pixel=0.4, linear_pixel=0.6)
    terms = embedding_losses(network, weights, target, embedding)
    pixels = latents.decode(embedding.mean)
    difference = (embedding.mean - latents.encode_hr(target)) / 0.8
    weight = latents.vae.decoder.linear.weight  # each latent is a patch of the picture
    patches = torch.einsum("bihw,icyx->bchywx", difference, weight)
    linear = patches.flatten(2, 3).flatten(3, 4).abs().mean()
    torch.testing.assert_close(terms["linear_pixel"], linear)
    torch.testing.assert_close(terms["loss"], 0.4 * (pixels - target).abs().mean() + 0.6 * linear)
    torch.testing.assert_close(terms["psnr"], psnr(pixels, target))


@torch.no_grad()
def test_an_embedding_in_16_bits_is_judged_in_32(batch, make_network, normal):
    network, target = make_network(), to_signed(batch.hr)
    halves = LatentLR(normal(2, 8, 4, 4), normal(2, 8, 4, 4, seed=1).abs() + 0.3).map(torch.Tensor.bfloat16)
    weights = LossConfig(latent=0.7, variance=0.3, pixel=0.4, linear_pixel=0.6)
    found = embedding_losses(network, weights, target, halves)
    expected = embedding_losses(network, weights, target, halves.map(torch.Tensor.float))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_psnr_of_equal_pictures_is_finite():
    assert float(psnr_of(torch.tensor(0.0))) == pytest.approx(126.02, abs=0.01)


def test_the_heads_see_features_of_one_length_and_the_lr_image_at_their_size(normal):
    (head,) = Discriminator([12]).heads
    seen = []
    head.layers.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    features, lr_image = normal(1, 12, 6, 8), normal(1, 3, 24, 32, seed=1)
    found = head(features, lr_image)
    scaled, beside = seen[0].split((12, 3), dim=1)
    torch.testing.assert_close(scaled.square().mean(1), torch.ones(1, 6, 8))
    torch.testing.assert_close(F.cosine_similarity(scaled, features), torch.ones(1, 6, 8))
    shrunk = [Image.fromarray(c.numpy()).resize((8, 6), Image.Resampling.BILINEAR) for c in lr_image[0]]
    torch.testing.assert_close(beside[0], torch.tensor(np.stack(shrunk)), atol=1e-5, rtol=1e-5)
    one, three, normed, last = (head.layers[i] for i in (0, 2, 3, 5))
    hidden = F.conv2d(seen[0], one.weight, one.bias)
    hidden = F.conv2d(torch.where(hidden > 0, hidden, 0.2 * hidden), three.weight, three.bias, padding=1)
    hidden = F.group_norm(hidden, 8, normed.weight, normed.bias)
    hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
    torch.testing.assert_close(found, F.conv2d(hidden, last.weight, last.bias, padding=1))


@pytest.mark.parametrize(("steps", "last"), [(1, 1.0), (2, 0.0), (3, 0.5)])
def test_the_teachers_share_ends_with_the_last_step(steps, last, batch, make_run, make_network, tmp_path):
    """In the second step of two it is the last share; a run of one step has the first."""
    config = make_run(
        "painter",
        model={"painter": {"blocks": 1}},
        steps=steps,
        perceptual={"features": 0.0, "teacher": {"labels": str(tmp_path), "samples": 8, "share": (1, 0)}},
    )
    stage = build_stage(config, make_network(painter={"blocks": 1}))
    step = min(1, steps - 1)
    taught = batch._replace(teacher=batch.hr.flip(-1), sample_ids=[2 * step, 2 * step + 1])
    wanted = to_signed(last * taught.teacher + (1 - last) * taught.hr)
    torch.testing.assert_close(stage.pictures.wanted(taught), wanted)
