"""Model and sampling settings: presets are what the fields start from; parts that do not fit are refused."""

import pytest

from clearsr.config.base import build_config
from clearsr.config.model import SD21_BASE_MODELS, ModelConfig, preset_model_config
from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError


def test_the_papers_setting():
    config = preset_model_config("sd21")
    assert config == ModelConfig()
    assert config.base_model == SD21_BASE_MODELS[0]
    assert (config.prediction, config.train_unet) == ("epsilon", "lora")
    assert (config.unet_lora_rank, config.lr_encoder.kind, config.lr_encoder.lora_rank) == (16, "lora", 16)
    assert config.control.window_size == 16
    assert config.control.structure_preserving and config.control.cross_attention


def test_the_compact_setting_needs_no_base():
    config = preset_model_config("compact")
    assert config.base_model is None and config.image_encoder is None
    assert (config.prediction, config.lr_encoder.kind) == ("lr_anchored", "separate")


def test_single_fields_lie_over_the_preset():
    config = build_config(ModelConfig, {"preset": "compact", "lr_encoder": {"layers": [1, 2]}})
    assert config.lr_encoder.layers == (1, 2)
    assert config.lr_encoder.kind == "separate"  # the preset's, not the field's own default
    assert config.prediction == "lr_anchored"


@pytest.mark.parametrize("preset", ["sd21", "compact"])
def test_a_dump_builds_the_same(preset):
    config = preset_model_config(preset)
    assert build_config(ModelConfig, config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "sd15"}, "preset: Input should be 'sd21' or 'compact'"),
        ({"controll": {}}, "controll: unknown key; did you mean control?"),
        ({"control": {"windowsize": 8}}, "control.windowsize: unknown key; did you mean window_size?"),
        ({"control": {"window_size": 0}}, "control.window_size"),
        (
            {"preset": "compact", "control": {"window_size": 10}},
            "control.window_size must be a multiple of 4",
        ),
        ({"unet": {"attention": [True]}}, "attention and block_out_channels must have the same length"),
        ({"unet": {"head_dim": 7}}, "block_out_channels must be multiples of head_dim, 7"),
        ({"unet": {"norm_num_groups": 64}}, "block_out_channels must be multiples of norm_num_groups, 64"),
        (
            {"autoencoder": {"encoder_layers": [1]}},
            "encoder_channels and encoder_layers must have the same length",
        ),
        (
            {"autoencoder": {"decoder_layers": [1]}},
            "decoder_channels and decoder_layers must have the same length",
        ),
        (
            {"autoencoder": {"decoder_channels": [8], "decoder_layers": [1]}},
            "encoder_channels and decoder_channels must have the same length",
        ),
        ({"lr_encoder": {"layers": [1]}}, "channels and layers must have the same length"),
        (
            {"preset": "compact", "lr_encoder": {"layers": [1], "channels": [8]}},
            "lr_encoder.channels must have 2 widths",
        ),
        ({"lr_encoder": {"lora_rank": -1}}, "lr_encoder.lora_rank"),
    ],
)
def test_what_does_not_fit_is_refused(values, message):
    with pytest.raises(ClearSRError) as error:
        build_config(ModelConfig, values)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_window_of_no_partition_is_null():
    assert build_config(ModelConfig, {"control": {"window_size": None}}).control.window_size is None


def test_sampling_starts_from_the_papers_settings():
    config = SamplingConfig()
    assert (config.steps, config.scheduler, config.start, config.upscale) == (50, "ddpm", "lr", 4)
    assert config.lsa.strengths == (0.01, 0.01)
    assert build_config(SamplingConfig, config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 1001}, "steps"),
        ({"upscale": float("nan")}, "upscale"),
        ({"start_timestep": 1000}, "start_timestep"),
        ({"tile": {"size": 40}}, "tile.size: Input should be a multiple of 16"),
        ({"tile": {"size": 16}}, "tile.size"),
        ({"tile": {"size": 32, "overlap": 24}}, "overlap must be at most half the size, 16"),
        ({"lsa": {"ela_end": 1.2}}, "lsa.ela_end"),
        ({"noise_scale": -0.1}, "noise_scale"),
    ],
)
def test_sampling_refuses_what_is_out_of_range(values, message):
    with pytest.raises(ClearSRError) as error:
        build_config(SamplingConfig, values)
    assert message in str(error.value)
