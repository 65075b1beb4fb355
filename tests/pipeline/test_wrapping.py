"""`--wrap`: a picture whose sides meet is seamless there when it is enlarged, whole or in blocks."""

import copy
import dataclasses

import pytest
import torch

from clearsr.config.sampling import SamplingConfig
from clearsr.image import ImageData
from clearsr.image.source import DataSource, WrappedSource, Wrapping
from clearsr.pipeline import streaming
from clearsr.pipeline.budget import Workload
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.tiling import Window

IN_BLOCKS = Workload(piece=96, is_in_blocks=True)


@pytest.fixture(scope="module")
def pipeline(network):
    config = SamplingConfig(steps=1, upscale=4.0, tile={"size": 32, "overlap": 8})
    return ClearSRPipeline(copy.deepcopy(network), config, device="cpu", precision="fp32")


def _texture(height, width):
    """3×H×W whose sides meet: waves of whole numbers, with a fine grain."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    waves = [torch.sin(2 * torch.pi * (a * x + b * y)) for a, b in ((1, 2), (3, 1), (2, 5))]
    return (
        0.5
        + 0.3 * torch.stack(waves)
        + 0.02 * torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))
    )


def _seam(color, axis):
    """The step over the seam by the mean step, across that axis (-1: columns)."""
    steps = (color.roll(-1, axis) - color).abs().mean([d for d in (0, 1, 2) if d != color.ndim + axis])
    return float(steps[-1] / steps[:-1].mean())


@pytest.fixture(scope="module")
def compact():
    """The model in the package: one that has learnt nothing shows its own grid, which is no seam's."""
    return ClearSRPipeline.from_pretrained("compact", device="cpu")


@pytest.mark.parametrize("load", [Workload(), IN_BLOCKS], ids=["whole", "in blocks"])
@pytest.mark.parametrize("overrides", [{}, {"upscale": 2, "color": "adain"}], ids=str)
def test_the_step_over_the_seam_is_like_any_other(compact, load, overrides):
    image, factor = ImageData(_texture(48, 64)), overrides.get("upscale", 4)
    for wrap, axes in (("x", (-1,)), ("y", (-2,)), ("xy", (-1, -2)), ("off", ())):
        (result,) = compact.upscale_with([image], compact.configure(wrap=wrap, **overrides), load)
        assert result.color.shape == (3, 48 * factor, 64 * factor)
        for axis in (-1, -2):  # where no sides meet there is a seam, or this test could not fail
            assert (_seam(result.color, axis) < 1.3) == (axis in axes), (wrap, axis)


@pytest.mark.parametrize("wrap", ["x", "y", "xy"])
@pytest.mark.parametrize("upscale", [4, 2.3])
def test_in_blocks_as_whole_with_transparency(pipeline, wrap, upscale):
    color = _texture(50, 71)
    alpha = (color[:1] > 0.4).float()
    image = ImageData(color, alpha=alpha)
    config = pipeline.configure(wrap=wrap, upscale=upscale)
    whole, in_blocks = (pipeline.upscale_with([image], config, load)[0] for load in (Workload(), IN_BLOCKS))
    torch.testing.assert_close(in_blocks.color, whole.color, atol=2e-4, rtol=0)
    torch.testing.assert_close(in_blocks.alpha, whole.alpha, atol=2e-4, rtol=0)


def test_inside_it_is_the_picture_that_it_was(pipeline):
    """Far from the sides nothing is different but the noise, of which there is none here."""
    image = ImageData(_texture(64, 96))
    calm = {"steps": 0, "color": "none"}
    plain, wrapped = (
        pipeline.upscale([image], pipeline.configure(wrap=wrap, **calm))[0].color for wrap in ("off", "xy")
    )
    middle = (slice(None), slice(64, 160), slice(64, 280))
    assert (plain[middle] - wrapped[middle]).abs().mean() < 0.02


def test_a_source_goes_on_beyond_its_sides():
    image = ImageData(torch.rand(3, 5, 7), alpha=torch.rand(1, 5, 7))
    source = WrappedSource(DataSource(image), (8, 3))
    assert (source.height, source.width) == (21, 13)
    whole = source.read(Window(0, 0, 21, 13))
    rows, columns = torch.arange(-8, 13) % 5, torch.arange(-3, 10) % 7
    assert torch.equal(whole.color, image.color[:, rows][:, :, columns])
    assert torch.equal(whole.alpha, image.alpha[:, rows][:, :, columns])
    part = source.read(Window(2, 5, 11, 13))
    assert torch.equal(part.color, whole.color[:, 2:11, 5:13])


@pytest.mark.parametrize(("length", "target"), [(64, 256), (33, 82), (7, 448), (100, 50), (1, 3), (90, 91)])
def test_a_margin_is_whole_pixels_before_and_after(length, target):
    wrapping = Wrapping.of((length, 10), (target, 40), "y")
    added, margin = wrapping.added[0], wrapping.margin[0]
    assert added * target == margin * length and margin >= 128
    assert wrapping.extended == (target + 2 * margin, 40)
    assert Wrapping.of((length, 10), (target, 40), "off") is None


@pytest.mark.parametrize("side", [16, 48, 200])
def test_blocks_are_cut_and_blended_as_the_whole_is(side):
    wrapping = Wrapping((150, 170), (0, 0), (130, 128))
    height, width = wrapping.extended
    image = ImageData(torch.rand(3, height, width), alpha=torch.rand(1, height, width))
    blocks = (
        (w, dataclasses.replace(image, color=w.of(image.color), alpha=w.of(image.alpha)))
        for w in streaming.pieces(height, width, side)
    )
    found = ImageData(torch.zeros(3, 150, 170), alpha=torch.zeros(1, 150, 170))
    order = []
    for window, block in streaming.unwrapped_blocks(blocks, wrapping, side):
        order.append(window)
        found.color[window.cells], found.alpha[window.cells] = block.color, block.alpha
    expected = streaming.unwrapped(image, wrapping)
    assert order == list(streaming.pieces(150, 170, side))
    torch.testing.assert_close(found.color, expected.color)
    torch.testing.assert_close(found.alpha, expected.alpha)
