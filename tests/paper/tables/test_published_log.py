"""Logs of other harnesses: what is read of them, and what is compared with what."""

import math

import pytest

from clearsr.config.evaluation import EvaluationConfig
from clearsr.errors import ClearSRError
from clearsr.evaluation.evaluate import Evaluation, Row
from clearsr.paper.tables.published_log import compare, read_log

# The shape of lines as scripts write them, with names of our own.
FORMATS = {
    "osediff": "24-10-23 17:36:18 - INFO: results_x/{}.png | PSNR: {:.6f}; SSIM: {:.6f} | Runtime: 1 sec",
    "swinir": "Testing 3 {:20s} - PSNR: {:.2f} dB; SSIM: {:.4f}",
    "equals": "/home/me/out/{}.jpg psnr={:.6f} ssim={:.6f} lr=0.0001",
}


def write(path, lines):
    path.write_text("\n".join(["inp_imgs: ['results']", *lines, "PSNR: 27.92; SSIM: 0.78", ""]))
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_lines_of_pictures_are_read_and_means_are_not(tmp_path, name):
    values = {"a_1": (29.25, 0.8925), "b_1_LR4": (31.5, 0.9375)}
    log = write(tmp_path / "x.log", [FORMATS[name].format(k, *v) for k, v in values.items()])
    assert read_log(log, ["a_1", "b_1", "c_1"]) == {
        "a_1": {"psnr": 29.25, "ssim": 0.8925},
        "b_1": {"psnr": 31.5, "ssim": 0.9375},
    }


def test_each_number_is_compared_with_every_variant(tmp_path):
    rows = [
        Row("a", 0, {"psnr": 20.0, "psnr_rgb": 19.0, "niqe": 4.0}),
        Row("a", 1, {"psnr": 22.0, "psnr_rgb": 20.0, "niqe": 5.0}),
        Row("b", 0, {"psnr": 30.0, "psnr_rgb": math.inf, "niqe": 4.0}),
        Row("c", 0, {"psnr": 90.0, "psnr_rgb": 90.0, "niqe": 4.0}),
    ]
    evaluation = Evaluation("x", ("psnr", "psnr_rgb", "niqe"), EvaluationConfig(), rows=rows)
    log = write(tmp_path / "x.log", ["a.png PSNR_Y: 20.5", "b.png PSNR_Y: 30.25", "other.png PSNR_Y: 1"])
    of_luma, of_rgb = compare(evaluation, read_log(log, evaluation.images))
    assert (of_luma.in_log, of_luma.measure, of_luma.images, of_luma.at) == ("psnr_y", "psnr", 2, "a")
    assert (of_luma.mean, of_luma.largest) == (pytest.approx(0.125), pytest.approx(0.5))
    assert (of_rgb.measure, of_rgb.images, of_rgb.largest) == ("psnr_rgb", 1, pytest.approx(1.0))


def test_a_log_of_other_pictures_is_an_error(tmp_path):
    log = write(tmp_path / "x.log", ["z.png | PSNR: 20.0"])
    with pytest.raises(ClearSRError, match=r"--log .*x\.log: names none of the pictures"):
        read_log(log, ["a"])
    with pytest.raises(ClearSRError, match=r"--log .*none\.log: cannot be read"):
        read_log(tmp_path / "none.log", ["a"])
