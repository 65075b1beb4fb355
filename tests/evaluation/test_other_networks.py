"""Networks of others: a small one by spandrel from a file that the test writes, and a tiny pipeline of
diffusers. spandrel declares torchvision, of which it needs three names for architectures that are not used
here; where torchvision is missing they are stood in for, and without spandrel its tests are skipped.
"""

import pickle
import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F  # noqa: N812

from clearsr.errors import ClearSRError
from clearsr.evaluation.methods import diffusers_method, spandrel_method
from clearsr.image import ImageData


@pytest.fixture
def spandrel(monkeypatch):
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        functional = types.ModuleType("torchvision.transforms.functional")
        for name in ("InterpolationMode", "rotate", "normalize"):
            setattr(functional, name, None)
        monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
        monkeypatch.setitem(sys.modules, "torchvision.transforms", types.ModuleType("transforms"))
        monkeypatch.setitem(sys.modules, "torchvision.transforms.functional", functional)
    return pytest.importorskip("spandrel")


class Compact(nn.Module):
    """The SRVGGNetCompact of Real-ESRGAN, written out: convolutions and PReLUs, then a pixel shuffle."""

    def __init__(self, features=8, layers=1, upscale=4):
        super().__init__()
        widths = [3, *[features] * (layers + 1), 3 * upscale**2]
        modules = []
        for before, after in zip(widths, widths[1:], strict=False):
            modules += [nn.Conv2d(before, after, 3, padding=1), nn.PReLU(after)]
        self.body = nn.ModuleList(modules[:-1])
        self.upscale = upscale

    def forward(self, x):
        out = x
        for layer in self.body:
            out = layer(out)
        return F.pixel_shuffle(out, self.upscale) + F.interpolate(x, scale_factor=self.upscale)


@pytest.fixture
def compact():
    torch.manual_seed(0)
    return Compact().eval()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_network_from_a_file_gives_its_own_pictures(spandrel, compact, tmp_path, suffix, make_picture):
    path = tmp_path / f"small{suffix}"
    if suffix == ".pth":
        torch.save({"params": compact.state_dict()}, path)
    else:
        save_file(compact.state_dict(), path)
    method = spandrel_method(path)
    color = make_picture(9, 14)
    with torch.no_grad():
        expected = compact(color[None])[0].clamp(0, 1)
    torch.testing.assert_close(method.upscale(ImageData(color), (36, 56), 0), expected)
    assert method.name == "small" and not method.draws and method.settings["upscale"] == 4


def test_a_network_of_another_factor_is_refused(spandrel, tmp_path):
    save_file(Compact(upscale=2).state_dict(), tmp_path / "x2.safetensors")
    method = spandrel_method(tmp_path / "x2.safetensors")
    with pytest.raises(ClearSRError, match="makes 16x16 of 8x8, 32x32 is needed"):
        method.upscale(ImageData(torch.zeros(3, 8, 8)), (32, 32), 0)


def test_other_tensors_are_no_network(spandrel, tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ClearSRError, match="is no network that spandrel"):
        spandrel_method(tmp_path / "x.safetensors")


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("code in a weights file was run",))


def test_code_in_a_file_is_not_run(tmp_path):
    with (tmp_path / "evil.pth").open("wb") as file:
        pickle.dump({"params": Harmful()}, file)
    with pytest.raises(ClearSRError, match="holds something else than tensors"):
        spandrel_method(tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ClearSRError, match="holds a list"):
        spandrel_method(tmp_path / "list.pth")


@pytest.mark.parametrize(
    ("name", "says"),
    [("x.onnx", "accepted are .safetensors, .pth, .ckpt"), ("none.safetensors", "cannot be read")],
)
def test_files_that_are_not_weights(tmp_path, name, says):
    with pytest.raises(ClearSRError, match=says):
        spandrel_method(tmp_path / name)


def test_without_spandrel_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    save_file({"weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ClearSRError, match=r"pip install 'clearsr\[eval\]'"):
        spandrel_method(tmp_path / "x.safetensors")


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory):
    """LDM super-resolution of diffusers, tiny and with random weights."""
    from diffusers import DDIMScheduler, LDMSuperResolutionPipeline, UNet2DModel, VQModel

    torch.manual_seed(0)
    vae = VQModel(
        in_channels=3, out_channels=3, latent_channels=3, block_out_channels=(8, 8, 8), norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    unet = UNet2DModel(
        in_channels=6, out_channels=3, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("pipelines") / "tiny-ldm"
    LDMSuperResolutionPipeline(vqvae=vae, unet=unet, scheduler=DDIMScheduler()).save_pretrained(folder)
    return folder


def test_a_pipeline_of_diffusers_upscales_any_size_by_its_seed(upscaler, make_picture):
    method = diffusers_method(str(upscaler), steps=2)
    image = ImageData(make_picture(20, 28))
    first, again, other = (method.upscale(image, (80, 112), seed) for seed in (0, 0, 1))
    assert first.shape == (3, 80, 112) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert method.draws and method.settings["pipeline"] == "LDMSuperResolutionPipeline"


def test_folders_without_a_pipeline_are_refused(tmp_path):
    with pytest.raises(ClearSRError, match=r"--diffusers .*: cannot be loaded"):
        diffusers_method(str(tmp_path))
