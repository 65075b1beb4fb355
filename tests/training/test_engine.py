"""What the loop does beside learning: stop on nonsense, say what is wrong, keep the best, and show itself."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from clearsr.config.evaluation import EvaluationConfig
from clearsr.errors import ClearSRError
from clearsr.evaluation.measures import Scorer
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.training import engine
from clearsr.training.engine import fit
from clearsr.training.progress import Report
from clearsr.training.stages import AutoencoderStage
from clearsr.training.step import LossWatch
from clearsr.training.validation import Validation

SMALL_VALIDATION = {"count": 2, "crop_size": 32, "sampling": {"steps": 1}}


@pytest.fixture
def poisoned(monkeypatch):
    """`poisoned({3, 4}, "loss")`: at these calls the loss or its gradient is not a number, or `huge`."""

    def poison(bad, part):
        original, calls = AutoencoderStage.forward, []

        def forward(self, batch, seed):
            losses = original(self, batch, seed)
            calls.append(batch.sample_ids)
            if len(calls) in bad and part != "gradient":
                losses["loss"] = losses["loss"] * (60 if part == "huge" else float("nan"))
            elif len(calls) in bad:
                losses["loss"].register_hook(lambda gradient: gradient * float("inf"))
            return losses

        monkeypatch.setattr(AutoencoderStage, "forward", forward)

    return poison


@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_what_stays_not_finite_stops_the_run_and_names_the_samples(make_run, poisoned, part, photos):
    config = make_run("autoencoder", steps=9, checkpoint_every=1, keep_checkpoints=9)
    poisoned(range(3, 10), part)
    with pytest.raises(
        ClearSRError, match=rf"the {part}.* on samples 12 to 13 \(.*\.png.*5 steps in a row.*--resume latest"
    ) as error:
        fit(config)
    assert str(photos) in str(error.value)
    saved = sorted((config.output / "checkpoints").iterdir())
    assert [path.name for path in saved][-1] == "step-00000006"
    before, last = (load_file(saved[number] / "parameters.safetensors") for number in (1, -1))
    assert all(torch.equal(value, before[name]) for name, value in last.items())


@pytest.mark.parametrize("part", ["loss", "gradient", "huge"])
def test_a_single_step_of_garbage_is_left_out(
    make_run, poisoned, part, caplog, checkpoint_tensors, assert_identical
):
    """As if it had not been taken; the log counts it, and what it says of the loss is without it."""
    steps = 25
    config = make_run("autoencoder", steps=steps, log_every=1, checkpoint_every=1, keep_checkpoints=9)
    poisoned({22}, part)
    fit(config)
    (line,) = [line for line in caplog.messages if "left out a step" in line]
    assert f"the {'gradient' if part == 'gradient' else 'loss'}" in line and "on samples 42 to 43 (" in line
    assert ("times the median of the steps before" in line) == (part == "huge")
    rows = [json.loads(row) for row in (config.output / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("skipped", 0) for row in rows] == [0] * 21 + [1] * 4
    assert "loss" not in rows[21] and max(row["loss"] for row in rows if "loss" in row) < 10
    at = [config.output / "checkpoints" / f"step-{step:08d}" for step in (21, 22, 23)]
    before, left_out, after = map(checkpoint_tensors, at)
    assert_identical(before, left_out)
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    notes = json.loads((at[1] / "state.json").read_text())
    assert notes["losses"] == [pytest.approx(row["loss"]) for row in rows[:21]]


def test_what_is_usual_survives_a_stop(make_run, poisoned, caplog):
    """A step that is left out is so whether or not the run was stopped before it."""
    config = make_run("autoencoder", steps=21, checkpoint_every=21)
    fit(config)
    poisoned({1}, "huge")
    fit(config.model_copy(update={"steps": 22}), "latest")
    assert "left out a step" in caplog.text


def test_losses_are_measured_by_the_median_of_those_before():
    watch = LossWatch(10)
    assert [watch.problem(loss) for loss in (1e9, 0.0)] == [None, None]  # too few to know
    assert watch.problem(float("inf")) == "the loss is inf"
    for loss in [0.03] * 19 + [0.2]:
        watch.taken(loss)
    assert watch.problem(0.29) is None
    assert watch.problem(70.0) == "the loss is 70, 2333 times the median of the steps before"
    assert LossWatch(None, watch.losses).problem(70.0) is None
    assert LossWatch(10, [-0.5] * 50).problem(70.0) is None  # of an adversary: no scale to go by


def test_micro_batches_add_up_to_the_batch(make_run, checkpoint_tensors):
    changes = {"steps": 1, "batch_size": 4, "ema_decay": 0, "optimizer": {"gradient_clip": 0}}
    tensors = []
    for accumulation in (1, 2, 4):
        config = make_run("autoencoder", f"by-{accumulation}", accumulation=accumulation, **changes)
        fit(config)
        tensors.append(checkpoint_tensors(config.output / "checkpoints" / "step-00000001"))
    for other in tensors[1:]:
        for name, value in tensors[0].items():
            if name.endswith("exp_avg"):  # a tenth of the gradient
                torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-8, msg=name)


def test_an_unreadable_picture_stops_the_run_and_is_named(make_run, photos, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes((photos / "0.png").read_bytes()[:300])
    config = make_run("autoencoder", data={"train": [str(photos), str(broken)]}, batch_size=6)
    with pytest.raises(ClearSRError, match=r"broken\.png: is damaged.*skip_unreadable"):
        fit(config)


def test_an_unreadable_picture_is_reported_and_counted_where_it_may_be_left_out(
    make_run, photos, tmp_path, caplog
):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing that shows")
    data = {"train": [str(photos), str(broken)], "skip_unreadable": True}
    config = make_run("autoencoder", data=data, batch_size=6, steps=3, log_every=3)
    fit(config)
    assert caplog.text.count("left out:") == 1 and "broken.png" in caplog.text
    row = json.loads((config.output / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["unreadable"] == 3  # once in each epoch


@pytest.fixture
def scored(monkeypatch):
    """`scored({"psnr": [20.0, 22.0]})`: what the validations of a run find, one after the other."""
    original = Validation.run

    def score(columns):
        rows = iter(
            [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        )
        monkeypatch.setattr(
            Validation, "run", lambda self, network: original(self, network)._replace(scores=next(rows))
        )

    return score


def test_the_export_is_the_average_and_the_best_one_is_kept(make_run, photos, scored):
    scored({"psnr": [20.0, 22.0, 21.0]})
    config = make_run(
        "lr_encoder",
        steps=3,
        validate_every=1,
        ema_decay=0.5,
        data={"validation": [str(photos)]},
        validation=SMALL_VALIDATION,
        checkpoint_every=1,
        keep_checkpoints=3,
    )
    fit(config)
    assert json.loads((config.output / "export-best" / "best.json").read_text())["step"] == 2
    for folder, step in (("export-best", 2), ("export", 3)):
        exported = load_file(config.output / folder / "model.safetensors")
        average = load_file(config.output / "checkpoints" / f"step-{step:08d}" / "average.safetensors")
        assert average
        for name, value in average.items():
            assert torch.equal(exported[name.removeprefix("network.")], value)
    assert sorted(path.name for path in (config.output / "samples").iterdir()) == [
        f"step-{step:08d}.png" for step in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("best", "step"),
    [
        ({"psnr": 1}, 2),
        ({"niqe": 1}, 3),
        ({"sharpness": 1}, 1),
        ({"psnr": 1, "niqe": 2}, 3),
        ({"psnr": 9, "niqe": 1}, 2),
    ],
)
def test_the_best_is_chosen_by_what_the_recipe_says(make_run, photos, scored, monkeypatch, best, step):
    """Also by a run that is stopped after two validations and goes on."""
    columns = {
        "psnr": [20.0, 22.0, 21.0, 20.5],
        "niqe": [6.0, 5.0, 4.0, 4.5],
        "sharpness": [0.9, 1.3, 0.5, 2.0],
    }
    monkeypatch.setattr("clearsr.training.validation._NIQE_SIDE", 32)
    validation = {**SMALL_VALIDATION, "measures": list(columns), "best": {"psnr": 0, **best}}
    for first, steps in ((0, 2), (2, 4)):
        scored({name: values[first:steps] for name, values in columns.items()})
        config = make_run(
            "autoencoder",
            steps=steps,
            validate_every=1,
            data={"validation": [str(photos)]},
            validation=validation,
        )
        fit(config, "latest" if first else None)
    found = json.loads((config.output / "export-best" / "best.json").read_text())
    assert found["step"] == step and found["by"] == {"psnr": 0, **best}
    assert found["scores"] == {name: values[step - 1] for name, values in columns.items()}


def test_validation_measures_what_it_is_told_to(make_run, photos, network):
    """As `evaluate` measures it, with the networks of others and the LR images."""
    measures = ["features", "lr_consistency", "psnr_rgb"]
    validation = {**SMALL_VALIDATION, "measures": measures, "best": {"features": 1.0}}
    looking = Validation(make_run(data={"validation": [str(photos)]}, validation=validation))
    seen = looking.run(network)
    assert {f"{who}{name}" for who in ("", "bicubic_") for name in measures} == seen.scores.keys()
    sr, hr = (seen.picture[:, :32, 32 * place : 32 * (place + 1)] for place in (2, 3))
    assert torch.equal(hr, looking.hr[0])
    scorer = Scorer(EvaluationConfig(measures=tuple(measures)))
    rows = [
        scorer.score(seen.picture[:, top : top + 32, 64:96], hr, lr)
        for top, hr, lr in zip((0, 32), looking.hr, looking.lr, strict=True)
    ]
    for name in measures:
        assert seen.scores[name] == (rows[0][name] + rows[1][name]) / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best": {"niqe": 1.0}}, "validation.best: niqe is taken of crops of 192 pixels"),
        (
            {"measures": ["psnr", "lpips"]},
            "^validation.measures psnr,lpips: lpips: needs pyiqa .*the extra eval",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_step(
    make_run, photos, monkeypatch, changes, message
):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    validation = {**SMALL_VALIDATION, **changes}
    config = make_run(data={"validation": [str(photos)]}, validation=validation, validate_every=1)
    with pytest.raises(ClearSRError, match=message):
        fit(config)
    assert not (config.output / "checkpoints").exists()


def test_validation_sees_the_same_pictures_every_time_and_leaves_the_network_alone(make_run, photos, network):
    config = make_run(data={"validation": [str(photos)]}, validation=SMALL_VALIDATION)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, second = (Validation(config).run(network) for _ in range(2))
    assert first.scores == second.scores and torch.equal(first.picture, second.picture)
    assert first.scores.keys() == {"psnr", "ssim", "bicubic_psnr", "bicubic_ssim"}
    assert first.picture.shape == (3, 2 * 32, 4 * 32)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_what_was_trained_can_be_used(make_run, make_picture):
    from clearsr.image import ImageData

    export = fit(make_run("clearsr", steps=1))
    pipeline = ClearSRPipeline.from_pretrained(export, device="cpu", precision="fp32")
    result = pipeline.upscale([ImageData(make_picture(8, 12))], pipeline.configure(steps=1))[0]
    assert result.color.shape == (3, 32, 48) and result.color.isfinite().all()


def test_exports_are_of_half_the_size_where_that_is_asked_for(make_run, photos):
    """What was trained stays as it is; the next stage starts from what is left."""
    data = {"validation": [str(photos)]}
    changes = {"steps": 1, "validate_every": 1, "data": data, "validation": SMALL_VALIDATION}
    whole, half = (
        fit(make_run("autoencoder", precision, export_precision=precision, **changes))
        for precision in ("fp32", "fp16")
    )
    for name in ("export", "export-best"):
        ours, theirs = (load_file(folder.parent / name / "model.safetensors") for folder in (whole, half))
        assert all(torch.equal(theirs[key], value.half()) for key, value in ours.items())
    parameters = [
        load_file(f.parent / "checkpoints/step-00000001/parameters.safetensors") for f in (whole, half)
    ]
    assert all(torch.equal(value, parameters[1][name]) for name, value in parameters[0].items())
    second = fit(make_run("lr_encoder", "two", steps=1, init_from=[str(half)]))
    started, halved = (load_file(folder / "model.safetensors") for folder in (second, half))
    assert all(torch.equal(started[n], v.float()) for n, v in halved.items() if n.startswith("latents.vae."))


SAMPLED = {
    "steps": 2,
    "scheduler": "dpm++",
    "spacing": "quadratic",
    "start_timestep": 400,
    "guidance_scale": 2.0,
    "lsa": {"preset": "off", "lla_start": 0.7},
    "max_memory": "100GB",
    "seed": 5,
}


def test_what_was_trained_is_run_as_it_was_validated(make_run, photos, monkeypatch):
    """Both exports, wherever they are moved; what belongs to the machine or the picture stays behind."""
    used = []
    original = ClearSRPipeline.__init__

    def watched(self, network, sampling, *arguments, **options):
        used.append(sampling)
        original(self, network, sampling, *arguments, **options)

    monkeypatch.setattr(ClearSRPipeline, "__init__", watched)
    validation = {"count": 1, "crop_size": 32, "sampling": SAMPLED}
    data = {"validation": [str(photos)]}
    export = fit(make_run(steps=1, validate_every=1, data=data, validation=validation))
    (validated,) = used
    assert (validated.steps, validated.guidance_scale, validated.seed) == (2, 2.0, 5)
    for name in ("export", "export-best"):
        moved = (export.parent / name).rename(photos.parent / f"moved-{name}")
        found = ClearSRPipeline.from_pretrained(moved, device="cpu").defaults
        assert found == validated.model_copy(update={"seed": 0, "max_memory": None})
        shutil.rmtree(moved)


@pytest.mark.parametrize(("stage", "sampling"), [("autoencoder", {}), ("lr_encoder", {"steps": 0})])
def test_an_export_that_cannot_draw_yet_says_so(make_run, stage, sampling):
    description = json.loads((fit(make_run(stage, steps=1)) / "config.json").read_text())
    assert description["sampling"] == sampling


def test_a_stage_starts_from_what_the_one_before_left(make_run, caplog):
    first = make_run("autoencoder", "one", steps=1)
    export = fit(first)
    caplog.clear()
    second = fit(make_run("lr_encoder", "two", steps=1, init_from=[str(export)]))
    assert "brings no stage" not in caplog.text
    assert json.loads((second / "config.json").read_text())["stages"] == ["autoencoder", "lr_encoder"]
    before, after = (load_file(folder / "model.safetensors") for folder in (export, second))
    assert all(torch.equal(after[n], v) for n, v in before.items() if n.startswith("latents.vae."))
    fit(make_run("clearsr", "three", steps=1))
    assert "brings no stage autoencoder" in caplog.text and "no stage lr_encoder" in caplog.text


def test_the_scaling_factor_does_not_depend_on_the_batch(make_run, photos, monkeypatch):
    monkeypatch.setattr(engine, "FINISH_SAMPLES", 32)
    factors = []
    for batch_size in (1, 2):
        # A learning rate of next to nothing: the same encoder in both.
        config = make_run("autoencoder", f"b{batch_size}", batch_size=batch_size, steps=1)
        config = config.model_copy(
            update={"optimizer": config.optimizer.model_copy(update={"learning_rate": 1e-20})}
        )
        description = json.loads((fit(config) / "config.json").read_text())
        factors.append(description["model"]["autoencoder"]["scaling_factor"])
    assert factors[0] == factors[1] != 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp16"}, "fp16 needs an accelerator"),
        ({"data": {"crop_size": 20}}, "data.crop_size: 20; accepted: a multiple of 8"),
        ({"data": {"crop_size": 48}}, "data.crop_size: 48 is larger than"),
        ({"data": {"train": ["gone"]}}, "gone: does not exist"),
    ],
)
def test_what_cannot_be_trained_is_refused(make_run, changes, message):
    with pytest.raises(ClearSRError, match=message):
        fit(make_run("autoencoder", **changes))


def test_a_folder_that_cannot_be_written_is_named(make_run, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ClearSRError, match="output: .*run cannot be written"):
        fit(make_run("autoencoder"))


def test_metrics_on_a_full_disk_are_an_error_with_a_name(tmp_path):
    class Full:
        name = "metrics.jsonl"

        def write(self, text):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    with Report(tmp_path, 10, 0) as report:
        report._file.close()
        report._file = Full()
        with pytest.raises(ClearSRError, match="metrics.jsonl: cannot be written .No space left"):
            report.scalars(1, {"loss": 1.0})
