"""A pipeline on the tiny network and a pair of pictures for it."""

import pytest
import torch

from clearsr.config.base import build_config
from clearsr.config.sampling import SamplingConfig
from clearsr.image import ImageData, resize
from clearsr.paper.figures.figure_pairs import Pair
from clearsr.pipeline.pipeline import ClearSRPipeline


@pytest.fixture(scope="session")
def sampling():
    """Four steps of the paper's schedule, without LSA."""
    return build_config(SamplingConfig, {"steps": 4, "lsa": {"preset": "off"}})


@pytest.fixture(scope="session")
def pipeline(network, sampling):
    return ClearSRPipeline(network, sampling, device="cpu", precision="fp32")


@pytest.fixture(scope="session")
def make_pair(make_picture):
    """`make_pair(96, 128, seed=1)`: an HR picture and its bicubic quarter."""

    def make(height=96, width=128, seed=0):
        hr = make_picture(height, width, seed)
        lr = resize(hr[None], (height // 4, width // 4))[0].clamp(0, 1)
        return Pair(f"picture{seed}", ImageData(lr), hr)

    return make


@pytest.fixture(scope="session")
def z_lr(pipeline, make_pair, sampling):
    """x_lr of a pair, 1×8×12×16."""
    pixels = pipeline.steps.prepare(make_pair().lr, sampling)[None]
    with torch.no_grad():
        return pipeline.steps.condition(pixels, sampling).embedding.mean
