"""The short cut for one token against diffusers' whole attention, on a Stable Diffusion base in miniature."""

import pytest
import torch

from clearsr.config.base import build_config
from clearsr.config.model import ModelConfig
from clearsr.models.build import build_network
from clearsr.models.transformer import OneTokenProcessor
from clearsr.paper.complexity.naive import stock_attention

WIDTH = 32  # of a prompt token of the miniature base


@pytest.fixture(scope="module")
def exact_network(base, randomise):
    """In double precision, so that a difference is a mistake and not rounding; the LoRAs are not merged."""
    fields = {"preset": "sd21", "base_model": str(base), "image_encoder": None, "unet_lora_rank": 2}
    network = randomise(build_network(build_config(ModelConfig, fields)))
    return network.requires_grad_(False).eval().double()


def _decoder_inputs(network, normal, text):
    latent, z_lr = (normal(2, 4, 8, 16, seed=seed).double() for seed in (0, 1))
    timestep = torch.tensor([3, 700])
    control = network.control_signals(z_lr, timestep, text, network.structure_features(z_lr))
    return network.unet_encode(latent, timestep, text), control


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 3])
def test_output_is_that_of_the_whole_attention(exact_network, normal, tokens):
    """The prompt goes through encoder, DPM and decoder alike; each sample has its own."""
    prompt = normal(2, tokens, WIDTH, seed=5).double()

    def run(prompt):
        encoded, control = _decoder_inputs(exact_network, normal, prompt)
        return exact_network.unet_decode(encoded, control, prompt)

    short = run(prompt)
    with stock_attention(exact_network):
        whole = run(prompt)
    torch.testing.assert_close(short, whole, atol=1e-12, rtol=1e-10)
    assert not torch.allclose(short, run(prompt.flip(0)), atol=1e-3)


@pytest.mark.parametrize(
    ("tokens", "gradients", "computed"), [(1, False, False), (3, False, True), (1, True, True)]
)
def test_queries_and_keys_are_computed_only_where_they_matter(
    exact_network, normal, tokens, gradients, computed
):
    attention = exact_network.unet.up_blocks[-1].attentions[0].transformer_blocks[0].attn2
    calls = []
    handles = [
        layer.register_forward_hook(lambda *_: calls.append(1)) for layer in (attention.to_q, attention.to_k)
    ]
    width = attention.to_q.in_features
    try:
        with torch.set_grad_enabled(gradients):
            output = attention(normal(2, 6, width).double(), normal(2, tokens, WIDTH, seed=1).double())
    finally:
        for handle in handles:
            handle.remove()
    assert output.shape == (2, 6, width) and len(calls) == (2 if computed else 0)


def test_stock_attention_is_put_back_even_after_an_error(exact_network):
    def short_cuts():
        modules = exact_network.named_modules()
        return {n for n, m in modules if isinstance(getattr(m, "processor", None), OneTokenProcessor)}

    before = short_cuts()
    assert {name.split(".")[0] for name in before} == {"unet", "detail_preserving"}
    assert all(name.endswith("attn2") for name in before)
    with pytest.raises(RuntimeError, match="inside"), stock_attention(exact_network):
        assert not short_cuts()
        raise RuntimeError("inside")
    assert short_cuts() == before
