"""The image prompt: CLIP's own normalisation, one token or all, any size of picture."""

import pytest
import torch
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from clearsr.models.image_prompt import ImagePrompt, mixed_prompts


@torch.no_grad()
def test_pooled_prompt_is_clips_embedding_of_the_picture(network, make_picture):
    picture = make_picture(32, 32)  # the tower's own size, so that nothing is resized
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    expected = network.image_prompt.encoder(pixel_values=((picture - mean) / std)[None]).image_embeds
    prompt = network.image_prompt(picture[None] * 2 - 1)
    assert prompt.shape == (1, 1, 16)
    torch.testing.assert_close(prompt[:, 0], expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_tokens_start_with_the_pooled_one(network, make_picture):
    picture = make_picture(48, 40)[None]
    every = ImagePrompt(network.image_prompt.encoder, "tokens").eval()
    tokens = every(picture)
    assert tokens.shape == (1, 1 + 2 * 2, 16)
    torch.testing.assert_close(tokens[:, :1], network.image_prompt(picture))
    assert not torch.allclose(tokens[:, 1], tokens[:, 2], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (200, 3), (32, 96)])
def test_takes_any_size(network, make_picture, size):
    prompt = network.image_prompt(make_picture(*size)[None] * 2 - 1)
    assert prompt.shape == (1, 1, 16) and prompt.isfinite().all()


@pytest.mark.parametrize(("own", "null"), [(1, 3), (4, 2), (2, 2)])
def test_mixed_prompts_count_what_is_theirs_and_need_no_mask_at_one_length(normal, own, null):
    prompt, text, dropped = normal(2, own, 5), normal(2, null, 5, seed=1), torch.tensor([True, False])
    tokens, counts = mixed_prompts(prompt, text, dropped)
    assert tokens.shape == (2, max(own, null), 5)
    assert torch.equal(tokens[0, :null], text[0]) and torch.equal(tokens[1, :own], prompt[1])
    if own == null:
        assert counts is None
    else:
        assert counts.sum(1).tolist() == [null, own]
        assert counts[0, :null].all() and counts[1, :own].all()
