"""The painter: Real-ESRGAN's generator on enlarged pictures, with what exact tiling needs to know of it."""

import pytest
import torch
import torch.nn.functional as F

from clearsr.image import resize, to_signed, to_unit
from clearsr.models.painter import Painter
from clearsr.models.realesrgan import RRDBNet
from clearsr.tiling import map_exactly


def seeded(build, randomise, spread):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build()
    return randomise(network, spread=spread).requires_grad_(False)


@pytest.fixture
def painter(randomise):
    return seeded(lambda: Painter(1), randomise, 0.02)


def test_with_all_of_the_teachers_blocks_it_paints_as_the_teacher(randomise, make_picture):
    teacher = seeded(lambda: RRDBNet(blocks=2), randomise, 0.01)
    painter = Painter(2).requires_grad_(False)
    painter.start_from(teacher, (0, 1))
    picture = make_picture(40, 44)[None]
    painted = (painter(to_signed(resize(picture, (160, 176)))) + 1) / 2
    inner = (..., slice(16, -16), slice(16, -16))  # the enlarged picture's border is another
    expected = teacher(picture)
    torch.testing.assert_close(painted[inner], expected[inner], atol=0.01 * float(expected.std()), rtol=0)


def test_a_mirrored_frame_is_seen_beyond_the_border(painter, normal):
    pixels = normal(1, 3, 36, 44)
    framed = F.pad(pixels, (16,) * 4, mode="reflect")
    hidden = painter.conv_in(F.pixel_unshuffle(framed, 4))
    hidden = hidden + painter.after_body(painter.body(hidden))
    for conv in painter.enlarging:
        hidden = F.leaky_relu(conv(F.interpolate(hidden, scale_factor=2)), 0.2)
    expected = painter.conv_out(F.leaky_relu(painter.before_last(hidden), 0.2))[..., 16:-16, 16:-16]
    torch.testing.assert_close(painter(pixels), expected, atol=1e-5, rtol=0)
    assert painter(normal(1, 3, 4, 8)).shape == (1, 3, 4, 8)  # smaller than the frame


def test_it_takes_over_the_blocks_that_are_named(randomise):
    teacher = seeded(lambda: RRDBNet(blocks=4), randomise, 0.01)
    painter = Painter(2)
    painter.start_from(teacher, (0, 3))
    for ours, number in zip(painter.body, (0, 3), strict=True):
        theirs = teacher.body[number].state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())


def test_the_margin_is_what_its_pixels_depend_on(painter, normal):
    """One block: 4 pixels times (15 + 2) convolutions, and two features for the tail."""
    assert painter.margin == 4 * 19
    pixels = normal(1, 3, 8, 4 * 51).requires_grad_()
    painter(pixels)[..., 100:104].sum().backward()
    seen = pixels.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    assert 100 - painter.margin <= seen.min() < 100 - painter.margin + 4
    assert 103 + painter.margin - 4 < seen.max() <= 103 + painter.margin


def test_pieces_are_the_whole(painter, normal):
    pixels = normal(1, 3, 16, 4 * 100)
    with torch.no_grad():
        whole = painter(pixels)
        torch.testing.assert_close(
            map_exactly(painter, pixels, 64, painter.margin, 4), whole, atol=1e-5, rtol=0
        )
        near = map_exactly(painter, pixels, 64, 8, 4)
    assert (near - whole).abs().max() > 5e-5  # and not what rounding does


def test_enlarging_in_tiles_changes_nothing(painter, normal):
    pixels = normal(1, 3, 4 * 70, 4 * 150)  # more than a tile each way
    with_gradients = painter(pixels)
    with torch.no_grad():
        torch.testing.assert_close(painter(pixels), with_gradients, atol=1e-5, rtol=0)


def test_in_bf16_its_pixels_have_no_bands(painter, normal):
    """A ramp of pixels in bf16 would have steps of up to a level in 255."""
    pixels = 0.05 * normal(1, 3, 32, 32) + 0.7
    painter.conv_out.bias += 0.7
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        painted = painter(pixels)
    assert painted.dtype == torch.float32
    assert not torch.equal(painted.bfloat16().float(), painted)
    with torch.no_grad():
        torch.testing.assert_close(painted, painter(pixels), atol=0.02, rtol=0)
    assert 0 < to_unit(painted).mean() < 1
