"""Finding and refusing bases: every mistake is one line that names the part and what is accepted."""

import hashlib
import json
import logging
import os
import shutil

import diffusers
import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects

from clearsr import ClearSRError
from clearsr.cli import main
from clearsr.config.base import build_config
from clearsr.config.model import (
    SD21_BASE_MODELS,
    SD21_IMAGE_ENCODER,
    ModelConfig,
    preset_model_config,
)
from clearsr.models import base_model
from clearsr.models.base_model import (
    base_digests,
    check_unet_and_vae,
    locate_base,
    read_part_config,
    weights_files,
)
from clearsr.models.build import base_configs, build_network, resolve_base
from clearsr.models.checkpoint import load_network
from clearsr.models.pretrained import encode_text, load_part
from clearsr.models.sd21 import PART_CONFIGS

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_config(base, **fields):
    return build_config(ModelConfig, {"base_model": str(base), "image_encoder": None, **fields})


def refusal(base, **fields):
    """The one line that building on this base ends in."""
    with pytest.raises(ClearSRError) as caught:
        build_network(make_config(base, **fields))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "image_encoder"])
def test_a_missing_part_is_named(base_copy, part):
    shutil.rmtree(base_copy / part)
    message = refusal(base_copy)
    assert part in message and str(base_copy) in message and "is missing" in message


def test_a_part_without_its_description(base_copy):
    (base_copy / "unet" / "config.json").unlink()
    assert "its part unet/ lacks config.json" in refusal(base_copy)
    shutil.rmtree(base_copy / "unet")
    assert "its part unet/ is missing" in refusal(base_copy)


def test_wrong_cross_attention_width(base_copy):
    edit(base_copy / "unet" / "config.json", cross_attention_dim=48)
    message = refusal(base_copy)
    assert "48" in message and "32" in message and "text_encoder" in message


def test_wrong_image_encoder_width(base_copy):
    edit(base_copy / "image_encoder" / "config.json", projection_dim=40)
    message = refusal(base_copy)
    assert message.startswith("--image-encoder") and "40" in message and "32" in message


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "image_encoder"])
def test_pickled_weights_are_refused(base_copy, part):
    weights = next((base_copy / part).glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    message = refusal(base_copy)
    assert f"{part}" in message and weights.with_suffix(".bin").name in message and "safetensors" in message


def test_damaged_weights(base_copy):
    path = base_copy / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert str(base_copy / "vae") in refusal(base_copy)


@pytest.mark.parametrize(("part", "stem"), [("unet", "diffusion_pytorch_model"), ("image_encoder", "model")])
def test_weights_that_lack_a_tensor(base_copy, part, stem):
    """The libraries would fill it with random numbers."""
    from safetensors.torch import load_file, save_file

    path = base_copy / part / f"{stem}.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.weight" if part == "unet" else "visual_projection.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    assert str(base_copy / part) in refusal(base_copy)


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("unet/config.json", {"in_channels": 9}, ["9 channels", "inpainting"]),
        ("unet/config.json", {"class_embed_type": "projection"}, ["class_embed_type"]),
        ("unet/config.json", {"_class_name": "FluxTransformer2DModel"}, ["unet", "FluxTransformer2DModel"]),
        ("vae/config.json", {"_class_name": "AutoencoderDC"}, ["vae", "AutoencoderDC"]),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, ["prediction_type sample"]),
        ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}, ["beta_schedule linear"]),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, ["rescale_betas_zero_snr"]),
    ],
)
def test_other_kinds_of_models_are_refused(base_copy, file, values, words):
    edit(base_copy / file, **values)
    message = refusal(base_copy)
    assert all(word in message for word in words)


@pytest.mark.parametrize("unet", [{}, {"in_channels": 4}, {"out_channels": 4, "class_embed_type": None}])
@pytest.mark.parametrize("vae", [{}, {"latent_channels": 4, "_class_name": "AutoencoderKL"}])
def test_what_a_description_leaves_out_is_as_diffusers_has_it(unet, vae):
    check_unet_and_vae(unet, vae, "a base")
    with pytest.raises(ClearSRError, match="takes 4 channels and its VAE gives 16"):
        check_unet_and_vae(unet, {**vae, "latent_channels": 16}, "a base")
    for changed in ({"in_channels": 5}, {"out_channels": 8}):
        with pytest.raises(ClearSRError, match="no inpainting, depth or upscaling model"):
            check_unet_and_vae({**unet, **changed}, vae, "a base")


def test_a_folder_is_known_by_its_whole_path_from_wherever_it_was_named(base, monkeypatch):
    monkeypatch.chdir(base.parent)
    monkeypatch.setenv("HOME", str(base.parent))
    for name in (base.name, f"./{base.name}", f"~/{base.name}", str(base)):
        found = locate_base(name, None, ("unet",))
        assert found == (base.resolve(), str(base.resolve()), None) and found.name() == str(base.resolve())


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"train_unet": "full"}, "train_unet"),
        ({"lr_encoder": {"kind": "separate"}}, "lr_encoder.kind"),
        ({"prediction": "lr_anchored"}, "prediction"),
        ({"prediction": "v_prediction"}, "predicts epsilon"),
        ({"control": {"window_size": 12}}, "window_size"),
    ],
)
def test_settings_that_a_base_does_not_allow(base, fields, word):
    assert word in refusal(base, **fields)


def test_a_window_may_be_any_multiple_of_the_coarsest_level(base):
    assert "accepted: null, or a multiple of 8" in refusal(base, control={"window_size": 12})
    build_network(make_config(base, control={"window_size": 24}))


def test_with_a_null_prompt_no_text_encoder_is_looked_for(base_copy):
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(base_copy / part)
    prompt = torch.arange(96.0).view(1, 3, 32)
    assert torch.equal(build_network(make_config(base_copy), null_prompt=prompt).null_prompt, prompt)
    edit(base_copy / "image_encoder" / "config.json", projection_dim=40)
    with pytest.raises(ClearSRError, match="--image-encoder"):
        build_network(make_config(base_copy), null_prompt=prompt)


@pytest.mark.parametrize("revision", ["", "@main"])
def test_stable_diffusion_is_described_without_the_hub(offline, revision):
    config = preset_model_config("sd21")
    for name in SD21_BASE_MODELS:
        named = config.model_copy(update={"base_model": name, "image_encoder": SD21_IMAGE_ENCODER + revision})
        assert base_configs(named) is PART_CONFIGS
    with pytest.raises(ClearSRError, match="someone/else"):
        base_configs(config.model_copy(update={"base_model": "someone/else"}))
    with pytest.raises(ClearSRError, match="--base-model"):
        base_configs(config.model_copy(update={"image_encoder": None}))


@pytest.fixture
def hub(base, tmp_path, monkeypatch):
    """The hub with `someone/sd` and `someone/clip`; of a snapshot there is what was fetched."""
    fetched, stored = set(), {"someone/sd": base, "someone/clip": base / "image_encoder"}

    def snapshot_download(source, revision=None, allow_patterns=None):
        assert revision in (None, COMMIT)
        names = [str(p.relative_to(stored[source])) for p in stored[source].rglob("*") if p.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            fetched.add(f"{source}/{name}")
            target = tmp_path / source / COMMIT / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(stored[source] / name, target)
        return str(tmp_path / source / COMMIT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return fetched


@pytest.mark.parametrize("encoder", [None, "someone/clip", f"someone/clip@{COMMIT}"])
def test_a_base_on_the_hub_is_described_without_weights_and_then_built(base, hub, encoder):
    config = make_config("someone/sd", image_encoder=encoder)
    configs = base_configs(config)
    assert {part: c.keys() for part, c in configs.items()} == {
        part: json.loads((base / part / "config.json").read_text()).keys() for part in configs
    }
    assert configs.keys() == {"unet", "vae", "text_encoder", "image_encoder"}
    assert not [name for name in hub if name.endswith(".safetensors")]
    network = build_network(config)
    assert network.null_prompt.shape == (1, 16, 32)
    assert (network.config.base_model, network.config.base_revision) == ("someone/sd", COMMIT)
    assert network.config.image_encoder == (encoder and f"someone/clip@{COMMIT}")
    files = {part: [str(file) for file in found] for part, found in network.base_files.items()}
    assert files.keys() == {"unet", "vae", "image_encoder"}
    for part, (file,) in files.items():
        place = "someone/clip" if encoder and part == "image_encoder" else f"someone/sd/{COMMIT}/{part}"
        assert place in file and file.endswith(".safetensors")
    assert ("someone/sd/image_encoder/model.safetensors" in hub) == (encoder is None)


@pytest.mark.parametrize("keep", [False, True])
def test_init_settles_what_the_base_decides(hub, keep):
    found = resolve_base(make_config("someone/sd", image_encoder="someone/clip"), keep_image_encoder=keep)
    assert (found.base_model, found.base_revision, found.prediction) == ("someone/sd", COMMIT, "epsilon")
    assert found.image_encoder == (f"someone/clip@{COMMIT}" if keep else None)
    assert ("someone/sd/image_encoder/model.safetensors" in hub) != keep
    assert resolve_base(make_config("someone/sd", image_encoder="someone/clip")).image_encoder is None


def test_not_json(base_copy):
    (base_copy / "unet" / "config.json").write_text("{")
    assert "config.json" in refusal(base_copy)


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert main(["init", "--base-model", str(tmp_path / "nowhere"), "-o", str(tmp_path / "o")]) == 1
    error = capsys.readouterr().err
    assert "no such folder" in error and error.count("\n") == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "name", ["/nowhere", "./nowhere", "../nowhere", "~/nowhere", ".hidden/x", "a", "a/b/c"]
)
def test_what_can_only_be_a_folder_is_not_looked_for_on_the_hub(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ClearSRError, match="no such folder"):
        locate_base(name, None, ("unet",))


HUB = [
    *(f"unet/diffusion_pytorch_model{end}" for end in (".safetensors", ".fp16.safetensors", ".bin")),
    *(f"vae/diffusion_pytorch_model{end}" for end in (".safetensors", ".non_ema.safetensors", ".bin")),
    *(f"text_encoder/model{end}" for end in ("-00001-of-00002.safetensors", ".safetensors.index.json")),
    *("unet/config.json", "vae/config.json", "text_encoder/config.json", "tokenizer/config.json"),
    *(
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer/notes.md",
    ),
    *("tokenizer/tokenizer.json", "tokenizer/special_tokens_map.json", "scheduler/config.json"),
    *("scheduler/scheduler_config.json", "v2-1_512-ema-pruned.ckpt", "model_index.json", "README.md"),
]
TOKENIZER = [
    name for name in HUB if name.startswith("tokenizer/") and name[10:] not in ("config.json", "notes.md")
]


@pytest.mark.parametrize(
    ("parts", "with_weights", "fetched"),
    [
        (("unet",), True, ["unet/diffusion_pytorch_model.safetensors", "unet/config.json"]),
        (("unet", "vae"), False, ["unet/config.json", "vae/config.json"]),
        (("text_encoder",), True, [name for name in HUB if name.startswith("text_encoder/")]),
        (("tokenizer", "scheduler"), True, [*TOKENIZER, "scheduler/scheduler_config.json"]),
        (("tokenizer", "scheduler"), False, [*TOKENIZER, "scheduler/scheduler_config.json"]),
    ],
)
def test_of_the_hub_only_what_is_needed_is_fetched(parts, with_weights, fetched, monkeypatch, tmp_path):
    """One precision, safetensors, and no weights where none are wanted."""
    asked = []

    def snapshot_download(source, revision, allow_patterns):
        asked.append((source, revision))
        found = filter_repo_objects(HUB, allow_patterns=allow_patterns)
        assert sorted(found) == sorted(fetched)
        return str(tmp_path / COMMIT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = locate_base("someone/tiny-sd", "main", parts, with_weights)
    assert asked == [("someone/tiny-sd", "main")] and found == (tmp_path / COMMIT, "someone/tiny-sd", COMMIT)
    assert found.name() == f"someone/tiny-sd@{COMMIT}"


@pytest.mark.parametrize("name", ["", "empty", "a/b/c", "not an id"])
def test_names_that_are_no_base(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["init", "--base-model", name, "-o", "out"]) == 1
    error = capsys.readouterr().err
    assert f"--base-model {name}" in error.replace(f"{tmp_path}/", "") and error.count("\n") == 1


def test_offline_hub_id_names_both_mirrors(offline, tmp_path, capsys):
    assert main(["init", "-o", str(tmp_path / "o")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--base-model" in error
    assert all(mirror in error for mirror in SD21_BASE_MODELS)


def test_the_mirror_takes_over_and_is_pinned(base, put_in_cache, caplog):
    put_in_cache(base, SD21_BASE_MODELS[1], COMMIT)
    found = locate_base(SD21_BASE_MODELS[0], None, ("unet", "vae"))
    assert (found.source, found.revision) == (SD21_BASE_MODELS[1], COMMIT)
    assert (found.folder / "unet" / "config.json").is_file()
    assert SD21_BASE_MODELS[1] in caplog.text


def test_a_hub_base_is_pinned_to_its_commit(base, put_in_cache, tmp_path):
    put_in_cache(base, "someone/tiny-sd", COMMIT)
    out = tmp_path / "out"
    assert main(["init", "--base-model", "someone/tiny-sd", "-o", str(out)]) == 0
    network = load_network(out).network
    assert (network.config.base_model, network.config.base_revision) == ("someone/tiny-sd", COMMIT)
    from_folder = build_network(make_config(base))
    assert torch.equal(network.unet.conv_in.weight, from_folder.unet.conv_in.weight)


def test_revision_of_a_folder_is_refused(base, tmp_path, capsys):
    command = ["init", "--base-model", str(base), "--revision", "main", "-o", str(tmp_path / "o")]
    assert main(command) == 1
    assert "--revision main" in capsys.readouterr().err


def test_the_users_image_encoder_wins_over_the_bases(base, base_copy, put_in_cache, tmp_path):
    put_in_cache(base / "image_encoder", "someone/tiny-clip", COMMIT)
    for name, stored in (
        (str(base_copy / "image_encoder"), str((base_copy / "image_encoder").resolve())),
        ("someone/tiny-clip", f"someone/tiny-clip@{COMMIT}"),
    ):
        config = resolve_base(make_config(base, image_encoder=name), keep_image_encoder=True)
        assert config.image_encoder == stored
        assert base_configs(config)["image_encoder"]["projection_dim"] == 32
        build_network(config)


def test_a_whole_clip_is_read_as_its_image_encoder(tmp_path, base_copy):
    """The file of a CLIPModel, whose nested configuration states another projection."""
    path = base_copy / "image_encoder" / "config.json"
    vision = {**json.loads(path.read_text()), "projection_dim": 512}
    text = {"hidden_size": 16}
    path.write_text(
        json.dumps({"model_type": "clip", "projection_dim": 32, "vision_config": vision, "text_config": text})
    )
    assert read_part_config(path.parent)["projection_dim"] == 32
    assert build_network(make_config(base_copy)).image_prompt.encoder.visual_projection.out_features == 32


def test_without_a_scheduler_epsilon_is_taken_and_said(base_copy, caplog):
    shutil.rmtree(base_copy / "scheduler")
    assert resolve_base(make_config(base_copy)).prediction == "epsilon"
    assert "scheduler" in caplog.text


def test_init_is_for_bases_only(base, tmp_path, capsys):
    assert main(["init", "--base-model", str(base), "-o", str(tmp_path), "--set", "preset=compact"]) != 0
    assert "preset" in capsys.readouterr().err


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_a_part_is_known_by_its_weights_in_one_file_or_several(tmp_path, monkeypatch):
    """Bytes beyond one read, too."""
    monkeypatch.setattr(base_model, "_CHUNK", 4)
    contents = {"one": b"0123456789", "two": b"", "three": b"0123"}
    files = {name: tmp_path / name for name in contents}
    for name, content in contents.items():
        files[name].write_bytes(content)
    found = base_digests({"vae": [files["one"]], "unet": [*files.values()], "text_encoder": []})
    each = [sha256(content) for content in contents.values()]
    assert found == {"vae": each[0], "unet": sha256("".join(each).encode()), "text_encoder": sha256(b"")}


def test_a_file_that_has_changed_is_read_again_and_no_other(tmp_path, monkeypatch):
    file, reads = tmp_path / "weights", []
    monkeypatch.setattr(base_model, "sha256_of", lambda path: reads.append(path) or f"read {len(reads)}")
    file.write_bytes(b"before")
    assert [base_digests({"vae": [file]})["vae"] for _ in range(2)] == ["read 1"] * 2
    file.write_bytes(b"after")
    os.utime(file, ns=(1, 1))
    assert base_digests({"vae": [file]})["vae"] == "read 2"


@pytest.mark.parametrize("name", ["0123456789abcdef" * 4, "0123456789abcdef" * 3, "f" * 65])
def test_the_hubs_cache_tells_what_a_file_is_by_its_name(tmp_path, name):
    """A link to a file named by its SHA-256 is not read; one named by anything else is."""
    blob = tmp_path / name
    blob.write_bytes(b"weights")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert base_digests({"vae": [link]}) == {"vae": name if len(name) == 64 else sha256(b"weights")}


def test_weights_in_full_precision_are_taken_where_there_are_both(tmp_path):
    half = tmp_path / "model.fp16.safetensors"
    half.touch()
    assert weights_files(tmp_path, "text_encoder") == [half]
    parts = [tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (2, 1)]
    for file in parts:
        file.touch()
    assert weights_files(tmp_path, "text_encoder") == parts[::-1]
    assert weights_files(tmp_path, "unet") == []


@pytest.mark.parametrize("has_bars", [True, False])
@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR])
def test_loading_says_nothing_and_leaves_the_libraries_as_talkative_as_they_were(
    base, base_copy, has_bars, level, capfd
):
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    bars = transformers.utils.logging
    before = [library.get_verbosity() for library in libraries], bars.is_progress_bar_enabled()
    (base_copy / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    try:
        for library in libraries:
            library.set_verbosity(level)
        (bars.enable_progress_bar if has_bars else bars.disable_progress_bar)()
        capfd.readouterr()
        load_part("text_encoder", base / "text_encoder")
        encode_text(str(base), "blurry")
        with pytest.raises(ClearSRError):
            load_part("vae", base_copy / "vae")
        assert capfd.readouterr() == ("", "")
        assert [library.get_verbosity() for library in libraries] == [level] * 2
        assert bars.is_progress_bar_enabled() == has_bars
    finally:
        for library, was in zip(libraries, before[0], strict=True):
            library.set_verbosity(was)
        (bars.enable_progress_bar if before[1] else bars.disable_progress_bar)()
