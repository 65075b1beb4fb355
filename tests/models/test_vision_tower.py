"""The image encoder of our own against transformers' CLIP."""

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from clearsr.models.image_prompt import VisionShape, VisionTower

SHAPE = VisionShape(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=48,
    patch_size=16,
    projection_dim=24,
)


@torch.no_grad()
def test_computes_what_transformers_clip_computes(normal, randomise):
    ours = randomise(VisionTower(SHAPE)).eval()
    theirs = CLIPVisionModelWithProjection(CLIPVisionConfig(intermediate_size=256, **SHAPE._asdict())).eval()
    theirs.load_state_dict(ours.state_dict())
    pixels = normal(2, 3, 48, 48)
    output, expected = ours(pixels), theirs(pixel_values=pixels)
    assert output.image_embeds.shape == (2, 24) and output.last_hidden_state.shape == (2, 1 + 9, 64)
    torch.testing.assert_close(output.image_embeds, expected.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=1e-4)


def test_starts_with_the_spread_of_transformers_weights():
    torch.manual_seed(0)
    ours = VisionTower(SHAPE).state_dict()
    theirs = CLIPVisionModelWithProjection(
        CLIPVisionConfig(intermediate_size=256, **SHAPE._asdict())
    ).state_dict()
    for name, value in ours.items():
        if value.numel() >= 10 * 64:  # of random numbers enough for a spread
            torch.testing.assert_close(value.std(), theirs[name].std(), rtol=0.1, atol=0, msg=name)
        elif name.endswith("bias"):
            assert torch.equal(value, theirs[name]), name
