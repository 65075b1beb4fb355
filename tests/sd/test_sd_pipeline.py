"""Pictures through an untrained ClearSR on a Stable Diffusion base, prompts and guidance included."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from clearsr import ClearSRError, ClearSRPipeline
from clearsr.image import ImageData
from clearsr.models.pretrained import encode_text
from clearsr.pipeline import store
from clearsr.pipeline.budget import Workload

QUICK = {"steps": 2, "color": "none"}


@pytest.fixture(scope="module")
def pipeline(untrained):
    return ClearSRPipeline.from_pretrained(untrained, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def picture():
    rows, columns = np.mgrid[0:13, 0:17]
    return Image.fromarray(np.stack([rows * 15, columns * 12, rows * columns], -1).astype(np.uint8))


def test_upscales_with_guidance_and_negative_prompt(pipeline, picture):
    results = {
        "off": pipeline(picture, **QUICK, guidance_scale=1),
        "guided": pipeline(picture, **QUICK),
        "negative": pipeline(picture, **QUICK, negative_prompt="blurry and small"),
        "other": pipeline(picture, **QUICK, negative_prompt="sharp"),
    }
    assert all(result.size == (68, 52) and result.mode == "RGB" for result in results.values())
    pixels = [np.asarray(result) for result in results.values()]
    assert all((a != b).any() for i, a in enumerate(pixels) for b in pixels[:i])
    assert np.array_equal(
        pixels[2], np.asarray(pipeline(picture, **QUICK, negative_prompt="blurry and small"))
    )


def test_the_models_own_guidance_is_the_default(pipeline, picture):
    assert pipeline.defaults.guidance_scale == 5.5 and pipeline.defaults.steps == 50
    explicit = pipeline(picture, **QUICK, guidance_scale=5.5)
    assert np.array_equal(np.asarray(pipeline(picture, **QUICK)), np.asarray(explicit))


def test_one_guided_step_is_the_bases_own(pipeline, base):
    """At initialisation a guided prediction is the base's with the prompt in its decoder."""
    network = pipeline.network
    unet = UNet2DConditionModel.from_pretrained(base / "unet").eval()
    generator = torch.Generator().manual_seed(0)
    latent, pixels = (
        torch.randn(1, 4, 8, 8, generator=generator),
        torch.rand(1, 3, 64, 64, generator=generator),
    )
    prompt, t = network.image_prompt(pixels), torch.tensor([500])
    seen = []

    def swap(module, args, kwargs):
        seen.append(module)
        return args, {**kwargs, "encoder_hidden_states": prompt}

    hooks = [
        block.register_forward_pre_hook(swap, with_kwargs=True)
        for block in unet.up_blocks
        if getattr(block, "has_cross_attention", False)
    ]
    with torch.no_grad():
        expected = unet(latent, t, encoder_hidden_states=network.null_prompt).sample
        z_lr = network.latents.embed_lr(pixels).mean
        assert torch.allclose(network(latent, t, z_lr, prompt), expected, atol=1e-5)
    assert len(seen) == len(hooks) == 3


@pytest.mark.parametrize("text", ["", "blurry", "blurry and blurry and a very long prompt that is cut off"])
def test_encode_text_is_the_bases_text_encoder(base, text):
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    ids = tokenizer(text, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = CLIPTextModel.from_pretrained(base / "text_encoder")(ids).last_hidden_state
    assert torch.allclose(encode_text(str(base), text), expected, atol=1e-6)


def test_the_vocabulary_merges_words(base):
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    assert tokenizer.tokenize("blurry and") == ["blurry</w>", "and</w>"]


def test_text_encoder_is_not_needed_without_a_negative_prompt(untrained, base_copy, picture):
    for part in ("text_encoder", "tokenizer"):
        for file in (base_copy / part).iterdir():
            file.unlink()
        (base_copy / part).rmdir()
    pipeline = ClearSRPipeline.from_pretrained(untrained, device="cpu", base_model=str(base_copy))
    assert pipeline(picture, **QUICK).size == (68, 52)
    with pytest.raises(ClearSRError, match=r"tokenizer/ is missing"):
        pipeline(picture, **QUICK, negative_prompt="blurry")


@pytest.mark.parametrize("maps", ["in memory", "on disk"])
def test_an_image_of_many_windows_is_the_same_picture(pipeline, monkeypatch, maps):
    """E' and D layer by layer in windows, in blocks and not, against diffusers' own pass over the whole."""
    generator = torch.Generator().manual_seed(3)
    image = ImageData(torch.rand(3, 30, 41, generator=generator))
    config = pipeline.configure(steps=1, guidance_scale=1.5)
    whole = pipeline.upscale_with([image], config, Workload(piece=1024))[0]
    if maps == "on disk":
        monkeypatch.setattr(store, "free_bytes", lambda *_: 0)
    in_windows = pipeline.upscale_with([image], config, Workload(piece=64))[0]
    heard, in_blocks = [], Workload(piece=64, is_in_blocks=True)
    found = pipeline.upscale_with([image], config, in_blocks, lambda *step: heard.append(step[:2]))[0]
    for one in (in_windows, found):
        torch.testing.assert_close(one.color, whole.color, atol=2e-5, rtol=0)
    assert [done for done, _ in heard] == list(range(1, heard[0][1] + 1))
