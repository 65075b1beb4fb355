"""init -> save -> load on a Stable Diffusion base: what is stored, and that nothing is lost or changed."""

import json
import os

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from clearsr.cli import main
from clearsr.errors import ClearSRError
from clearsr.models.build import build_network, meta_network
from clearsr.models.checkpoint import load_network, save_network
from clearsr.models.parameters import parameter_table, part_of, stored_parts
from clearsr.models.pretrained import encode_text, load_part

TRAINED = ("detail_preserving.", "structure_preserving.")


def is_stored(name):
    return name.startswith(TRAINED) or ".lora_" in name or name == "null_prompt"


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run_network(network):
    """x_lr, its control signals and the network's output on fixed inputs, in one vector."""
    pixels = draw(2, 3, 64, 64).clamp(-1, 1)
    with torch.no_grad():
        z_lr = network.latents.embed_lr(pixels).mean
        prompt = network.image_prompt(pixels)
        output = network(draw(2, 4, 8, 8, seed=1), torch.tensor([10, 700]), z_lr, prompt)
    return torch.cat([z_lr.flatten(), prompt.flatten(), output.flatten()])


@pytest.fixture(scope="module")
def loaded(untrained):
    return load_network(untrained)


def test_loading_an_init_gives_what_was_built(untrained, loaded):
    built = build_network(loaded.network.config).requires_grad_(False).eval()
    expected, state = built.state_dict(), loaded.network.state_dict()
    assert expected.keys() == state.keys()
    assert all(torch.equal(expected[name], state[name]) for name in expected)
    assert torch.equal(run_network(built), run_network(loaded.network))
    assert loaded.stages == [] and loaded.sampling == {"steps": 50, "guidance_scale": 5.5}


def test_trained_weights_come_back_bit_identical(loaded, tmp_path):
    # Without gradients, as after loading: torch multiplies matrices in another order where they are on.
    network = build_network(loaded.network.config, seed=3).requires_grad_(False).eval()
    before = run_network(network)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if is_stored(name):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    expected = run_network(network)
    assert not torch.allclose(before, expected, atol=1e-3)
    save_network(network, tmp_path, stages=["clearsr"])
    assert torch.equal(run_network(load_network(tmp_path).network), expected)


def test_only_what_is_trained_is_stored(untrained, loaded):
    stored = load_file(untrained / "model.safetensors")
    network = loaded.network
    assert set(stored) == {name for name in network.state_dict() if is_stored(name)}
    network.set_trainable()
    trained = {name: p.numel() for name, p in network.named_parameters() if p.requires_grad}
    network.requires_grad_(False)
    assert set(stored) - set(trained) == {"null_prompt"}
    payload = 4 * sum(value.numel() for value in stored.values())
    size = os.path.getsize(untrained / "model.safetensors")
    assert payload < size < payload + 200 * len(stored)
    assert sorted(os.listdir(untrained)) == ["config.json", "model.safetensors"]


def test_init_states_the_base_and_what_it_decides(untrained, base):
    model = json.loads((untrained / "config.json").read_text())["model"]
    assert model["base_model"] == str(base.resolve()) and model["base_revision"] is None
    assert model["image_encoder"] is None and model["prediction"] == "epsilon"
    assert model["null_prompt_tokens"] == 16 and model["unet_lora_rank"] == 2


def test_counts_equal_those_of_the_loaded_network(untrained, loaded, base):
    network = loaded.network
    table = parameter_table(network.config)
    text = CLIPTextModel.from_pretrained(base / "text_encoder")
    text_count = sum(p.numel() for p in text.parameters())
    whole = sum(p.numel() for name, p in network.named_parameters() if name != "null_prompt")
    assert table.total == whole + text_count and table.parts["text_encoder"] == text_count
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    assert table.parts["unet"] == sum(p.numel() for p in unet.parameters())
    network.set_trainable()
    assert table.trainable == sum(p.numel() for p in network.parameters() if p.requires_grad)
    network.requires_grad_(False)
    stored = stored_parts(untrained / "model.safetensors")
    assert {part: n for part, n in stored.items() if part != "null_prompt"} == {
        part: n for part, n in table.parts.items() if part in table.trained
    }
    shapes = {name: p.shape for name, p in meta_network(network.config).named_parameters()}
    assert shapes == {name: p.shape for name, p in network.named_parameters()}
    assert {part_of(name) for name in shapes} == {*table.parts, "null_prompt"} - {"text_encoder"}


def test_untrained_network_equals_the_base(loaded, base):
    unet = UNet2DConditionModel.from_pretrained(base / "unet").eval()
    network = loaded.network
    latent, z_lr, t = draw(2, 4, 16, 16, seed=2), draw(2, 4, 16, 16, seed=3), torch.tensor([3, 950])
    text = network.null_prompt.expand(2, -1, -1)
    with torch.no_grad():
        expected = unet(latent, t, encoder_hidden_states=text).sample
        assert torch.equal(network(latent, t, z_lr, text), expected)
    assert expected.std() > 0.1


def test_null_prompt_is_the_text_encoders(loaded, base):
    tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    tokens = tokenizer("", padding="max_length", max_length=16, return_tensors="pt").input_ids
    assert tokens.shape == (1, 16)
    with torch.no_grad():
        expected = CLIPTextModel.from_pretrained(base / "text_encoder")(tokens).last_hidden_state
    assert torch.allclose(loaded.network.null_prompt, expected, atol=1e-6)


def test_a_prompt_that_is_too_long_is_cut(base):
    long = encode_text(str(base), "a b c d " * 20, None)
    assert long.shape == (1, 16, 32) and not torch.equal(long, encode_text(str(base), "", None))


@pytest.mark.parametrize(("longest", "tokens"), [(6, 6), (16, 16), (10**30, 16)])
def test_a_prompt_is_padded_to_what_tokenizer_and_encoder_can_take(base_copy, longest, tokens):
    """The former may not know of any limit."""
    path = base_copy / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": longest}))
    tokenizer = CLIPTokenizer.from_pretrained(base_copy / "tokenizer")
    expected = tokenizer(["blurry"], padding="max_length", max_length=tokens, return_tensors="pt").input_ids
    with torch.no_grad():
        embedded = CLIPTextModel.from_pretrained(base_copy / "text_encoder")(expected).last_hidden_state
    assert embedded.shape == (1, tokens, 32)
    torch.testing.assert_close(encode_text(str(base_copy), "blurry"), embedded)


def test_a_tokenizer_that_cannot_be_read_is_one_line(base_copy):
    (base_copy / "tokenizer" / "vocab.json").write_text("{")
    with pytest.raises(ClearSRError, match="tokenizer: cannot be loaded") as caught:
        encode_text(str(base_copy), "")
    assert "\n" not in str(caught.value)


def test_a_v_prediction_base_is_recognised(base_copy, tmp_path, capsys):
    path = base_copy / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace('"epsilon"', '"v_prediction"'))
    out = tmp_path / "out"
    assert main(["init", "--base-model", str(base_copy), "-o", str(out)]) == 0
    assert load_network(out).network.config.prediction == "v_prediction"
    command = ["init", "--base-model", str(base_copy), "-o", str(out), "--overwrite", "--set"]
    assert main([*command, "prediction=v_prediction"]) == 0
    assert main([*command, "prediction=epsilon"]) == 1
    assert "epsilon, but the U-Net of" in capsys.readouterr().err


def test_weights_stored_in_halves_load_in_fp32(base, base_copy, untrained):
    unet = UNet2DConditionModel.from_pretrained(base / "unet").half()
    (base_copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(base_copy / "unet", variant="fp16")
    network = load_network(untrained, base_model=str(base_copy)).network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert torch.equal(network.unet.conv_in.weight, unet.conv_in.weight.float())


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "image_encoder"])
def test_every_part_is_in_fp32_and_evaluated_however_it_is_stored(base_copy, part):
    (file,) = (base_copy / part).glob("*.safetensors")
    save_file(
        {name: value.half() for name, value in load_file(file).items()}, file, metadata={"format": "pt"}
    )
    module = load_part(part, base_copy / part)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert not any(m.training for m in module.modules())


def test_init_refuses_to_overwrite_unless_told(untrained, base, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["init", "--base-model", str(base), "-o", str(out), "--set", "unet_lora_rank=0"]
    assert main(command) == 0
    assert "to train" in capsys.readouterr().out
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--set", "control.structure_preserving=false"]) == 0
    assert load_network(out).network.structure_preserving is None
