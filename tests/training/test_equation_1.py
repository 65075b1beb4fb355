"""Eq. 1 by hand: the value of the loss, and its gradient, against the paper's formula written out per sample.

Noise, timestep and dropout are given, so that nothing is left to chance. The formula below knows the networks
(tested on their own) and nothing of the stages, the schedule, the switching of the LoRA or the batch.
"""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from clearsr.config.training import LossConfig
from clearsr.data.crops import TrainingBatch
from clearsr.models.lora import merge_lora
from clearsr.training.losses import sample_noise, step_draws
from clearsr.training.stages import build_stage

PREDICTIONS = ["epsilon", "v_prediction", "lr_anchored"]
MODELS = {
    "E' of its own": {"unet_lora_rank": 0},
    "E' a LoRA": {"lr_encoder": {"kind": "lora", "lora_rank": 2}, "train_unet": "lora"},
    "prompts of one length": {"unet_lora_rank": 0, "null_prompt_tokens": 1},
}
TIMESTEPS = [17, 480, 999]
DROPPED = {
    "some": [False, True, False],
    "all": [True, True, True],
    "none": [False, False, False],
    "never": None,
}


@pytest.fixture(scope="module")
def batch(make_picture):
    hr = torch.stack([make_picture(32, 32, seed) for seed in range(3)])
    lr = torch.stack([make_picture(8, 8, seed) for seed in range(5, 8)])  # unlike HR: a mix-up shows
    return TrainingBatch(hr, lr, [4, 9, 7])


@pytest.fixture
def noise(normal):
    return normal(3, 8, 4, 4, seed=11)


@pytest.fixture
def fixed_draws(monkeypatch, noise):
    """`fixed_draws(dropped)`: the stages draw this noise, these timesteps and these dropped prompts."""

    def fix(dropped):
        flags = None if dropped is None else torch.tensor(dropped)
        draws = torch.tensor(TIMESTEPS), flags
        monkeypatch.setattr("clearsr.training.stages.sample_noise", lambda shape, *_: noise.view(shape))
        monkeypatch.setattr("clearsr.training.stages.step_draws", lambda *_: draws)

    return fix


def signed(picture):
    return 2 * picture - 1


def enlarged(lr):
    """The LR image at the size of the HR one by Pillow's bicubic, axis by axis and clamped, in [-1, 1]."""
    channels = np.stack([Image.fromarray(c.numpy()).resize((32, 8), Image.Resampling.BICUBIC) for c in lr])
    wide = [Image.fromarray(c) for c in channels.clip(0, 1)]
    tall = np.stack([c.resize((32, 32), Image.Resampling.BICUBIC) for c in wide])
    return signed(torch.tensor(tall.clip(0, 1))[None])


def alpha_bar_at(timestep):
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return float(np.prod(1 - betas[: timestep + 1]))


def encoders_of(network):
    """E and E' as two plain networks: for a LoRA, the base without it and the base with W + BA."""
    vae = network.latents.vae
    if network.latents.lr_encoder is not None:
        return vae.encoder, network.latents.lr_encoder
    plain, merged = copy.deepcopy(vae), copy.deepcopy(vae)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    merge_lora(plain)
    merge_lora(merged)
    return plain.encoder, merged.encoder


def by_hand(network, batch, noise, dropped, residual_power=0.5):
    """(loss, mean squared error of z_0, and of x_lr) as the paper, or `models.prediction`, writes them."""
    factor, prediction = 0.8, network.config.prediction
    encoder, lr_encoder = encoders_of(network)
    rows = []
    for i, timestep in enumerate(TIMESTEPS):
        with torch.no_grad():
            z_0 = factor * encoder(signed(batch.hr[i : i + 1]))[:, :8]
            mean, log_variance, *drawn = lr_encoder(enlarged(batch.lr[i])).split(8, dim=1)
        x_lr, s = factor * mean, factor * (log_variance / 2).exp()
        start = factor * drawn[0] if drawn else x_lr
        a, n = alpha_bar_at(timestep), noise[i : i + 1]
        z_t = a**0.5 * z_0 + (1 - a) ** 0.5 * n
        v = ((1 - a) / a) ** 0.5  # the noise of z_t / sqrt(a)
        total = (s**2 + v**2) ** 0.5
        seen = (z_t / a**0.5 - start) / total if prediction == "lr_anchored" else z_t
        t, null = torch.tensor([timestep]), network.null_prompt
        p = null if dropped and dropped[i] else network.image_prompt(enlarged(batch.lr[i]))
        control = network.control_signals(start, t, null, network.structure_features(start))
        f = network.unet_decode(network.unet_encode(seen, t, null), control, p)
        wanted, predicted = {
            "epsilon": (n, (z_t - (1 - a) ** 0.5 * f) / a**0.5),
            "v_prediction": (a**0.5 * n - (1 - a) ** 0.5 * z_0, a**0.5 * z_t - (1 - a) ** 0.5 * f),
            "lr_anchored": (
                ((z_0 - start) * v / s - s * n) / total,
                start + (s / total) ** 2 * (z_t / a**0.5 - start) + s * v / total * f,
            ),
        }[prediction]
        weight = s ** (2 * residual_power) if prediction == "lr_anchored" else torch.ones_like(s)
        rows.append((weight, (f - wanted) ** 2, (predicted - z_0) ** 2, (x_lr - z_0) ** 2))
    weight, squared, z_0_error, anchor_error = (torch.cat(column) for column in zip(*rows, strict=True))
    return (weight * squared).sum() / weight.sum(), z_0_error.mean(), anchor_error.mean()


@pytest.mark.parametrize("dropped", DROPPED)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_equation_1(
    prediction, model, dropped, batch, noise, fixed_draws, make_run, make_network
):
    changes = {**MODELS[model], "prediction": prediction}
    network = make_network(**changes)
    stage = build_stage(make_run(model=changes), network)
    fixed_draws(DROPPED[dropped])
    expected = by_hand(network, batch, noise, DROPPED[dropped])
    found = stage(batch, 0)
    for name, value in zip(("loss", "z_0_mse", "anchor_mse"), expected, strict=True):
        torch.testing.assert_close(found[name], value, rtol=5e-4, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_its_gradient_reaches_what_is_trained_and_as_the_formula_says(
    prediction, batch, noise, fixed_draws, make_run, make_network
):
    changes = {**MODELS["E' of its own"], "prediction": prediction}
    network = make_network(**changes)
    stage = build_stage(make_run(model=changes), network)
    fixed_draws(DROPPED["some"])
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    wanted = torch.autograd.grad(by_hand(network, batch, noise, DROPPED["some"])[0], list(trained.values()))
    stage(batch, 0)["loss"].backward()
    for (name, parameter), gradient in zip(trained.items(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=2e-3, atol=1e-5, msg=name)
    assert all(p.grad is None for p in network.latents.parameters())


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_residuals_weight_is_a_power_of_its_deviation(
    power, batch, noise, fixed_draws, make_run, make_network
):
    network = make_network(unet_lora_rank=0)
    stage = build_stage(make_run(model={"unet_lora_rank": 0}, loss={"residual_power": power}), network)
    fixed_draws(None)
    expected, *_ = by_hand(network, batch, noise, None, residual_power=power)
    torch.testing.assert_close(stage(batch, 0)["loss"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("encoder", ["E' of its own", "E' a LoRA"])
def test_each_network_sees_the_image_that_the_paper_gives_it(
    encoder, batch, fixed_draws, make_run, make_network
):
    """E the HR image with its LoRA off; E' and the image encoder the LR image; DPM and SPM x_lr alone."""
    network = make_network(**MODELS[encoder])
    stage = build_stage(make_run(model=MODELS[encoder]), network)
    fixed_draws(None)
    seen = {}

    def record(name, module):
        def remember(_, args, kwargs):
            loras = [m._disable_adapters for m in module.modules() if hasattr(m, "lora_A")]
            value = args[0] if args else kwargs["pixel_values"]
            seen.setdefault(name, []).append((value.detach().clone(), loras))

        module.register_forward_pre_hook(remember, with_kwargs=True)

    own = network.latents.lr_encoder
    record("E", network.latents.vae.encoder)
    for name, module in (("E'", own), ("p", network.image_prompt)):
        if module is not None:
            record(name, module)
    record("DPM", network.detail_preserving)
    record("SPM", network.structure_preserving)
    stage(batch, 0)

    hr, lr = signed(batch.hr), torch.cat([enlarged(image) for image in batch.lr])
    torch.testing.assert_close(seen["E"][-1][0], hr)
    first = seen["E'"][0] if own is not None else seen["E"][0]
    torch.testing.assert_close(first[0], lr)
    assert len(seen["E"]) == (1 if own is not None else 2)
    if own is None:
        assert all(seen["E"][1][1]) and seen["E"][0][1] and not any(seen["E"][0][1])
    torch.testing.assert_close(seen["p"][0][0], lr)
    with torch.no_grad():
        x_lr = 0.8 * encoders_of(network)[1](lr)[:, :8]
    for name in ("DPM", "SPM"):
        torch.testing.assert_close(seen[name][0][0], x_lr, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gamma", [None, 2.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_prior_is_denoising_under_the_null_prompt(
    prediction, gamma, batch, noise, fixed_draws, make_run, make_network
):
    changes = {"prediction": prediction, "unet_lora_rank": 0}
    network = make_network(**changes)
    stage = build_stage(make_run("prior", model=changes, loss={"min_snr_gamma": gamma}), network)
    fixed_draws(None)
    errors = []
    for i, timestep in enumerate(TIMESTEPS):
        a, n, t = alpha_bar_at(timestep), noise[i : i + 1], torch.tensor([timestep])
        with torch.no_grad():
            z_0 = 0.8 * network.latents.vae.encoder(signed(batch.hr[i : i + 1]))[:, :8]
        z_t = a**0.5 * z_0 + (1 - a) ** 0.5 * n
        f = network.unet_decode(network.unet_encode(z_t, t, network.null_prompt), None, network.null_prompt)
        wanted = n if prediction == "epsilon" else a**0.5 * n - (1 - a) ** 0.5 * z_0
        snr = a / (1 - a)
        weight = 1 if gamma is None else min(snr, gamma) / (snr if prediction == "epsilon" else snr + 1)
        errors.append(weight * (f - wanted) ** 2)
    torch.testing.assert_close(stage(batch, 0)["loss"], torch.cat(errors).mean(), rtol=1e-4, atol=1e-6)


def test_timesteps_are_uniform_and_prompts_dropped_as_often_as_asked():
    ids = list(range(4000))
    timestep, dropped = step_draws(3, ids, LossConfig(prompt_dropout=0.1), torch.device("cpu"))
    assert timestep.min() <= 2 and timestep.max() >= 997 and timestep.dtype == torch.int64
    tenths = torch.histc(timestep.float(), bins=10, min=0, max=1000)
    assert (tenths - 400).abs().max() < 5 * (4000 * 0.1 * 0.9) ** 0.5
    assert abs(int(dropped.sum()) - 400) < 5 * (4000 * 0.1 * 0.9) ** 0.5
    # The two do not hang together: as many dropped among little noise as among much.
    assert abs(int(dropped[timestep < 500].sum()) - int(dropped.sum()) / 2) < 60


def test_a_power_bends_the_timesteps_and_leaves_the_dropouts():
    ids, device = list(range(300)), torch.device("cpu")
    plain, dropped = step_draws(3, ids, LossConfig(), device)
    bent, still_dropped = step_draws(3, ids, LossConfig(timestep_power=2.0), device)
    u = (plain.double() + 0.5) / 1000
    assert (bent - 1000 * u**2).abs().max() <= 2.5
    assert torch.equal(dropped, still_dropped)
    assert step_draws(3, ids, LossConfig(prompt_dropout=0), device)[1] is None


def test_the_noise_is_standard_normal():
    noise = sample_noise(torch.Size((64, 8, 16, 16)), 5, list(range(64)))
    count = noise.numel()
    assert abs(noise.mean()) < 5 / count**0.5 and abs(noise.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs((noise**4).mean() - 3) < 5 * (96 / count) ** 0.5
