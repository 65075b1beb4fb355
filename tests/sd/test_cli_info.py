"""`clearsr info`: what it prints is what it counts, and --json holds the same."""

import json
import shutil

import pytest

from clearsr.cli import main
from clearsr.config.model import preset_model_config
from clearsr.models.parameters import parameter_table, stored_parts


def test_preset_as_json(tmp_path, capsys):
    file = tmp_path / "table.json"
    assert main(["info", "--preset", "sd21", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report == parameter_table(preset_model_config("sd21")).as_dict()
    assert list(report) == ["trainable", "total", "parts"] and report["trainable"] == 526_046_090
    assert sum(report["parts"].values()) == report["total"]
    printed = capsys.readouterr().out
    assert all(f"{count:,}" in printed for count in report["parts"].values())
    assert "526.05" in printed and "525" in printed and "2511" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]


def test_ablation_on_the_command_line(tmp_path):
    file = tmp_path / "table.json"
    ablation = ["--set", "control.structure_preserving=false"]
    assert main(["info", "--preset", "sd21", *ablation, "--json", str(file)]) == 0
    assert "structure_preserving" not in json.loads(file.read_text())["parts"]


def test_model_on_a_base(untrained, tmp_path, capsys):
    file = tmp_path / "model.json"
    assert main(["info", "--model", str(untrained), "--json", str(file)]) == 0
    report, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert report["model"]["unet_lora_rank"] == 2 and "unet_lora_rank" in printed
    assert report["sampling"]["guidance_scale"] == 5.5 and "guidance_scale" in printed
    assert "control.window_size" in printed and "autoencoder.patch_size" not in printed
    assert report["stages"] == [] and "untrained" in printed
    assert f"{report['total']:,}" in printed and report["parts"]["unet"] > 0


def test_model_whose_base_is_gone(untrained, tmp_path, capsys):
    moved = tmp_path / "model"
    shutil.copytree(untrained, moved)
    config = json.loads((moved / "config.json").read_text())
    config["model"]["base_model"] = str(tmp_path / "gone")
    (moved / "config.json").write_text(json.dumps(config))
    assert main(["info", "--model", str(moved), "--json", str(tmp_path / "m.json")]) == 0
    assert "without the base" in capsys.readouterr().out
    assert json.loads((tmp_path / "m.json").read_text())["parts"] == stored_parts(moved / "model.safetensors")


def test_installation(tmp_path, capsys):
    import torch

    assert main(["info", "--json", str(tmp_path / "i.json")]) == 0
    report, printed = json.loads((tmp_path / "i.json").read_text()), capsys.readouterr().out
    assert report["versions"]["torch"] == torch.__version__ and torch.__version__ in printed
    assert report["devices"]["cpu"] in printed and "compact" in report["models"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--preset", "sd15"], "--preset"),
        (["--preset", "sd21", "--model", "compact"], "--model"),
        (["--preset", "sd21", "--json", "/nowhere/x.json"], "--json"),
        (["--model", "no/such/model"], "no/such/model"),
        (["--model", "compact", "--set", "unet_lora_rank=2"], "--set"),
        (["--preset", "sd21", "--set", "control.window_sise=8"], "window_size"),
        (["--preset", "sd21", "--set", "control.window_size=12"], "window_size"),
    ],
)
def test_mistakes_are_one_line(arguments, word, capsys):
    assert main(["info", *arguments]) != 0
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1
