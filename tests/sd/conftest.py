"""A Stable Diffusion 2.x folder in miniature: the real classes, the real layout, a real CLIP vocabulary."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from clearsr.cli import main

WIDTH, TOKENS = 32, 16
MERGES = [
    ("b", "l"),
    ("bl", "u"),
    ("blu", "r"),
    ("blur", "r"),
    ("blurr", "y</w>"),
    ("a", "n"),
    ("an", "d</w>"),
]


def byte_symbols():
    """GPT-2's printable stand-ins for the 256 bytes, which CLIP's vocabulary begins with."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def write_tokenizer(folder):
    folder.mkdir(parents=True)
    symbols = byte_symbols()
    words = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in MERGES)]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in MERGES)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TOKENS,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "!",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return vocabulary


def write_base(folder, prediction="epsilon", cross_attention_dim=WIDTH, in_channels=4):
    """Everything that a base on the hub has, with an image encoder beside it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=in_channels,
            down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            block_out_channels=[16, 16, 32, 32],
            layers_per_block=1,
            attention_head_dim=[2, 2, 4, 4],
            cross_attention_dim=cross_attention_dim,
            norm_num_groups=8,
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[8, 8, 16, 16],
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.18215,
        )
        vocabulary = write_tokenizer(folder / "tokenizer")
        text = CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=vocabulary["<|startoftext|>"],
            eos_token_id=vocabulary["<|endoftext|>"],
        )
        tower = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
            projection_dim=WIDTH,
        )
        unet.save_pretrained(folder / "unet")
        vae.save_pretrained(folder / "vae")
        CLIPTextModel(text).save_pretrained(folder / "text_encoder")
        CLIPVisionModelWithProjection(tower).save_pretrained(folder / "image_encoder")
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )
    scheduler.save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder. Do not change it: `base_copy` is for that."""
    return write_base(tmp_path_factory.mktemp("sd") / "base")


@pytest.fixture
def base_copy(base, tmp_path):
    return Path(shutil.copytree(base, tmp_path / "base"))


@pytest.fixture(scope="session")
def untrained(base, tmp_path_factory):
    """What `clearsr init` writes on the base, with small ranks."""
    folder = tmp_path_factory.mktemp("untrained") / "model"
    ranks = ["--set", "lr_encoder.lora_rank=4", "--set", "unet_lora_rank=2"]
    assert main(["init", "--base-model", str(base), "-o", str(folder), *ranks]) == 0
    return folder


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """huggingface_hub without a network, its cache an empty folder, which is returned."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def put_in_cache(offline):
    """Lay a folder into the hub's cache as `ID` at a commit."""

    def put(folder, repo_id, commit):
        root = offline / f"models--{repo_id.replace('/', '--')}"
        shutil.copytree(folder, root / "snapshots" / commit)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(commit)

    return put
