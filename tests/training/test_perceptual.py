"""Losses on the picture that the sampler draws: what they are, what they train, and that they work."""

import copy

import pytest
import torch
import torch.nn.functional as F

from clearsr.config.base import build_config
from clearsr.config.sampling import SamplingConfig
from clearsr.config.training import PerceptualConfig
from clearsr.data.crops import TrainingBatch
from clearsr.errors import ClearSRError
from clearsr.image import ImageData, resize, to_signed, to_unit
from clearsr.models.classifier import Classifier, feature_distance
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.sampling.denoise import denoise
from clearsr.sampling.guidance import Conditioning
from clearsr.seeds import make_generator
from clearsr.training.losses import Discriminator, anchor_losses, patch_pattern, shifted, step_draws
from clearsr.training.setup import stages_of_run
from clearsr.training.stages import build_stage

OVERLAP = {"autoencoder": {"overlap_channels": 4, "overlap_layers": 1}}
PAINTER = {"painter": {"blocks": 1}}
BLOCKS = [0, 3]
SAMPLING = {
    "steps": 1,
    "scheduler": "dpm++",
    "start_timestep": 300,
    "noise_scale": 0,
    "lsa": {"preset": "off"},
}


@pytest.fixture(scope="module")
def batch(make_picture):
    hr = torch.stack([make_picture(48, 48, seed) for seed in range(2)])
    return TrainingBatch(hr, F.avg_pool2d(hr, 4), [10, 11])


@pytest.fixture
def make_stage(make_run, make_network):
    """`make_stage("clearsr", PAINTER, features=0)`: a stage on random weights everywhere."""

    def make(stage="clearsr", model=OVERLAP, **perceptual):
        values = {"blocks": BLOCKS, "pixel": 0.0, "features": 0.0, **perceptual}
        config = make_run(
            stage,
            model=model,
            perceptual=values,
            loss={"prompt_dropout": 0.0},
            validation={"sampling": SAMPLING},
        )
        return build_stage(config, make_network(**model))

    return make


def test_the_picture_that_is_judged_is_the_pipelines(make_picture, make_stage, monkeypatch):
    hr = torch.stack([make_picture(64, 64, seed) for seed in range(2)])
    batch = TrainingBatch(hr, F.avg_pool2d(hr, 4), [10, 11])
    stage = make_stage(pixel=1.0)
    sampling = build_config(SamplingConfig, {**SAMPLING, "color": "none"})
    pipeline = ClearSRPipeline(stage.network, sampling, device="cpu", precision="fp32")
    expected = torch.stack([result.color for result in pipeline.upscale([ImageData(x) for x in batch.lr])])
    judged = []
    decode = stage.network.latents.decode
    monkeypatch.setattr(stage.network.latents, "decode", lambda z: judged.append(decode(z)) or judged[-1])
    loss = stage(batch, 0)
    torch.testing.assert_close(to_unit(judged[0]), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(loss["l1"], (judged[0] - to_signed(hr)).abs().mean())


def test_more_steps_are_differentiable_too(batch, make_run, make_network):
    two = {**SAMPLING, "steps": 2, "spacing": "quadratic", "noise_scale": 0.5}
    config = make_run(perceptual={"features": 0, "blocks": BLOCKS}, validation={"sampling": two})
    stage = build_stage(config, make_network())
    terms = stage(batch, 0)
    terms["loss"].backward()
    gradients = [p.grad for p in stage.network.unet.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)


def test_the_loss_is_the_weighted_sum_of_its_terms(batch, make_stage):
    weights = {"pixel": 0.7, "features": 0.3, "adversarial": 0.2, "adversarial_ramp": 0, "anchor": 0.4}
    stage = make_stage(**weights, decoder="overlap")
    terms = stage(batch, 0)
    anchor = terms["anchor_hr"] + terms["anchor_lr"]
    expected = 0.7 * terms["l1"] + 0.3 * terms["features"] - 0.2 * terms["reward"] + 0.4 * anchor
    torch.testing.assert_close(terms["loss"].detach(), expected + terms["discriminator"])


def test_the_reward_rises_with_the_steps(batch, make_stage):
    stage = make_stage(adversarial=1.0, adversarial_ramp=20)
    for first in (0, 10, 40, 80):  # two samples a step
        terms = stage(batch._replace(sample_ids=[first, first + 1]), 0)
        share = min(1.0, first / 2 / 20)
        expected = terms["discriminator"] - share * terms["reward"]
        torch.testing.assert_close(terms["loss"].detach(), expected)


def trained(name, decoder):
    """Whether a parameter is to be trained in stage clearsr."""
    if name.startswith("pictures.discriminator."):
        return True
    if name.startswith("network.latents.vae.decoder."):
        return decoder == "full" or (decoder == "overlap" and "overlap" in name)
    return not name.startswith(("network.latents.", "pictures.classifier."))


@pytest.mark.parametrize("decoder", ["frozen", "overlap", "full"])
@pytest.mark.parametrize("model", [OVERLAP, {**OVERLAP, **PAINTER}], ids=["alone", "with a painter"])
def test_it_trains_what_it_should(decoder, model, batch, make_stage):
    stage = make_stage(model=model, features=1.0, adversarial=0.1, adversarial_ramp=0, decoder=decoder)
    stage(batch, 0)["loss"].backward()
    with_gradient = {n for n, p in stage.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    asked = {n for n, p in stage.named_parameters() if p.requires_grad}
    assert asked == {n for n, _ in stage.named_parameters() if trained(n, decoder)}
    assert not with_gradient - asked
    # U-Net input: without noise the sampler starts at x_lr itself, and the first layer sees zeros.
    # Last biases: where no score lies beyond the hinge, what real asks for drawn takes back.
    silent = {n for n in asked - with_gradient if not n.endswith(("conv_in.weight", "layers.5.bias"))}
    assert not silent


def test_the_painter_learns_alone_and_from_its_picture(batch, make_run, make_network):
    config = make_run(
        "painter",
        model=PAINTER,
        perceptual={
            "pixel": 0.7,
            "features": 0.3,
            "adversarial": 0.1,
            "adversarial_ramp": 0,
            "blocks": BLOCKS,
        },
    )
    stage = build_stage(config, make_network(**PAINTER))
    terms = stage(batch, 0)
    expected = 0.7 * terms["l1"] + 0.3 * terms["features"] - 0.1 * terms["reward"] + terms["discriminator"]
    torch.testing.assert_close(terms["loss"].detach(), expected)
    torch.testing.assert_close(terms["l1"], l1_of_painting(stage.network, batch, 0))
    terms["loss"].backward()
    learned = {n for n, p in stage.named_parameters() if p.grad is not None and p.grad.abs().sum()}
    asked = {n for n, p in stage.named_parameters() if p.requires_grad}
    assert learned <= asked and {n for n in asked if n.startswith("network.")} <= learned
    assert all(n.startswith(("network.painter.", "pictures.discriminator.")) for n in asked)


@torch.no_grad()
def l1_of_painting(network, batch, steps):
    """Of what the pipeline would paint, less its matching of colours."""
    lr_image = to_signed(resize(batch.lr, (48, 48)))
    z_lr, prompt = network.latents.embed_lr(lr_image), network.image_prompt(lr_image)
    sampling = build_config(SamplingConfig, {**SAMPLING, "steps": steps})
    generators = [make_generator("noise", 0, i) for i in batch.sample_ids]
    z_0 = denoise(network, Conditioning(z_lr, prompt), sampling, generators)
    seen = torch.cat([lr_image, network.latents.decode(z_0).clamp(-1, 1)], dim=1)
    return (network.painter(seen) - to_signed(batch.hr)).abs().mean()


def test_with_a_painter_the_sampler_is_trained_through_it(batch, make_stage):
    stage = make_stage(model=PAINTER, pixel=1.0)
    terms = stage(batch, 0)
    torch.testing.assert_close(terms["l1"], l1_of_painting(stage.network, batch, 1))
    assert (terms["l1"] - l1_of_painting(stage.network, batch, 0)).abs() > 1e-5  # not of x_lr
    terms["loss"].backward()
    for part in (stage.network.painter, stage.network.unet, stage.network.detail_preserving):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


@torch.no_grad()
def test_prompts_of_two_lengths_are_sampled_together(make_run, make_network, make_picture):
    model = {"image_prompt": {"mode": "tokens"}}
    config = make_run(
        model=model,
        perceptual={"blocks": BLOCKS},
        loss={"prompt_dropout": 0.5},
        validation={"sampling": SAMPLING},
    )
    stage = build_stage(config, make_network(**model))
    network, ids = stage.network, list(range(6))
    hr = torch.stack([make_picture(32, 32, seed) for seed in ids])
    lr_image = to_signed(hr)
    _, dropped = step_draws(0, ids, config.loss, lr_image.device)
    prompt = network.image_prompt(lr_image)
    assert prompt.shape[1] > network.null_prompt.shape[1] and 0 < dropped.sum() < len(ids)
    embedding = network.latents.embed_lr(lr_image)
    together = stage._sampled(embedding, lr_image, TrainingBatch(hr, F.avg_pool2d(hr, 4), ids), 0)
    for i in ids:
        own = embedding.map(lambda part, i=i: part[i : i + 1])
        seen = network.null_prompt if dropped[i] else prompt[i : i + 1]
        generators = [make_generator("noise", 0, i)]
        alone = denoise(network, Conditioning(own, seen), config.validation.sampling, generators)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)
        other = prompt[i : i + 1] if dropped[i] else network.null_prompt
        swapped = denoise(network, Conditioning(own, other), config.validation.sampling, generators)
        assert (swapped - alone).abs().max() > 1e-3


def test_beside_the_painting_d_of_z_0_and_eq_1_may_count(batch, make_stage, make_run):
    stage = make_stage(model=PAINTER, decoded=0.7)
    terms = stage(batch, 0)
    torch.testing.assert_close(terms["loss"].detach(), 0.7 * terms["decoded"])
    decoded = []
    decode = stage.network.latents.decode
    stage.network.latents.decode = lambda z: decoded.append(decode(z)) or decoded[-1]
    stage(batch, 0)
    torch.testing.assert_close(terms["decoded"], (decoded[0] - to_signed(batch.hr)).abs().mean())
    stage = make_stage(model=PAINTER, denoising=0.6)
    plain = build_stage(make_run(model=PAINTER, loss={"prompt_dropout": 0.0}), copy.deepcopy(stage.network))
    ours, theirs = stage(batch, 0), plain(batch, 0)
    torch.testing.assert_close(ours["loss"], 0.6 * theirs["loss"])
    torch.testing.assert_close(ours["denoising"], theirs["loss"].detach())


def test_the_heads_and_the_network_do_not_learn_from_each_others_loss(normal):
    discriminator = Discriminator([4, 6])
    drawn = [normal(2, 4, 8, 8).requires_grad_(), normal(2, 6, 4, 4, seed=1).requires_grad_()]
    real = [normal(2, 4, 8, 8, seed=2), normal(2, 6, 4, 4, seed=3)]
    lr_image = normal(2, 3, 32, 32, seed=4)
    discriminator.loss(drawn, real, lr_image).backward()
    assert all(features.grad is None for features in drawn)
    assert all(p.grad is not None for p in discriminator.parameters())
    discriminator.zero_grad()
    discriminator.reward(drawn, lr_image).backward()
    assert all(features.grad.abs().sum() > 0 for features in drawn)
    assert all(p.grad is None for p in discriminator.parameters())


def test_the_hinge_loss_is_the_formula_and_what_is_told_apart_costs_nothing(normal):
    discriminator = Discriminator([4])
    (head,) = discriminator.heads
    drawn, real, lr_image = [normal(1, 4, 8, 8)], [normal(1, 4, 8, 8, seed=1)], normal(1, 3, 16, 16, seed=2)
    with torch.no_grad():
        on_real, on_drawn = head(real[0], lr_image), head(drawn[0], lr_image)
        expected = (1 - on_real).clamp(min=0).mean() + (1 + on_drawn).clamp(min=0).mean()
        torch.testing.assert_close(discriminator.loss(drawn, real, lr_image), expected)
        torch.testing.assert_close(discriminator.reward(drawn, lr_image), on_drawn.mean())
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = discriminator.loss(drawn, real, lr_image)
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * expected


def test_the_heads_see_the_lr_image(normal):
    discriminator = Discriminator([4])
    features = [normal(1, 4, 8, 8)]
    values = [discriminator.reward(features, normal(1, 3, 16, 16, seed=seed)).item() for seed in (1, 2)]
    assert values[0] != values[1]


def test_a_few_steps_bring_the_picture_nearer_in_features(batch, make_stage):
    stage = make_stage(features=1.0)
    optimizer = torch.optim.AdamW([p for p in stage.parameters() if p.requires_grad], lr=2e-3)
    distances = []
    for _ in range(10):
        optimizer.zero_grad()
        terms = stage(batch, 0)
        terms["loss"].backward()
        optimizer.step()
        distances.append(terms["features"].item())
    assert distances[-1] < 0.97 * distances[0]


def test_the_feature_term_compares_the_same_part_of_both_pictures(batch, make_stage):
    """Judged on a picture that equals its target it is 0, whatever the part."""
    stage = make_stage(features=1.0)
    target = to_signed(batch.hr)
    assert stage.pictures(target, target, target, batch.sample_ids, 3)["features"] == 0
    logs = stage.pictures(target.flip(-1), target, target, batch.sample_ids, 3)
    network = Classifier("lite1", BLOCKS)
    ours, theirs = shifted(((target.flip(-1) + 1) / 2, (target + 1) / 2), 3, batch.sample_ids)
    torch.testing.assert_close(logs["features"], feature_distance(network(ours), network(theirs)).mean())


def test_parts_are_the_samples_own_and_cover_every_place(normal):
    images = normal(1, 3, 20, 20).expand(64, -1, -1, -1)
    ids = list(range(64))
    (parts,) = shifted((images,), 5, ids)
    assert parts.shape == (64, 3, 12, 12)
    places = set()
    for part in parts:
        (found,) = [
            (top, left)
            for top in range(8)
            for left in range(8)
            if torch.equal(part, images[0, :, top : top + 12, left : left + 12])
        ]
        places.add(found)
    assert {top for top, _ in places} == {left for _, left in places} == set(range(8))
    (alone,) = shifted((images[:1],), 5, [ids[7]])
    assert torch.equal(alone[0], parts[7])


def test_the_grid_term_is_what_all_patches_share(normal, batch, make_stage):
    """It does not see what differs from patch to patch, nor a shift of the whole; a tiled pattern it sees."""
    pattern = normal(2, 3, 8, 8)
    pattern -= pattern.mean((2, 3), keepdim=True)
    tiled = pattern.tile(1, 1, 3, 5)
    torch.testing.assert_close(patch_pattern(tiled + 0.7, 8), pattern)
    level = normal(2, 3, 3, 5, seed=1).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert patch_pattern(level, 8).abs().max() < 1e-6
    expected = torch.stack([tiled[:, :, y::8, x::8].mean((2, 3)) for y in range(8) for x in range(8)], -1)
    torch.testing.assert_close(patch_pattern(tiled, 8).flatten(2), expected)
    stage = make_stage(grid=0.6)
    terms = stage(batch, 0)
    torch.testing.assert_close(terms["loss"].detach(), 0.6 * terms["grid"])


def test_the_anchor_is_on_latents_of_photographs_and_on_predicted_ones(batch, make_network):
    network = make_network(**OVERLAP)
    target = to_signed(batch.hr)
    with torch.no_grad():
        z_lr = network.latents.embed_lr(target.flip(-1)).mean
        terms = anchor_losses(network, target, z_lr, [10, 11])
        first = network.latents.decode(network.latents.encode_hr(target[:1]))
        second = network.latents.decode(z_lr[1:])
    torch.testing.assert_close(terms["hr"], (first - target[:1]).abs().mean())
    torch.testing.assert_close(terms["lr"], (second - target[1:]).abs().mean())
    torch.testing.assert_close(terms["loss"], terms["hr"] + terms["lr"])


def test_the_anchor_does_not_depend_on_how_a_batch_is_shared(make_network, make_picture):
    network = make_network(**OVERLAP)
    target = to_signed(torch.stack([make_picture(16, 16, seed) for seed in range(4)]))
    with torch.no_grad():
        z_lr = network.latents.embed_lr(target.flip(-1)).mean
        whole = anchor_losses(network, target, z_lr, [4, 5, 6, 7])["loss"]
        parts = [
            anchor_losses(network, target[i : i + 1], z_lr[i : i + 1], [4 + i])["loss"] for i in range(4)
        ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_the_lora_of_the_vae_gets_its_gradient_from_pictures_too(batch, make_run, make_network):
    model = {"lr_encoder": {"kind": "lora", "lora_rank": 2}, "prediction": "epsilon", "train_unet": "lora"}
    values = {"features": 0.0, "blocks": BLOCKS}
    config = make_run(model=model, perceptual=values, validation={"sampling": SAMPLING})
    stage = build_stage(config, make_network(**model))
    stage(batch, 0)["loss"].backward()
    lora = {n: p for n, p in stage.network.latents.named_parameters() if "lora_" in n}
    assert lora and all(p.grad is not None and p.grad.abs().sum() > 0 for p in lora.values())


def test_what_a_run_trains_along_it_leaves_to_later_stages(make_run):
    along = make_run(model=OVERLAP, perceptual={"decoder": "full"})
    assert stages_of_run(along) == ["clearsr", "decoder"]
    assert stages_of_run(make_run(perceptual={"decoder": "full"})) == ["clearsr"]
    assert stages_of_run(make_run(model=OVERLAP)) == ["clearsr"]
    both = {**OVERLAP, **PAINTER}
    assert stages_of_run(make_run(model=both, perceptual={"decoder": "full"})) == [
        "clearsr",
        "decoder",
        "painter",
    ]
    assert stages_of_run(make_run(model=both)) == ["clearsr"]
    assert stages_of_run(make_run("painter", model=both, perceptual={})) == ["painter"]


def test_what_cannot_be_trained_is_refused(make_run, make_network):
    with pytest.raises(ClearSRError, match="perceptual belongs to stages painter and clearsr, not to lr_enc"):
        make_run("lr_encoder", perceptual={"blocks": BLOCKS})
    run = make_run("clearsr", perceptual={"decoder": "overlap", "blocks": BLOCKS})
    with pytest.raises(ClearSRError, match="overlap_channels"):
        build_stage(run, make_network())
    with pytest.raises(ClearSRError, match="overlap_channels"):
        build_stage(make_run("decoder"), make_network())
    with pytest.raises(ClearSRError, match="perceptual"):
        make_run("decoder", perceptual={})
    with pytest.raises(ClearSRError, match=r"stage painter needs model.painter.blocks, and perceptual"):
        make_run("painter", perceptual={})
    with pytest.raises(ClearSRError, match=r"stage painter needs model.painter.blocks, and perceptual"):
        make_run("painter", model=PAINTER)
    with pytest.raises(ClearSRError, match=r"perceptual.decoder: a painter has none"):
        make_run("painter", model=PAINTER, perceptual={"decoder": "full"})
    with pytest.raises(ClearSRError, match=r"perceptual.grid: a painter has no patches"):
        make_run("painter", model=PAINTER, perceptual={"grid": 1.0})
    with pytest.raises(ClearSRError, match=r"teacher.blocks belong to stage painter, not to clearsr"):
        make_run(model=PAINTER, perceptual={"teacher": {"labels": "labels", "blocks": [0]}})
    with pytest.raises(ClearSRError, match="blocks"):
        Classifier("lite1", [99])
    base = {"preset": "sd21"}
    with pytest.raises(ClearSRError, match=r"perceptual\.decoder"):
        make_run(model=base, perceptual={"decoder": "full"})
    assert PerceptualConfig().classifier != "lite0"


def test_the_linear_yardstick_is_not_trained_by_what_it_measures(make_network, normal):
    latents = make_network(**OVERLAP).latents
    latents.vae.decoder.requires_grad_(True)
    difference = normal(1, 8, 2, 2).requires_grad_()
    latents.decode_linearly(difference).abs().mean().backward()
    assert difference.grad.abs().sum() > 0
    assert all(p.grad is None for p in latents.vae.decoder.parameters())
