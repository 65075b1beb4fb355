"""Precision, offloading and compilation; what needs no accelerator to be seen is seen on the CPU."""

import copy
import types
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clearsr.config.base import build_config
from clearsr.config.model import preset_model_config
from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError
from clearsr.hardware import (
    check_compiler,
    choose_device,
    choose_precision,
    cuda_arithmetic,
    describe_devices,
    memory_of,
    mixed_precision,
    on_device,
    release_cached_memory,
    vae_precision,
)
from clearsr.image import ImageData
from clearsr.models.build import meta_network
from clearsr.models.clearsr import compile_network, denoising_parts, store_for_inference
from clearsr.pipeline import steps
from clearsr.pipeline.pipeline import ClearSRPipeline

CPU = torch.device("cpu")
CONFIG = build_config(SamplingConfig, {"steps": 2, "scheduler": "dpm++"})


@pytest.fixture
def image(make_picture):
    return ImageData(make_picture(16, 24))


def _pipeline(network, **options):
    return ClearSRPipeline(network, CONFIG, **{"device": "cpu", "precision": "fp32", **options})


@torch.no_grad()
def test_vae_that_overflows_fp16_is_run_in_a_wider_format(make_network, normal):
    network = make_network()
    decoder = network.latents.vae.decoder
    latents = normal(1, 8, 8, 8)
    for layer, factor in ((decoder.conv_in, 1e6), (decoder.conv_out, 1e-6)):
        for parameter in layer.parameters():
            parameter.mul_(factor)
    pipeline = _pipeline(network)
    expected = pipeline.steps.decode(latents)
    with torch.autocast("cpu", torch.float16):
        assert not network.latents.decode(latents).isfinite().all()  # what would become of it
    pipeline.steps.precision = torch.float16  # as on an accelerator; users cannot ask a CPU for it
    assert (pipeline.steps.decode(latents) - expected).abs().mean() < 0.02
    assert vae_precision(torch.float16, CPU) in (torch.bfloat16, torch.float32)
    assert vae_precision(torch.bfloat16, CPU) == torch.bfloat16


def test_weights_in_16_bits_give_the_same_picture_and_are_not_saved(make_network, image, tmp_path):
    pipelines = [_pipeline(make_network(), precision="bf16") for _ in range(2)]
    halved = pipelines[1].network
    halved.merge_adapters()
    pipelines[0].network.merge_adapters()
    store_for_inference(halved, torch.bfloat16)
    assert halved.unet.conv_in.weight.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in halved.latents.parameters())
    plain, small = (pipeline.upscale([image])[0].color for pipeline in pipelines)
    assert torch.equal(plain, small)
    with pytest.raises(ClearSRError, match="stored in 16 bits; load with merge_adapters=False"):
        pipelines[1].save_pretrained(tmp_path)


def test_tensors_come_back_from_the_device_even_after_an_error(network):
    before = {name: value.data_ptr() for name, value in network.unet.state_dict().items()}
    with pytest.raises(RuntimeError), on_device([network.unet], CPU):
        assert all(value.data_ptr() != before[name] for name, value in network.unet.state_dict().items())
        raise RuntimeError
    assert before == {name: value.data_ptr() for name, value in network.unet.state_dict().items()}


def test_offloading_changes_nothing_and_moves_each_part_when_it_is_used(make_network, image, monkeypatch):
    network, moved = make_network(), []

    def recorded(parts, device):
        moved.append({id(p) for part in parts for p in part.parameters()})
        return on_device(parts, device)

    monkeypatch.setattr(steps, "on_device", recorded)
    offloaded = _pipeline(network, offload=True).upscale([image])[0].color
    assert torch.equal(offloaded, _pipeline(make_network()).upscale([image])[0].color)
    prompting, encoding, denoising, decoding = moved
    assert encoding == decoding and not (
        encoding & prompting or encoding & denoising or prompting & denoising
    )
    everything = {id(p) for p in network.parameters()}
    assert everything - (encoding | prompting | denoising) == {id(network.null_prompt)}


def test_offloading_is_refused_on_a_cpu():
    with pytest.raises(ClearSRError, match="--offload: is for accelerators"):
        ClearSRPipeline.from_pretrained("compact", device="cpu", offload=True)


def test_missing_compiler_is_said_before_anything_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ClearSRError, match="--compile: no C\\+\\+ compiler found .*leave --compile out"):
        ClearSRPipeline.from_pretrained(tmp_path / "no-such-model", device="cpu", compile=True)
    (tmp_path / "my-compiler").write_text("#!/bin/sh\n")
    (tmp_path / "my-compiler").chmod(0o755)
    monkeypatch.setenv("CXX", "my-compiler")
    check_compiler(CPU)


@pytest.mark.slow
def test_compiled_network_gives_the_same_picture(make_network, image):
    network = make_network()
    compile_network(network)
    compiled = _pipeline(network).upscale([image])[0].color
    eager = _pipeline(make_network()).upscale([image])[0].color
    torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-3)


_ARITHMETIC = (
    (torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cudnn, "benchmark"),
)  # fmt: skip


def _arithmetic():
    return tuple(getattr(*setting) for setting in _ARITHMETIC)


@pytest.fixture(params=[(False, True, False), (True, False, True)])
def before(request):
    """Settings that somebody made before; torch's own are put back."""
    own = _arithmetic()
    for setting, value in zip(_ARITHMETIC, request.param, strict=True):
        setattr(*setting, value)
    yield request.param
    for setting, value in zip(_ARITHMETIC, own, strict=True):
        setattr(*setting, value)


@pytest.mark.parametrize("tf32, benchmark", [(True, True), (False, False), (None, True), (None, False)])
def test_settings_of_cuda_hold_within_the_block_alone(tf32, benchmark, before):
    with pytest.raises(RuntimeError, match="broken off"), cuda_arithmetic(tf32, benchmark):
        assert _arithmetic()[:2] == (before[:2] if tf32 is None else (tf32, tf32))
        assert _arithmetic()[2] == (benchmark or before[2])
        raise RuntimeError("broken off")
    assert _arithmetic() == before


def test_no_float64_is_computed_with(make_network, image):
    """Some accelerators (MPS) have none; the pictures' own handling stays on the CPU."""

    class NoDoubles(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            assert not any(getattr(leaf, "dtype", None) == torch.float64 for leaf in tree_leaves(result)), (
                function
            )
            return result

    pipeline = _pipeline(make_network())
    pixels = pipeline.steps.prepare(image, CONFIG)[None]
    with NoDoubles(), torch.no_grad():
        latents = pipeline.sample(pipeline.steps.condition(pixels, CONFIG), CONFIG)
        assert pipeline.steps.decode(latents).isfinite().all()


class _LiveBytes(TorchDispatchMode):
    """The most bytes of results that are alive at once within the block."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._seen:
                    self._seen.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _forget(self, key, size):
        self._seen.discard(key)
        self.now -= size


def _bytes_of(*parts):
    return sum(t.nbytes for part in parts for t in (*part.parameters(), *part.buffers()))


@pytest.mark.slow
@torch.no_grad()
def test_offloaded_stable_diffusion_at_512_pixels_stays_below_6_gb_in_fp16():
    """Weights of each stage as they are stored, and results as they come to be, counted on shapes alone."""
    network = meta_network(preset_model_config("sd21")).requires_grad_(False).eval()
    network.merge_adapters()
    store_for_inference(network, torch.float16)
    stored = {
        "vae": _bytes_of(network.latents),
        "image prompt": _bytes_of(network.image_prompt),
        "denoiser": _bytes_of(*denoising_parts(network)),
    }
    computing = copy.deepcopy(network)
    computing.latents.bfloat16()  # autocast has no meta device: results have the size that they would have
    for part in denoising_parts(computing):
        part.half()
    with torch.device("meta"):
        pixels, z = torch.empty(1, 3, 512, 512).bfloat16(), torch.empty(1, 4, 64, 64).half()
        text, t = torch.empty(1, 77, 1024).half(), torch.empty(1, dtype=torch.long)
    peaks = {}
    with _LiveBytes() as live:
        computing.latents.vae.encode(pixels)
    peaks["encode"] = stored["vae"] + live.most
    with _LiveBytes() as live:
        control = computing.control_signals(z, t, text, computing.structure_features(z))
        computing.unet_decode(computing.unet_encode(z, t, text), control, text[:, :1])
    peaks["denoise"] = stored["denoiser"] + live.most
    with _LiveBytes() as live:
        computing.latents.vae.decode(z.bfloat16())
    peaks["decode"] = stored["vae"] + live.most
    assert stored["denoiser"] > 2e9 and live.most > 1e8  # the real size
    assert max(*peaks.values(), stored["image prompt"]) < 6e9


@pytest.fixture
def machine(monkeypatch):
    """`machine(cuda=2, bf16=False)`: what torch says of accelerators that are not here; returns its notes."""

    def pretend(cuda=0, xpu=0, mps=False, bf16=True, hip=None):
        emptied = []
        for kind, count in (("cuda", cuda), ("xpu", xpu)):
            backend = getattr(torch, kind)
            properties = types.SimpleNamespace(name=f"a {kind}", total_memory=8 * 2**30)
            fakes = {
                "is_available": lambda count=count: count > 0,
                "device_count": lambda count=count: count,
                "is_bf16_supported": lambda including_emulation=True: bf16 or including_emulation,
                "get_device_properties": lambda _index, found=properties: found,
                "memory_allocated": lambda _device: 1000,
                "memory_reserved": lambda _device: 1500,
                "mem_get_info": lambda _device: (4000, 9000),
                "empty_cache": lambda kind=kind: emptied.append(kind),
            }
            for name, fake in fakes.items():
                monkeypatch.setattr(backend, name, fake)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 300)
        monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 1000)
        monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append("mps"))
        monkeypatch.setattr(torch.version, "hip", hip)
        return emptied

    return pretend


@pytest.mark.parametrize(
    ("found", "device", "precision"),
    [
        ({"cuda": 1, "xpu": 1, "mps": True}, "cuda", torch.bfloat16),
        ({"cuda": 1, "bf16": False}, "cuda", torch.float16),
        ({"cuda": 1, "hip": "6.4"}, "cuda", torch.bfloat16),  # ROCm calls itself so
        ({"xpu": 1, "mps": True}, "xpu", torch.bfloat16),
        ({"xpu": 1, "bf16": False}, "xpu", torch.float16),
        ({"mps": True}, "mps", torch.float32),
        ({}, "cpu", None),
    ],
)
def test_the_device_and_its_precision_follow_from_what_is_there(machine, found, device, precision):
    machine(**found)
    chosen = choose_device("auto")
    assert chosen == torch.device(device)
    if precision is not None:
        assert choose_precision("auto", chosen) == precision
        assert vae_precision(precision, chosen) == (
            torch.float32 if precision == torch.float16 else precision
        )


def test_a_device_that_is_not_there_is_refused_with_those_that_are(machine):
    machine(xpu=2)
    assert choose_device("xpu:1") == torch.device("xpu:1")
    for name in ("xpu:2", "cuda", "cuda:0", "mps", "cpu:1", "xpu:", "xpu:-1", "tpu"):
        with pytest.raises(
            ClearSRError, match=f"--device {name}: not available here; accepted: auto, xpu, cpu"
        ):
            choose_device(name)


def test_all_accelerators_are_named(machine):
    machine(cuda=1, xpu=2, mps=True, bf16=False, hip="6.4")
    named = {device.name: device for device in describe_devices()}
    assert list(named) == ["cpu", "cuda:0", "xpu:0", "xpu:1", "mps"]
    assert named["cuda:0"].text == "a cuda, 8 GiB, by ROCm, without bf16"
    assert named["xpu:1"].text == "a xpu, 8 GiB, without bf16" and not named["xpu:1"].has_bf16


def test_memory_is_asked_of_the_device_and_what_is_cached_given_back(machine):
    emptied = machine(xpu=1, mps=True)
    assert memory_of(torch.device("xpu")) == memory_of(torch.device("cuda")) == (1000, 4500)
    assert memory_of(torch.device("mps")) == (300, 700)
    assert memory_of(CPU) is None
    release_cached_memory()
    assert emptied == ["xpu", "mps"]


def test_the_precision_of_a_part_is_its_own_whatever_is_around_it():
    weight, values = torch.ones(2, 2), torch.ones(2, 2)
    cpu = torch.device("cpu")
    with mixed_precision(cpu, torch.bfloat16):
        assert (values @ weight).dtype == torch.bfloat16
        with mixed_precision(cpu, torch.float32):
            assert (values @ weight).dtype == torch.float32
        assert (values @ weight).dtype == torch.bfloat16
    with mixed_precision(torch.device("meta"), torch.float32):
        assert (values.to("meta") @ weight.to("meta")).dtype == torch.float32
