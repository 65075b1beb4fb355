"""The whole degradation: what it depends on, the size and levels of its result, how the presets differ."""

from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from clearsr.config.base import build_config
from clearsr.config.degradation import PresetName
from clearsr.degradation import (
    DegradationConfig,
    DegradationMix,
    crop_to_multiple,
    degrade,
    degrade_batch,
    degrade_mixed,
    degrade_pair,
    preset_config,
)
from clearsr.degradation.steps import chance, choose, integer, uniform
from clearsr.errors import ClearSRError

PRESETS = get_args(PresetName)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _picture(height=64, width=96, seed=0):
    """Smooth colours with some fine texture, in [0, 1]."""
    generator = _generator(seed)
    coarse = torch.rand(1, 3, 5, 7, generator=generator)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic")[0]
    return (smooth + 0.05 * torch.randn(3, height, width, generator=generator)).clamp(0, 1)


def _bicubic(image, upscale=4):
    size = (image.shape[1] // upscale, image.shape[2] // upscale)
    return F.interpolate(image[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("size", "upscale"), [((64, 96), 4), ((30, 42), 2), ((21, 9), 3), ((8, 8), 8), ((5, 7), 1)]
)
def test_result_is_upscale_times_smaller_and_on_8_bit_levels(preset, size, upscale):
    for seed in range(6):
        lr = degrade(_picture(*size), preset_config(preset), _generator(seed), upscale)
        assert lr.shape == (3, size[0] // upscale, size[1] // upscale) and lr.dtype == torch.float32
        assert lr.min() >= 0 and lr.max() <= 1
        assert torch.equal(lr, (lr * 255).round() / 255)


@pytest.mark.parametrize("preset", ["full", "light", "camera"])
def test_the_seed_decides_the_result(preset):
    hr, config = _picture(), preset_config(preset)
    first = degrade(hr, config, _generator(5))
    torch.manual_seed(123)  # the global generator must not matter
    assert torch.equal(first, degrade(hr, config, _generator(5)))
    assert not torch.equal(first, degrade(hr, config, _generator(6)))


def test_the_input_is_left_as_it_was_and_no_gradient_is_kept():
    hr = _picture()
    before = hr.clone()
    lr = degrade(hr.requires_grad_(), preset_config("full"), _generator())
    assert torch.equal(hr, before)
    assert not lr.requires_grad


def test_a_batch_is_its_single_images():
    config = preset_config("full")
    images = torch.stack([_picture(seed=seed) for seed in range(4)])
    batch = degrade_batch(images, config, [_generator(seed) for seed in range(4)])
    assert batch.shape == (4, 3, 16, 24)
    for index in range(4):
        assert torch.equal(batch[index], degrade(images[index], config, _generator(index)))


def test_a_batch_needs_one_generator_per_image():
    with pytest.raises(ClearSRError, match="2 images came with 1 generators"):
        degrade_batch(torch.zeros(2, 3, 8, 8), preset_config("full"), [_generator()])


def test_bicubic_preset_is_pillow_bicubic():
    hr = (_picture() * 255).round() / 255
    picture = Image.fromarray((hr * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    expected = np.array(picture.resize((24, 16), Image.Resampling.BICUBIC)).astype(int)
    lr = (degrade(hr, preset_config("bicubic"), _generator()) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(lr - expected).max() <= 1  # Pillow rounds to 8 bits between its two passes
    assert torch.equal(
        degrade(hr, preset_config("bicubic"), _generator(9)) * 255, torch.tensor(lr).permute(2, 0, 1)
    )


def test_presets_are_ordered_by_their_distance_from_bicubic():
    hr = _picture(128, 128)
    reference = _bicubic(hr)
    error = {
        preset: np.mean(
            [
                F.mse_loss(degrade(hr, preset_config(preset), _generator(s)), reference).item()
                for s in range(40)
            ]
        )
        for preset in PRESETS
    }
    assert error["bicubic"] < 1e-5
    assert error["bicubic"] < error["camera"] < error["light"] < error["full"]


def test_camera_pictures_are_nearly_clean():
    hr = F.interpolate(_picture(8, 8)[None], size=(128, 128), mode="bicubic")[0].clamp(0, 1)
    reference = _bicubic(hr)
    worst = max(
        F.mse_loss(degrade(hr, preset_config("camera"), _generator(seed)), reference).item() ** 0.5
        for seed in range(30)
    )
    assert worst < 10 / 255


def test_pairs_of_soft_originals_have_the_blurred_image_as_hr():
    """`original` blurs HR first; all else is made of what it leaves, as by `degrade` of that image."""
    hr, blur = (
        _picture(),
        {"probability": 1, "sinc_probability": 0, "sigma": (0.9, 0.9), "kernel_size": (9, 9)},
    )
    only_iso = {**blur, "kernel_probabilities": (1, 0, 0, 0, 0, 0)}
    config = DegradationConfig(preset="bicubic", original=only_iso)
    pair = degrade_pair(hr, config, _generator(2))
    expected = ndimage.gaussian_filter(hr.double().numpy(), (0, 0.9, 0.9), mode="mirror", radius=(0, 4, 4))
    assert np.abs(pair.hr.numpy() - expected.clip(0, 1)).max() < 1e-5
    assert torch.equal(pair.lr, degrade(pair.hr, preset_config("bicubic"), _generator()))
    # The image is the original where no pair is asked for, and pairs of other presets are as they were.
    assert torch.equal(degrade(hr, config, _generator()), degrade(hr, preset_config("bicubic"), _generator()))
    plain = degrade_pair(hr, preset_config("full"), _generator(4))
    assert torch.equal(plain.hr, hr)
    assert torch.equal(plain.lr, degrade(hr, preset_config("full"), _generator(4)))


def test_the_blur_of_real_pairs_reaches_the_measured_one():
    """Of a point of light: its spread over the LR image, in HR pixels, is that of the drawn Gaussians."""
    clean = {"noise": {"probability": 0}, "jpeg_probability": 0}
    config = DegradationConfig(preset="real", second=clean, sharpening={"probability": 0})
    hr = torch.zeros(3, 128, 128)
    hr[:, 62:66, 62:66] = 1.0  # a whole LR pixel, so that sampling misses nothing
    spreads = []
    at = (torch.arange(32) - 15.5) * 4
    for seed in range(60):
        light = degrade(hr, config, _generator(seed))[0]
        weights = light / light.sum()
        spreads.append(((weights.sum(0) * at**2).sum() - (weights.sum(0) * at).sum() ** 2).sqrt().item())
    assert 1.8 < min(spreads) < 2.8 and 4.0 < max(spreads) < 5.0


def test_the_lr_image_lies_where_the_hr_image_does():
    """A ramp must come back as the same ramp: odd intermediate sizes may not shift or stretch it."""
    ramp = torch.linspace(0.1, 0.9, 125)[:124].expand(3, 124, 124).contiguous()
    clean = {"blur": {"probability": 0}, "noise": {"probability": 0}, "jpeg_probability": 0}
    # Not `area`: its bins are whole pixels, so at odd factors it jitters by up to half a pixel.
    stage = {**clean, "resize": {"modes": ("bilinear", "bicubic")}}
    config = DegradationConfig(first=stage, second=stage, final_sinc_probability=0)
    for seed in range(20):
        error = degrade(ramp, config, _generator(seed)) - _bicubic(ramp)
        assert error[:, 8:-8, 8:-8].abs().max() < 2 / 255


def test_a_mixture_draws_presets_by_weight():
    hr = _picture(32, 32)
    bicubic = degrade(hr, preset_config("bicubic"), _generator())
    mix = DegradationMix(weights={"bicubic": 3, "full": 1})
    results = [degrade_mixed(hr, mix, _generator(seed)) for seed in range(200)]
    assert all(torch.equal(pair.hr, hr) for pair in results)
    share = np.mean([torch.equal(pair.lr, bicubic) for pair in results])
    assert share == pytest.approx(0.75, abs=0.1)


def test_a_mixture_of_one_kind_is_that_kind_and_order_does_not_matter():
    hr = _picture(32, 32)
    only = DegradationMix(weights={"light": 0, "bicubic": 2})
    assert torch.equal(
        degrade_mixed(hr, only, _generator(3)).lr, degrade(hr, preset_config("bicubic"), _generator())
    )
    one_way = DegradationMix(weights={"light": 1, "full": 1})
    other_way = DegradationMix(weights={"full": 1, "light": 1})
    for seed in range(8):
        pair = [degrade_mixed(hr, mix, _generator(seed)).lr for mix in (one_way, other_way)]
        assert torch.equal(*pair)


def test_a_mixture_draws_sets_of_ones_own_beside_presets():
    hr, soft = _picture(32, 32), {"preset": "bicubic", "first": {"blur": {"probability": 1, "sigma": (2, 2)}}}
    mix = build_config(DegradationMix, {"weights": {"soft": 3, "bicubic": 1}, "sets": {"soft": soft}})
    kinds = {"bicubic": 0, "soft": 0}
    for seed in range(200):
        generator = _generator(seed)
        uniform(0, 1, generator)  # which of them
        drawn = degrade_mixed(hr, mix, _generator(seed)).lr
        is_soft = torch.equal(drawn, degrade(hr, build_config(DegradationConfig, soft), generator))
        kinds["soft" if is_soft else "bicubic"] += 1
        assert is_soft or torch.equal(drawn, degrade(hr, preset_config("bicubic"), _generator()))
    assert kinds["soft"] / 200 == pytest.approx(0.75, abs=0.12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"weights": {"sfot": 1}, "sets": {"soft": {}}},
            "sfot is no preset and none of the sets; known: full,",
        ),
        ({"sets": {"light": {}}}, "sets: light is a preset; give the set another name"),
        ({"sets": {"soft": {"first": {"blr": {}}}}}, "sets.soft.first.blr: unknown key; did you mean blur"),
        (
            {"sets": {"soft": {"first": {"jpeg_quality": [90, 30]}}}},
            "sets.soft.first.jpeg_quality: the low end 90",
        ),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(values, message):
    with pytest.raises(ClearSRError, match=message):
        build_config(DegradationMix, values)


def test_records_of_plain_mixtures_are_what_they_were():
    mix = DegradationMix(weights={"light": 1})
    assert mix.as_dict() == {"weights": {"light": 1.0}}
    assert {*DegradationMix(usm=True).as_dict()} == {"weights", "usm"}


def test_sharpened_originals_are_real_esrgans():
    """Against the formula on SciPy's filters; the LR image is made of the sharpened one."""
    hr = _picture(80, 96, seed=3)

    def blurred(planes):
        return ndimage.gaussian_filter(planes, (0, 8, 8), mode="mirror", radius=(0, 25, 25))

    planes = hr.double().numpy()
    residual = planes - blurred(planes)
    mask = blurred((np.abs(residual) * 255 > 10).astype(float))
    expected = mask * (planes + 0.5 * residual).clip(0, 1) + (1 - mask) * planes
    pair = degrade_mixed(hr, DegradationMix(weights={"bicubic": 1}, usm=True), _generator())
    assert np.abs(pair.hr.numpy() - expected).max() < 1e-4
    assert pair.hr.std() > 1.05 * hr.std()
    assert torch.equal(pair.lr, degrade(pair.hr, preset_config("bicubic"), _generator()))


@pytest.mark.parametrize(
    ("hr", "upscale", "message"),
    [
        (torch.zeros(3, 30, 32), 4, "multiples of 4"),
        (torch.zeros(3, 32, 33), 4, "33x32"),
        (torch.zeros(3, 0, 32), 4, "multiples of 4"),
        (torch.zeros(1, 32, 32), 4, "3xHxW"),
        (torch.zeros(1, 3, 32, 32), 4, "3xHxW"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), 4, "uint8"),
        (torch.zeros(3, 32, 32), 0, "upscale"),
    ],
)
def test_unusable_images_are_refused_in_one_line(hr, upscale, message):
    with pytest.raises(ClearSRError, match=message) as caught:
        degrade(hr, preset_config("full"), _generator(), upscale)
    assert "\n" not in str(caught.value)


def test_cropping_keeps_the_top_left_multiple():
    image = _picture(35, 42)
    cropped = crop_to_multiple(image, 4)
    assert torch.equal(cropped, image[:, :32, :40])
    assert degrade(cropped, preset_config("light"), _generator()).shape == (3, 8, 10)
    with pytest.raises(ClearSRError, match="3x50"):
        crop_to_multiple(torch.zeros(3, 50, 3), 4)


def test_draws_follow_their_ranges_and_weights():
    generator = _generator()
    numbers = [uniform(2.0, 5.0, generator) for _ in range(2000)]
    assert 2.0 <= min(numbers) < 2.02 and 4.98 < max(numbers) < 5.0
    assert np.mean(numbers) == pytest.approx(3.5, abs=0.08)
    assert {integer(3, 6, generator) for _ in range(200)} == {3, 4, 5, 6}
    assert not any(chance(0.0, generator) for _ in range(200))
    assert all(chance(1.0, generator) for _ in range(200))
    drawn = [choose("abc", [0.0, 3.0, 1.0], generator) for _ in range(2000)]
    assert "a" not in drawn
    assert drawn.count("b") / 2000 == pytest.approx(0.75, abs=0.04)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("preset", PRESETS)
def test_the_device_changes_no_more_than_rounding(preset):
    hr = _picture(128, 128)
    for seed in range(10):
        on_cpu = degrade(hr, preset_config(preset), _generator(seed))
        on_gpu = degrade(hr.cuda(), preset_config(preset), _generator(seed))
        assert on_gpu.is_cuda
        assert (on_cpu - on_gpu.cpu()).abs().mean() < 0.5 / 255
