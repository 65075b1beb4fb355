"""Each stage learns, trains what it should and nothing else, and computes the loss that it says."""

import copy

import pytest
import torch

from clearsr.config.training import LossConfig
from clearsr.data.crops import TrainingBatch
from clearsr.hardware import store_in
from clearsr.models.build import build_network
from clearsr.training.losses import frequency_distance, min_snr_weight, sample_noise
from clearsr.training.setup import recompute_activations
from clearsr.training.stages import build_stage


@pytest.fixture(scope="module")
def batch(make_picture):
    hr = torch.stack([make_picture(32, 32, seed) for seed in range(2)])
    return TrainingBatch(hr, torch.nn.functional.avg_pool2d(hr, 4), [10, 11])


def trained_names(stage, batch, steps=2):
    """Names of the network's parameters that change within a few steps."""
    before = {name: p.detach().clone() for name, p in stage.network.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in stage.parameters() if p.requires_grad], lr=1e-3)
    for seed in range(steps):
        optimizer.zero_grad()
        stage(batch, seed)["loss"].backward()
        optimizer.step()
    return {n for n, p in stage.network.named_parameters() if not torch.equal(p, before[n])}


def is_lora(name):
    return "lora_" in name


CONTROL = ("detail_preserving.", "structure_preserving.")
OWN = ("unet.", "image_prompt.", "null_prompt")
OVERLAP = {"autoencoder": {"overlap_channels": 4, "overlap_layers": 1}}
# stage, changes of the model, what of it should be trained
CASES = {
    "autoencoder": ("autoencoder", {}, lambda n: n.startswith("latents.vae.")),
    "autoencoder with overlap": (
        "autoencoder",
        OVERLAP,
        lambda n: n.startswith("latents.vae.") and "overlap" not in n,
    ),
    "lr_encoder": ("lr_encoder", {}, lambda n: n.startswith("latents.lr_encoder.")),
    "decoder": ("decoder", OVERLAP, lambda n: n.startswith("latents.vae.decoder.overlap.")),
    "prior": (
        "prior",
        {"prediction": "v_prediction"},  # on a U-Net whose decoder has a LoRA
        lambda n: n.startswith(("unet.", "null_prompt")) and not is_lora(n),
    ),
    "clearsr, full": ("clearsr", {}, lambda n: n.startswith((*CONTROL, *OWN))),
    "clearsr, lora": (
        "clearsr",
        {"train_unet": "lora", "prediction": "epsilon", "lr_encoder": {"kind": "lora", "lora_rank": 2}},
        lambda n: n.startswith(CONTROL) or is_lora(n),
    ),
    "clearsr, frozen": (
        "clearsr",
        {"train_unet": "frozen", "prediction": "epsilon", "lr_encoder": {"kind": "lora", "lora_rank": 2}},
        lambda n: n.startswith(CONTROL) or (is_lora(n) and n.startswith("latents.")),
    ),
    "clearsr, no LoRA at all": (
        "clearsr",
        {"unet_lora_rank": 0, "train_unet": "lora", "lr_encoder": {"kind": "lora", "lora_rank": 0}},
        lambda n: n.startswith(CONTROL),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stage_trains_exactly_what_it_should(case, batch, make_run, make_network):
    name, changes, wanted = CASES[case]
    network = make_network(**changes)  # random everywhere: nothing waits behind a zero
    stage = build_stage(make_run(name, model=changes, loss={"prompt_dropout": 0.5}), network)
    asked = {n for n, p in network.named_parameters() if p.requires_grad}
    assert asked == {n for n, _ in network.named_parameters() if wanted(n)}
    # Half of the prompts are dropped: one seed of the steps is sure to have both kinds.
    assert trained_names(stage, batch, steps=4) == asked


def test_the_lora_of_the_vae_gets_its_gradient_through_the_control_branches(batch, make_run, make_network):
    changes = {"lr_encoder": {"kind": "lora", "lora_rank": 2}, "prediction": "epsilon", "train_unet": "lora"}
    network = make_network(**changes)
    stage = build_stage(make_run(model=changes), network)
    stage(batch, 0)["loss"].backward()
    lora = {n: p for n, p in network.latents.vae.encoder.named_parameters() if is_lora(n)}
    assert lora
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lora.values())
    assert all(p.grad is None for n, p in network.latents.vae.named_parameters() if not is_lora(n))


@pytest.mark.parametrize(
    ("name", "changes", "share"),
    [
        ("autoencoder", {}, 0.9),
        ("lr_encoder", {}, 0.98),
        ("decoder", OVERLAP, 0.99),
        ("clearsr", {}, 0.98),
        ("clearsr", {"prediction": "v_prediction"}, 0.98),
        ("prior", {"prediction": "v_prediction"}, 0.98),
        ("prior", {"prediction": "epsilon"}, 0.98),
    ],
)
def test_a_stage_lowers_its_loss(name, changes, share, batch, make_run):
    config = make_run(name, model=changes, loss={"variance": 0.01})
    stage = build_stage(config, build_network(config.model))
    optimizer = torch.optim.AdamW([p for p in stage.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = stage(batch, 0)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < share * losses[0]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_the_formulas(prediction):
    alpha_bar = torch.tensor([0.999, 0.9, 0.5, 0.01], dtype=torch.float64)
    for a, weight in zip(
        alpha_bar.tolist(), min_snr_weight(prediction, alpha_bar, 5.0).tolist(), strict=True
    ):
        snr = a / (1 - a)
        assert weight == pytest.approx(min(snr, 5) / (snr if prediction == "epsilon" else snr + 1))


def test_min_snr_weights_give_the_same_loss_on_z_0_for_epsilon_and_v():
    a = torch.tensor([0.99, 0.6, 0.1], dtype=torch.float64)
    # An error e in z_0 is an error of -sqrt(a/(1-a)) e in epsilon and of -e/sqrt(1-a) in v.
    by_epsilon = min_snr_weight("epsilon", a, 5.0) * a / (1 - a)
    by_v = min_snr_weight("v_prediction", a, 5.0) / (1 - a)
    torch.testing.assert_close(by_epsilon, by_v)


def test_min_snr_weights_enter_the_loss(batch, make_run, make_network):
    changes = {"prediction": "epsilon"}
    plain, weighted = (
        build_stage(make_run(model=changes, loss={"min_snr_gamma": gamma}), make_network(**changes))
        for gamma in (None, 1e-6)
    )
    assert weighted(batch, 0)["loss"] < 1e-3 * plain(batch, 0)["loss"]


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    together = sample_noise(torch.Size((3, 4, 5, 5)), 7, [3, 9, 4])
    alone = [sample_noise(torch.Size((1, 4, 5, 5)), 7, [i])[0] for i in (3, 9, 4)]
    assert torch.equal(together, torch.stack(alone))
    assert not torch.equal(together, sample_noise(together.shape, 8, [3, 9, 4]))


def test_the_frequency_term_is_the_mean_difference_of_amplitudes(normal):
    ours, theirs = normal(1, 1, 4, 6), normal(1, 1, 4, 6, seed=1)
    amplitudes = [torch.fft.fft2(x.double()).abs()[..., :4] / 24**0.5 for x in (ours, theirs)]
    expected = (amplitudes[0] - amplitudes[1]).abs().mean()
    torch.testing.assert_close(frequency_distance(ours, theirs).double(), expected, rtol=1e-5, atol=1e-6)


def test_recomputed_activations_change_no_gradient(batch, make_run, make_network):
    changes = {"lr_encoder": {"kind": "lora", "lora_rank": 2}, "prediction": "epsilon", "train_unet": "lora"}
    plain = build_stage(make_run(model=changes), make_network(**changes))
    frugal = build_stage(make_run(model=changes), make_network(**changes))
    recompute_activations(frugal.network)
    kept = []
    for stage in (plain, frugal):
        kept.append([])
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, to=kept[-1]: to.append(t.untyped_storage().nbytes()) or t, lambda t: t
        ):
            stage(batch, 0)["loss"].backward()
    gradients = [
        {n: p.grad for n, p in stage.named_parameters() if p.requires_grad} for stage in (plain, frugal)
    ]
    assert all(g is not None for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)
    assert sum(kept[1]) < 0.7 * sum(kept[0])


def test_shrinking_touches_what_is_frozen_and_nothing_that_is_trained(batch, make_run, make_network):
    changes = {"lr_encoder": {"kind": "lora", "lora_rank": 2}, "prediction": "epsilon", "train_unet": "lora"}
    network = make_network(**changes)
    stage = build_stage(make_run(model=changes), network)
    reference = copy.deepcopy(network)
    store_in(network.unet, torch.bfloat16)
    store_in(network.image_prompt, torch.bfloat16)
    types = {n: p.dtype for n, p in network.unet.named_parameters()}
    assert types["conv_in.weight"] == torch.bfloat16
    assert types["conv_norm_out.weight"] == torch.float32
    assert all(dtype == torch.float32 for name, dtype in types.items() if is_lora(name))
    with torch.autocast("cpu", torch.bfloat16):
        shrunk = stage(batch, 0)["loss"]
        shrunk.backward()
        full = build_stage(make_run(model=changes), reference)(batch, 0)["loss"]
    torch.testing.assert_close(shrunk, full, rtol=0.02, atol=0)
    assert all(p.grad.dtype == torch.float32 for p in stage.parameters() if p.requires_grad)


def test_the_defaults_weigh_nothing_that_the_paper_does_not():
    assert LossConfig().min_snr_gamma is None and LossConfig().timestep_power == 1.0
