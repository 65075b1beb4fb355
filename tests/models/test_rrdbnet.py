"""The baseline has the size of the published network, and enlarges four times."""

import torch

from clearsr.models.realesrgan import RRDBNet


def test_parameters_are_those_of_real_esrgan_x4plus():
    """16,697,987 is what the published RealESRGAN_x4plus holds (23 blocks, 64 features, growth 32)."""
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in RRDBNet().parameters()) == 16_697_987


@torch.no_grad()
def test_output_is_four_times_as_large_and_depends_on_every_block(normal):
    network = RRDBNet(blocks=2, features=8, growth=4)
    picture = normal(1, 3, 9, 7)
    output = network(picture)
    assert output.shape == (1, 3, 36, 28)
    for block in network.body:
        block.blocks[2].convs[4].bias.add_(1)
        changed = network(picture)
        assert not torch.allclose(changed, output)
        output = changed
