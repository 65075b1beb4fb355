"""Scores of methods on pairs: the metrics that go in, means that leave out what is not defined."""

import dataclasses
import math

import pytest
import torch
from skimage.data import astronaut
from skimage.filters import laplace

from clearsr.evaluation.evaluate import METRICS, Pair, Scores, evaluate, score
from clearsr.evaluation.metrics import psnr, to_luma
from clearsr.image import ImageData, resize


@pytest.fixture(scope="module")
def hr():
    return torch.from_numpy(astronaut()[:256, 100:356].copy()).permute(2, 0, 1) / 255


def bicubic(image):
    color = resize(image.color[None], (4 * image.height, 4 * image.width))[0]
    return dataclasses.replace(image, color=color)


def nearest(image):
    return dataclasses.replace(image, color=image.color.repeat_interleave(4, 1).repeat_interleave(4, 2))


def test_a_picture_against_itself_is_perfect(hr):
    values = score(hr, hr)
    assert values["psnr"] == math.inf
    assert values["ssim"] == pytest.approx(1)
    assert values["sharpness"] == 1


def test_sharpness_is_the_ratio_of_laplacian_variances(hr):
    soft = resize(resize(hr[None], (64, 64)), (256, 256))[0]
    luma = [to_luma(image)[0].numpy() for image in (soft, hr)]
    expected = laplace(luma[0])[1:-1, 1:-1].var() / laplace(luma[1])[1:-1, 1:-1].var()
    assert score(soft, hr)["sharpness"] == pytest.approx(expected, rel=0.05)


def test_every_method_is_scored_on_every_pair_as_an_8_bit_file_would_be(hr):
    lr = ImageData(resize(hr[None], (64, 64))[0])
    seen = []
    scores = evaluate(
        [Pair("a", lr, hr), Pair("b", lr, hr.flip(2))],
        {"bicubic": bicubic, "nearest": nearest},
        lambda method, image, picture: seen.append((method, image, picture)),
    )
    assert [(m, i) for m, i, _ in seen] == [
        ("bicubic", "a"), ("nearest", "a"), ("bicubic", "b"), ("nearest", "b")
    ]  # fmt: skip
    assert all(torch.equal(p, (p * 255).round() / 255) for *_, p in seen)
    first = scores.rows[0]
    assert first["psnr"] == psnr(seen[0][2], hr, crop_border=4).item()
    assert scores.means()["bicubic"]["psnr"] == pytest.approx((first["psnr"] + scores.rows[2]["psnr"]) / 2)
    assert scores.means()["bicubic"]["psnr"] > scores.means()["nearest"]["psnr"]


def test_what_is_not_defined_is_left_out_of_the_mean(hr):
    small = score(hr[:, :64, :64], hr[:, :64, :64])
    assert math.isnan(small["niqe"])  # too small for a block
    scores = Scores()
    scores.add("m", "small", small)
    scores.add("m", "whole", dict.fromkeys(METRICS, 4.0))
    assert scores.means() == {"m": {"psnr": 4.0, "ssim": 2.5, "niqe": 4.0, "sharpness": 2.5}}
