"""Steps that torch.compile translates: the same names, the same run, and one line where it cannot be done.

All but one test take what Dynamo makes of the networks as it is (backend `eager`), whose numbers must be the
same bit for bit; inductor needs a C++ compiler and minutes.
"""

import json
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import nn

from clearsr.config.base import build_config, merge, read_yaml
from clearsr.config.training import TrainConfig
from clearsr.data.crops import CropDataset
from clearsr.errors import ClearSRError
from clearsr.hardware import try_compiler
from clearsr.models.build import build_network
from clearsr.training.engine import fit
from clearsr.training.setup import compile_parts, prepare_stage
from clearsr.training.step import to_device

RECIPE = Path(__file__).parent.parent.parent / "configs" / "sd21.yaml"
CPU = torch.device("cpu")
PICTURES = {
    "model": {"painter": {"blocks": 1}, "autoencoder": {"overlap_channels": 4, "overlap_layers": 1}},
    "perceptual": {"adversarial": 0.1, "adversarial_ramp": 0, "blocks": [0, 3], "decoder": "overlap"},
    "data": {"crop_size": 32}, "validation": {"sampling": {"steps": 2, "start_timestep": 300}},
}  # fmt: skip
CASES = {
    "paper": {"gradient_checkpointing": True, "loss": {"prompt_dropout": 0.5}},
    "lora": {"model": {"lr_encoder": {"kind": "lora", "lora_rank": 2}, "prediction": "epsilon"}},
    "pictures": PICTURES,
    "base": {"gradient_checkpointing": True, "precision": "bf16", "frozen_precision": "bf16"},
}


@pytest.fixture
def graphs(monkeypatch):
    """`graphs()`: how many Dynamo has made; nothing else is made of them."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr("clearsr.training.engine.try_compiler", lambda device, name: None)
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    yield lambda: counters["stats"]["unique_graphs"]
    assert not counters["graph_break"]
    torch._dynamo.reset()


def losses_of(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["group"] == "train"]


def losses_of_steps(config, compiled, graphs):
    """Of three steps of a stage that is built anew, with AdamW; and how many graphs there were after each."""
    network = build_network(config.model, config.seed)
    stage = prepare_stage(config, network, CPU)
    names = list(stage.state_dict())
    if compiled:
        compile_parts(network)
    assert list(stage.state_dict()) == names
    optimizer = torch.optim.AdamW([p for p in stage.parameters() if p.requires_grad], lr=1e-3)
    data = CropDataset(config.data, config.degradation, config.batch_size, config.seed)
    losses, made = [], []
    for step in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            loss = stage(to_device(data[step], CPU), config.seed)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        made.append(graphs())
    return losses, made


@pytest.mark.parametrize("stage, recompute, expected", [("autoencoder", False, 2), ("lr_encoder", True, 3)])
def test_a_compiled_run_is_the_run(
    make_run, photos, graphs, checkpoint_tensors, assert_identical, stage, recompute, expected
):
    """Resumed half-way, with validation and an export of other sizes, for which nothing is compiled."""
    settings = {
        "steps": 4, "ema_decay": 0.9, "log_every": 1, "gradient_checkpointing": recompute,
        "validate_every": 1, "validation": {"count": 2, "crop_size": 32, "sampling": {"steps": 1}},
        "data": {"validation": [str(photos)]},
    }  # fmt: skip
    plain = make_run(stage, "plain", **settings)
    fit(plain)
    assert graphs() == 0
    compiled = make_run(stage, "compiled", compile=True, **settings)
    fit(compiled.model_copy(update={"steps": 2}))
    assert graphs() == expected
    fit(compiled, resume="latest")
    for name in ("checkpoints/step-00000004", "export", "export-best"):
        assert_identical(*(checkpoint_tensors(run.output / name) for run in (plain, compiled)))
    assert losses_of(plain.output) == losses_of(compiled.output)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_network_can_be_compiled(case, make_run, graphs, sd_base, photos, tmp_path, make_picture):
    """The paper's loss, a LoRA that is on for E' and off for E, losses on pictures, a base with its LoRAs."""
    if case == "base":
        base = {"model": {"base_model": str(sd_base), "image_encoder": None}, "batch_size": 2}
        base["data"] = {"train": [str(photos)], "crop_size": 64, "small": "resize"}
        config = build_config(TrainConfig, merge(merge(read_yaml(RECIPE), base), CASES[case]))
    else:
        config = make_run("clearsr", **CASES[case])
    expected, none = losses_of_steps(config, False, graphs)
    losses, made = losses_of_steps(config, True, graphs)
    assert losses == expected and none == [0, 0, 0]
    assert made[0] == made[1] == made[2] > 7  # all of them in the first step


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_inductors_steps_are_the_steps(make_run):
    torch._dynamo.reset()
    plain = make_run("autoencoder", "plain", steps=3, log_every=1)
    fit(plain)
    compiled = make_run("autoencoder", "compiled", steps=3, log_every=1, compile=True)
    fit(compiled)
    assert losses_of(compiled.output) == pytest.approx(losses_of(plain.output), rel=1e-4)


def test_where_nothing_can_be_compiled_one_line_says_so(make_run, monkeypatch, tmp_path):
    config = make_run("autoencoder", compile=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ClearSRError, match=r"^compile: no C\+\+ compiler found .*leave compile out$"):
        fit(config)
    assert not config.output.exists()


def test_a_compiler_that_fails_is_told_in_one_line(monkeypatch):
    def fail(*_):
        raise RuntimeError("Python.h: No such file\nand a page more")

    monkeypatch.setenv("CXX", "true")
    monkeypatch.setattr(torch, "compile", lambda function: fail)
    with pytest.raises(ClearSRError) as error:
        try_compiler(CPU, "compile")
    assert str(error.value) == (
        "compile: torch.compile does not work here (Python.h: No such file); leave compile out"
    )
