"""What a stage starts from when several models are given."""

import pytest
import torch

from clearsr.errors import ClearSRError
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
    """`make_taught(2, 1, 4)`: a painter of two blocks, which starts from the teacher's second and fifth."""

    def make(painter, *blocks, **changes):
        teacher = {"labels": "labels", "blocks": blocks}
        model = {"painter": {"blocks": painter}}
        return make_run("painter", model=model, perceptual={"teacher": teacher}, **changes)

    return make


def test_a_painter_starts_from_the_teacher_and_goes_on_from_a_painter(
    make_taught, monkeypatch, randomise, save
):
    teacher = randomise(RRDBNet(blocks=5), spread=0.02)
    monkeypatch.setattr("clearsr.training.setup.load_realesrgan", lambda: teacher)
    network, stages = prepare_network(make_taught(2, 1, 4))
    theirs = teacher.body[4].state_dict()
    ours = network.painter.body[1].state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items()) and stages == []
    earlier = save("painter", 3, ["painter"], painter={"blocks": 2})
    again, stages = prepare_network(make_taught(2, 1, 4, init_from=[earlier]))
    assert stages == ["painter"] and not torch.equal(
        again.painter.body[1].state_dict()["blocks.0.convs.0.weight"], theirs["blocks.0.convs.0.weight"]
    )


def test_a_painter_has_as_many_blocks_as_are_named(make_taught):
    with pytest.raises(ClearSRError, match=r"teacher.blocks: names 1, model.painter.blocks is 2"):
        make_taught(2, 1)
    with pytest.raises(ClearSRError, match=r"teacher.blocks: 23; the last one is 22"):
        make_taught(1, 23)


def test_a_painter_that_nobody_trained_is_told(make_run, save, caplog):
    model = {"painter": {"blocks": 1}}
    before = save("before", 0, ["autoencoder", "lr_encoder"])
    prepare_network(make_run("clearsr", model=model, init_from=[before]))
    assert "init_from: brings no stage painter" in caplog.text
    caplog.clear()
    painter = save("painter", 1, ["painter"], **model)
    prepare_network(make_run("clearsr", model=model, init_from=[before, painter]))
    assert "painter" not in caplog.text


@pytest.mark.parametrize("name", ["runs/before/export", "someone/model"])
def test_a_start_that_is_not_there_is_named_with_what_to_do(make_run, name):
    with pytest.raises(ClearSRError, match=rf"^init_from: {name} holds no model yet; train the stage before"):
        prepare_network(make_run(init_from=[name]))


def test_a_start_of_another_size_is_held_against_the_recipe(make_run, save):
    before = save("before", 0, ["autoencoder", "lr_encoder"], lr_encoder={"layers": [1, 1]})
    with pytest.raises(ClearSRError, match=r"does not fit the recipe's model: it lacks latents\.lr_encoder"):
        prepare_network(make_run(model={"lr_encoder": {"layers": [2, 1]}}, init_from=[before]))
