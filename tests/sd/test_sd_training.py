"""Training on a base: it starts from what `init` wrote, and its export names what it was trained on."""

import hashlib
import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from clearsr.config.base import build_config
from clearsr.config.training import TrainConfig
from clearsr.errors import ClearSRError
from clearsr.models.checkpoint import load_network, read_description
from clearsr.training.engine import fit
from clearsr.training.setup import prepare_network

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RANKS = {"lr_encoder": {"lora_rank": 4}, "unet_lora_rank": 2}  # as `untrained` has them


@pytest.fixture
def recipe(tmp_path):
    """`recipe(model, **changes)`: stage clearsr with this model, on two pictures."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(2):
        Image.effect_noise((80, 72), 50 + number).convert("RGB").save(folder / f"{number}.png")

    def make(model, **changes):
        values = {
            "stage": "clearsr",
            "output": str(tmp_path / "run"),
            "model": model,
            "data": {"train": [str(folder)], "crop_size": 64, "workers": 0},
            "steps": 1,
            "batch_size": 1,
            "validate_every": 0,
        }
        return build_config(TrainConfig, {**values, **changes})

    return make


def assert_same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("changes", [{}, {"seed": 5}])
def test_a_run_starts_from_what_init_wrote_bit_for_bit(recipe, untrained, changes):
    """Also by a recipe of another seed, which draws other weights, and which does not name the base."""
    network, stages = prepare_network(recipe(RANKS, init_from=[str(untrained)], **changes))
    assert_same(network, load_network(untrained).network)
    assert stages == []


def test_a_recipe_of_the_same_base_and_seed_starts_there_too(recipe, untrained, base):
    model = {**RANKS, "base_model": str(base), "image_encoder": None}
    assert_same(prepare_network(recipe(model))[0], load_network(untrained).network)
    other, _ = prepare_network(recipe(model, seed=5))
    with pytest.raises(AssertionError):
        assert_same(other, load_network(untrained).network)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control": {"window_size": 8}}, r"model.control.window_size \(16 there, 8 here\)"),
        ({"image_prompt": {"mode": "tokens"}}, r"model.image_prompt.mode \('pooled' there, 'tokens' here\)"),
        ({"base_model": "someone/else"}, "model.base_model .*'someone/else' here"),
    ],
)
def test_a_recipe_for_another_model_than_was_initialised_is_refused(recipe, untrained, changes, message):
    with pytest.raises(ClearSRError, match=message):
        prepare_network(recipe({**RANKS, **changes}, init_from=[str(untrained)]))


def digests(base):
    """SHA-256 of the weights of the parts, by hashlib."""
    parts = {name: next((base / name).glob("*.safetensors")) for name in ("unet", "vae", "image_encoder")}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in parts.items()}


def test_an_export_names_its_base_wherever_it_is_moved(recipe, base_copy, tmp_path, monkeypatch):
    """By a relative path in the recipe; and the other way round, base and export moved together."""
    monkeypatch.chdir(base_copy.parent)
    model = {**RANKS, "base_model": base_copy.name, "image_encoder": None}
    export = fit(recipe(model))
    description = json.loads((export / "config.json").read_text())
    assert description["model"]["base_model"] == str(base_copy.resolve())
    assert description["base_sha256"] == digests(base_copy)
    expected = load_network(export).network
    monkeypatch.chdir("/")
    moved = export.rename(tmp_path / "moved")
    assert_same(load_network(moved).network, expected)

    description["model"]["base_model"] = f"../{base_copy.name}"
    (moved / "config.json").write_text(json.dumps(description))
    (tmp_path / "elsewhere").mkdir()
    for folder in (moved, base_copy):
        folder.rename(tmp_path / "elsewhere" / folder.name)
    again = tmp_path / "elsewhere" / "moved"
    assert_same(load_network(again).network, expected)
    assert read_description(again)["model"]["base_model"] == str(tmp_path / "elsewhere" / base_copy.name)


def test_a_base_on_the_hub_is_pinned_when_the_run_starts(recipe, base, put_in_cache):
    put_in_cache(base, "someone/tiny-sd", COMMIT)
    network, _ = prepare_network(recipe({**RANKS, "base_model": "someone/tiny-sd", "image_encoder": None}))
    assert (network.config.base_model, network.config.base_revision) == ("someone/tiny-sd", COMMIT)


def test_an_image_encoder_of_its_own_is_pinned_too(recipe, base, put_in_cache):
    put_in_cache(base / "image_encoder", "someone/tiny-clip", COMMIT)
    model = {**RANKS, "base_model": str(base), "image_encoder": "someone/tiny-clip"}
    assert prepare_network(recipe(model))[0].config.image_encoder == f"someone/tiny-clip@{COMMIT}"


def test_another_base_is_taken_with_a_warning(untrained, base_copy, caplog):
    load_network(untrained, base_model=str(base_copy))
    assert not caplog.text  # a copy is the same base
    other = UNet2DConditionModel.from_pretrained(base_copy / "unet")
    with torch.no_grad():
        other.conv_in.weight += 1
    other.save_pretrained(base_copy / "unet")
    load_network(untrained, base_model=str(base_copy))
    assert caplog.text.count("was trained on another unet;") == 1
