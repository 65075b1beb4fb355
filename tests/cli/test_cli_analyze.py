"""`clearsr analyze` and `clearsr calibrate`, end to end on a tiny model and small pictures."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clearsr.cli import COMMANDS
from clearsr.cli.measuring import STUDY_FLAGS, collect_study
from clearsr.cli.parser import Parser
from clearsr.paper.figures.figure_5_trajectory import split_points

STEPS = ("--steps", "4", "--scheduler", "ddpm", "--device", "cpu", "--precision", "fp32")


@pytest.fixture
def photographs(tmp_path):
    """Two textured pictures of different sizes, for NIQE has no value where all is flat."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed, size in enumerate(((104, 136), (128, 96))):
        noise = np.random.default_rng(seed).integers(0, 256, (*(side // 4 for side in size), 3), np.uint8)
        Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f"p{seed}.png")
    return folder


@pytest.fixture
def analyze(run, model, photographs, tmp_path):
    out = tmp_path / "figures"

    def call(*arguments, pictures=(photographs,)):
        return run("analyze", *pictures, "-o", out, "--model", model, *STEPS, *arguments)

    return call


def numbers(tmp_path, name):
    return json.loads((tmp_path / "figures" / f"{name}.json").read_text())


def test_the_commands_of_the_documentation_are_understood():
    text = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text(encoding="utf-8")
    lines = re.findall(r"^(?:  )?clearsr (\w+)([^&\n]*)", text, flags=re.MULTILINE)
    assert {verb for verb, _ in lines} == {"ablate", "analyze", "calibrate", "complexity", "demo"}
    for verb, arguments in lines:
        parser = Parser(f"clearsr {verb}", COMMANDS[verb].summary)
        module = import_module(COMMANDS[verb].target.partition(":")[0])
        module.add_arguments(parser)
        args = parser.parse_args(shlex.split(arguments))
        if verb in ("analyze", "calibrate"):
            collect_study(args, module._FLAGS if verb == "analyze" else STUDY_FLAGS)


def test_every_figure_with_its_numbers(analyze, tmp_path):
    outcome = analyze()
    assert outcome.code == 0, outcome.err
    names = ["control-signals", "divergence-differences", "spectra", "trajectory"]
    for name in names:
        with Image.open(tmp_path / "figures" / f"{name}.png") as picture:
            assert picture.width == 1100 and np.asarray(picture).std() > 10
    written = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert written == sorted(f"{name}.{suffix}" for name in names for suffix in ("png", "pdf", "json"))
    assert outcome.out.count(str(tmp_path / "figures")) == len(written)

    control = numbers(tmp_path, "control-signals")
    assert control["images"] == ["p0", "p1"]
    full, without = (np.array(control["divergence"][v]["spatial"]) for v in ("full", "controlnet"))
    np.testing.assert_allclose(control["difference"]["spatial"], without - full, atol=1e-5)
    bars = numbers(tmp_path, "divergence-differences")
    assert bars["difference"] == sorted(control["difference"]["spatial"], reverse=True)
    trajectory = numbers(tmp_path, "trajectory")
    assert trajectory["sampling"]["lsa"]["alpha"] == trajectory["sampling"]["lsa"]["beta"] == 0
    assert trajectory["timesteps"] == [999, 666, 333, 0]
    curves = np.array([trajectory["per_image"][name]["psnr"] for name in ("p0", "p1")])
    np.testing.assert_allclose(trajectory["mean"]["psnr"], curves.mean(0), atol=1e-3)


def test_one_figure_of_stored_pairs(analyze, run, photographs, tmp_path):
    run("degrade", photographs, "-o", tmp_path / "lr", "--preset", "light")
    only = ("--figure", "trajectory", "--limit", "1", "--alpha", "0.02", "--measures", "psnr")
    outcome = analyze(*only, "--lr", tmp_path / "lr", "--hr", photographs, pictures=())
    assert outcome.code == 0, outcome.err
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"trajectory"}
    stored = numbers(tmp_path, "trajectory")
    assert stored["images"] == ["p0"] and stored["sampling"]["lsa"]["alpha"] == 0.02
    assert list(stored["mean"]) == ["psnr"]
    analyze(*only)
    assert numbers(tmp_path, "trajectory")["mean"] == stored["mean"]  # degraded here by the same draws


def test_the_same_model_against_itself_differs_by_its_constraint_alone(analyze, model, tmp_path):
    outcome = analyze("--figure", "control", "--against", model)
    assert outcome.code == 0, outcome.err
    control = numbers(tmp_path, "control-signals")
    assert control["without_constraint"] == "against"
    assert control["difference"]["spatial"] == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--figure", "spectra", "--against", "compact"], "--against: belongs to --figure control"),
        (["--precision", "bf16"], "--precision bf16: control signals and spectra are read in fp32"),
        (["--upscale", "2.5"], "--upscale 2.5: must be a whole number here"),
        (
            ["--degradation", "heavy"],
            "--degradation: must be 'full', 'light', 'camera', 'real', 'compressed' or 'bicubic'",
        ),
    ],
)
def test_wrong_flags(analyze, arguments, says):
    outcome = analyze(*arguments)
    assert outcome.code == 2
    assert outcome.errors[0].startswith(f"clearsr: error: {says}")


def test_pairs_that_do_not_belong_together_are_refused(analyze, photo, photographs, tmp_path):
    for name in ("p0", "p1"):
        photo(f"lr/{name}.png", 20, 20)
    outcome = analyze("--figure", "control", "--lr", tmp_path / "lr", "--hr", photographs, pictures=())
    assert outcome.code == 1 and "p0: the original is 136x104" in outcome.errors[0]
    photo("other/p0.png", 26, 34)
    outcome = analyze("--figure", "control", "--lr", tmp_path / "other", "--hr", photographs, pictures=())
    assert outcome.code == 1 and "has no p1" in outcome.errors[0]
    assert analyze(pictures=()).errors == [
        "clearsr: error: give photographs to degrade, or pairs: --testset DIR, or --lr DIR and --hr DIR"
    ]
    assert analyze("--lr", tmp_path / "lr", pictures=()).code == 2


def calibrate(run, photographs, *arguments):
    return run("calibrate", photographs, "--device", "cpu", "--precision", "fp32", *arguments)


def test_calibration_keeps_what_the_rule_says_of_the_curve(run, model, photographs, tmp_path):
    out = tmp_path / "calibrated"
    outcome = calibrate(run, photographs, "--model", model, "-o", out, "--steps", "8", "--scheduler", "ddpm")
    assert outcome.code == 0, outcome.err
    stored = json.loads((out / "calibration.json").read_text())
    points = split_points(stored["mean"]["niqe"], stored["mean_of_hr"]["niqe"])
    assert stored["split"] == points.as_dict()
    assert json.loads((out / "config.json").read_text())["sampling"] == {"steps": 1, "lsa": points.settings}
    assert (out / "calibration.png").is_file()
    assert run("upscale", photographs / "p0.png", "--model", out, "-o", tmp_path / "up").code == 0
    assert "lsa" not in json.loads((model / "config.json").read_text())["sampling"]


def test_a_model_of_one_step_is_looked_at_over_twenty(run, model, photographs, tmp_path):
    given = ("analyze", photographs, "-o", tmp_path / "figures", "--model", model, "--device", "cpu",
             "--figure", "control", "--limit", "1", "--scheduler", "ddpm")  # fmt: skip
    outcome = run(*given)
    assert outcome.code == 0 and "the model takes 1 steps by itself; looking at 20" in outcome.out
    assert numbers(tmp_path, "control-signals")["timesteps"] == [999, 736, 473, 263, 0]
    assert "looking at" not in run(*given, "--steps", "2").out
    assert numbers(tmp_path, "control-signals")["timesteps"] == [999, 0]


def test_few_steps_become_twenty_and_a_dry_run_writes_nothing(run, model, photographs):
    before = {path: path.read_bytes() for path in model.iterdir()}
    outcome = calibrate(run, photographs, "--model", model, "--dry-run", "--limit", "1")
    assert outcome.code in (0, 1)
    assert "the model takes 1 steps by itself; looking at 20" in outcome.out
    assert len(outcome.out.split("NIQE by step: ")[1].split(";")[0].split()) == 20
    assert {path: path.read_bytes() for path in model.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "--model compact: is not a folder; say with -o where to keep the calibrated model"),
        (["--dry-run", "-o", "x"], 2, "-o x: a --dry-run keeps no model; leave one of them out"),
        (["--dry-run", "--alpha", "0.1"], 2, "--lsa, --alpha, --beta: calibration samples without LSA"),
        (["--dry-run", "--measures", "psnr"], 2, "--measures: the rule needs niqe among them"),
        (["--dry-run", "--steps", "2"], 1, "--steps 2: too few to split a run into three parts"),
    ],
)
def test_calibrations_that_cannot_be(run, photographs, arguments, code, says):
    outcome = calibrate(run, photographs, *arguments)
    assert outcome.code == code
    assert outcome.errors[0].startswith(f"clearsr: error: {says}")
