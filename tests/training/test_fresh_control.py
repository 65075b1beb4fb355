"""The start of an ablation: trained parts are taken over, the control is a fresh copy of the U-Net."""

import pytest
import torch

from clearsr.errors import ClearSRError
from clearsr.models.checkpoint import load_network, save_network
from clearsr.training.setup import model_beside, write_start

STAGES = ["autoencoder", "lr_encoder", "clearsr"]


@pytest.fixture(scope="module")
def source(make_network, tmp_path_factory):
    """A model with random weights everywhere, its control too, and no LoRA."""
    folder = tmp_path_factory.mktemp("source")
    save_network(make_network(unet_lora_rank=0), folder, STAGES)
    return str(folder)


def started(source, tmp_path, **changes):
    config = model_beside(source, changes)
    write_start(source, config, tmp_path / "start")
    return load_network(source).network, load_network(tmp_path / "start").network


def assert_same(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "changes",
    [{}, {"control": {"structure_preserving": False}}, {"control": {"window_size": None}}],
    ids=["full", "without SPM", "one window"],
)
def test_trained_parts_are_taken_and_the_control_is_fresh(source, tmp_path, changes):
    old, new = started(source, tmp_path, **changes)
    for part in ("latents", "unet", "image_prompt"):
        assert_same(getattr(old, part), getattr(new, part))
    assert torch.equal(old.null_prompt, new.null_prompt)
    copied = new.detail_preserving.state_dict()
    shared = [name for name in new.unet.state_dict() if name in copied and name.startswith("down_blocks")]
    assert len(shared) > 5
    assert all(torch.equal(copied[name], new.unet.state_dict()[name]) for name in shared)
    assert (new.structure_preserving is None) == bool(
        changes.get("control", {}).get("structure_preserving") is False
    )
    text, time = new.null_prompt, torch.tensor([500])
    z_lr = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    control = new.control_signals(z_lr, time, text, new.structure_features(z_lr))
    assert all(signal.abs().max() == 0 for signal in (*control.skips, control.middle))  # zero convolutions


def test_a_lora_takes_the_place_of_an_encoder_of_its_own(source, tmp_path):
    old, new = started(source, tmp_path, lr_encoder={"kind": "lora", "lora_rank": 4}, unet_lora_rank=2)
    assert new.latents.lr_encoder is None
    ranks = {p.shape[0] for name, p in new.named_parameters() if "lora_A" in name and "latents" in name}
    assert ranks == {4}
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        assert torch.equal(new.latents.embed_lr(pixels)[0], old.latents.encode_hr(pixels))


def test_models_with_lora_are_refused(make_network, tmp_path):
    save_network(make_network(), tmp_path / "lora", STAGES)
    config = model_beside(str(tmp_path / "lora"), {})
    with pytest.raises(ClearSRError, match="has LoRA layers"):
        write_start(str(tmp_path / "lora"), config, tmp_path / "start")


def test_other_widths_are_refused(source, tmp_path):
    config = model_beside(source, {"unet": {"block_out_channels": (16, 32, 32)}})
    with pytest.raises(ClearSRError, match=r"--from .*: unet\. does not fit"):
        write_start(source, config, tmp_path / "start")
