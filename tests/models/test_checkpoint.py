"""Models on disk: bit-identical round trips, stages that build on each other, damage told in one line."""

import json
import os
import shutil

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from clearsr.errors import ClearSRError
from clearsr.models.build import own_components
from clearsr.models.checkpoint import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    check_shapes,
    load_network,
    read_description,
    save_network,
    stages_of,
    start_from,
)
from clearsr.models.clearsr import ClearSRNetwork, set_scaling_factor

STAGES = ("autoencoder", "lr_encoder", "clearsr")


@pytest.fixture
def folder(network, tmp_path):
    """A saved model that a test may spoil."""
    save_network(network, tmp_path / "model", STAGES, {"steps": 4, "lsa": {"preset": "fidelity"}})
    return tmp_path / "model"


def _equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _based(make_config, randomise, seed, **changes):
    """A network whose VAE and U-Net count as a frozen Stable Diffusion base (they are tiny ones of ours)."""
    config = make_config(lr_encoder={"kind": "lora", "lora_rank": 2}, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = own_components(config)
    network = ClearSRNetwork(config.model_copy(update={"base_model": "someone/base"}), parts)
    state = network.state_dict()
    frozen = {
        n: v.clone() for n, v in state.items() if n.startswith(("latents.", "unet.")) and "lora_" not in n
    }
    randomise(network, seed)
    network.load_state_dict(frozen, strict=False)
    return network.requires_grad_(False).eval()


def test_round_trip_is_bit_identical(tiny_network, tmp_path):
    save_network(tiny_network, tmp_path, ["clearsr", "autoencoder", "clearsr"], {"steps": 7})
    loaded = load_network(tmp_path)
    assert _equal(loaded.network, tiny_network) and loaded.network.config == tiny_network.config
    assert loaded.sampling == {"steps": 7} and loaded.stages == ["autoencoder", "clearsr"]
    assert not loaded.network.training
    assert not any(p.requires_grad for p in loaded.network.parameters())
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]  # nothing left aside


def test_loaded_network_computes_the_same(tiny_network, tmp_path, normal, make_picture):
    save_network(tiny_network, tmp_path, STAGES)
    loaded = load_network(str(tmp_path)).network
    pixels = make_picture(64, 64)[None] * 2 - 1
    arguments = (normal(1, 8, 8, 8), torch.tensor([99]), normal(1, 8, 8, 8, seed=1), normal(1, 1, 16))
    with torch.no_grad():
        for compute in (
            lambda n: n(*arguments),
            lambda n: n.latents.embed_lr(pixels).mean,
            lambda n: n.latents.encode_hr(pixels),
            lambda n: n.latents.decode(arguments[0]),
            lambda n: n.image_prompt(pixels),
        ):
            assert torch.equal(compute(loaded), compute(tiny_network))


def test_measured_scaling_factor_survives(make_network, tmp_path):
    network = make_network()
    set_scaling_factor(network, 0.123)
    assert network.latents.scaling_factor == 0.123
    save_network(network, tmp_path, STAGES)
    loaded = load_network(tmp_path).network
    assert loaded.latents.scaling_factor == 0.123 == loaded.config.autoencoder.scaling_factor


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_others_may_read_the_weights_as_the_umask_says(network, tmp_path, mask):
    before = os.umask(mask)
    try:
        save_network(network, tmp_path, STAGES)
        (tmp_path / "other").touch()
    finally:
        after = os.umask(before)
    assert after == mask
    modes = {(tmp_path / name).stat().st_mode & 0o777 for name in (WEIGHTS_NAME, CONFIG_NAME, "other")}
    assert modes == {0o666 & ~mask}


@pytest.mark.parametrize(("count", "listed"), [(1, "a"), (3, "a, b, c"), (4, "a, b, c and 1 more")])
def test_of_many_names_three_are_listed(tmp_path, count, listed):
    shapes = {name: (1,) for name in "abcd"[:count]}
    for expected, found, problem in (
        (shapes, {}, "lacks"),
        ({}, shapes, "has unknown"),
        (shapes, {name: (2,) for name in shapes}, "has another shape of"),
    ):
        with pytest.raises(ClearSRError) as caught:
            check_shapes(expected, found, tmp_path)
        assert str(caught.value).endswith(f"does not fit its config.json: it {problem} {listed}")
    check_shapes(shapes, dict(shapes), tmp_path)


def test_half_precision_halves_the_file_and_rounds_once(network, folder, tmp_path):
    save_network(network, tmp_path / "half", STAGES, dtype=torch.float16)
    sizes = [(path / WEIGHTS_NAME).stat().st_size for path in (folder, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    state = network.state_dict()
    for name, value in load_network(tmp_path / "half").network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].half().float())


def test_what_half_precision_cannot_hold_is_refused_and_nothing_is_written(make_network, folder):
    before = (folder / WEIGHTS_NAME).read_bytes()
    spoilt = make_network(seed=5)
    with torch.no_grad():
        spoilt.null_prompt[0, 0, 0] = -70000.0
    with pytest.raises(
        ClearSRError, match=r"null_prompt has values up to 7e\+04, too large for torch.float16"
    ):
        save_network(spoilt, folder, STAGES, dtype=torch.float16)
    assert (folder / WEIGHTS_NAME).read_bytes() == before
    save_network(spoilt, folder, STAGES)
    assert load_network(folder).network.null_prompt[0, 0, 0] == -70000.0


def test_saving_replaces_what_was_there(make_network, folder):
    other = make_network(seed=5)
    save_network(other, folder, ["autoencoder"])
    loaded = load_network(folder)
    assert _equal(loaded.network, other) and loaded.stages == ["autoencoder"] and loaded.sampling == {}


def test_unwritable_folder(network, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ClearSRError, match="file: the model cannot be written") as error:
        save_network(network, tmp_path / "file", STAGES)
    assert "\n" not in str(error.value)


def test_a_stage_takes_over_what_earlier_stages_trained(make_network, tmp_path):
    trained, network, untouched = make_network(seed=1), make_network(seed=2), make_network(seed=2)
    set_scaling_factor(trained, 0.5)
    save_network(trained, tmp_path, ["autoencoder", "lr_encoder"])
    assert start_from(network, tmp_path) == ["autoencoder", "lr_encoder"]
    assert network.latents.scaling_factor == 0.5
    before, after, given = (n.state_dict() for n in (untouched, network, trained))
    for name, value in after.items():
        comes_from = given if name.startswith("latents.") else before
        assert torch.equal(value, comes_from[name]), name


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("latents.vae.encoder.conv_in.weight", ["autoencoder"]),
        ("latents.vae.encoder.conv_in.base_layer.weight", ["autoencoder"]),
        ("latents.vae.encoder.conv_in.lora_A.clearsr.weight", ["clearsr"]),
        ("latents.lr_encoder.conv_in.weight", ["lr_encoder"]),
        ("unet.conv_in.weight", ["prior", "clearsr"]),
        ("unet.up_blocks.0.lora_A.clearsr.weight", ["clearsr"]),
        ("detail_preserving.conv_in.weight", ["clearsr"]),
        ("null_prompt", ["prior", "clearsr"]),
    ],
)
def test_every_tensor_belongs_to_the_stages_that_train_it(name, stages):
    assert list(stages_of(name)) == stages


def test_a_layer_that_gets_a_lora_takes_its_weight_over(make_network, tmp_path):
    plain = make_network(seed=1, unet_lora_rank=0, prediction="epsilon")
    save_network(plain, tmp_path, ["autoencoder", "prior"])
    changes = {"lr_encoder": {"kind": "lora", "lora_rank": 2}, "prediction": "epsilon"}
    wrapped = make_network(seed=2, unet_lora_rank=2, **changes)
    assert start_from(wrapped, tmp_path) == ["autoencoder", "prior"]
    after, given = wrapped.state_dict(), plain.state_dict()
    taken = [n for n in after if n.startswith(("latents.vae.", "unet.", "null")) and "lora_" not in n]
    assert any(".base_layer." in n and n.startswith("unet.") for n in taken)
    assert any(".base_layer." in n and n.startswith("latents.vae.encoder.") for n in taken)
    assert all(torch.equal(after[n], given[n.replace(".base_layer.", ".")]) for n in taken)


@pytest.mark.parametrize("stage", ["prior", "clearsr"])
def test_a_unet_that_predicts_something_else_is_refused(make_network, tmp_path, stage):
    save_network(make_network(prediction="epsilon"), tmp_path, ["autoencoder", stage])
    with pytest.raises(ClearSRError, match="model.prediction: v_prediction.*set it to epsilon"):
        start_from(make_network(prediction="v_prediction"), tmp_path)


def test_on_a_frozen_base_only_what_was_trained_is_stored(make_config, randomise, tmp_path):
    network = _based(make_config, randomise, 1, train_unet="lora")
    save_network(network, tmp_path, ["clearsr"])
    stored = load_file(tmp_path / WEIGHTS_NAME)
    assert read_description(tmp_path)["model"]["base_model"] == "someone/base"
    own = ("detail_preserving.", "structure_preserving.", "null_prompt")
    expected = {n for n in network.state_dict() if n.startswith(own) or "lora_" in n}
    assert stored.keys() == expected
    network.set_trainable()
    assert {n for n, p in network.named_parameters() if p.requires_grad} <= expected
    other = _based(make_config, randomise, 2, train_unet="lora")
    assert not _equal(other, network)
    start_from(other, tmp_path)  # the VAE's LoRA too
    after, given = other.state_dict(), network.state_dict()
    assert all(torch.equal(after[name], given[name]) for name in expected)


def test_a_base_that_is_trained_whole_is_stored_whole(make_config, randomise, tmp_path):
    network = _based(make_config, randomise, 1, train_unet="full")
    save_network(network, tmp_path, ["clearsr"])
    network.set_trainable()
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    assert trained <= load_file(tmp_path / WEIGHTS_NAME).keys()


def _spoil_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_NAME)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("null_prompt"), "lacks null_prompt"),
        (lambda t: t.update(extra=torch.zeros(1)), "has unknown extra"),
        (lambda t: t.update(null_prompt=torch.zeros(1, 3, 16)), "has another shape of null_prompt"),
        (lambda t: t.update(nul_prompt=t.pop("null_prompt")), "lacks null_prompt"),
        (lambda t: t.clear(), r"lacks .* and \d+ more"),
    ],
)
def test_tensors_that_do_not_fit(folder, change, message):
    _spoil_tensors(folder, change)
    with pytest.raises(ClearSRError, match=message) as error:
        load_network(folder)
    assert str(folder / WEIGHTS_NAME) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_damaged_weights(folder, content):
    path = folder / WEIGHTS_NAME
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ClearSRError, match="model.safetensors: cannot be read as safetensors") as error:
        load_network(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: "not json", "is not a description of a ClearSR model"),
        (lambda d: "[1, 2]", "is not a description of a ClearSR model"),
        (lambda d: json.dumps({"_class_name": "UNet"}), "names no format"),
        (lambda d: json.dumps({**d, "format": 99}), "has format 99; this version reads format 1"),
        (lambda d: json.dumps({**d, "model": "compact"}), "needs 'model', a mapping"),
        (lambda d: json.dumps({**d, "stages": None}), "needs 'stages', a list"),
        (
            lambda d: json.dumps({k: v for k, v in d.items() if k != "sampling"}),
            "needs 'sampling', a mapping",
        ),
        (lambda d: json.dumps({**d, "model": {**d["model"], "unett": {}}}), "did you mean unet"),
        (lambda d: json.dumps({**d, "model": {**d["model"], "null_prompt_tokens": 0}}), "null_prompt_tokens"),
    ],
)
def test_damaged_description(folder, change, message):
    description = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(change(description))
    with pytest.raises(ClearSRError, match=message) as error:
        load_network(folder)
    assert "\n" not in str(error.value)


def test_folder_without_a_model(tmp_path, folder):
    with pytest.raises(ClearSRError, match=f"needs {CONFIG_NAME} and {WEIGHTS_NAME}"):
        load_network(tmp_path)
    (folder / WEIGHTS_NAME).unlink()
    with pytest.raises(ClearSRError, match=f"needs {CONFIG_NAME} and {WEIGHTS_NAME}"):
        load_network(folder)


@pytest.mark.parametrize("name", ["compcat", "someone/no-such-model", "/no/such/folder", "a/b/c", "~"])
def test_unknown_model_names_what_is_accepted(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ClearSRError, match="neither an embedded model \\(compact\\)") as error:
        load_network(name)
    assert "\n" not in str(error.value)


def test_a_base_for_a_model_that_has_none(folder):
    with pytest.raises(ClearSRError, match="--base-model some/base: .* has no base"):
        load_network(folder, base_model="some/base")


def test_a_moved_folder_still_loads(folder, network, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    assert _equal(load_network(tmp_path / "elsewhere").network, network)
