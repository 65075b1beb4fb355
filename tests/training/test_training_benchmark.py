"""What benchmarks/train.py and gpu.py measure and prove, at tiny size: true size differs in the widths."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clearsr.config.base import build_config, merge, read_yaml
from clearsr.config.training import TrainConfig
from clearsr.data.crops import TrainingBatch
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_diffusers_trainer_takes_our_steps(on_a_base, precision):
    config = on_a_base.model_copy(update={"precision": precision, "frozen_precision": precision})
    row = importlib.import_module("train").measure(config, network="controlnet", ahead=True)
    stage = importlib.import_module("controlnet").ControlNetStage(config)
    assert row["trained"] == sum(p.numel() for p in stage.controlnet.parameters())
    assert len(row["seconds"]) == 3
    assert all(0.5 < loss < 2 for loss in row["loss"])  # MSE of noise that is not yet known


def test_diffusers_trainer_learns_in_the_controlnet_alone_and_what_it_adds_counts(on_a_base, normal):
    stage = importlib.import_module("controlnet").ControlNetStage(on_a_base)
    batch = TrainingBatch(normal(2, 3, 128, 128).sigmoid(), normal(2, 3, 32, 32, seed=1).sigmoid(), [0, 1])
    unknown = stage(batch, 0)["loss"]
    unknown.backward()
    learning = {name for name, p in stage.named_parameters() if p.grad is not None and p.grad.any()}
    # Behind the zero convolutions nothing has a gradient yet.
    zeros = ("controlnet.controlnet_down_blocks.", "controlnet.controlnet_mid_block.")
    assert learning and all(name.startswith(zeros) for name in learning)
    with torch.no_grad():
        stage.controlnet.controlnet_down_blocks[0].weight.add_(0.1)
        stage.controlnet.controlnet_cond_embedding.conv_out.weight.add_(1)
        added = stage(batch, 0)["loss"]
        assert added != unknown and stage(batch._replace(lr=1 - batch.lr), 0)["loss"] != added


def test_images_per_second_are_held_beside_controlnet_s_under_the_same_settings():
    train = importlib.import_module("train")
    same = {"batch": 2, "crop": 512, "precision": "bf16", "checkpointing": False, "planned_memory": 2**30}
    sizes = {"peak_memory": 2**30, "libraries_memory": 0, "loss": []}
    ours = {**same, **sizes, "network": "clearsr", "seconds": [9.0, 0.5, 0.5]}
    theirs = {**same, **sizes, "network": "controlnet", "seconds": [9.0, 0.6, 0.6], "planned_memory": None}
    other = {**ours, "batch": 4}
    rows = [ours, other, theirs]
    assert train.over_controlnet(ours, rows) == pytest.approx(1.2)
    assert train.over_controlnet(other, rows) is None and train.over_controlnet(theirs, rows) is None
    failed = {**same, "network": "clearsr", "error": "out of memory"}
    lines = train.table([*rows, failed]).splitlines()
    assert {line.count("|") for line in lines} == {14}
    assert "| 4 | 1.20 | 1.00 |" in lines[2] and "out of memory" in lines[5]


@pytest.mark.slow
def test_what_is_for_a_gpu_runs_in_small(tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--tiny", "--json", str(file)]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert outcome.returncode == 0, outcome.stderr
    parts = json.loads(file.read_text())["parts"]
    gpu = importlib.import_module("gpu")
    expected = {name: "done" for name in gpu.PARTS}
    if not torch.cuda.is_available():
        expected |= dict.fromkeys([name for name in gpu.PARTS if "compiled" in name], "left out")
    assert {name: part["state"] for name, part in parts.items()} == expected
    assert parts["training"]["planned_memory"] > 0
    assert all(parts[name]["images_per_second"] > 0 for name in ("training", "training, ControlNet"))
    assert len(parts["sampling"]["runs"]) == 4


def test_a_part_that_no_longer_fits_is_left_out_and_one_that_outlasts_the_time_is_stopped():
    gpu = importlib.import_module("gpu")
    late = gpu.run_part("training", tiny=False, seconds=20)
    assert late == {"state": "left out", "why": "20 s left, it takes about 90"}
    stopped = gpu.run_part("sampling", tiny=True, seconds=0.2)
    assert stopped["state"] == "stopped" and stopped["seconds_in_all"] < 10


def test_a_part_that_fails_says_why(tmp_path, monkeypatch):
    gpu = importlib.import_module("gpu")

    def fail(folder, tiny):
        raise torch.OutOfMemoryError("out of memory\nand more")

    monkeypatch.setitem(gpu.PARTS, "sampling", gpu.Part(fail, {}, 1))
    gpu._answer("sampling", True, tmp_path, tmp_path / "answer.json")
    said = json.loads((tmp_path / "answer.json").read_text())
    assert said == {"state": "failed", "why": "OutOfMemoryError: out of memory"}


def test_figures_are_held_against_the_goals():
    gpu = importlib.import_module("gpu")
    runs = {"eager, batch 1": 0.7, "compiled, batch 1": 0.5, "eager, batch 8": 0.2, "batch 8, no guidance": 9}
    row = {"batch": 2, "crop": 512, "precision": "bf16", "checkpointing": False, "state": "done"}
    parts = {
        "sampling": {
            "state": "done",
            "runs": {name: {"seconds_per_image": seconds} for name, seconds in runs.items()},
        },
        "training": {
            **row,
            "network": "clearsr",
            "seconds": [3.0, 1.0],
            "peak_memory": 110,
            "libraries_memory": 0,
            "planned_memory": 100,
        },
        "training, ControlNet": {**row, "network": "controlnet", "seconds": [3.0, 0.9]},
    }
    found = {goal["what"]: (goal["value"], goal["is_met"]) for goal in gpu.goals(parts)}
    assert found == {
        "eager, batch 1: seconds a picture": (0.7, False),
        "compiled, batch 1: seconds a picture": (0.5, True),
        "eager, batch 8: pictures a second": (pytest.approx(5), True),
        "training: images a second, times ControlNet's": (pytest.approx(0.9), False),
        "training: peak memory over the plan": (pytest.approx(1.1), False),
    }
    parts["training, ControlNet"] = {"state": "left out", "why": "late"}
    assert len(gpu.goals(parts)) == 4
