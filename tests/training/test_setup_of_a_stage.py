"""What a stage starts from when several models are given."""

import pytest
import torch

from clearsr.models.checkpoint import save_network
from clearsr.training.setup import prepare_network

LORA = {"lr_encoder": {"kind": "lora", "lora_rank": 2}}


@pytest.fixture
def save(make_network, tmp_path):
    """`save("name", seed, ["stage"])`: a folder with the model that the seed gives."""

    def write(name, seed, stages, **changes):
        save_network(make_network(seed, **changes), tmp_path / name, stages)
        return tmp_path / name

    return write


def test_different_vaes_are_told_and_the_later_is_taken(make_run, save, make_network, caplog):
    first, other = save("first", 0, ["autoencoder", "lr_encoder"]), save("other", 1, ["autoencoder"])
    network, _ = prepare_network(make_run(init_from=[first, other]))
    assert f"init_from: {first} and {other} bring different VAEs; that of the latter" in caplog.text
    vae, theirs = network.latents.vae.state_dict(), make_network(1).latents.vae.state_dict()
    assert all(torch.equal(vae[name], value) for name, value in theirs.items())


def test_the_same_vae_twice_is_fine(make_run, save, caplog):
    models = [save("first", 0, ["autoencoder"]), save("same", 0, ["autoencoder", "lr_encoder"])]
    prepare_network(make_run(init_from=[*models, save("without", 1, ["prior"])]))
    assert "different VAEs" not in caplog.text


def test_a_lora_on_the_vae_is_no_part_of_it(make_run, save, caplog):
    models = [
        save("first", 0, ["autoencoder"], **LORA),
        save("second", 0, ["autoencoder", "clearsr"], **LORA),
    ]
    prepare_network(make_run(model=LORA, init_from=models))
    assert "different VAEs" not in caplog.text
