"""Table 5: the paper's columns as published, ours as counted, and the two countings at the paper's size."""

import argparse
import json

import pytest
import torch

import clearsr.hardware
import clearsr.paper.complexity.sd21
from clearsr.cli import complexity, main
from clearsr.config.base import build_config
from clearsr.config.sampling import SamplingConfig
from clearsr.models.checkpoint import locate, save_network
from clearsr.models.parameters import stored_parts
from clearsr.paper.complexity.macs import count_macs
from clearsr.paper.tables.table_5_complexity import complexity_table, describe, published, time_image
from clearsr.pipeline.pipeline import ClearSRPipeline


@pytest.fixture(scope="module")
def sd21():
    return describe("sd21", 512)[0]


def test_the_papers_network_comes_to_the_papers_numbers(sd21):
    paper = next(column for column in published() if column.name == "ClearSR")
    assert sd21.trainable_parameters_m == pytest.approx(paper.trainable_parameters_m, rel=0.003)
    assert sd21.macs_g == pytest.approx(paper.macs_g, rel=0.001)
    assert sd21.steps == paper.steps == 50
    assert sd21.shared_macs_g < 0.7 * sd21.true_macs_g and sd21.macs_g < sd21.true_macs_g


def test_published_numbers_stay_as_printed():
    text = [row.cells for row in complexity_table([], 512, "").rows]
    assert text[0] == ("total parameters (M)", "1717", "1900", "2524", "2511")
    assert text[2][1:] == ("24234", "29125", "65857", "52384")
    assert text[6][1:] == ("4.51", "1.92", "4.10", "5.36")
    assert text[7][1:] == ("11.09", "10.41", "12.21", "9.33")


def test_a_model_is_counted_by_its_own_configuration_and_settings(network, tmp_path):
    save_network(network, tmp_path / "m", ["clearsr"], {"steps": 3, "guidance_scale": 2.0})
    counted, sampling = describe(str(tmp_path / "m"), 64)
    assert sampling.steps == counted.steps == 3
    assert counted.total_parameters_m * 1e6 == pytest.approx(sum(p.numel() for p in network.parameters()))
    naive = count_macs(network.config, (64, 64), 3, guided=True, naive=True, merged=False).total
    assert (counted.macs_g, counted.true_macs_g) == (naive.layers / 1e9, naive.total / 1e9)
    unguided = count_macs(network.config, (64, 64), 5, guided=False).total.total
    save_network(network, tmp_path / "m", ["clearsr"], {"steps": 3})
    assert describe(str(tmp_path / "m"), 64, steps=5)[0].shared_macs_g == unguided / 1e9


def test_time_is_of_all_steps_without_guidance(network, monkeypatch):
    pipeline = ClearSRPipeline(network, device="cpu", precision="fp32")
    seen = []

    def upscale(images, settings):
        seen.append((images[0].width, settings.steps, settings.guidance_scale))

    monkeypatch.setattr(pipeline, "upscale", upscale)
    sampling = build_config(SamplingConfig, {"steps": 2, "guidance_scale": 4.0})
    assert time_image(pipeline, sampling, 64, rounds=2) >= 0
    assert seen == [(16, 2, 1.0)] * 3


def test_speed_is_steps_over_time(sd21):
    timed = sd21.timed(4.0)
    assert (timed.seconds, timed.steps_per_second) == (4.0, 12.5)
    cells = [row.cells[-1] for row in complexity_table([timed], 512, "here").rows]
    assert cells[-2:] == ["4.00", "12.50"]


def test_the_command_prints_and_writes_the_same(capsys, tmp_path):
    file = tmp_path / "c.json"
    assert (
        main(["complexity", "compact", "--size", "64", "--time", "--device", "cpu", "--json", str(file)]) == 0
    )
    out = capsys.readouterr().out
    (ours,) = json.loads(file.read_text())["ours"]
    total = sum(stored_parts(locate("compact") / "model.safetensors").values()) / 1e6
    assert f"{total:.2f} |" in out and ours["total_parameters_m"] == pytest.approx(total, rel=1e-4)
    assert ours["seconds"] > 0 and ours["steps_per_second"] == pytest.approx(
        ours["steps"] / ours["seconds"], rel=1e-3
    )
    assert "Times without guidance; ours on " in out and " threads, " in out


class Elsewhere:
    """An accelerator in name only: a pipeline that is sent there finds the CPU."""

    type = "cuda"

    def __str__(self):
        return "cpu"


def test_the_papers_network_is_timed_with_random_weights_and_not_on_a_cpu(sd21, network, monkeypatch, caplog):
    args = argparse.Namespace(device="cpu", precision="fp32", size=64, base_model=None)
    sampling = build_config(SamplingConfig, {"steps": 1})
    assert complexity._timed(args, "sd21", sd21, sampling) == (sd21, "")
    assert "sd21 is not timed on a CPU" in caplog.text

    asked = []
    monkeypatch.setattr(clearsr.hardware, "choose_device", lambda name: Elsewhere())
    monkeypatch.setattr(
        clearsr.paper.complexity.sd21, "random_network", lambda device, dtype: asked.append(dtype) or network
    )
    args.device = "auto"
    timed, machine = complexity._timed(args, "sd21", sd21, sampling)
    assert asked == [torch.float32] and timed.seconds > 0 and machine


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--size", "8"], "--size 8: must be from 32"), (["--steps", "-1"], "--steps -1: must be from 0")],
)
def test_wrong_flags(capsys, arguments, says):
    assert main(["complexity", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"clearsr: error: {says}")
