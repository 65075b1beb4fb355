"""What the network's output means: every type inverts its target; `lr_anchored` against Bayes' rule."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from clearsr.models.latent_lr_embedding import LatentLR
from clearsr.models.prediction import alpha_bars, network_input, predicted_z_0, training_target

KINDS = ["epsilon", "v_prediction", "lr_anchored"]


@pytest.fixture
def batch(normal):
    """Two samples at two noise levels: embedding, z_0, noise, alpha-bar, z_t."""
    embedding = LatentLR(normal(2, 4, 6, 5), normal(2, 4, 6, 5, seed=1).abs() + 0.05)
    z_0 = embedding.mean + embedding.std * normal(2, 4, 6, 5, seed=2)
    noise = normal(2, 4, 6, 5, seed=3)
    alpha_bar = alpha_bars()[torch.tensor([30, 800])].view(-1, 1, 1, 1)
    z_t = alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * noise
    return embedding, z_0, noise, alpha_bar, z_t


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_is_the_output_that_gives_the_true_latent(kind, batch):
    embedding, z_0, noise, alpha_bar, z_t = batch
    target = training_target(kind, z_0, noise, alpha_bar, embedding)
    recovered = predicted_z_0(kind, target, z_t, alpha_bar, embedding)
    torch.testing.assert_close(recovered, z_0, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_usual_targets_are_diffusers(kind, batch):
    embedding, z_0, noise, alpha_bar, z_t = batch
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    timesteps = torch.tensor([30, 800])
    torch.testing.assert_close(z_t, scheduler.add_noise(z_0, noise, timesteps))
    target = training_target(kind, z_0, noise, alpha_bar, embedding)
    expected = noise if kind == "epsilon" else scheduler.get_velocity(z_0, noise, timesteps)
    torch.testing.assert_close(target, expected)
    assert torch.equal(network_input(kind, z_t, alpha_bar, embedding), z_t)


def test_at_zero_output_the_anchored_prediction_is_the_conditional_expectation():
    """E[z_0 | z_t, x_lr] under z_0 ~ N(x_lr, std²), integrated numerically on a fine grid."""
    for x_lr, std, z_t, alpha_bar in [(0.4, 0.3, 1.0, 0.7), (-1.0, 1.5, 0.2, 0.05), (0.0, 0.1, -0.8, 0.99)]:
        z_0 = torch.linspace(x_lr - 12 * std, x_lr + 12 * std, 200_001, dtype=torch.float64)
        prior = -((z_0 - x_lr) ** 2) / (2 * std**2)
        likelihood = -((z_t - math.sqrt(alpha_bar) * z_0) ** 2) / (2 * (1 - alpha_bar))
        weights = torch.softmax(prior + likelihood, 0)
        expected = (weights * z_0).sum()
        spread = ((weights * z_0**2).sum() - expected**2).sqrt()
        embedding = LatentLR(torch.tensor(x_lr, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))
        arguments = torch.tensor(z_t, dtype=torch.float64), torch.tensor(alpha_bar, dtype=torch.float64)
        for output in (0.0, 1.0, -2.0):  # the output counts in standard deviations of what is left open
            value = predicted_z_0("lr_anchored", torch.tensor(output), *arguments, embedding)
            torch.testing.assert_close(value, expected + output * spread, atol=1e-6, rtol=1e-6)


def test_input_and_target_of_the_anchored_prediction_have_unit_variance(normal):
    embedding = LatentLR(normal(1, 1, 400, 500), 0.1 + normal(1, 1, 400, 500, seed=1).abs())
    z_0 = embedding.mean + embedding.std * normal(1, 1, 400, 500, seed=2)
    noise = normal(1, 1, 400, 500, seed=3)
    for t in (0, 100, 500, 999):
        alpha_bar = alpha_bars()[t]
        z_t = alpha_bar.sqrt() * z_0 + (1 - alpha_bar).sqrt() * noise
        seen = network_input("lr_anchored", z_t, alpha_bar, embedding)
        target = training_target("lr_anchored", z_0, noise, alpha_bar, embedding)
        for tensor in (seen, target):
            assert abs(float(tensor.mean())) < 0.02 and abs(float(tensor.var()) - 1) < 0.02
        assert abs(float((seen * target).mean())) < 0.02  # the linear guess leaves nothing linear to learn


def test_where_e_prime_is_sure_the_anchored_prediction_is_x_lr(batch):
    embedding, _, noise, alpha_bar, z_t = batch
    sure = embedding._replace(std=torch.full_like(embedding.std, 1e-5))
    value = predicted_z_0("lr_anchored", noise, z_t, alpha_bar, sure)
    torch.testing.assert_close(value, embedding.mean, atol=1e-3, rtol=0)
    exact = embedding._replace(std=torch.zeros_like(embedding.std))
    assert torch.equal(predicted_z_0("lr_anchored", noise, z_t, alpha_bar, exact), embedding.mean)


def test_where_e_prime_knows_nothing_the_anchored_prediction_reads_z_t(batch):
    embedding, _, noise, alpha_bar, z_t = batch
    unsure = embedding._replace(std=torch.full_like(embedding.std, 1e4))
    value = predicted_z_0("lr_anchored", -noise, z_t, alpha_bar, unsure)
    expected = predicted_z_0("epsilon", noise, z_t, alpha_bar, embedding)
    torch.testing.assert_close(value, expected, atol=1e-3, rtol=1e-3)
