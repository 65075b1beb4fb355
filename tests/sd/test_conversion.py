"""`clearsr convert`: folders and files in published layouts, written by the libraries at tiny size.

The original names (one file, as Stable Diffusion, ControlNet and DiffBIR are published) are checked against
diffusers' own converters, which know the same names by other code.
"""

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint, convert_ldm_unet_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file

from clearsr.cli import main
from clearsr.config.base import build_config
from clearsr.config.training import TrainConfig
from clearsr.models.checkpoint import load_network
from clearsr.models.conversion import Report, read_published
from clearsr.models.published_layouts import LDM, PAPER, moved
from clearsr.training.engine import fit
from clearsr.training.setup import prepare_network

RANKS = ["--set", "lr_encoder.lora_rank=2", "--set", "unet_lora_rank=2"]
DPM, SPM = "detail_preserving.", "structure_preserving."


def randomised(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


@pytest.fixture(scope="module")
def unet(base):
    return randomised(UNet2DConditionModel.from_pretrained(base / "unet"), 1)


@pytest.fixture(scope="module")
def controlnet(unet):
    return randomised(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8)), 2)


def original_name(name, layers):
    """diffusers' name -> the original one, told from diffusers' side: the inverse that our rows must undo."""
    head, _, rest = name.partition(".")
    inside = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }

    def resblock(text):
        layer, _, leaf = text.partition(".")
        return f"{inside[layer]}.{leaf}"

    fixed = {
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "controlnet_mid_block": "middle_block_out.0",
    }
    if head in fixed:
        return f"{fixed[head]}.{rest}"
    parts = rest.split(".", 3)
    if head == "time_embedding":
        return rest.replace("linear_1", "time_embed.0").replace("linear_2", "time_embed.2")
    if head == "controlnet_down_blocks":
        return f"zero_convs.{parts[0]}.0.{parts[1]}"
    if head == "mid_block":
        kind, index, leaf = rest.split(".", 2)
        return (
            f"middle_block.1.{leaf}"
            if kind == "attentions"
            else f"middle_block.{2 * int(index)}.{resblock(leaf)}"
        )
    level, kind, index, leaf = parts
    if head == "controlnet_cond_embedding":
        return f"input_hint_block.{rest}"
    first = int(level) * (layers + 1) + (1 if head == "down_blocks" else 0)
    stem = "input_blocks" if head == "down_blocks" else "output_blocks"
    if kind == "resnets":
        return f"{stem}.{first + int(index)}.0.{resblock(leaf)}"
    if kind == "attentions":
        return f"{stem}.{first + int(index)}.1.{leaf}"
    if kind == "downsamplers":
        return f"{stem}.{first + layers}.0.op.{leaf.removeprefix('conv.')}"
    return f"{stem}.{first + layers}.{1 if level == '0' else 2}.{leaf}"


def in_original_names(module, prefix=""):
    layers = module.config.layers_per_block
    state = {n: t for n, t in module.state_dict().items() if not n.startswith("controlnet_cond_embedding.")}
    return {prefix + original_name(name, layers): tensor.clone() for name, tensor in state.items()}


def convert(*arguments):
    return main(["convert", *map(str, arguments), *RANKS])


def report_of(folder):
    return json.loads((folder / "conversion.json").read_text())


def ours_of(folder):
    return load_file(folder / "model.safetensors")


def assert_control_is(folder, expected, conv_in=True):
    """Each tensor of DPM, SPM and zero convolutions that a ControlNet has is the ControlNet's."""
    ours, seen = ours_of(folder), set()
    for name, value in expected.items():
        if name.startswith("controlnet_cond_embedding.") or (name.startswith("conv_in.w") and not conv_in):
            continue
        mine = name.replace("controlnet_down_blocks.", "zero_convs.").replace(
            "controlnet_mid_block", "mid_zero_conv"
        )
        head, found, leaf = mine.partition(".transformer_blocks.0.")
        mine = f"{head}{found}block.{leaf}" if found else mine
        assert torch.equal(ours[DPM + mine], value), name
        seen.add(DPM + mine)
        parts = name.split(".")
        if "resnets" in parts and "down_blocks" in parts and "time_emb_proj" not in parts:
            mine = ".".join([f"{SPM}levels", parts[1], parts[3], *parts[4:]])
        elif "downsamplers" in parts:
            mine = ".".join([f"{SPM}levels", parts[1], "1", *parts[4:]])
        elif name.startswith("conv_in"):
            mine = SPM + name
        else:
            continue
        assert torch.equal(ours[mine], value), name
        seen.add(mine)
    left = {n for n in ours if n.startswith((DPM, SPM)) and ".lr_attention." not in n} - seen
    assert left == (set() if conv_in else {DPM + "conv_in.weight", SPM + "conv_in.weight"})


def test_a_controlnet_of_diffusers_fills_dpm_spm_and_zero_convolutions(controlnet, base, tmp_path, capsys):
    controlnet.save_pretrained(tmp_path / "controlnet")
    out = tmp_path / "out"
    assert convert(tmp_path / "controlnet", "--base-model", base, "-o", out) == 0
    assert_control_is(out, controlnet.state_dict())
    said = capsys.readouterr().out
    assert "controlnet_cond_embedding.blocks.0.bias and 7 more: reads a hint picture" in said
    report = report_of(out)
    hint = {n for n in controlnet.state_dict() if n.startswith("controlnet_cond_embedding.")}
    assert set(report["not_taken"]) == hint
    assert set(report["taken"]) | set(report["as_initialised"]) == set(ours_of(out))
    assert all(".lr_attention." in n or ".lora_" in n or n == "null_prompt" for n in report["as_initialised"])
    assert json.loads((out / "config.json").read_text())["model"]["base_model"] == str(base.resolve())
    assert not (out / "base").exists()


@pytest.mark.parametrize("prefix", ["", "control_model."])
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
def test_a_controlnet_in_one_file(controlnet, base, tmp_path, prefix, suffix):
    tensors = in_original_names(controlnet, prefix)
    theirs = convert_controlnet_checkpoint(dict(tensors), {"layers_per_block": 1})
    state = controlnet.state_dict()
    assert theirs.keys() == {n for n in state if "cond_embedding" not in n}
    assert all(torch.equal(theirs[name], state[name]) for name in theirs)
    file = tmp_path / f"control{suffix}"
    if suffix == ".safetensors":
        save_file(tensors, file)
    else:
        torch.save({"state_dict": tensors, "epoch": 3} if suffix == ".ckpt" else tensors, file)
    out = tmp_path / "out"
    assert convert(file, "--base-model", base, "-o", out) == 0
    assert_control_is(out, state)
    assert report_of(out)["not_taken"] == {}


def test_the_first_convolution_of_diffbir_does_not_fit_and_is_said(controlnet, base, tmp_path, capsys):
    """It reads z_t and the hint, eight channels; all else is taken."""
    tensors = in_original_names(controlnet)
    weight = tensors["input_blocks.0.0.weight"]
    tensors["input_blocks.0.0.weight"] = torch.cat([weight, weight], dim=1)
    torch.save(tensors, tmp_path / "v2.pth")
    out = tmp_path / "out"
    assert convert(tmp_path / "v2.pth", "--base-model", base, "-o", out) == 0
    assert_control_is(out, controlnet.state_dict(), conv_in=False)
    theirs = UNet2DConditionModel.from_pretrained(base / "unet").conv_in.weight
    assert torch.equal(ours_of(out)[DPM + "conv_in.weight"], theirs)
    report = report_of(out)
    assert report["not_taken"] == {"input_blocks.0.0.weight": "its shape is 16x8x3x3, here 16x4x3x3"}
    assert "16x8x3x3" in report["as_initialised"][DPM + "conv_in.weight"]
    assert "16x8x3x3" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["detail_preserving", "structure_preserving"])
def test_of_several_reasons_the_one_of_the_place_that_was_asked_for_is_said(
    controlnet, base, tmp_path, place
):
    tensors = in_original_names(controlnet)
    tensors["input_blocks.0.0.weight"] = tensors["input_blocks.0.0.weight"].repeat(1, 2, 1, 1)
    torch.save(tensors, tmp_path / "v2.pth")
    assert convert(tmp_path / "v2.pth", "--base-model", base, "-o", tmp_path / "out", "--into", place) == 0
    not_taken = report_of(tmp_path / "out")["not_taken"]
    assert not_taken["input_blocks.0.0.weight"] == "its shape is 16x8x3x3, here 16x4x3x3"
    assert not_taken["zero_convs.0.0.weight"] == "left out by --into"


def write_seesr(folder, unet, controlnet):
    """SeeSR's two folders: diffusers' models with `image_attentions` beside `attentions`."""
    for name, module in (("unet", unet), ("controlnet", controlnet)):
        module.save_pretrained(folder / name)
        file = folder / name / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        extra = {
            n.replace(".attentions.", ".image_attentions."): t + 1
            for n, t in tensors.items()
            if ".attentions." in n
        }
        save_file(tensors | extra, file)
    return folder


def test_seesr_brings_its_controlnet_and_its_unet(unet, controlnet, base, tmp_path):
    seesr = write_seesr(tmp_path / "seesr", unet, controlnet)
    out = tmp_path / "out"
    assert convert(seesr, "--base-model", base, "-o", out) == 0
    assert_control_is(out, controlnet.state_dict())
    report = report_of(out)
    reasons = set(report["not_taken"].values())
    assert len(reasons) == 2 and any("SeeSR's tags" in reason for reason in reasons)
    network = load_network(out).network
    for name, value in UNet2DConditionModel.from_pretrained(out / "base" / "unet").state_dict().items():
        assert torch.equal(value, unet.state_dict()[name])
        assert report["taken"][f"unet.{name}"] == name
    assert torch.equal(network.unet.conv_in.weight, unet.conv_in.weight)
    for part in ("vae", "text_encoder", "image_encoder"):
        (ours,), (theirs,) = ((root / part).glob("*.safetensors") for root in (out / "base", base))
        assert ours.read_bytes() == theirs.read_bytes()
    moved_to = tmp_path / "elsewhere"
    out.rename(moved_to)
    assert load_network(moved_to).network.config.base_model == str((moved_to / "base").resolve())


def test_places_can_be_chosen(unet, controlnet, base, tmp_path):
    seesr = write_seesr(tmp_path / "seesr", unet, controlnet)
    out = tmp_path / "out"
    assert convert(seesr, "--base-model", base, "-o", out, "--into", "structure_preserving") == 0
    assert not (out / "base").exists()
    report, ours = report_of(out), ours_of(out)
    assert {name.split(".")[0] for name in report["taken"]} == {"structure_preserving"}
    assert not ours[DPM + "mid_zero_conv.weight"].any()
    assert report["not_taken"]["controlnet_mid_block.weight"] == "left out by --into"
    assert report["not_taken"]["conv_out.weight"] == "left out by --into"


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_stable_diffusion_in_one_file(unet, base, tmp_path, suffix):
    """Its U-Net becomes the base's, and DPM and SPM begin as copies of it."""
    tensors = in_original_names(unet, "model.diffusion_model.")
    theirs = convert_ldm_unet_checkpoint(dict(tensors), {"layers_per_block": 1})
    assert theirs.keys() == unet.state_dict().keys()
    assert all(torch.equal(theirs[name], value) for name, value in unet.state_dict().items())
    others = ("first_stage_model.encoder.conv_in.weight", "cond_stage_model.model.ln_final.bias", "betas")
    tensors |= {name: torch.ones(3) for name in others}
    file = tmp_path / f"v2-1_512-ema-pruned{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": tensors}, file)
    else:
        save_file(tensors, file)
    out = tmp_path / "out"
    assert convert(file, "--base-model", base, "-o", out) == 0
    network = load_network(out).network
    state = network.state_dict()
    for name, value in unet.state_dict().items():
        wrapped = name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
        assert torch.equal(state.get(f"unet.{name}", state.get(f"unet.{wrapped}")), value), name
    assert torch.equal(network.detail_preserving.conv_in.weight, unet.conv_in.weight)
    assert torch.equal(network.structure_preserving.conv_in.weight, unet.conv_in.weight)
    report = report_of(out)
    assert set(report["not_taken"]) == set(others) and len(set(report["not_taken"].values())) == 2
    assert "copied from the base's U-Net" in report["as_initialised"][DPM + "conv_in.weight"]


def test_a_pickled_base_becomes_one_in_safetensors(base_copy, base, tmp_path):
    for part in ("unet", "vae", "text_encoder", "image_encoder"):
        (file,) = (base_copy / part).glob("*.safetensors")
        stem = "diffusion_pytorch_model" if part in ("unet", "vae") else "pytorch_model"
        torch.save(load_file(file), base_copy / part / f"{stem}.bin")
        file.unlink()
    out = tmp_path / "out"
    assert convert(base_copy, "-o", out) == 0
    for part in ("unet", "vae", "text_encoder", "image_encoder"):
        (ours,), (theirs,) = ((root / part).glob("*.safetensors") for root in (out / "base", base))
        ours, theirs = load_file(ours), load_file(theirs)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert load_network(out).network.null_prompt.shape == (1, 16, 32)
    assert not list(out.rglob("*.bin"))


@pytest.mark.parametrize(
    ("stored", "taken"),
    [
        ((".bin", ".fp16.bin"), (".bin",)),
        ((".fp16.bin",), (".fp16.bin",)),
        (("-00001-of-00002.bin", "-00002-of-00002.bin"),) * 2,
        ((".bin", ".safetensors"), (".safetensors",)),
    ],
)
def test_of_a_folders_weights_one_form_is_read(tmp_path, stored, taken):
    """Safetensors before pickles, full precision before half."""
    for number, end in enumerate(stored):
        file = tmp_path / f"diffusion_pytorch_model{end}"
        tensors = {f"up_blocks.{number}.weight": torch.ones(2)}
        (save_file if end == ".safetensors" else torch.save)(tensors, file)
    report = Report()
    (piece,) = read_published(tmp_path, report)
    files = [str(tmp_path / f"diffusion_pytorch_model{end}") for end in taken]
    assert [source["path"] for source in report.sources] == files
    assert [*piece.tensors] == [f"up_blocks.{stored.index(end)}.weight" for end in taken]
    for source, file in zip(report.sources, files, strict=True):
        assert source["sha256"] == hashlib.sha256(Path(file).read_bytes()).hexdigest()


def paper_names(tensors):
    """A network's own tensors as ClearSR's file may name them, by the words in `PAPER`."""
    named = {}
    for name, value in tensors.items():
        for ours, theirs in (
            ("detail_preserving.zero_convs.", "dpm.controlnet_down_blocks."),
            ("detail_preserving.mid_zero_conv.", "dpm.controlnet_mid_block."),
            ("detail_preserving.", "dpm."),
        ):
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
        name = name.replace(".block.", ".").replace(".lr_attention.to_out.", ".ca.proj.")
        name = name.replace(".lr_attention.", ".ca.").replace(".clearsr.weight", ".weight")
        name = name.replace("latents.vae.", "vae_lora.")
        name = "unet_lora." + name.removeprefix("unet.") if name.startswith("unet.") else name
        if name.startswith("structure_preserving."):
            name = name.replace("structure_preserving.", "spm.")
            if name.startswith("spm.levels."):
                _, _, level, layer, leaf = name.split(".", 4)
                inner = "resnets" if layer == "0" else "downsamplers"
                name = f"spm.down_blocks.{level}.{inner}.0.{leaf}"
        if name.endswith(".ca.position_bias"):
            name, value = name.replace("position_bias", "relative_position_bias_table"), value.T.contiguous()
        named[name] = value
    for name in [n for n in named if n.endswith(".ca.to_k.weight")]:
        halves = [named.pop(name), named.pop(name.replace("to_k", "to_v"))]
        named[name.replace("to_k", "kv")] = torch.cat(halves)
    return named


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A ClearSR with random weights everywhere, and its tensors."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    assert main(["init", "--base-model", str(base), "-o", str(folder), *RANKS]) == 0
    generator = torch.Generator().manual_seed(4)
    return {
        name: value if name == "null_prompt" else torch.randn(value.shape, generator=generator)
        for name, value in load_file(folder / "model.safetensors").items()
    }


def test_the_place_for_clearsrs_own_weights(trained, base, tmp_path):
    named = paper_names({n: t for n, t in trained.items() if n != "null_prompt"})
    assert any(".ca.kv." in name for name in named) and not any(DPM in name for name in named)
    save_file(named, tmp_path / "clearsr.safetensors")
    out = tmp_path / "out"
    assert convert(tmp_path / "clearsr.safetensors", "--base-model", base, "-o", out) == 0
    ours = ours_of(out)
    assert ours.keys() == trained.keys()
    assert [name for name in ours if not torch.equal(ours[name], trained[name])] == []
    assert load_network(out).stages == ["clearsr"]


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("dpm.conv_in.weight", [DPM + "conv_in.weight"]),
        ("spm.conv_in.weight", [SPM + "conv_in.weight"]),
        ("gspm.down_blocks.1.resnets.0.conv1.bias", [SPM + "levels.1.0.conv1.bias"]),
        ("dpm.down_blocks.1.resnets.0.conv1.bias", [DPM + "down_blocks.1.resnets.0.conv1.bias"]),
        ("gspm.down_blocks.0.downsamplers.0.conv.bias", [SPM + "levels.0.2.conv.bias"]),
        ("dpm.time_embedding.linear_1.bias", [DPM + "time_embedding.linear_1.bias"]),
        ("spm.time_embedding.linear_1.bias", []),
        ("spm.mid_block.resnets.0.conv1.bias", []),
    ],
)
def test_by_the_papers_names_every_tensor_has_its_own_module(name, places):
    tensor = torch.ones(2)
    assert moved(name, tensor, PAPER, 2, "block.") == [(place, tensor) for place in places]


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_clearsrs_own_weights_fit_whole_or_not_at_all(trained, base, tmp_path, change, capsys):
    named = paper_names({n: t for n, t in trained.items() if n != "null_prompt"})
    if change == "missing":
        del named["dpm.conv_in.weight"]
    elif change == "unknown":
        named["dpm.gate.weight"] = torch.ones(3)
    else:
        named["dpm.conv_in.bias"] = torch.ones(3)
    save_file(named, tmp_path / "clearsr.safetensors")
    out = tmp_path / "out"
    assert convert(tmp_path / "clearsr.safetensors", "--base-model", base, "-o", out) == 1
    error = capsys.readouterr().err
    assert "must fit whole" in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clearsr.safetensors"]


class Harmful:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin", ".pt"])
def test_a_pickle_with_code_is_refused_and_does_not_run(controlnet, base, tmp_path, capsys, suffix):
    file = tmp_path / f"harmful{suffix}"
    torch.save({"state_dict": in_original_names(controlnet), "hyper_parameters": Harmful()}, file)
    assert convert(file, "--base-model", base, "-o", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "could run code" in said.err and said.err.count("\n") == 1
    assert "this ran" not in said.out + said.err
    plain = tmp_path / f"plain{suffix}"
    plain.write_bytes(pickle.dumps(Harmful()))
    assert convert(plain, "--base-model", base, "-o", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "this ran" not in said.out + said.err and said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_converted_is_said_in_one_line(unet, base, tmp_path, capsys):
    def fails(*arguments):
        code = convert(*arguments, "-o", tmp_path / "out")
        error = capsys.readouterr().err
        assert code in (1, 2) and error.count("\n") == 1 and not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".clearsr*"))
        return error

    known = ["--base-model", base]
    assert "neither a file nor a folder" in fails(tmp_path / "none", *known)
    (tmp_path / "empty").mkdir()
    assert "holds no weights" in fails(tmp_path / "empty", *known)
    save_file({"layers.0.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    assert "of no known layout" in fails(tmp_path / "other.safetensors", *known)
    assert "needs --base-model" in fails(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    assert "cannot be read" in fails(tmp_path / "broken.safetensors", *known)
    (tmp_path / "broken.ckpt").write_bytes(b"")
    assert "broken.ckpt" in fails(tmp_path / "broken.ckpt", *known)
    (tmp_path / "weights.npz").write_bytes(b"no")
    assert "accepted: safetensors" in fails(tmp_path / "weights.npz", *known)
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    assert "holds no tensors by name" in fails(tmp_path / "list.pth", *known)
    tensors = in_original_names(unet, "model.diffusion_model.")
    del tensors["model.diffusion_model.out.2.weight"]
    save_file(tensors, tmp_path / "part.safetensors")
    assert "1 of" in (error := fails(tmp_path / "part.safetensors", *known)) and "conv_out.weight" in error
    wide = {"zero_convs.0.0.weight": torch.ones(9, 9, 1, 1)}
    save_file(wide, tmp_path / "wide.safetensors")
    assert "its shape is 9x9x1x1, here 16x16x1x1" in fails(tmp_path / "wide.safetensors", *known)


def test_training_starts_from_it(unet, controlnet, base, tmp_path):
    """The stage begins with these very tensors, wherever the folder lies, and takes a step."""
    seesr = write_seesr(tmp_path / "seesr", unet, controlnet)
    assert convert(seesr, "--base-model", base, "-o", tmp_path / "out") == 0
    start = (tmp_path / "out").rename(tmp_path / "start")
    Image.effect_noise((80, 72), 50).convert("RGB").save(tmp_path / "photograph.png")
    values = {
        "stage": "clearsr",
        "output": str(tmp_path / "run"),
        "init_from": [str(start)],
        "model": {"lr_encoder": {"lora_rank": 2}, "unet_lora_rank": 2},
        "data": {"train": [str(tmp_path / "photograph.png")], "crop_size": 64, "workers": 0},
        "steps": 1,
        "batch_size": 1,
        "validate_every": 0,
    }
    config = build_config(TrainConfig, values)
    ours, expected = prepare_network(config)[0].state_dict(), load_network(start).network.state_dict()
    assert [name for name in expected if not torch.equal(ours[name], expected[name])] == []
    described = json.loads((fit(config) / "config.json").read_text())
    assert described["stages"] == ["clearsr"]
    assert described["model"]["base_model"] == str((start / "base").resolve())


def test_a_folder_that_is_there_is_left_alone(controlnet, base, tmp_path, capsys):
    controlnet.save_pretrained(tmp_path / "controlnet")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert convert(tmp_path / "controlnet", "--base-model", base, "-o", tmp_path / "out") == 1
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_rows_undo_the_original_names_at_full_size():
    """Stable Diffusion 2.1's own numbers of levels and layers, shapes only."""
    from clearsr.models.sd21 import UNET_CONFIG

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNET_CONFIG)
        controlnet = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    for module in (unet, controlnet):
        for name, value in module.state_dict().items():
            if not name.startswith("controlnet_cond_embedding."):
                ((found, tensor),) = moved(original_name(name, 2), value, LDM, 2)
                assert found == name and tensor is value
