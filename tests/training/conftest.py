"""A handful of small pictures and a training configuration that takes a second for a few steps."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clearsr.config.base import build_config, merge
from clearsr.config.training import TrainConfig
from clearsr.image import ImageData, write_image


@pytest.fixture(scope="session")
def photos(tmp_path_factory, make_picture):
    """A folder of five pictures; five is prime to every batch size here, so epochs end within steps."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(5):
        write_image(ImageData(make_picture(40, 48 + 8 * number, seed=number)), folder / f"{number}.png")
    return folder


@pytest.fixture
def make_run(tmp_path, photos, make_config):
    """`make_run("clearsr", steps=4, data={"workers": 0})`: a `TrainConfig` that writes below tmp_path."""

    def make(stage="clearsr", output="run", model=None, **changes):
        values = {
            "stage": stage,
            "output": str(tmp_path / output),
            "model": make_config(**(model or {})).model_dump(),
            "data": {"train": [str(photos)], "crop_size": 16, "workers": 0},
            "degradation": {"weights": {"light": 1.0}},
            "optimizer": {"learning_rate": 1e-3},
            "steps": 2,
            "batch_size": 2,
            "validate_every": 0,
        }
        return build_config(TrainConfig, merge(values, changes))

    return make


@pytest.fixture(scope="session")
def checkpoint_tensors():
    """Every tensor of a checkpoint folder by `group/name`."""

    def read(folder):
        groups = {path.stem: load_file(path) for path in Path(folder).glob("*.safetensors")}
        return {f"{group}/{name}": value for group, ts in groups.items() for name, value in ts.items()}

    return read


@pytest.fixture(scope="session")
def assert_identical():
    """`assert_identical(a, b)`: two dicts of tensors have the same names and the same bits."""

    def check(ours, theirs):
        assert ours.keys() == theirs.keys()
        differing = [name for name in ours if not torch.equal(ours[name], theirs[name])]
        assert not differing, differing[:5]

    return check


@pytest.fixture(scope="session")
def sd_base(tmp_path_factory):
    """A miniature folder in the Stable Diffusion 2.x layout, as the tests of the base model write it."""
    source = Path(__file__).parent.parent / "sd" / "conftest.py"
    spec = importlib.util.spec_from_file_location("sd_layout", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_base(tmp_path_factory.mktemp("sd") / "base")


@pytest.fixture(autouse=True)
def without_tensorboard(monkeypatch):
    """TensorBoard takes seconds to import; one test asks for it."""
    monkeypatch.setattr("clearsr.training.progress._tensorboard", lambda config, first_step: None)
