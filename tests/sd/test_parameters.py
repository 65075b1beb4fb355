"""Parameter counts at Stable Diffusion 2.1's size, against sums worked out by hand."""

import inspect

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from clearsr.config.base import build_config
from clearsr.config.model import ModelConfig, preset_model_config
from clearsr.errors import ClearSRError
from clearsr.models.build import build_network
from clearsr.models.parameters import PAPER_TABLE_5, parameter_table, part_of, stored_parts
from clearsr.models.sd21 import (
    IMAGE_ENCODER_CONFIG,
    PAPER_SAMPLING,
    TEXT_ENCODER_CONFIG,
    UNET_CONFIG,
    VAE_CONFIG,
    untrained_components,
)

# Levels with window attention: (channels, transformers, ratio to the latent grid); the middle is at ratio 8.
CA_LAYERS = [(320, 2, 1), (640, 2, 2), (1280, 2, 4), (1280, 1, 8)]


def window_attention_count(window):
    """q, out C×C (out with bias); k, v 4×C; a LayerNorm; (2s - ratio)² offsets per 64-wide head."""
    return sum(
        n * (2 * c * c + c + 2 * 4 * c + 2 * c + c // 64 * (2 * window - ratio) ** 2)
        for c, n, ratio in CA_LAYERS
    )


@pytest.fixture(scope="module")
def table():
    return parameter_table(preset_model_config("sd21"))


def ablated(**fields):
    return parameter_table(build_config(ModelConfig, fields))


def test_stable_diffusion_2_1(table):
    assert table.parts == {
        "detail_preserving": 363_141_760,
        "cross_attention": 12_012_250,
        "structure_preserving": 147_614_720,
        "vae_lora": 1_477_168,
        "unet_lora": 1_800_192,
        "unet": 865_910_724,
        "vae": 83_653_863,
        "text_encoder": 340_387_840,
        "image_encoder": 632_076_800,
    }
    assert table.trained == set(list(table.parts)[:5])
    assert table.trainable == 526_046_090 and table.total == 2_448_075_317
    assert PAPER_TABLE_5 == {"trainable": 525, "total": 2511}  # as printed
    assert abs(table.trainable / 1e6 - PAPER_TABLE_5["trainable"]) < 1.1
    # Its total has 63 M that the parts it names do not add up to.
    assert 62 < PAPER_TABLE_5["total"] - table.total / 1e6 < 63


def test_what_no_shape_tells_is_as_diffusers_has_it():
    """Its defaults are those of Stable Diffusion 1 and 2; 512 pixels are 64 latents; the paper's 50 steps."""
    vae, unet = (
        inspect.signature(kind.__init__).parameters for kind in (AutoencoderKL, UNet2DConditionModel)
    )
    assert VAE_CONFIG["scaling_factor"] == vae["scaling_factor"].default
    assert UNET_CONFIG["norm_eps"] == unet["norm_eps"].default
    assert UNET_CONFIG["sample_size"] == 512 // 2 ** (len(VAE_CONFIG["down_block_types"]) - 1)
    assert PAPER_SAMPLING == {"steps": 50, "guidance_scale": 5.5}


def test_heads_and_patches_are_those_that_the_authors_name():
    """64 channels a head in Stable Diffusion 2 and its text encoder, 80 in ViT-H; images of whole patches."""
    widths, heads = UNET_CONFIG["block_out_channels"], UNET_CONFIG["attention_head_dim"]
    assert [width / count for width, count in zip(widths, heads, strict=True)] == [64.0] * 4
    for tower, channels in ((TEXT_ENCODER_CONFIG, 64), (IMAGE_ENCODER_CONFIG, 80)):
        assert tower["hidden_size"] == channels * tower["num_attention_heads"]
        assert tower["intermediate_size"] == 4 * tower["hidden_size"] and tower["hidden_act"] == "gelu"
    assert divmod(IMAGE_ENCODER_CONFIG["image_size"], IMAGE_ENCODER_CONFIG["patch_size"]) == (16, 0)
    assert IMAGE_ENCODER_CONFIG["projection_dim"] == UNET_CONFIG["cross_attention_dim"]
    assert TEXT_ENCODER_CONFIG["hidden_size"] == UNET_CONFIG["cross_attention_dim"]


def test_untrained_parts_are_in_evaluation_mode_and_of_the_right_width():
    with torch.device("meta"):
        parts = untrained_components(null_prompt_tokens=5)
    assert parts.null_prompt.shape == (1, 5, 1024) and parts.lr_encoder is None
    for part in (parts.vae, parts.unet, parts.image_encoder):
        assert not any(module.training for module in part.modules())
    projection = parts.unet.down_blocks[0].attentions[0].proj_in.weight
    assert projection.shape == (320, 320)  # a matrix in Stable Diffusion 2, where 1 has a 1x1 convolution


@pytest.mark.parametrize("window", [8, 16, 32])
def test_window_size_changes_the_bias_tables_alone(table, window):
    parts = ablated(control={"window_size": window}).parts
    assert parts == {**table.parts, "cross_attention": window_attention_count(window)}


def test_without_window_partition(table):
    parts = ablated(control={"window_size": None}).parts
    assert parts == {**table.parts, "cross_attention": window_attention_count(64)}


@pytest.mark.parametrize(
    ("fields", "absent"),
    [
        ({"control": {"cross_attention": False}}, "cross_attention"),
        ({"control": {"structure_preserving": False}}, "structure_preserving"),
        ({"lr_encoder": {"lora_rank": 0}}, "vae_lora"),
        ({"unet_lora_rank": 0}, "unet_lora"),
    ],
)
def test_a_switch_removes_its_part_alone(table, fields, absent):
    ablation = ablated(**fields)
    assert ablation.parts == {part: n for part, n in table.parts.items() if part != absent}
    assert table.trainable - ablation.trainable == table.parts[absent]


@pytest.mark.parametrize("rank", [4, 32])
def test_lora_grows_with_its_rank(table, rank):
    parts = ablated(unet_lora_rank=rank, lr_encoder={"lora_rank": rank}).parts
    for part in ("vae_lora", "unet_lora"):
        assert parts[part] * 16 == table.parts[part] * rank


def test_frozen_unet_lora_is_not_counted_as_trained(table):
    frozen = ablated(train_unet="frozen")
    assert frozen.parts == table.parts
    assert table.trainable - frozen.trainable == table.parts["unet_lora"]


def test_compact_counts_equal_the_real_network():
    config = preset_model_config("compact")
    network = build_network(config)
    network.set_trainable()
    table = parameter_table(config)
    assert table.total == sum(p.numel() for p in network.parameters())
    assert table.trainable == sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert "text_encoder" not in table.parts


def test_a_foreign_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"layer1.weight": torch.zeros(2)}, tmp_path / "m.safetensors")
    with pytest.raises(ClearSRError, match="layer1"):
        stored_parts(tmp_path / "m.safetensors")
    with pytest.raises(KeyError):
        part_of("layer1.weight")
