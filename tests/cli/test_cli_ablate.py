"""`clearsr ablate` to the end in small: which rows run, what they change, what is not run twice."""

import os
import signal
from pathlib import Path

import pytest

from clearsr.config.base import load_config
from clearsr.config.training import TrainConfig
from clearsr.paper.tables.tables_2_3_6_7_8_ablation import (
    AblationPlan,
    row_config,
    rows_of,
    run_ablations,
)

ROOT = Path(__file__).parents[2]
OVERLAYS = ROOT / "configs" / "ablations"
RECIPE = ROOT / "configs" / "compact-ablations.yaml"


pytestmark = pytest.mark.usefixtures("only_quick_measures")


def plan(recipe=None, **changes):
    return AblationPlan(OVERLAYS, Path("out"), recipe, None, {"data": {"train": ["x"]}, **changes})


def test_there_is_a_row_for_every_published_one():
    rows = rows_of((2, 3, 6, 7, 8))
    assert [sum(row.table == n for row in rows) for n in (2, 3, 6, 7, 8)] == [4, 4, 3, 3, 3]
    assert rows[0].cells == ("w/o SPM",) and rows[5].cells == ("✓", "-")
    assert all((OVERLAYS / f"{row.overlay}.yaml").is_file() for row in rows)


@pytest.mark.parametrize("row", rows_of((2, 3, 6, 7, 8)), ids=lambda row: f"{row.table}-{row.overlay}")
def test_rows_are_the_papers_runs_as_the_overlays_stand(row):
    config = row_config(row, plan())
    expected = load_config(TrainConfig, [OVERLAYS / f"{row.overlay}.yaml"], ["data.train=[x]"])
    assert config == expected.model_copy(update={"output": Path("out") / row.overlay / "run"})


def test_over_a_recipe_only_the_switches_count():
    by_name = {row.overlay: row_config(row, plan(RECIPE, steps=7)) for row in rows_of((2, 3, 6, 7, 8))}
    full = by_name["section-4-3"]
    assert full.steps == 7 and full.optimizer.learning_rate == 5e-4 and full.batch_size == 4
    assert full.model.lr_encoder.kind == "separate" and full.model.unet_lora_rank == 16
    assert by_name["without-spm"].model.control.structure_preserving is False
    assert by_name["window-8"].model.control.window_size == 8
    assert by_name["unet-lora-rank-32"].model.unet_lora_rank == 32
    vae = by_name["vae-lora-rank-8"].model.lr_encoder
    assert (vae.kind, vae.lora_rank) == ("lora", 8)
    none = by_name["lora-none"].model
    assert (none.lr_encoder.kind, none.lr_encoder.lora_rank, none.unet_lora_rank) == ("lora", 0, 0)
    changed = {"model", "output"}
    assert all(c.model_dump(exclude=changed) == full.model_dump(exclude=changed) for c in by_name.values())


@pytest.fixture
def arguments(photo, model, tmp_path):
    """A run of two steps per row on tiny pictures."""
    for number in range(2):
        photo(f"train/{number}.png", 40, 48 + 8 * number)
    for name, size in (("test_HR", (32, 48)), ("test_LR", (8, 12))):
        for picture in "ab":
            photo(f"set/{name}/{picture}.png", *size)
    return [
        "ablate", OVERLAYS, "--recipe", RECIPE, "--from", model, "--data", tmp_path / "train", "--testset",
        tmp_path / "set", "--steps", "2", "--set", "batch_size=2", "--set", "data.crop_size=32",
        "--set", "data.workers=0", "--set", "precision=fp32", "--set", "optimizer.warmup_steps=0",
        "--measures", "psnr,ssim_rounded", "-o", tmp_path / "out",
    ]  # fmt: skip


def test_the_whole_command_and_a_second_run_that_trains_nothing(run, arguments, tmp_path, monkeypatch):
    trained = []
    from clearsr.paper.tables import tables_2_3_6_7_8_ablation as ablation

    fit = ablation.fit
    monkeypatch.setattr(
        ablation,
        "fit",
        lambda c, resume: (trained.append(c.output.parent.name), fit(c, resume))[1],
    )
    outcome = run(*arguments, "--tables", "6", "--also", "controlnet")
    assert outcome.code == 0, outcome.err
    assert trained == ["window-32", "window-16", "window-8", "controlnet"]
    against = load_config(TrainConfig, [tmp_path / "out" / "controlnet" / "run" / "config.yaml"])
    assert not against.model.control.cross_attention and not against.model.control.structure_preserving
    assert (tmp_path / "out" / "controlnet" / "run" / "export" / "model.safetensors").is_file()
    text = (tmp_path / "out" / "tables.md").read_text()
    assert text in outcome.out
    assert "| paper | 8 | **27.97** | **0.7619** |" in text and "| measured | 8 | " in text
    assert text.count("| measured |") == 3 and "2 steps of 2 crops of 32 pixels" in text
    assert text.count("Window size: 8 less Window size: ") == 2  # the last row less each other
    again = run(*arguments, "--tables", "6")
    assert again.code == 0 and len(trained) == 4
    assert (tmp_path / "out" / "tables.md").read_text() == text


def test_a_row_that_was_stopped_is_not_measured_and_goes_on(run, arguments, tmp_path, monkeypatch):
    from clearsr.training import engine

    step = engine.Stepper.step

    def stopped_by_a_signal(self, number):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number)

    monkeypatch.setattr(engine.Stepper, "step", stopped_by_a_signal)
    outcome = run(*arguments, "--tables", "6")
    assert outcome.code == 1
    assert "window-32: stopped after step 1 of 2; the same command goes on there" in outcome.errors[-1]
    assert not list((tmp_path / "out").rglob("result.json"))
    assert not (tmp_path / "out" / "window-16").exists()
    monkeypatch.setattr(engine.Stepper, "step", step)
    again = run(*arguments, "--tables", "6")
    assert again.code == 0 and again.out.count("| measured |") == 3


@pytest.mark.parametrize("recipe", [None, RECIPE], ids=["paper", "compact"])
def test_rows_that_are_one_network_are_run_once(recipe):
    rows, shared, ran = rows_of((2, 3, 6, 7, 8)), plan(recipe), []

    def run(row):
        ran.append(row.overlay)
        return row

    found = run_ablations(rows, run, lambda row: row_config(row, shared))
    assert list(found) == rows and len(ran) == len(set(ran)) == 14
    by_name = {(row.table, row.overlay): same.overlay for row, same in found.items()}
    if recipe is None:  # section 4.3 and appendix F differ in the learning rate
        assert by_name[3, "lora-both"] == "section-4-3"
        assert by_name[7, "vae-lora-rank-16"] == by_name[8, "unet-lora-rank-16"] == "window-16"
    else:
        assert by_name[6, "window-16"] == by_name[8, "unet-lora-rank-16"] == "section-4-3"
        assert by_name[7, "vae-lora-rank-16"] == "lora-both"


@pytest.mark.slow
def test_a_lora_row_trains_on_the_vae_encoder(run, arguments, tmp_path):
    outcome = run(*arguments, "--tables", "7", "--sampling", "steps=2")
    assert outcome.code == 0, outcome.err
    config = load_config(TrainConfig, [tmp_path / "out" / "vae-lora-rank-8" / "run" / "config.yaml"])
    assert config.model.lr_encoder.kind == "lora"
    assert outcome.out.count("| measured |") == 3


@pytest.mark.parametrize(
    ("extra", "code", "says"),
    [
        (["--also", "nothing"], 1, "nothing.yaml"),
        (["--tables", "4"], 1, "--tables 4: accepted are 2, 3, 6, 7, 8"),
        (["--sampling", "stps=1"], 2, "--sampling stps: unknown key; did you mean steps?"),
        (["--set", "stps=1"], 1, "stps: unknown key; did you mean steps?"),
        (["--measures", "psrn"], 2, "--measures"),
    ],
)
def test_wrong_settings_are_refused_before_the_work(run, arguments, tmp_path, extra, code, says):
    outcome = run(*arguments, *extra)
    assert outcome.code == code and says in outcome.errors[0]
    assert not (tmp_path / "out").exists()


def test_wrong_usage_is_one_line(run, arguments, tmp_path):
    overlays, testset = arguments[1], arguments[arguments.index("--testset") + 1]
    for given, says in (
        (["ablate", overlays, "-o", tmp_path], "needs --testset"),
        (
            ["ablate", tmp_path / "no", "-o", tmp_path, "--testset", testset],
            "expected the folder of the overlays",
        ),
        (["ablate", overlays, "-o", tmp_path, "--testset", testset, "--from", "x"], "--from: needs --recipe"),
    ):
        outcome = run(*given)
        assert outcome.code == 2 and says in outcome.errors[0]
