"""What sampling computes once is what the naive way computes again and again: same result, counted calls."""

import pytest
import torch

from clearsr.config.base import build_config
from clearsr.config.sampling import SamplingConfig
from clearsr.image import ImageData
from clearsr.models.latent_lr_embedding import LatentLR
from clearsr.paper.complexity.naive import naive_denoise
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.sampling.denoise import denoise
from clearsr.sampling.guidance import Conditioning

PARTS = ("structure_preserving", "detail_preserving", "unet.mid_block", "unet.up_blocks.0")


def _generators():
    return [torch.Generator().manual_seed(seed) for seed in (1, 2)]


@pytest.fixture
def given(normal):
    """Two images in double precision."""

    def make(tokens):
        mean, std = normal(2, 8, 8, 12).double(), normal(2, 8, 8, 12, seed=1).double().abs() + 0.1
        return Conditioning(LatentLR(mean, std), normal(2, tokens, 16, seed=2).double())

    return make


@pytest.fixture
def count_rows(monkeypatch):
    """Images per pass and step that went through each of `PARTS`."""

    def count(network, run):
        rows = dict.fromkeys(PARTS, 0)

        def hook(name):
            def add(module, args, kwargs, output):
                rows[name] += len(args[0] if args else kwargs["hidden_states"])

            return add

        handles = [network.get_submodule(n).register_forward_hook(hook(n), with_kwargs=True) for n in PARTS]
        try:
            return run(), rows
        finally:
            for handle in handles:
                handle.remove()

    return count


@pytest.mark.parametrize("scheduler", ["ddpm", "dpm++"])
@pytest.mark.parametrize(("null_tokens", "tokens"), [(2, 1), (1, 1), (2, 5)])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_doing_each_thing_once_is_exact(
    make_network, given, count_rows, scheduler, null_tokens, tokens, guidance
):
    network = make_network(null_prompt_tokens=null_tokens).double()
    config = build_config(
        SamplingConfig,
        {"steps": 3, "scheduler": scheduler, "guidance_scale": guidance, "lsa": {"preset": "off"}},
    )
    conditioning = given(tokens)
    ours, rows = count_rows(network, lambda: denoise(network, conditioning, config, _generators()))
    naive, naive_rows = count_rows(
        network, lambda: naive_denoise(network, conditioning, config, _generators())
    )
    torch.testing.assert_close(ours, naive, atol=1e-9, rtol=1e-8)
    images, steps, branches = 2, 3, 1 if guidance == 1 else 2
    assert naive_rows == dict.fromkeys(PARTS, images * steps * branches)
    assert list(rows.values()) == [images, images * steps, images * steps, images * steps * branches]


def test_image_is_encoded_once_however_many_steps(make_network, make_picture):
    network = make_network()
    calls = {"latents.lr_encoder": 0, "image_prompt": 0, "latents.vae.decoder": 0}

    def hook(name):
        def add(*_):
            calls[name] += 1

        return add

    for name in calls:
        network.get_submodule(name).register_forward_hook(hook(name))
    pipeline = ClearSRPipeline(network, device="cpu", precision="fp32")
    config = pipeline.configure(upscale=2, steps=3, guidance_scale=2)
    pipeline.upscale([ImageData(make_picture(16, 24))], config)
    assert set(calls.values()) == {1}
