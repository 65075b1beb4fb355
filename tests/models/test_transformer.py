"""Our own attention beside torch's, and what the short cut for one token leaves to others."""

import pytest
import torch
import torch.nn.functional as F

from clearsr.models.transformer import Attention, OneTokenProcessor


@pytest.fixture
def attention(randomise):
    return randomise(Attention(8, 2, 6)).double()


@pytest.mark.parametrize(
    ("tokens", "gradients", "is_allowed", "computed"),
    [(1, False, True, 0), (1, False, False, 2), (1, True, True, 2), (2, False, True, 2), (0, False, True, 2)],
)
def test_queries_and_keys_are_computed_only_where_they_matter(
    attention, normal, tokens, gradients, is_allowed, computed
):
    hidden, source = normal(2, 5, 8).double(), normal(2, tokens, 6, seed=1).double()
    calls = []
    for layer in (attention.to_q, attention.to_k):
        layer.register_forward_hook(lambda *_: calls.append(1))
    attention.takes_short_cut = is_allowed
    with torch.set_grad_enabled(gradients):
        output = attention(hidden, source)
    assert len(calls) == computed
    heads = [
        weight(x).unflatten(2, (2, 4)).movedim(2, 1)
        for weight, x in ((attention.to_q, hidden), (attention.to_k, source), (attention.to_v, source))
    ]
    attended = F.scaled_dot_product_attention(*heads).movedim(1, 2).flatten(2)
    torch.testing.assert_close(output, attention.to_out[0](attended))


@pytest.mark.parametrize("tokens", [1, 2, None])
@pytest.mark.parametrize("mask", [None, torch.ones(1)])
@torch.no_grad()
def test_what_is_no_constant_is_left_to_the_stock_as_it_was_given(tokens, mask, normal):
    given = []
    processor = OneTokenProcessor(lambda *arguments: given.append(arguments) or "the stock's")
    attn = torch.nn.Module()
    attn.to_v, attn.to_out = torch.nn.Linear(6, 8), [torch.nn.Linear(8, 8), torch.nn.Identity()]
    hidden, temb = normal(2, 5, 8), normal(2, 3)
    source = None if tokens is None else normal(2, tokens, 6)
    output = processor(attn, hidden, source, mask, temb)
    if tokens == 1 and mask is None:
        assert not given and output.shape == (2, 5, 8)
    else:
        assert output == "the stock's"
        ((*arguments,),) = given
        for ours, theirs in zip(arguments, (attn, hidden, source, mask, temb), strict=True):
            assert ours is theirs
