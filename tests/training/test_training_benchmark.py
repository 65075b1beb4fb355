"""What benchmarks/train.py measures and proves, at tiny size: the true size differs in the widths alone."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from clearsr.config.base import build_config, merge, read_yaml
from clearsr.config.training import TrainConfig
from clearsr.models.build import build_network, meta_network, random_network
from clearsr.models.parameters import parameter_table
from clearsr.training.stages import build_stage

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """The scripts of benchmarks/ can be imported, as they are where one of them runs."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def on_a_base(sd_base, tmp_path_factory):
    """The paper's recipe on a miniature base, in fp32; no feature map is so small that attention idles."""
    pictures = importlib.import_module("train").write_pictures(tmp_path_factory.mktemp("pictures"), 136)
    values = read_yaml(ROOT / "configs" / "sd21.yaml")
    changes = {
        "model": {"base_model": str(sd_base), "image_encoder": None, "null_prompt_tokens": 3},
        "data": {"train": pictures, "validation": [], "crop_size": 128, "workers": 0},
        "precision": "fp32",
        "frozen_precision": "fp32",
        "gradient_checkpointing": True,
        "steps": 3,
        "batch_size": 1,
    }
    return build_config(TrainConfig, merge(values, changes))


@pytest.fixture(scope="module")
def row(on_a_base):
    """What three steps are measured to take and to change."""
    return importlib.import_module("train").measure(on_a_base, check=True)


def test_steps_on_a_base_change_what_is_trained_and_nothing_else(row, on_a_base):
    check = row["check"]
    assert check["changed_though_frozen"] == [] and check["frozen"] > 0
    assert check["silent"] == []
    assert check["changed"] > 0.9 * check["tensors"]
    assert row["trained"] == parameter_table(on_a_base.model).trainable
    assert len(row["seconds"]) == len(row["loss"]) == 3
    assert importlib.import_module("training_changes").is_as_intended(check, on_a_base)


def test_gradients_reach_each_part_as_soon_as_what_starts_at_zero_lets_them(row):
    norms = {
        group: [step[group][0] > 0 for step in row["check"]["gradients"]]
        for group in row["check"]["gradients"][0]
    }
    at_once, second, third = [True] * 3, [False, True, True], [False, False, True]
    assert norms == {
        "zero_convolutions": at_once,
        "unet_lora B": at_once,
        "unet_lora A": second,
        "detail_preserving": second,
        "structure_preserving": second,
        "cross_attention out": second,
        "cross_attention": third,
        "vae_lora B": second,
        "vae_lora A": third,
    }


def test_a_frozen_tensor_that_changes_is_named(make_run, make_network):
    changes = importlib.import_module("training_changes")
    config = make_run(model={"train_unet": "lora", "prediction": "epsilon"})
    stage = build_stage(config, make_network(**config.model.model_dump()))
    watch = changes.Watch(stage)
    with torch.no_grad():
        stage.network.unet.conv_in.bias[0] += 1e-3
        stage.network.detail_preserving.conv_in.bias[0] += 1e-3
    stage.network.detail_preserving.conv_in.bias.grad = torch.ones(16)
    watch.after_step()
    seen = watch.finish()
    assert seen["changed_though_frozen"] == ["network.unet.conv_in.bias"] and seen["changed"] == 1
    assert "network.detail_preserving.conv_in.bias" not in seen["silent"]
    assert "network.detail_preserving.conv_in.weight" in seen["silent"]
    assert not changes.is_as_intended(seen, config)
    assert "network.unet.conv_in.bias" in changes.report(seen)


def test_parts_that_never_learn_are_not_as_intended(row, on_a_base):
    changes = importlib.import_module("training_changes")
    assert not changes.is_as_intended({**row["check"], "silent": ["network.latents.vae.x"]}, on_a_base)
    one_step = {**row["check"], "silent": ["behind a zero"], "gradients": row["check"]["gradients"][:1]}
    assert changes.is_as_intended(one_step, on_a_base)


def test_a_random_network_is_the_base_s_but_for_the_weights(on_a_base, sd_base):
    state = torch.random.get_rng_state()
    ours, again, other = (random_network(on_a_base.model, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    built = build_network(on_a_base.model, null_prompt=torch.zeros(1, 3, 32))
    shapes = {name: value.shape for name, value in built.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes
    assert {name: v.shape for name, v in meta_network(on_a_base.model).state_dict().items()} == shapes
    copies = zip(ours.detail_preserving.conv_in.parameters(), ours.unet.conv_in.parameters(), strict=True)
    assert all(torch.equal(copy, original) for copy, original in copies)
    weights = [network.unet.mid_block.resnets[0].conv1.weight for network in (ours, again, other, built)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[3])
