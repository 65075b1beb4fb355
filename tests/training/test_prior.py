"""Stage `prior`: the loss it says, a U-Net that the clearsr stage starts from, and what is seen of it."""

import math

import pytest
import torch

from clearsr.data.crops import TrainingBatch
from clearsr.errors import ClearSRError
from clearsr.models.build import build_network
from clearsr.models.checkpoint import load_network, save_network
from clearsr.seeds import make_generator
from clearsr.training.dry_run import plan_run
from clearsr.training.engine import fit
from clearsr.training.losses import sample_noise
from clearsr.training.setup import missing_stages, prepare_network
from clearsr.training.stages import build_stage
from clearsr.training.validation import Validation


@pytest.fixture(scope="module")
def batch(make_picture):
    return TrainingBatch(torch.stack([make_picture(32, 32, seed) for seed in range(2)]), None, [10, 11])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [None, 0.5])
def test_the_loss_is_that_of_plain_denoising(
    prediction, gamma, batch, make_run, make_network, diffusers_unet
):
    network = make_network(prediction=prediction)
    config = make_run("prior", model={"prediction": prediction}, loss={"min_snr_gamma": gamma})
    losses = build_stage(config, network)(batch, 7)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    terms, errors = [], []
    for row, sample_id in enumerate(batch.sample_ids):
        with torch.no_grad():
            pixels = batch.hr[row : row + 1] * 2 - 1
            z_0 = network.latents.vae.encode(pixels).latent_dist.mode() * network.latents.scaling_factor
            noise = sample_noise(z_0.shape, 7, [sample_id])
            drawn = torch.rand(2, generator=make_generator("timestep", 7, sample_id))[0].item()
            t = int(1000 * drawn)
            a = math.prod(1 - beta for beta in betas[: t + 1].tolist())
            z_t = math.sqrt(a) * z_0 + math.sqrt(1 - a) * noise
            output = diffusers_unet(network.unet)(z_t, t, network.null_prompt).sample
        if prediction == "epsilon":
            target, said = noise, (z_t - math.sqrt(1 - a) * output) / math.sqrt(a)
        else:
            target = math.sqrt(a) * noise - math.sqrt(1 - a) * z_0
            said = math.sqrt(a) * z_t - math.sqrt(1 - a) * output
        snr = a / (1 - a)
        weight = 1.0
        if gamma is not None:
            weight = min(snr, gamma) / (snr if prediction == "epsilon" else snr + 1)
        terms.append(weight * ((output - target) ** 2).mean())
        errors.append(((said - z_0) ** 2).mean())
    torch.testing.assert_close(losses["loss"], torch.stack(terms).mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["z_0_mse"], torch.stack(errors).mean(), rtol=1e-3, atol=1e-5)


def encoders(network):
    """The U-Net's encoder beside what DPM and SPM have of it: pairs of tensors."""
    plain = {
        name.replace(".block.", "."): value for name, value in network.detail_preserving.state_dict().items()
    }
    wanted = ("conv_in.", "time_embedding.", "down_blocks.", "mid_block.")
    detail = [(v, plain[n]) for n, v in network.unet.state_dict().items() if n.startswith(wanted)]
    spm = network.structure_preserving
    structure = [(network.unet.conv_in.weight, spm.conv_in.weight)]
    for block, level in zip(network.unet.down_blocks, spm.levels, strict=True):
        for resnet, copied in zip(block.resnets, level, strict=False):
            structure.append((resnet.conv1.weight, copied.conv1.weight))
            structure.append((resnet.conv2.weight, copied.conv2.weight))
    return [*detail, *structure]


def test_a_prior_is_trained_exported_and_becomes_the_start_of_clearsr(make_run):
    model = {"prediction": "v_prediction", "unet_lora_rank": 0}
    fit(make_run("autoencoder", "one", model=model))
    prior = fit(
        make_run("prior", "two", model=model, steps=3, init_from=[make_run(output="one").output / "export"])
    )
    loaded = load_network(prior)
    assert loaded.stages == ["autoencoder", "prior"]
    fresh = build_network(make_run(model=model).model, 0)
    assert not torch.equal(loaded.network.unet.conv_in.weight, fresh.unet.conv_in.weight)

    changes = {"prediction": "v_prediction", "train_unet": "lora", "unet_lora_rank": 2}
    config = make_run("clearsr", "three", model=changes, init_from=[prior])
    network, stages = prepare_network(config)
    assert stages == ["autoencoder", "prior"] and missing_stages(config, stages) == ["lr_encoder"]
    taken = {
        n.replace(".base_layer.", "."): v for n, v in network.unet.state_dict().items() if "lora_" not in n
    }
    for name, value in loaded.network.unet.state_dict().items():
        assert torch.equal(taken[name], value), name
    assert torch.equal(network.null_prompt, loaded.network.null_prompt)
    pairs = encoders(network)
    assert len(pairs) > 20 and all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert all(conv.weight.abs().sum() == 0 for conv in network.detail_preserving.zero_convs)
    again, _ = prepare_network(config)
    state = again.state_dict()
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())

    finished = load_network(fit(config))
    assert finished.stages == ["autoencoder", "clearsr", "prior"]
    # A stage that goes on with clearsr keeps its control branches: they are no copies any more.
    later, _ = prepare_network(
        make_run("clearsr", "four", model=changes, init_from=[prior.parent.parent / "three" / "export"])
    )
    trained = finished.network.detail_preserving.state_dict()
    assert all(torch.equal(trained[n], v) for n, v in later.detail_preserving.state_dict().items())
    assert any(conv.weight.abs().sum() > 0 for conv in later.detail_preserving.zero_convs)


def test_a_prior_comes_before_clearsr(make_run, make_network, tmp_path):
    save_network(make_network(prediction="epsilon"), tmp_path / "done", ["autoencoder", "clearsr"])
    config = make_run("prior", model={"prediction": "epsilon"}, init_from=[tmp_path / "done"])
    with pytest.raises(ClearSRError, match="has been through stage clearsr"):
        prepare_network(config)


def test_what_is_seen_of_a_prior(make_run, photos):
    model = {"prediction": "v_prediction"}
    validation = {"count": 2, "crop_size": 32, "sampling": {"steps": 3, "start_timestep": 400}}
    config = make_run("prior", model=model, data={"validation": [str(photos)]}, validation=validation)
    network = build_network(config.model)
    seen, again = (Validation(config).run(network) for _ in range(2))
    assert seen.picture.shape == (3, 2 * 32, 3 * 32) and set(seen.scores) == {"psnr", "ssim"}
    assert torch.equal(seen.picture, again.picture)
    later = config.model_copy(
        update={
            "validation": config.validation.model_copy(
                update={"sampling": config.validation.sampling.model_copy(update={"start_timestep": 100})}
            )
        }
    )
    drawn, denoised = (slice(32 * column, 32 * (column + 1)) for column in (0, 1))
    other = Validation(later).run(network)
    assert torch.equal(other.picture[..., drawn], seen.picture[..., drawn])  # from noise alone in both
    assert not torch.equal(other.picture[..., denoised], seen.picture[..., denoised])


def test_a_prior_can_be_planned(make_run):
    config = make_run("prior", model={"prediction": "epsilon"})
    plan = plan_run(config)
    network = build_network(config.model)
    count = sum(p.numel() for n, p in network.unet.named_parameters() if "lora_" not in n)
    assert sum(plan.trainable.values()) == count + network.null_prompt.numel()
    assert plan.memory["step"] > 4 * count
