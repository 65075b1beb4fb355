"""What a stage starts from when several models are given."""

import pytest
import torch
import torch.nn.functional as F

from clearsr.config.base import build_config
from clearsr.config.model import ModelConfig
from clearsr.errors import ClearSRError
from clearsr.image import resize
from clearsr.models.checkpoint import save_network
from clearsr.models.realesrgan import RRDBNet
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


@pytest.fixture
def make_taught(make_run):
    def make(trunk, *blocks):
        model = {"autoencoder": {"patch_size": 4}, "lr_encoder": {"draws": True, "drawing_blocks": trunk}}
        return make_run(
            "lr_encoder", model=model, perceptual={"teacher": {"labels": "labels", "blocks": blocks}}
        )

    return make


def test_a_trunk_starts_from_the_teachers_blocks(make_taught, monkeypatch, randomise, make_picture):
    teacher = randomise(RRDBNet(blocks=5), spread=0.02)
    monkeypatch.setattr("clearsr.training.setup.load_realesrgan", lambda: teacher)
    network, _ = prepare_network(make_taught(2, 1, 4))
    trunk = network.latents.lr_encoder.drawing
    for ours, number in zip(trunk.body, (1, 4), strict=True):
        theirs = teacher.body[number].state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())
    picture = make_picture(40, 40)[None]
    enlarged = 2 * resize(picture, (160, 160)) - 1
    with torch.no_grad():
        ours, theirs = trunk.conv_in(F.pixel_unshuffle(enlarged, 4)), teacher.first(picture)
    inner = (..., slice(2, -2), slice(2, -2))  # the enlarged one's border is another
    torch.testing.assert_close(ours[inner], theirs[inner], atol=0.02 * float(theirs.std()), rtol=0)


def test_a_trunk_needs_as_many_blocks_as_it_has(make_taught):
    with pytest.raises(ClearSRError, match=r"teacher.blocks: names 1 for 2 model.lr_encoder.drawing_blocks"):
        make_taught(2, 1)
    with pytest.raises(ClearSRError, match=r"teacher.blocks: 23; the last one is 22"):
        make_taught(1, 23)
    with pytest.raises(ClearSRError, match="drawing_blocks belong to an encoder that draws"):
        build_config(ModelConfig, {"preset": "compact", "lr_encoder": {"drawing_blocks": 2}})
