"""`clearsr bench` on the tiny model: every figure is in the JSON file and follows from the others."""

import json

import pytest


@pytest.fixture
def bench(run, model, tmp_path):
    """Runs sections on the tiny model; gives the outcome and what --json holds."""

    def call(*arguments):
        file = tmp_path / "figures.json"
        small = ("--model", model, "--device", "cpu", "--threads", "1", "--rounds", "2")
        outcome = run("bench", *small, "--json", file, *arguments)
        return outcome, json.loads(file.read_text()) if file.exists() else None

    return call


def test_speed_and_pixels(bench, monkeypatch):
    monkeypatch.setattr("clearsr.benchmark.speed.SIDE", 64)
    monkeypatch.setattr("clearsr.benchmark.speed.SMALL_SIDE", 32)
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
    assert "naive over our loop" in outcome.out and "time against pixels" in outcome.out


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
    from clearsr.benchmark.child import answer, start
    from clearsr.errors import ClearSRError

    child = start("no_such_task", 1)
    try:
        with pytest.raises(ClearSRError, match="ended with code 1"):
            answer(child)
    finally:
        child.communicate()
