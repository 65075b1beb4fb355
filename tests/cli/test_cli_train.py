"""`clearsr train`: recipes and overrides reach the engine, and mistakes are refused before it."""

import json
import signal
from pathlib import Path

import pytest
import yaml

from clearsr.config.training import TrainConfig

RECIPE = {
    "stage": "autoencoder",
    "output": "run",
    "model": {"preset": "compact"},
    "data": {"train": ["photographs"]},
    "steps": 5,
}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def test_recipe_overrides_and_resume_reach_the_engine(run, recipe, tmp_path, monkeypatch):
    calls = []

    def fit(config, resume=None, on_signal=None):
        calls.append((config, resume))
        return tmp_path / "run/export"

    monkeypatch.setattr("clearsr.training.engine.fit", fit)
    more = tmp_path / "more.yaml"
    more.write_text("batch_size: 4\nsteps: 6\n")
    outcome = run(
        "train",
        recipe,
        more,
        "--resume",
        "latest",
        "--set",
        "steps=7",
        "--set",
        "optimizer.learning_rate=1e-4",
    )
    assert (outcome.code, outcome.out) == (0, f"{tmp_path / 'run/export'}\n")
    expected = {**RECIPE, "batch_size": 4, "steps": 7, "optimizer": {"learning_rate": 1e-4}}
    assert calls == [(TrainConfig.model_validate(expected), "latest")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "steps=0"], "--set steps: must be greater than 0 (got 0)"),
        (["--set", "model.contorl={}"], "--set model.contorl: unknown key; did you mean control?"),
        (
            ["--set", "stage=vae"],
            "--set stage: must be 'autoencoder', 'lr_encoder', 'decoder', 'painter', 'prior' or 'clearsr' "
            "(got 'vae')",
        ),
    ],
)
def test_mistakes_are_refused(run, recipe, arguments, says):
    outcome = run("train", recipe, *arguments)
    assert (outcome.code, outcome.err) == (2, f"clearsr: error: {says}\n")


def test_recipe_that_lacks_a_key(run, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("stage: autoencoder\noutput: run\n")
    assert run("train", path).err == "clearsr: error: data: must be given\n"


def test_missing_recipe_and_missing_photographs(run, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("train", "nowhere.yaml").err.startswith("clearsr: error: nowhere.yaml: cannot be read")
    outcome = run("train", recipe)
    assert outcome.code == 1
    assert outcome.errors == [
        "clearsr: error: photographs: does not exist; expected an image file or a folder"
    ]


def test_trained_model_is_one_that_upscale_takes(run, model, photo, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = json.loads((model / "config.json").read_text())["model"]
    sizes = {"crop_size": 32, "workers": 0}
    short = {"steps": 1, "batch_size": 1, "validate_every": 0, "model": network, "data": sizes}
    Path("short.yaml").write_text(yaml.safe_dump(short))
    photo("photographs/a.png", 48, 48)
    outcome = run("train", recipe, "short.yaml")
    assert (outcome.code, outcome.out) == (0, "run/export\n")
    assert TrainConfig.model_validate(yaml.safe_load(Path("run/config.yaml").read_text())).steps == 1
    again = run("train", recipe, "short.yaml")
    assert again.code == 1 and "--resume latest" in again.err
    assert run("train", recipe, "short.yaml", "--resume", "latest").code == 0
    upscaled = run("upscale", photo("b.png"), "--model", "run/export", "--steps", "1", "--device", "cpu")
    assert upscaled.code == 0
    assert Path("b_x4.png").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_a_signal_stopped_is_no_success(run, recipe, tmp_path, monkeypatch, number):
    def fit(config, resume, on_signal):
        on_signal(number)
        return tmp_path / "run/export"

    monkeypatch.setattr("clearsr.training.engine.fit", fit)
    monkeypatch.setattr("clearsr.training.run_folder.steps_done", lambda folder: 3)
    outcome = run("train", recipe, "--set", "steps=5")
    assert outcome.code == 128 + number and outcome.out == ""
    outcome = run("train", recipe, "--set", "steps=3")  # it came with the last step
    assert outcome.code == 0 and outcome.out.strip().endswith("export")
