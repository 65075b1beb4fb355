"""Settings of the degradation: presets fill what is not given, and nonsense is refused with its name."""

from typing import get_args

import pytest

from clearsr.config.base import build_config, load_config, write_yaml
from clearsr.config.degradation import (
    DegradationConfig,
    DegradationMix,
    PresetName,
    preset_config,
)
from clearsr.errors import ClearSRError


def test_full_is_the_published_real_esrgan_set():
    config = DegradationConfig()
    assert config == preset_config("full")
    assert (config.first.resize.factor, config.second.resize.factor) == ((0.15, 1.5), (0.3, 1.2))
    assert (config.first.resize.probabilities, config.second.resize.probabilities) == (
        (0.2, 0.7, 0.1),
        (0.3, 0.4, 0.3),
    )
    assert (config.first.noise.gaussian_sigma, config.second.noise.gaussian_sigma) == ((1, 30), (1, 25))
    assert (config.first.blur.probability, config.second.blur.probability) == (1.0, 0.8)
    assert config.first.jpeg_quality == config.second.jpeg_quality == (30, 95)


def test_fields_that_are_given_win_over_the_preset():
    config = build_config(DegradationConfig, {"preset": "light", "second": {"jpeg_quality": [70, 80]}})
    assert config.second.jpeg_quality == (70, 80)
    assert config.second.blur == preset_config("light").second.blur
    assert config.first == preset_config("light").first


@pytest.mark.parametrize("preset", get_args(PresetName))
def test_settings_survive_a_file(preset, tmp_path):
    path = tmp_path / "degradation.yaml"
    write_yaml(preset_config(preset), path)
    assert load_config(DegradationConfig, [path]) == preset_config(preset)


def test_presets_all_differ():
    assert len({preset_config(preset) for preset in get_args(PresetName)}) == len(get_args(PresetName))


@pytest.mark.parametrize(
    ("override", "name", "message"),
    [
        ("first.blur.sigma=[3, 1]", "first.blur.sigma", "above the high end"),
        ("first.blur.sigma=[0, 1]", "first.blur.sigma", "within 0.05"),
        ("first.blur.sigma=[.nan, 1]", "first.blur.sigma", "must be a number"),
        ("first.blur.kernel_size=[6, 21]", "first.blur.kernel_size", "odd"),
        (
            "first.blur.kernel_probabilities=[1, 1, 0, 0, 0, 0]",
            "first.blur.kernel_probabilities",
            "add up to 1",
        ),
        ("second.blur.beta_plateau=[1.5, 2]", "second.blur.beta_plateau", "include 1"),
        ("second.resize.factor=[1.1, 1.2]", "second.resize.factor", "include 1"),
        ("second.resize.probabilities=[0.5, 0.6, 0]", "second.resize.probabilities", "add up to 1, not 1.1"),
        ("second.resize.modes=[]", "second.resize.modes", "at least 1"),
        ("second.resize.modes=[cubic]", "second.resize.modes", "bicubic"),
        ("first.noise.gaussian_sigma=[-1, 5]", "first.noise.gaussian_sigma", "within 0 and 255"),
        ("first.noise.gray_probability=1.5", "first.noise.gray_probability", "less than or equal to 1"),
        ("first.jpeg_quality=[0, 95]", "first.jpeg_quality", "within 1 and 100"),
        ("second.jpeg_quality=[30, 101]", "second.jpeg_quality", "within 1 and 100"),
        ("second.jpeg_quality=[95, 30]", "second.jpeg_quality", "above the high end"),
        ("preset=heavy", "preset", "'light'"),
        ("second.jpeg_qualty=[30, 95]", "second.jpeg_qualty", "did you mean jpeg_quality"),
    ],
)
def test_nonsense_is_refused_by_name(override, name, message):
    with pytest.raises(ClearSRError) as caught:
        load_config(DegradationConfig, overrides=[override])
    assert str(caught.value).startswith(name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "lowest", "highest", "beyond"),
    [
        ("first.blur.sigma", 0.05, 50, 0.01),
        ("original.sigma", 0.05, 50, 0.01),
        ("second.blur.beta_generalized", 0.05, 20, 0.01),
        ("second.blur.beta_plateau", 0.05, 20, 0.01),
        ("first.resize.factor", 0.01, 8, 0.005),
        ("first.noise.gaussian_sigma", 0, 255, 0.5),
        ("first.noise.poisson_strength", 0, 20, 0.5),
        ("sharpening.amount", 0, 20, 0.5),
        ("first.blur.kernel_size", 3, 99, 2),
        ("second.jpeg_quality", 1, 100, 1),
    ],
)
def test_a_range_goes_as_far_as_is_said_and_no_further(name, lowest, highest, beyond):
    load_config(DegradationConfig, overrides=[f"{name}=[{lowest}, {highest}]"])
    for low, high in ((lowest - beyond, highest), (lowest, highest + beyond)):
        with pytest.raises(ClearSRError, match=f"{name}.*must lie within {lowest:g} and {highest:g}"):
            load_config(DegradationConfig, overrides=[f"{name}=[{low}, {high}]"])


@pytest.mark.parametrize(
    "name", ["first.blur.probability", "final_sinc_probability", "sharpening.probability"]
)
def test_a_chance_is_from_0_to_1(name):
    for value in (0, 1):
        load_config(DegradationConfig, overrides=[f"{name}={value}"])
    for value in (-0.01, 1.01):
        with pytest.raises(ClearSRError, match=name):
            load_config(DegradationConfig, overrides=[f"{name}={value}"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"light": -1.0}, "greater than or equal to 0"),
        ({"light": 0.0}, "above 0"),
        ({}, "above 0"),
        ({"hard": 1}, "camera"),
    ],
)
def test_mixtures_that_draw_nothing_are_refused(weights, message):
    with pytest.raises(ClearSRError, match=message):
        build_config(DegradationMix, {"weights": weights})


def test_default_mixture_has_every_preset():
    assert set(DegradationMix().weights) == set(get_args(PresetName))
    assert sum(DegradationMix().weights.values()) == pytest.approx(1)  # shares
