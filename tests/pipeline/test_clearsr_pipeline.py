"""The pipeline: any size and kind of image, seeds, settings, and refusals before any work is done."""

import copy
import dataclasses
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError
from clearsr.hardware import choose_device, choose_precision
from clearsr.image import ImageData, resize, resize_alpha, to_pil
from clearsr.image.color import low_frequencies
from clearsr.pipeline import steps
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.pipeline.steps import output_size

FAST = {"steps": 2, "upscale": 4.0}


def _pipeline(network):
    """On a copy, for a pipeline lays the weights of its network out anew."""
    settings = {"device": "cpu", "precision": "fp32", "stages": ["clearsr"]}
    return ClearSRPipeline(copy.deepcopy(network), SamplingConfig(**FAST), **settings)


@pytest.fixture(scope="module")
def pipeline(network):
    return _pipeline(network)


@pytest.fixture(scope="module")
def make_image(make_picture):
    def make(height=8, width=8, seed=0, **fields):
        return ImageData(make_picture(height, width, seed), **fields)

    return make


@pytest.mark.parametrize("size", [(1, 1), (1, 97), (97, 1), (7, 5), (16, 8), (33, 9)])
def test_any_size_of_image_comes_out_four_times_larger(pipeline, make_image, size):
    (result,) = pipeline.upscale([make_image(*size)])
    assert result.color.shape == (3, 4 * size[0], 4 * size[1])
    assert result.color.isfinite().all() and result.color.min() >= 0 and result.color.max() <= 1


@pytest.mark.parametrize("upscale", [0.05, 0.5, 1, 1.5, 2, 3.3, 8])
def test_any_factor(pipeline, make_image, upscale):
    config = pipeline.configure(upscale=upscale)
    (result,) = pipeline.upscale([make_image(10, 7)], config)
    expected = (max(1, round(10 * upscale)), max(1, round(7 * upscale)))
    assert (result.height, result.width) == expected == output_size(make_image(10, 7), config)


def test_pillow_images_in_and_out(pipeline, make_image):
    single = pipeline(to_pil(make_image(6, 9)))
    assert isinstance(single, Image.Image) and single.size == (36, 24) and single.mode == "RGB"
    results = pipeline([to_pil(make_image(6, 9)), to_pil(make_image(8, 8, 1))], upscale=2)
    assert [image.size for image in results] == [(18, 12), (16, 16)]
    assert pipeline([]) == []


def test_a_batch_is_as_good_as_singles_whatever_the_order(pipeline, make_image):
    images = [make_image(8, 8, 0), make_image(6, 9, 1), make_image(8, 8, 2)]
    together = pipeline.upscale(images)
    for image, result in zip(images, together, strict=True):
        (alone,) = pipeline.upscale([image])
        torch.testing.assert_close(result.color, alone.color, atol=1e-4, rtol=0)
    reverse = pipeline.upscale(images[::-1])[::-1]
    for one, other in zip(together, reverse, strict=True):
        torch.testing.assert_close(one.color, other.color, atol=1e-4, rtol=0)
    assert not torch.allclose(together[0].color, together[2].color, atol=1e-2)


def test_the_seed_decides(pipeline, make_image):
    first, again, other = (pipeline.upscale([make_image()], pipeline.configure(seed=s))[0] for s in (0, 0, 1))
    torch.manual_seed(99)
    assert torch.equal(first.color, again.color)
    assert torch.equal(first.color, pipeline.upscale([make_image()])[0].color)
    assert not torch.allclose(first.color, other.color, atol=1e-3)


def test_a_call_leaves_the_network_and_the_global_generator_as_they_were(pipeline, make_image):
    state = {name: value.clone() for name, value in pipeline.network.state_dict().items()}
    generator = torch.random.get_rng_state()
    pipeline.upscale([make_image()], pipeline.configure(guidance_scale=2))
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(torch.equal(state[name], value) for name, value in pipeline.network.state_dict().items())


def test_alpha_is_upscaled_and_kept(pipeline, make_image):
    alpha = torch.zeros(1, 8, 8)
    alpha[:, 2:6, 2:6] = 1
    image = make_image(alpha=alpha)
    (result,) = pipeline.upscale([image])
    assert torch.equal(result.alpha, resize_alpha(alpha, (32, 32)))
    hidden = dataclasses.replace(image, color=torch.where(alpha > 0, image.color, 0.5))
    (same,) = pipeline.upscale([hidden])  # colour under full transparency has no say
    torch.testing.assert_close(same.color, result.color, atol=1e-5, rtol=0)


def test_grey_stays_grey_and_deep_stays_deep(pipeline, make_image):
    levels = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    deep = pipeline(Image.fromarray(levels))
    assert deep.mode == "I;16" and deep.size == (32, 32)
    values = np.asarray(deep)
    assert len(np.unique(values)) > 256  # more than 8 bits can tell apart
    grey = pipeline(Image.fromarray((levels // 257).astype(np.uint8)))
    assert grey.mode == "L" and grey.size == (32, 32)
    (result,) = pipeline.upscale([make_image(is_gray=True, bit_depth=16, source="x.png")])
    assert (result.is_gray, result.bit_depth, result.source) == (True, 16, "x.png")


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_every_mode_of_pillow(pipeline, make_image, mode):
    picture = to_pil(make_image(8, 6))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(picture.convert("L")).astype(np.float32) / 255)
    else:
        image = picture.convert("L").convert("LA") if mode == "LA" else picture.convert(mode)
    result = pipeline(image)
    assert result.size == (24, 32)
    assert result.mode == {"1": "L", "LA": "LA", "RGBA": "RGBA", "I;16": "I;16", "F": "I;16"}.get(mode, "RGB")


def test_no_steps_show_what_the_lr_encoder_restores(pipeline, make_image):
    config = pipeline.configure(steps=0, color="none")
    image = make_image()
    latents = pipeline.network.latents
    with torch.no_grad():
        pixels = latents.decode(latents.embed_lr(pipeline.steps.prepare(image, config)[None] * 2 - 1).mean)
    expected = ((pixels[0] + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(pipeline.upscale([image], config)[0].color, expected, atol=1e-5, rtol=0)


def test_metadata_travels(pipeline, make_image):
    image = to_pil(make_image())
    image.info["dpi"] = (300, 300)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    exif[0x010F] = "Maker"
    image.info["exif"] = exif.tobytes()
    result = pipeline(image.crop((0, 0, 8, 4)))
    assert result.size == (16, 32)  # upright
    assert result.info["dpi"] == (300, 300)
    assert result.getexif()[0x010F] == "Maker" and result.getexif().get(0x0112, 1) == 1


def test_colours_of_large_areas_are_the_inputs(pipeline, make_image):
    image = make_image(16, 16)
    reference = resize(image.color[None], (64, 64))
    off, matched = (
        pipeline.upscale([image], pipeline.configure(color=method))[0].color[None]
        for method in ("none", "wavelet")
    )
    distances = [(low_frequencies(c) - low_frequencies(reference)).abs().mean() for c in (off, matched)]
    assert distances[1] < 0.3 * distances[0]


def test_padding_is_cropped_away_exactly(pipeline, make_image):
    image = make_image(9, 11)
    config = pipeline.configure()
    prepared = pipeline.steps.prepare(image, config)
    assert prepared.shape[1] % pipeline.network.pixel_multiple() == 0
    assert prepared.shape[2] % pipeline.network.pixel_multiple() == 0
    torch.testing.assert_close(prepared[:, :36, :44], resize(image.color[None], (36, 44))[0])
    finished = pipeline.steps.finish(prepared, prepared, image, config)
    torch.testing.assert_close(finished.color, prepared[:, :36, :44], atol=1e-6, rtol=0)


def test_settings_start_from_the_models_and_single_ones_are_replaced(network):
    defaults = SamplingConfig(steps=3, seed=5, lsa={"preset": "fidelity", "beta": 0.5})
    pipe = ClearSRPipeline(copy.deepcopy(network), defaults, device="cpu", precision="fp32")
    assert pipe.configure() == defaults
    changed = pipe.configure(steps=2, lsa={"alpha": 0.2})
    assert (changed.steps, changed.seed, changed.lsa.strengths) == (2, 5, (0.2, 0.5))
    assert pipe.configure(SamplingConfig(steps=9), upscale=2) == SamplingConfig(steps=9, upscale=2)
    assert pipe.defaults is defaults


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"upscal": 2}, "did you mean upscale"),
        ({"upscale": 0}, "upscale: .* greater than 0"),
        ({"steps": -1}, "steps: .* greater than or equal to 0"),
        ({"lsa": {"alpha": 2}}, "lsa.alpha"),
        ({"lsa": {"alfa": 0.1}}, "did you mean alpha"),
        ({"color": "sepia"}, "'wavelet', 'adain' or 'none'"),
        ({"tile": {"size": 64, "overlap": 40}}, "overlap must be at most"),
        ({"guidance_scale": 0.5}, "guidance_scale"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_wrong_settings_are_one_line(pipeline, make_image, overrides, message):
    with pytest.raises(ClearSRError, match=message) as error:
        pipeline(to_pil(make_image()), **overrides)
    assert "\n" not in str(error.value)


def test_a_negative_prompt_needs_a_text_encoder(pipeline, make_image):
    with pytest.raises(ClearSRError, match="--negative-prompt: this model has no text encoder"):
        pipeline(to_pil(make_image()), negative_prompt="blurry", guidance_scale=2)


def test_too_large_a_result_is_refused_before_it_is_made(pipeline, make_image, monkeypatch):
    monkeypatch.setattr(steps, "MAX_OUTPUT_PIXELS", 32 * 32)
    assert pipeline.upscale([make_image(8, 8)])[0].width == 32
    with pytest.raises(ClearSRError, match="big.png: 36x32 .* smaller --upscale"):
        pipeline.upscale([make_image(8, 9, source="big.png")])


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "cpu:0", "cuda:x", "mps:0"])
def test_devices_that_are_not_there_are_refused(name, network):
    with pytest.raises(ClearSRError, match=f"--device {name}: not available here; accepted: auto.*cpu"):
        choose_device(name)


def test_device_and_precision_by_themselves():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "xpu", "mps")
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) == torch.float32
    assert choose_precision("bf16", cpu) == torch.bfloat16
    assert choose_precision("auto", cpu) in (torch.float32, torch.bfloat16)
    with pytest.raises(ClearSRError, match="--precision fp16: a CPU computes in bf16 or fp32"):
        choose_precision("fp16", cpu)
    with pytest.raises(ClearSRError, match="--precision int8: accepted: auto, fp32, bf16, fp16"):
        choose_precision("int8", cpu)


def test_bad_device_or_precision_before_anything_is_loaded(tmp_path):
    for arguments, message in (({"device": "tpu"}, "--device"), ({"precision": "int8"}, "--precision")):
        with pytest.raises(ClearSRError, match=message):
            ClearSRPipeline.from_pretrained(tmp_path / "no-such-model", **arguments)


def test_bf16_gives_nearly_the_same_picture(make_network, pipeline, make_image):
    half = ClearSRPipeline(make_network(), pipeline.defaults, device="cpu", precision="bf16")
    exact, rounded = (p.upscale([make_image(16, 16)])[0].color for p in (pipeline, half))
    assert rounded.dtype == torch.float32
    assert (exact - rounded).abs().mean() < 0.02


def test_on_step_is_called_and_can_stop(pipeline, make_image):
    heard = []
    pipeline.upscale([make_image()], on_step=lambda done, steps, z_0: heard.append((done, steps)))
    assert heard == [(1, 2), (2, 2)]

    class StoppedError(Exception):
        pass

    def stop(done, steps, z_0):
        raise StoppedError

    with pytest.raises(StoppedError):
        pipeline.upscale([make_image()], on_step=stop)
    assert pipeline.upscale([make_image()])[0].width == 32  # usable afterwards


@pytest.mark.parametrize("merge_adapters", [True, False])
def test_saved_and_loaded_it_gives_the_same_picture(tiny_network, make_image, tmp_path, merge_adapters):
    saved = _pipeline(tiny_network)
    saved.save_pretrained(tmp_path)
    loaded = ClearSRPipeline.from_pretrained(
        tmp_path, device="cpu", precision="fp32", merge_adapters=merge_adapters
    )
    assert loaded.defaults == saved.defaults and loaded.stages == ["clearsr"]
    before, after = (p.upscale([make_image()])[0].color for p in (saved, loaded))
    if merge_adapters:
        torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
        with pytest.raises(ClearSRError, match="the LoRA is merged; load with merge_adapters=False"):
            loaded.save_pretrained(tmp_path)
    else:
        assert torch.equal(after, before)
        loaded.save_pretrained(tmp_path / "again")


def test_what_is_uploaded_is_the_model(network, make_image, tmp_path, monkeypatch):
    calls = []

    class Hub:
        """Stands for the hub, and keeps what it is sent."""

        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, repo_id, private, exist_ok):
            calls.append((repo_id, private, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub")
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    pipeline = _pipeline(network)
    assert pipeline.push_to_hub("me/model", private=True, token="secret") == "https://hub/me/model"
    assert calls == ["secret", ("me/model", True, True)]
    loaded = ClearSRPipeline.from_pretrained(tmp_path / "hub", device="cpu", precision="fp32")
    one, other = (p.upscale([make_image()])[0].color for p in (pipeline, loaded))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
