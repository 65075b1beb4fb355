"""Methods on pairs and seeds: what is scored, what is averaged over what, what is written and read back."""

import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from skimage.data import astronaut
from skimage.filters import laplace

from clearsr.atomic import write_text
from clearsr.config.evaluation import EvaluationConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError
from clearsr.evaluation.evaluate import Evaluation, Row, evaluate_method, evaluate_outputs
from clearsr.evaluation.measures import MEASURES, Scorer, lr_consistency
from clearsr.evaluation.methods import Method, baseline, clearsr_method, factor_of
from clearsr.evaluation.metrics import psnr, ssim, to_luma
from clearsr.evaluation.pairs import ImagePair, match_folders, read_8_bit, to_8_bit
from clearsr.evaluation.results import as_document, from_document, read_results, to_csv, to_json
from clearsr.evaluation.table import paired_notes
from clearsr.image import ImageData, resize, write_image
from clearsr.pipeline.pipeline import ClearSRPipeline

OWN = ("psnr", "ssim", "ssim_rounded", "niqe", "sharpness")


@pytest.fixture(scope="module")
def scorer():
    return Scorer(EvaluationConfig(measures=OWN))


@pytest.fixture(scope="module")
def testset(tmp_path_factory):
    """Two pairs, 24x24 -> 96x96 and 24x30 -> 96x120."""
    root = tmp_path_factory.mktemp("testset")
    for role in ("lr", "hr"):
        (root / role).mkdir()
    for name, width in (("a", 96), ("b", 120)):
        hr = torch.from_numpy(astronaut()[50:146, 180 : 180 + width].copy()).permute(2, 0, 1) / 255
        write_image(ImageData(hr), root / "hr" / f"{name}.png")
        write_image(ImageData(resize(hr[None], (24, width // 4))[0]), root / "lr" / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def pairs(testset):
    return match_folders({"lr": testset / "lr", "hr": testset / "hr"})


def noisy_method(strength=0.1):
    def upscale(image, size, seed):
        noise = torch.randn(3, *size, generator=torch.Generator().manual_seed(seed))
        return resize(image.color[None], size)[0] + strength * noise

    return Method("noisy", upscale, draws=True)


def test_a_picture_against_itself_is_perfect(scorer, pairs):
    hr = read_8_bit(pairs[0].hr)
    values = scorer.score(hr, hr)
    assert values["psnr"] == math.inf
    assert values["ssim"] == values["ssim_rounded"] == pytest.approx(1)
    assert values["sharpness"] == 1


def test_sharpness_is_the_ratio_of_laplacian_variances(scorer, pairs):
    hr = read_8_bit(pairs[1].hr)
    soft = resize(resize(hr[None], (24, 30)), (96, 120))[0]
    luma = [to_luma(image)[0].numpy() for image in (soft, hr)]
    expected = laplace(luma[0])[1:-1, 1:-1].var() / laplace(luma[1])[1:-1, 1:-1].var()
    assert scorer.score(soft, hr)["sharpness"] == pytest.approx(expected, rel=0.05)


def test_a_method_is_scored_as_an_8_bit_file_would_be(scorer, pairs, tmp_path):
    seen = []
    method = baseline("bicubic")
    result = evaluate_method(method, pairs, scorer, keep=tmp_path, on_image=lambda m, i: seen.append((m, i)))
    assert seen == [("bicubic", "a"), ("bicubic", "b")]
    for pair, row in zip(pairs, result.rows, strict=True):
        picture, hr = read_8_bit(tmp_path / f"{pair.name}.png"), read_8_bit(pair.hr)
        assert row.values["psnr"] == psnr(picture, hr).item()
    outputs = match_folders({"sr": tmp_path, "hr": pairs[0].hr.parent})
    assert evaluate_outputs("again", outputs, scorer).means() == result.means()


def test_the_difference_of_two_methods_is_taken_picture_by_picture():
    generator = np.random.default_rng(3)
    level = generator.normal(25, 5, 6)
    first = level[None] + 1 + 0.1 * generator.normal(size=(2, 6))
    ours = Evaluation("a", ("psnr",), EvaluationConfig(confidence=0.9))
    ours.rows = [Row(str(i), s, {"psnr": first[s, i]}) for s in range(2) for i in range(6)]
    theirs = Evaluation(
        "b", ("psnr",), ours.config, rows=[Row(str(i), None, {"psnr": level[i]}) for i in range(6)]
    )
    differences = first.mean(axis=0) - level
    low, high = stats.t.interval(0.9, 5, differences.mean(), stats.sem(differences))
    assert ours.less(theirs, "psnr") == pytest.approx((differences.mean(), low, high))
    assert ours.over_images("psnr").half_width > 10 * ours.less(theirs, "psnr").half_width
    assert ours.less(theirs, "ssim") is None
    half = (high - low) / 2
    (note,) = paired_notes([ours, theirs], ["psnr", "ssim"])
    assert note == f"a less b, picture by picture: PSNR +{differences.mean():.3f} ± {half:.3f}."


def test_other_conventions_are_taken_when_asked_for(scorer, pairs):
    wanted = ("psnr_pyiqa", "psnr_rounded", "psnr_rgb", "ssim_rgb")
    assert not set(wanted) & set(scorer.names)
    hr = read_8_bit(pairs[0].hr)
    sr = to_8_bit(hr.flip(0) * 0.9)
    values = Scorer(EvaluationConfig(measures=wanted, crop_border=2)).score(sr, hr)
    assert values == {
        "psnr_pyiqa": psnr(sr, hr, 2, epsilon=1e-8).item(),
        "psnr_rounded": psnr(sr, hr, 2, round_luma=True).item(),
        "psnr_rgb": psnr(sr, hr, 2, rgb=True).item(),
        "ssim_rgb": ssim(sr, hr, 2, rgb=True).item(),
    }
    assert len(set(values.values())) == 4


def test_the_lr_image_is_compared_with_where_there_is_one(pairs, tmp_path):
    scorer = Scorer(EvaluationConfig(measures=("lr_consistency",)))
    made = evaluate_method(baseline("bicubic"), pairs, scorer, keep=tmp_path)
    for pair, row in zip(pairs, made.rows, strict=True):
        expected = lr_consistency(read_8_bit(tmp_path / f"{pair.name}.png"), read_8_bit(pair.lr)).item()
        assert row.values == {"lr_consistency": expected}
    again = match_folders({"sr": tmp_path, "lr": pairs[0].lr.parent})
    assert evaluate_outputs("again", again, scorer).means() == made.means()
    swapped = [ImagePair("a", sr=again[0].sr, lr=again[0].lr), ImagePair("b", sr=again[0].sr, lr=again[1].lr)]
    assert evaluate_outputs("swapped", swapped, scorer).rows[1].values["lr_consistency"] < 25


def test_originals_that_the_factor_does_not_divide_are_cut(scorer, tmp_path, caplog):
    hr = torch.rand(3, 99, 98, generator=torch.Generator().manual_seed(4))
    sr = to_8_bit(hr[:, :96, :96] * 0.9)
    for role, color in (("sr", sr), ("hr", hr)):
        (tmp_path / role).mkdir()
        write_image(ImageData(color), tmp_path / role / "a.png")
    pairs = match_folders({"sr": tmp_path / "sr", "hr": tmp_path / "hr"})
    result = evaluate_outputs("x", pairs, scorer)
    assert result.rows[0].values == scorer.score(sr, to_8_bit(hr)[:, :96, :96])
    assert "1 originals are larger than the outputs" in caplog.text
    with pytest.raises(ClearSRError, match="fewer than 2 rows"):
        evaluate_outputs("x", pairs, scorer, upscale=2)


def test_a_border_is_left_out_of_psnr(pairs):
    cropped = Scorer(EvaluationConfig(measures=("psnr",), crop_border=4))
    sr = torch.zeros(3, 96, 96)
    hr = sr.clone()
    hr[:, :4] = 1
    assert cropped.score(sr, hr)["psnr"] == math.inf
    assert Scorer(EvaluationConfig(measures=("psnr",))).score(sr, hr)["psnr"] < 30


def test_lanczos_is_pillows(pairs):
    lr = Image.open(pairs[1].lr)
    expected = np.asarray(lr.resize((120, 96), Image.Resampling.LANCZOS))
    image = ImageData(torch.from_numpy(np.asarray(lr).copy()).permute(2, 0, 1) / 255)
    ours = baseline("lanczos").upscale(image, (96, 120), 0).permute(1, 2, 0) * 255
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-3)


def test_seeds_give_rows_of_their_own_and_two_kinds_of_intervals(scorer, pairs, tmp_path):
    result = evaluate_method(noisy_method(), pairs, scorer, seeds=[0, 5, 9], keep=tmp_path)
    assert [(row.seed, row.image) for row in result.rows] == [(s, i) for s in (0, 5, 9) for i in "ab"]
    assert sorted(p.parent.name for p in tmp_path.rglob("a.png")) == ["seed-0", "seed-5", "seed-9"]
    values = np.array([row.values["psnr"] for row in result.rows]).reshape(3, 2)
    assert len(np.unique(values)) == 6
    for found, means in (
        (result.over_images("psnr"), values.mean(axis=0)),
        (result.over_seeds("psnr"), values.mean(axis=1)),
    ):
        expected = stats.t.interval(0.95, len(means) - 1, loc=means.mean(), scale=stats.sem(means))
        assert (found.low, found.high) == pytest.approx(expected)
        assert found.mean == pytest.approx(values.mean()) == pytest.approx(result.means()["psnr"])


def test_a_method_that_draws_nothing_runs_once(scorer, pairs):
    result = evaluate_method(baseline("bicubic"), pairs, scorer, seeds=[0, 1, 2])
    assert len(result.rows) == 2 and result.seeds == [None]
    assert result.over_seeds("psnr") is None


def test_what_is_not_defined_is_left_out_of_the_mean_and_counted():
    config = EvaluationConfig(measures=("psnr", "niqe"))
    rows = [Row("a", None, {"psnr": 20.0, "niqe": math.nan}), Row("b", None, {"psnr": 30.0, "niqe": 4.0})]
    result = Evaluation("x", ("psnr", "niqe"), config, rows=rows)
    assert result.means() == {"psnr": 25.0, "niqe": 4.0}
    assert (result.undefined("psnr"), result.undefined("niqe")) == (0, 1)


def test_clearsr_is_the_pipeline_with_the_factor_of_the_sizes(network, pairs, scorer):
    pipeline = ClearSRPipeline(network, device="cpu", precision="fp32")
    config = SamplingConfig(steps=2, upscale=7)
    method = clearsr_method("ours", pipeline, config)
    image = ImageData(read_8_bit(pairs[1].lr))
    result = method.upscale(image, (96, 120), 3)
    expected = pipeline.upscale([image], config.model_copy(update={"upscale": 4, "seed": 3}))[0].color
    assert torch.equal(result, expected)


@pytest.mark.parametrize(
    ("changes", "draws"),
    [
        ({"steps": 0}, False),
        ({"steps": 2, "scheduler": "dpm++", "noise_scale": 0}, False),
        ({"steps": 2, "scheduler": "dpm++"}, True),
        ({"steps": 2, "noise_scale": 0}, True),
    ],
)
def test_whether_seeds_matter_is_known(network, pairs, changes, draws):
    pipeline = ClearSRPipeline(network, device="cpu", precision="fp32")
    method = clearsr_method("ours", pipeline, SamplingConfig(**changes))
    image = ImageData(read_8_bit(pairs[0].lr))
    same = torch.equal(method.upscale(image, (96, 96), 0), method.upscale(image, (96, 96), 1))
    assert method.draws == draws == (not same)


def test_sizes_that_one_factor_cannot_reach():
    image = ImageData(torch.zeros(3, 10, 20), source="a.png")
    assert factor_of(image, (25, 50)) == 2.5
    with pytest.raises(ClearSRError, match="20x10 cannot become 50x30"):
        factor_of(image, (30, 50))


def test_a_size_that_differs_names_the_file(scorer, tmp_path):
    for role, size in (("sr", 20), ("hr", 24)):
        (tmp_path / role).mkdir()
        write_image(ImageData(torch.zeros(3, size, size)), tmp_path / role / "a.png")
    pairs = match_folders({"sr": tmp_path / "sr", "hr": tmp_path / "hr"})
    with pytest.raises(ClearSRError, match=r"a\.png: is 20x20, its original 24x24"):
        evaluate_outputs("x", pairs, scorer)


def test_results_survive_their_file_and_are_plain_json(scorer, pairs, tmp_path):
    runs = [evaluate_method(noisy_method(), pairs, scorer, seeds=[0, 1]), evaluate_outputs(
        "perfect", match_folders({"sr": pairs[0].hr.parent, "hr": pairs[0].hr.parent}), scorer
    )]  # fmt: skip
    runs[0].dataset = "RealSR"
    write_text(tmp_path / "r.json", to_json(as_document(runs, scorer)))
    text = (tmp_path / "r.json").read_text()
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["mean"] == pytest.approx(runs[0].means())
    assert document["median"] == pytest.approx(runs[0].medians())
    assert document["images"][0] == {"image": "a", "seed": 0, **runs[0].rows[0].values}
    assert document["interval"]["psnr"] == pytest.approx(list(runs[0].over_images("psnr")[1:]))
    assert document["others"][0]["mean"]["psnr"] == math.inf
    assert {"clearsr", "torch"} <= document["versions"].keys()
    restored = read_results(tmp_path / "r.json")
    assert [e.method for e in restored] == ["noisy", "perfect"]
    assert restored[0].rows == runs[0].rows and restored[0].dataset == "RealSR"
    assert restored[1].means() == runs[1].means()


def test_rows_as_csv(scorer, pairs):
    result = evaluate_method(noisy_method(), pairs, scorer, seeds=[0, 1])
    result.rows[0].values["niqe"] = math.nan
    rows = list(csv.DictReader(io.StringIO(to_csv([result]))))
    assert [(r["method"], r["seed"], r["image"]) for r in rows[:2]] == [
        ("noisy", "0", "a"),
        ("noisy", "0", "b"),
    ]
    assert rows[0]["niqe"] == "" and float(rows[3]["psnr"]) == result.rows[3].values["psnr"]


@pytest.mark.parametrize("text", ["[]", "{}", "no json", '{"images": 3, "evaluation": {}, "others": []}'])
def test_other_files_are_no_results(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ClearSRError, match=r"r\.json: (is no result|cannot be read as JSON)"):
        read_results(tmp_path / "r.json")


def test_documents_need_what_they_describe():
    with pytest.raises(ClearSRError, match="here: is no result"):
        from_document({"evaluation": {}, "others": []}, "here")


def test_every_measure_says_which_way_is_better():
    assert {name: measure.better for name, measure in MEASURES.items() if measure.better != "high"} == {
        **dict.fromkeys(("lpips", "dists", "features", "features_vgg", "fid", "niqe", "niqe_pyiqa"), "low"),
        **dict.fromkeys(("sharpness", "grid_8", "grid_4", "grid_8_3"), "one"),
    }
