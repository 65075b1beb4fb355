"""The sweep over alpha and beta: every setting is the pipeline's own, and its words follow its numbers."""

import json

import pytest
import torch
from PIL import Image

from clearsr.config.evaluation import EvaluationConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.evaluation.evaluate import Evaluation, Row
from clearsr.evaluation.measures import Scorer
from clearsr.evaluation.pairs import match_folders, to_8_bit
from clearsr.evaluation.table import render
from clearsr.image import ImageData, read_image, resize, write_image
from clearsr.paper.figures.figure_7_lsa import draw_curves, draw_pictures
from clearsr.paper.tables.table_4_lsa import (
    Sweep,
    SweepPlan,
    findings,
    grid_table,
    is_monotonic,
    sweep_lsa,
    table_4,
)
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.seeds import file_seed

PLAN = SweepPlan((0.03, 0.0), (0.0, 0.01), seeds=(5,), example="1")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, make_picture):
    root = tmp_path_factory.mktemp("pairs")
    for number in range(2):
        hr = make_picture(32, 48, seed=number)
        for role, color in (("hr", hr), ("lr", resize(hr[None], (8, 12))[0])):
            (root / role).mkdir(exist_ok=True)
            write_image(ImageData(color), root / role / f"{number}.png")
    return match_folders({"lr": root / "lr", "hr": root / "hr"})


@pytest.fixture(scope="module", params=[{}, {"painter": {"blocks": 1}}], ids=["alone", "with a painter"])
def swept(request, make_network, pairs):
    pipeline = ClearSRPipeline(make_network(**request.param), device="cpu", precision="fp32")
    config = SamplingConfig(steps=4)
    scorer = Scorer(EvaluationConfig(measures=("psnr", "ssim_rounded", "sharpness")))
    seen = []
    sweep = sweep_lsa(pipeline, config, pairs, scorer, PLAN, seen.append)
    return pipeline, config, scorer, sweep, seen


def test_every_setting_is_what_the_pipeline_gives(swept, pairs):
    pipeline, config, scorer, sweep, seen = swept
    assert seen == ["0"] * 4 + ["1"] * 4
    assert sweep.alphas == (0.0, 0.03) and len({p.sum().item() for p in sweep.pictures.values()}) == 4
    for (alpha, beta), picture in sweep.pictures.items():
        lsa = config.lsa.model_copy(update={"alpha": alpha, "beta": beta})
        own = config.model_copy(update={"lsa": lsa, "seed": file_seed(5, "1.png")})
        expected = to_8_bit(pipeline.upscale([read_image(pairs[1].lr)], own)[0].color)
        assert torch.equal(picture, expected)
        row = sweep.evaluations[alpha, beta].rows[1]
        hr = read_image(pairs[1].hr).color
        assert row == Row("1", 5, scorer.score(expected, to_8_bit(hr)))


def artificial(psnr, niqe):
    """A sweep of 2x3 settings with these means, alpha by alpha."""
    evaluations = {}
    for i, alpha in enumerate((0.0, 0.01)):
        for j, beta in enumerate((0.0, 0.01, 0.02)):
            values = {"psnr": psnr[i][j], "niqe": niqe[i][j]}
            rows = [Row("a", 0, values)]
            evaluations[alpha, beta] = Evaluation("x", ("psnr", "niqe"), EvaluationConfig(), rows=rows)
    return Sweep((0.0, 0.01), (0.0, 0.01, 0.02), evaluations)


def test_findings_say_what_the_numbers_show():
    sweep = artificial([[25, 24.5, 24], [26, 25.5, 25]], [[6, 5, 4], [7, 7.5, 5]])
    assert findings(sweep) == [
        "PSNR gets better with every step of alpha, at each of the 3 values of beta.",
        "PSNR covers 2 dB, from 24.00 (alpha 0, beta 0.02) to 26.00 (alpha 0.01, beta 0); "
        "the paper: over 2 dB.",
        "NIQE (ours) does not get better with every step of beta at alpha = 0.01.",
        "NIQE (ours) covers 3.5, from 4.0000 (alpha 0, beta 0.02) to 7.5000 (alpha 0.01, beta 0.01); "
        "the paper gives 0.1 in MANIQA.",
    ]


def test_table_4_has_the_papers_rows_and_ours_at_the_same_settings():
    text = render(table_4(artificial([[25, 24.5, 24], [26, 25.5, 25]], [[6, 5, 4], [7, 7.5, 5]])))
    assert "| paper | ✓ | - | **28.44** |" in text
    assert "| measured | ✓ | ✓ | _25.50_ |" in text
    assert text.count("| measured |") == text.count("| paper |") == 4


def test_the_grid_has_a_row_per_alpha():
    text = grid_table(artificial([[25, 24.5, 24], [26, 25.5, 25]], [[6, 5, 4], [7, 7, 5]]), "psnr")
    assert text.splitlines()[-2:] == ["| 0 | 25.00 | 24.50 | 24.00 |", "| 0.01 | 26.00 | 25.50 | 25.00 |"]


def test_better_is_lower_for_some_measures():
    assert is_monotonic([3.0, 2.0, 1.0], "niqe") and not is_monotonic([3.0, 2.0, 2.0], "niqe")
    assert is_monotonic([1.0, 2.0], "psnr") and not is_monotonic([1.0, float("nan")], "psnr")


def test_figures_hold_the_numbers_and_every_picture(swept, tmp_path):
    sweep = swept[3]
    png, pdf, numbers = draw_curves(sweep, tmp_path)
    assert Image.open(png).width > 800 and pdf.read_bytes().startswith(b"%PDF")
    stored = json.loads(numbers.read_text())
    assert stored["psnr"][1][0] == pytest.approx(sweep.mean("psnr", 0.03, 0.0), rel=1e-4)
    draw_pictures(sweep, tmp_path / "pictures.png")
    assert Image.open(tmp_path / "pictures.png").width >= 2 * 32
