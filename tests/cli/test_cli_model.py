"""`clearsr model set`: the settings that a model brings along."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from clearsr.models.checkpoint import check_weights


@pytest.fixture
def own(model, tmp_path):
    return shutil.copytree(model, tmp_path / "own")


def test_settings_are_laid_over_the_models_and_shown(run, own):
    weights = (own / "model.safetensors").read_bytes()
    done = run("model", "set", own, "--steps", "2", "--noise-scale", "0.5", "--set", "lsa.ela_end=0.3")
    assert done.code == 0 and done.out == f"{own}: steps 2, lsa.ela_end 0.3, noise_scale 0.5\n"
    run("model", "set", own, "--lsa", "off")
    described = json.loads((own / "config.json").read_text())
    lsa = {"ela_end": 0.3, "preset": "off"}
    assert described["sampling"] == {"steps": 2, "noise_scale": 0.5, "lsa": lsa}
    assert (own / "model.safetensors").read_bytes() == weights
    shown = [line.split() for line in run("info", "--model", own).out.splitlines()]
    assert ["lsa.ela_end", "0.3"] in shown and ["steps", "2"] in shown


def test_what_was_set_is_what_upscale_takes(run, own, photo):
    run("model", "set", own, "--upscale", "2")
    source, result = photo(), own.parent / "result.png"
    assert run("upscale", source, "-o", result, "--model", own, "--device", "cpu").code == 0
    with Image.open(result) as picture:
        assert picture.size == (32, 24)


def test_weights_are_halved_and_compute_as_before(run, own, photo, tmp_path):
    half, again = tmp_path / "half", tmp_path / "again"
    done = run("model", "set", own, "-o", half, "--weights", "fp16", "--steps", "1")
    assert done.code == 0 and "steps 1, weights in fp16, " in done.out
    whole, halved = (load_file(folder / "model.safetensors") for folder in (own, half))
    assert {value.dtype for value in halved.values()} == {torch.float16}
    assert all(torch.equal(halved[name], value.half()) for name, value in whole.items())
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (own, half)]
    assert 0.5 < sizes[1] / sizes[0] < 0.6  # the header is as long as before
    assert "parameters stored in fp16" in run("info", "--model", half).out
    assert check_weights(half).is_recorded
    assert run("model", "set", half, "-o", again, "--weights", "fp32").code == 0
    source, pictures = photo(), []
    for folder in (half, again, own):
        result = tmp_path / f"{folder.name}.png"
        arguments = (
            "-o",
            result,
            "--model",
            folder,
            "--device",
            "cpu",
            "--precision",
            "fp32",
            "--steps",
            "1",
        )
        assert run("upscale", source, *arguments).code == 0
        pictures.append(np.asarray(Image.open(result)).astype(int))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert np.abs(pictures[0] - pictures[2]).max() <= 2
    assert run("model", "set", own, "--weights", "fp16").code == 0  # in place
    assert (own / "model.safetensors").read_bytes() == (half / "model.safetensors").read_bytes()


def test_another_model_is_changed_in_a_copy(run, own, tmp_path):
    before = (own / "config.json").read_bytes()
    assert run("model", "set", own, "-o", tmp_path / "copy", "--steps", "3").code == 0
    assert (own / "config.json").read_bytes() == before
    assert json.loads((tmp_path / "copy/config.json").read_text())["sampling"]["steps"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "model set: needs a setting"),
        (("--steps", "-1"), "--steps: must be greater than or equal to 0"),
        (("--set", "stpes=1"), "stpes: unknown key; did you mean steps"),
        (("--negative-prompt", "blurry"), "this model has no text encoder"),
        (("--seed", "1"), "--seed: no such flag"),
    ],
)
def test_what_cannot_be_set_is_refused_and_nothing_changes(run, own, arguments, message):
    before = (own / "config.json").read_bytes()
    done = run("model", "set", own, *arguments)
    assert done.code == 2 and len(done.errors) == 1 and message in done.err
    assert (own / "config.json").read_bytes() == before


def test_the_model_in_the_package_is_not_changed(run):
    done = run("model", "set", "compact", "--steps", "3")
    assert done.code == 2 and "compact: is not a folder; say with -o" in done.err
