"""An image done block by block against the same image in memory: every kind of picture, every setting."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from clearsr.config.sampling import SamplingConfig
from clearsr.image import ImageData
from clearsr.image.source import DataSource
from clearsr.pipeline import budget, store, streaming
from clearsr.pipeline.budget import Workload
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.sampling import noise

IN_BLOCKS = Workload(piece=96, is_in_blocks=True)
WHOLE = Workload()


@pytest.fixture(scope="module")
def pipeline(network):
    config = SamplingConfig(steps=1, upscale=4.0, tile={"size": 32, "overlap": 8})
    return ClearSRPipeline(copy.deepcopy(network), config, device="cpu", precision="fp32")


@pytest.fixture(params=["in memory", "on disk"])
def latents(request, monkeypatch):
    """Where the latents of an image in blocks are."""
    monkeypatch.setattr(store, "LATENTS_SHARE", 0.0 if request.param == "on disk" else 0.05)
    monkeypatch.setattr(noise, "BAND_ROWS", 16)


def _both(pipeline, image, **overrides):
    config = pipeline.configure(**overrides)
    return tuple(pipeline.upscale_with([image], config, load)[0] for load in (WHOLE, IN_BLOCKS))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"steps": 3, "scheduler": "dpm++"},
        {"steps": 2, "scheduler": "ddpm", "guidance_scale": 2},
        {"color": "adain"},
        {"color": "none", "upscale": 3.3},
        {"steps": 0},
    ],
    ids=str,
)
def test_blocks_give_what_the_whole_gives(pipeline, make_picture, latents, overrides):
    whole, in_blocks = _both(pipeline, ImageData(make_picture(71, 90)), **overrides)
    assert whole.color.shape == in_blocks.color.shape
    torch.testing.assert_close(in_blocks.color, whole.color, atol=2e-4, rtol=0)


@pytest.mark.parametrize("load", [WHOLE, IN_BLOCKS])
@pytest.mark.parametrize("color", ["wavelet", "none"])
def test_grey_that_is_stored_as_rgb_stays_grey(pipeline, make_picture, load, color):
    """By the farthest that two channels of a pixel are apart, in levels of 255."""

    def spread(levels, **overrides):
        config = pipeline.configure(color=color, **overrides)
        result = pipeline.upscale_with([ImageData(levels / 255)], config, load)[0].color * 255
        return float((result.amax(0) - result.amin(0)).max())

    exact = (make_picture(50, 60).mean(0, keepdim=True) * 250).round().expand(3, -1, -1).contiguous()
    noise = torch.randint(0, 3, exact.shape, generator=torch.Generator().manual_seed(0))
    near = exact + noise
    assert spread(exact) == spread(exact, gray="exact") == spread(near) == 0
    assert spread(exact, gray="off") > 3 and spread(near, gray="exact") > 3
    patch = near.clone()
    patch[0, 20:28, 30:38] += 6  # a small thing that is red is enough for the picture to be one in colour
    assert spread(patch) > 3


@pytest.mark.parametrize("load", [WHOLE, IN_BLOCKS])
def test_grey_is_as_bright_as_the_colours_that_it_replaces(pipeline, make_picture, load):
    image = ImageData(make_picture(50, 60).mean(0, keepdim=True).expand(3, -1, -1).contiguous())
    gray, free = (
        pipeline.upscale_with([image], pipeline.configure(gray=rule), load)[0].color
        for rule in ("near", "off")
    )
    luma = np.asarray(Image.fromarray((free * 255).round().byte().permute(1, 2, 0).numpy()).convert("L"))
    assert np.abs(gray[0].numpy() * 255 - luma).max() < 1.5


@pytest.mark.parametrize("load", [WHOLE, IN_BLOCKS])
def test_the_workload_says_how_many_tiles_are_denoised_at_once(pipeline, make_picture, monkeypatch, load):
    image, passes = ImageData(make_picture(71, 90)), []
    one_by_one = pipeline.upscale_with([image], pipeline.defaults, load)[0]
    encode = pipeline.network.unet_encode
    monkeypatch.setattr(
        pipeline.network, "unet_encode", lambda *args: passes.append(len(args[0])) or encode(*args)
    )
    together = pipeline.upscale_with([image], pipeline.defaults, load._replace(tiles=3))[0]
    assert max(passes) == 3 and set(passes[:-1]) == {3}
    torch.testing.assert_close(together.color, one_by_one.color, atol=1e-4, rtol=0)


def test_an_e_prime_that_is_the_vaes_own_encoder(lora_network, make_picture):
    lora = ClearSRPipeline(copy.deepcopy(lora_network), device="cpu", precision="fp32")
    config = lora.configure(steps=1, tile={"size": 32, "overlap": 8})
    image = ImageData(make_picture(50, 70))
    whole, in_blocks = (lora.upscale_with([image], config, load)[0] for load in (WHOLE, IN_BLOCKS))
    torch.testing.assert_close(in_blocks.color, whole.color, atol=2e-4, rtol=0)


@pytest.fixture(scope="module")
def with_painter(make_network):
    network = make_network(painter={"blocks": 1})
    for name, parameter in network.painter.named_parameters():
        if not name.startswith("conv_out"):  # as large as everywhere else, rounding would be large
            parameter.mul_(0.3)
    config = SamplingConfig(steps=1, upscale=4.0, tile={"size": 32, "overlap": 8})
    return ClearSRPipeline(network, config, device="cpu", precision="fp32")


@pytest.mark.parametrize("overrides", [{}, {"color": "adain", "upscale": 3.3}, {"steps": 0}], ids=str)
def test_a_painters_part_in_it(with_painter, make_picture, latents, overrides):
    whole, in_blocks = _both(with_painter, ImageData(make_picture(71, 90)), **overrides)
    torch.testing.assert_close(in_blocks.color, whole.color, atol=2e-4, rtol=0)


def test_a_painter_goes_in_pieces_where_the_image_is_in_memory(with_painter, make_picture):
    image, config = ImageData(make_picture(71, 90)), with_painter.configure()
    whole, in_pieces = (
        with_painter.upscale_with([image], config, load)[0] for load in (WHOLE, Workload(piece=96))
    )
    torch.testing.assert_close(in_pieces.color, whole.color, atol=2e-4, rtol=0)


def test_latent_space_adjustment_says_how_much_of_the_painting_there_is(with_painter, make_picture):
    image = ImageData(make_picture(24, 32))
    steps = with_painter.steps

    def picture(alpha, beta, **overrides):
        lsa = {"alpha": alpha, "beta": beta, "ela_end": 1.0, "lla_start": 0.0}
        config = with_painter.configure(color="none", lsa=lsa, **overrides)
        return with_painter.upscale([image], config)[0].color, config

    drawn, config = picture(0.0, 0.0)
    enlarged = steps.prepare(image, config)[None]
    decoded = steps.decode(with_painter.sample(steps.condition(enlarged, config), config))
    with torch.no_grad():
        seen = 2 * torch.cat([enlarged, decoded], dim=1) - 1
        painted = (with_painter.network.painter(seen)[0, :, :96, :128] / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(drawn, painted, atol=1e-5, rtol=0)
    truest, _ = picture(1.0, 0.0)
    without, _ = picture(0.0, 0.0, steps=0)
    torch.testing.assert_close(truest, without, atol=1e-4, rtol=0)
    half, config = picture(1 - 0.5 ** (1 / 50), 0.0)
    assert steps.painting(config) == pytest.approx(0.5)
    assert (painted - without).abs().max() > 0.1
    more, _ = picture(0.0, 0.0, painting=1.5)
    wanted = torch.lerp(decoded[0], painted, 1.5).clamp(0, 1)
    torch.testing.assert_close(more, wanted, atol=1e-3, rtol=0)
    assert (half - without).abs().mean() < (painted - without).abs().mean()


def test_transparency_grey_depth_and_metadata_are_kept(pipeline, make_picture):
    alpha = torch.zeros(1, 60, 70)
    alpha[:, 10:50, 5:40] = 1
    image = ImageData(make_picture(60, 70), alpha, bit_depth=16, source="x.tif", is_gray=True)
    whole, in_blocks = _both(pipeline, image)
    torch.testing.assert_close(in_blocks.alpha, whole.alpha, atol=1e-5, rtol=0)
    torch.testing.assert_close(in_blocks.color, whole.color, atol=2e-4, rtol=0)
    fields = ("is_gray", "bit_depth", "metadata", "source")
    assert all(getattr(in_blocks, f) == getattr(whole, f) for f in fields)
    hidden = dataclasses.replace(image, color=torch.where(alpha > 0, image.color, 0.5))
    same = pipeline.upscale_with([hidden], pipeline.configure(), IN_BLOCKS)[0]
    torch.testing.assert_close(same.color, in_blocks.color, atol=1e-5, rtol=0)


def test_progress_is_told_to_the_last_part_and_can_stop(pipeline, make_picture):
    image, config, heard = ImageData(make_picture(60, 70)), pipeline.configure(color="adain"), []
    pipeline.upscale_with([image], config, IN_BLOCKS, lambda *step: heard.append(step))
    assert [step[0] for step in heard] == list(range(1, heard[0][1] + 1))

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.upscale_with([image], config, IN_BLOCKS, stop)


def test_no_part_has_the_size_of_the_image(pipeline, make_picture, monkeypatch, tmp_path):
    """What any step works on is bounded by the block and its margins, not by the image."""
    monkeypatch.setattr(store, "LATENTS_SHARE", 0.0)
    config, largest = pipeline.configure(), []
    read = streaming.PreparedSource.read
    monkeypatch.setattr(
        streaming.PreparedSource, "read", lambda s, w: largest.append(max(w.size)) or read(s, w)
    )
    latents = pipeline.network.latents
    handle = latents.vae.decoder.register_forward_pre_hook(
        lambda _, args: largest.append(args[0].shape[-1] * 8)
    )
    try:
        image = ImageData(make_picture(100, 130))
        blocks = pipeline.upscale_in_blocks(DataSource(image), config, (400, 520), IN_BLOCKS, tmp_path)
        sizes = {max(block.height, block.width) for _, block in blocks}
    finally:
        handle.remove()
    assert max(largest) <= 96 + 2 * max(
        latents.adapter.encoder_margin, 8 * latents.adapter.decoder_margin + 31 + 8
    )
    assert sizes <= set(range(1, 97)) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["constant", "gradient", "photograph"])
def test_no_seam(pipeline, make_picture, kind):
    """The second difference across the borders of tiles and blocks is no larger than elsewhere."""
    if kind == "constant":
        picture = torch.full((3, 64, 96), 0.4)
    elif kind == "gradient":
        picture = torch.linspace(0.1, 0.9, 96).expand(3, 64, 96).contiguous()
    else:
        picture = make_picture(64, 96)
    config = pipeline.configure(color="none")
    result = pipeline.upscale_with([ImageData(picture)], config, IN_BLOCKS)[0].color
    for axis, length in ((1, 256), (2, 384)):
        bend = result.diff(n=2, dim=axis).abs().mean(dim=(0, 3 - axis))
        borders = [edge for edge in range(96, length, 96)]
        at_borders = torch.stack([bend[edge - 2 : edge + 1].max() for edge in borders]).mean()
        groups = bend[: len(bend) // 8 * 8].view(-1, 8).amax(1)  # each 8 pixels have one border of latents
        assert at_borders <= groups.mean() + 2 * groups.std() + 1e-4


def test_memory_that_runs_out_is_tried_again_with_less(pipeline, make_picture, monkeypatch, caplog):
    images = [ImageData(make_picture(16, 16, seed), source=f"{seed}.png") for seed in range(4)]
    expected = pipeline.upscale(images)
    tried, condition = [], pipeline.steps.condition

    def full(pixels, *arguments):
        tried.append(len(pixels))
        if len(pixels) > 1:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate")
        return condition(pixels, *arguments)

    monkeypatch.setattr(pipeline.steps, "condition", full)
    results = pipeline.upscale(images)
    assert tried == [4, 2, 1, 1, 1, 1]
    assert "0.png: memory ran out; trying again with less at once (images 2)" in caplog.text
    for one, other in zip(results, expected, strict=True):
        torch.testing.assert_close(one.color, other.color, atol=1e-4, rtol=0)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_less_and_less_until_nothing_helps(error, caplog):
    tried = []

    def work(load):
        tried.append(load)
        raise error

    with pytest.raises(type(error)):
        budget.with_less_on_failure(work, Workload(images=2, piece=512), 96, "a.png")
    assert [load.images for load in tried[:2]] == [2, 1]
    assert [load.is_in_blocks for load in tried[1:3]] == [False, True]
    assert [load.piece for load in tried[2:4]] == [512, 256]
    assert [load.tile for load in tried[3:]] == [None, 48]
    assert "smaller tiles change the result slightly" in caplog.text


def test_other_errors_are_not_tried_again():
    tried = []

    def work(load):
        tried.append(load)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        budget.with_less_on_failure(work, Workload(), 64, "a.png")
    assert len(tried) == 1
