"""The painter: Real-ESRGAN's generator on enlarged pictures, with what exact tiling needs to know of it."""

import pytest
import torch
import torch.nn.functional as F

from clearsr.image import resize, to_signed, to_unit
from clearsr.models.painter import Painter
from clearsr.models.realesrgan import RRDBNet
from clearsr.models.windowed_layers import beside
from clearsr.pipeline.store import DiskTensor
from clearsr.tiling import Window

CPU = torch.device("cpu")


def seeded(build, randomise, spread):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build()
    return randomise(network, spread=spread).requires_grad_(False)


@pytest.fixture
def painter(randomise):
    return seeded(lambda: Painter(1), randomise, 0.02)


def test_with_all_of_the_teachers_blocks_it_paints_as_the_teacher(randomise, make_picture, normal):
    teacher = seeded(lambda: RRDBNet(blocks=2), randomise, 0.01)
    painter = Painter(2).requires_grad_(False)
    painter.start_from(teacher, (0, 1))
    picture = make_picture(40, 44)[None]
    enlarged = to_signed(resize(picture, (160, 176)))
    painted = (painter(torch.cat([enlarged, normal(1, 3, 160, 176)], dim=1)) + 1) / 2  # of D(z_0) nothing
    inner = (..., slice(16, -16), slice(16, -16))  # the enlarged picture's border is another
    expected = teacher(picture)
    torch.testing.assert_close(painted[inner], expected[inner], atol=0.01 * float(expected.std()), rtol=0)


def test_a_mirrored_frame_is_seen_beyond_the_border(painter, normal):
    pixels = normal(1, 6, 36, 44)
    framed = F.pad(pixels, (16,) * 4, mode="reflect")
    hidden = painter.conv_in(F.pixel_unshuffle(framed, 4))
    hidden = hidden + painter.after_body(painter.body(hidden))
    for conv in painter.enlarging:
        hidden = F.leaky_relu(conv(F.interpolate(hidden, scale_factor=2)), 0.2)
    expected = painter.conv_out(F.leaky_relu(painter.before_last(hidden), 0.2))[..., 16:-16, 16:-16]
    torch.testing.assert_close(painter(pixels), expected, atol=1e-5, rtol=0)
    assert painter(normal(1, 6, 4, 8)).shape == (1, 3, 4, 8)  # smaller than the frame


def test_it_takes_over_the_blocks_that_are_named(randomise):
    teacher = seeded(lambda: RRDBNet(blocks=4), randomise, 0.01)
    painter = Painter(2)
    painter.start_from(teacher, (0, 3))
    for ours, number in zip(painter.body, (0, 3), strict=True):
        theirs = teacher.body[number].state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())


def test_what_the_margins_leave_out_changes_nothing(normal):
    """Of a dense block, of the first and the last convolutions: no pixel further away has a gradient."""
    features = normal(1, 64, 5, 71).requires_grad_()
    seeded(lambda: Painter(1), lambda network, spread: network, 0).body(features)[..., 35].sum().backward()
    seen = features.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    assert (int(seen.min()), int(seen.max())) == (35 - 15, 35 + 15)


@pytest.mark.parametrize("size", [(16, 400), (268, 132)])
@pytest.mark.parametrize("is_on_disk", [False, True])
def test_layer_by_layer_in_windows_it_paints_the_whole(painter, normal, size, is_on_disk, tmp_path):
    pictures, windows = normal(2, 6, *size), []
    new_map = beside(pictures)
    if is_on_disk:
        new_map = lambda shape, dtype: DiskTensor(shape, tmp_path, CPU, dtype)  # noqa: E731
    with torch.no_grad():
        whole = painter(pictures)
    read = painter.in_windows(pictures, 320, CPU, new_map, lambda: windows.append(None))
    torch.testing.assert_close(read(Window(0, 0, *size)), whole, atol=1e-5, rtol=0)
    part = Window(4, 37, 15, 131)
    torch.testing.assert_close(read(part), part.of(whole), atol=1e-5, rtol=0)
    count = len(windows)
    painter.in_windows(pictures[:1], 320, CPU, new_map, lambda: windows.append(None))
    assert len(windows) - count == painter.windows(*size, 320) < count  # smaller windows where there are two


def test_what_it_says_of_its_memory_holds(live_maps):
    """The largest activation; and the maps between layers, to which it adds the result for good measure."""
    painter, seen, maps = Painter(3).requires_grad_(False), [], live_maps()
    for conv in painter.body.modules():
        conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].nbytes))
    with torch.no_grad():
        painter(torch.zeros(1, 6, 32, 48))
    framed = (32 + 2 * 16) * (48 + 2 * 16)
    assert max(seen) == painter.bytes_per_pixel * framed
    painter.in_windows(torch.zeros(1, 6, 32, 48), 256, CPU, maps)
    result = 4 * 3 * framed
    assert maps.most + result == painter.map_bytes_per_pixel * framed


@pytest.mark.parametrize(("piece", "taken"), [(100, 256), (320, 320)])
def test_in_windows_nothing_is_larger_than_in_a_piece(piece, taken):
    """Down to 256 pixels a side; of less, a window would be nearly all margin."""
    painter, seen = Painter(1).requires_grad_(False).to("meta"), []
    for conv in painter.modules():
        conv.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0].nbytes, output.nbytes)))
    pictures = torch.zeros(1, 6, 400, 700, device="meta")
    painter.in_windows(pictures, piece, pictures.device, beside(pictures))
    allowed = taken**2 * painter.bytes_per_pixel
    assert 0.9 * allowed < max(seen) <= allowed


def test_a_margin_that_is_too_small_would_show(painter, normal, monkeypatch):
    pictures = normal(1, 6, 16, 400)
    monkeypatch.setattr("clearsr.models.painter.CONVOLUTIONS_OF_A_BLOCK", 1)
    read = painter.in_windows(pictures, 260, CPU, beside(pictures))
    with torch.no_grad():
        assert (read(Window(0, 0, 16, 400)) - painter(pictures)).abs().max() > 5e-5


def test_enlarging_in_tiles_changes_nothing(painter, normal):
    pixels = normal(1, 6, 4 * 70, 4 * 150)  # more than a tile each way
    with_gradients = painter(pixels)
    with torch.no_grad():
        torch.testing.assert_close(painter(pixels), with_gradients, atol=1e-5, rtol=0)


def test_in_bf16_its_pixels_have_no_bands(painter, normal):
    """A ramp of pixels in bf16 would have steps of up to a level in 255."""
    pixels = 0.05 * normal(1, 6, 32, 32) + 0.7
    painter.conv_out.bias += 0.7
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        painted = painter(pixels)
    assert painted.dtype == torch.float32
    assert not torch.equal(painted.bfloat16().float(), painted)
    with torch.no_grad():
        torch.testing.assert_close(painted, painter(pixels), atol=0.02, rtol=0)
    assert 0 < to_unit(painted).mean() < 1
