"""The model inside the package: its size, and that it does on a photograph what its card says."""

import pytest
import torch
from skimage.data import astronaut

from clearsr import ClearSRPipeline
from clearsr.evaluation.demo import degraded_photograph
from clearsr.evaluation.metrics import laplacian_variance, psnr
from clearsr.image import ImageData, resize
from clearsr.models.checkpoint import WEIGHTS_NAME, locate


@pytest.fixture(scope="module")
def pipeline():
    return ClearSRPipeline.from_pretrained("compact", precision="fp32")


@pytest.fixture(scope="module")
def hr():
    return torch.from_numpy(astronaut()[:256, 100:356].copy()).permute(2, 0, 1) / 255


@pytest.fixture(scope="module")
def lr(hr):
    return ImageData((resize(hr[None], (64, 64))[0] * 255).round() / 255)


def test_it_is_small_and_has_been_through_every_stage(pipeline):
    assert sum(p.numel() for p in pipeline.network.parameters()) <= 25_000_000
    assert (locate("compact") / WEIGHTS_NAME).stat().st_size <= 45_000_000
    assert set(pipeline.stages) == {"autoencoder", "lr_encoder", "decoder", "clearsr", "painter"}


def test_x_lr_alone_is_truer_than_bicubic(pipeline, lr, hr):
    bicubic = resize(lr.color[None], (256, 256))[0]
    restored = pipeline.upscale([lr], pipeline.configure(steps=0))[0].color
    assert psnr(restored, hr).item() > psnr(bicubic, hr).item() + 1.0


def test_the_default_is_sharper_and_truer_than_bicubic(pipeline, lr, hr):
    bicubic = resize(lr.color[None], (256, 256))[0]
    picture = pipeline.upscale([lr])[0].color
    assert laplacian_variance(picture).item() > 1.5 * laplacian_variance(bicubic).item()
    assert psnr(picture, hr).item() > psnr(bicubic, hr).item() + 0.5


def test_more_alpha_is_truer_where_the_input_is_clean(pipeline, lr, hr):
    values = [
        psnr(pipeline.upscale([lr], pipeline.configure(lsa={"alpha": a, "beta": 0.01}))[0].color, hr).item()
        for a in (0.0, 0.01, 0.03)
    ]
    assert values == sorted(values) and values[-1] > values[0] + 0.3


def test_the_demos_picture_is_truer_than_bicubic_at_every_setting(pipeline):
    lr, original = degraded_photograph("astronaut")
    bicubic = resize(lr.color[None], original.color.shape[-2:])[0]
    for lsa in ({"preset": "off"}, {"preset": "clearsr"}, {"preset": "fidelity"}):
        picture = pipeline.upscale([lr], pipeline.configure(lsa=lsa))[0].color
        assert psnr(picture, original.color).item() > psnr(bicubic, original.color).item() + 0.3
        assert laplacian_variance(picture).item() > 3 * laplacian_variance(bicubic).item()
