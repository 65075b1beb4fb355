"""What others expect: diffusers' `to`, `generator` and callback, scikit-image's function of an array."""

import numpy as np
import pytest
import torch

import clearsr
from clearsr import ClearSRError, ClearSRPipeline, SamplingConfig
from clearsr import pipeline as whole
from clearsr.image import ImageData, to_pil
from clearsr.pipeline import pipeline as module

CONFIG = SamplingConfig(steps=3, upscale=2)


@pytest.fixture
def pipeline(make_network):
    return ClearSRPipeline(make_network(), CONFIG, device="cpu", precision="fp32")


@pytest.fixture
def picture(make_picture):
    return to_pil(ImageData(make_picture(12, 16)))


def _levels(image):
    return np.asarray(image)


def test_the_callback_is_told_step_timestep_and_latents(pipeline, picture):
    seen = []
    told = pipeline(picture, callback_on_step_end=lambda *args: seen.append(args))
    assert [(of, step) for of, step, _, _ in seen] == [(pipeline, 0), (pipeline, 1), (pipeline, 2)]
    assert [timestep for _, _, timestep, _ in seen] == [999, 500, 0]
    assert all(each["latents"].shape[0] == 1 for *_, each in seen)
    assert np.array_equal(_levels(told), _levels(pipeline(picture)))


def test_the_callback_may_stop_the_run(pipeline, picture):
    def stop(_pipeline, step, _timestep, _latents):
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline(picture, callback_on_step_end=stop)


def test_without_steps_there_is_nothing_to_call_back(pipeline, picture):
    pipeline(picture, steps=0, callback_on_step_end=lambda *_: pytest.fail("there was no step"))


def test_a_generator_draws_the_seed_and_goes_on(pipeline, picture):
    generator = torch.Generator().manual_seed(3)
    first, second = (_levels(pipeline(picture, generator=generator)) for _ in range(2))
    again = _levels(pipeline(picture, generator=torch.Generator().manual_seed(3)))
    assert np.array_equal(first, again) and not np.array_equal(first, second)


def test_to_changes_precision_and_returns_the_pipeline(pipeline, picture):
    exact = _levels(pipeline(picture)).astype(int)
    assert pipeline.to(torch.bfloat16) is pipeline
    assert (pipeline.device.type, pipeline.precision) == ("cpu", torch.bfloat16)
    rounded = _levels(pipeline(picture)).astype(int)
    assert 0 < np.abs(rounded - exact).max() < 40
    assert pipeline.to("cpu").precision == torch.bfloat16  # as was asked for
    assert np.array_equal(_levels(pipeline.to(device="cpu", dtype=torch.float32)(picture)), exact)


def test_to_leaves_auto_to_the_device(make_network):
    pipeline = ClearSRPipeline(make_network(), CONFIG, device="cpu")
    chosen = pipeline.precision
    assert pipeline.to(torch.device("cpu")).precision == chosen


def test_weights_in_16_bits_are_widened_again(make_network, picture):
    network = make_network()
    network.merge_adapters()
    module.store_for_inference(network, torch.bfloat16)
    pipeline = ClearSRPipeline(network, CONFIG, device="cpu", precision="bf16").to("cpu", torch.float32)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    pipeline(picture)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (("cuda:99",), "--device cuda:99: not available here"),
        ((torch.float16,), "--precision fp16: a CPU computes in"),
        ((torch.int8,), "--precision torch.int8: accepted:"),
    ],
)
def test_what_to_cannot_do_changes_nothing(pipeline, where, message):
    steps = pipeline.steps
    with pytest.raises(ClearSRError, match=message):
        pipeline.to(*where)
    assert pipeline.steps is steps


@pytest.fixture
def loaded(pipeline, monkeypatch):
    """`clearsr.upscale` with the small network."""
    monkeypatch.setattr(whole, "_loaded", lambda _model, _device: pipeline)
    return pipeline


@pytest.mark.parametrize("shape", [(12, 16), (12, 16, 1), (12, 16, 2), (12, 16, 3), (12, 16, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_an_array_keeps_its_channels_and_dtype(loaded, shape, dtype):
    top = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    rows, columns = np.mgrid[0:1:12j, 0:1:16j]
    planes = np.stack([rows, columns, 1 - rows, rows * columns], axis=-1)[..., : shape[2] if shape[2:] else 1]
    array = (planes.reshape(shape) * top).astype(dtype)
    larger = clearsr.upscale(array, 3)
    assert larger.shape == (36, 48, *shape[2:]) and larger.dtype == dtype
    assert larger.min() >= 0 and larger.max() <= top
    small = larger.reshape(12, 3, 16, 3, -1).mean((1, 3)) / top
    for ours, theirs in zip(np.moveaxis(small, -1, 0), np.moveaxis(planes, -1, 0), strict=True):
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.8


def test_an_array_is_the_picture_that_it_shows(loaded, picture):
    assert np.array_equal(clearsr.upscale(_levels(picture), 2, seed=5), _levels(loaded(picture, seed=5)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 5)), r"got \(4, 4, 5\)"),
        (np.zeros(4), r"got \(4,\)"),
        (np.zeros((0, 4)), r"got \(0, 4\)"),
        (np.zeros((4, 4), np.int64), "got int64"),
        (np.full((4, 4), 1.5), "outside 0 to 1"),
    ],
)
def test_what_is_no_image_is_refused(loaded, array, message):
    with pytest.raises(ClearSRError, match=message) as error:
        clearsr.upscale(array, 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", ["array", "bytes", "tensor", "levels", "half"])
def test_arrays_and_tensors_are_the_picture_that_they_show(pipeline, picture, given):
    levels = np.asarray(picture)
    images = {
        "array": (levels / 255).astype(np.float32),
        "bytes": levels,
        "tensor": torch.from_numpy(levels / 255).permute(2, 0, 1),
        "levels": torch.from_numpy(levels.copy()).permute(2, 0, 1),
        "half": torch.from_numpy(levels / 255).permute(2, 0, 1).bfloat16(),
    }
    expected = np.asarray(pipeline(picture, seed=3), int)
    result = pipeline(images[given], seed=3)
    assert np.abs(np.asarray(result, int) - expected).max() <= (3 if given == "half" else 1)
    tensor = pipeline(images[given], seed=3, output_type="pt")
    array = pipeline(images[given], seed=3, output_type="np")
    assert tensor.shape == (3, *expected.shape[:2]) and tensor.dtype == torch.float32
    assert array.shape == expected.shape and array.dtype == np.float32
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), array)
    assert np.abs(255 * array - np.asarray(result, int)).max() <= 0.51


def test_lists_and_stacks_come_back_as_they_were_given(pipeline, picture):
    one = torch.from_numpy(np.asarray(picture) / 255).permute(2, 0, 1).float()
    stack = torch.stack([one, one.flip(-1)])
    tensors = pipeline(stack, output_type="pt")
    assert tensors.ndim == 4 and len(tensors) == 2
    torch.testing.assert_close(tensors[0], pipeline(one, output_type="pt"), atol=1e-4, rtol=0)
    arrays = pipeline(stack.permute(0, 2, 3, 1).numpy(), output_type="np")
    assert np.array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    mixed = pipeline([picture, one, one.permute(1, 2, 0).numpy()], output_type="np")
    assert isinstance(mixed, list) and all(np.abs(a - arrays[0]).max() < 0.01 for a in mixed)
    gray = pipeline(np.asarray(picture)[..., 0], output_type="np")
    assert gray.shape[2] == 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            "photo.jpg",
            "images: expected a Pillow image, an array H×W×C, a tensor C×H×W, or a list .* got str",
        ),
        (None, "images: expected .* got NoneType"),
        ([None], "image 0: expected .* got NoneType"),
        (torch.rand(24, 32, 3), r"image: expected a tensor C×H×W with C from 1 to 4, got \(24, 32, 3\)"),
        (np.zeros((3, 24, 32), np.uint8), r"image: expected H×W or H×W×C .* got \(3, 24, 32\)"),
        (torch.full((3, 8, 8), torch.nan), "image: "),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "image: expected uint8, uint16 or floats"),
        (np.full((8, 8, 3), 255.0), "image: "),
    ],
)
def test_anything_else_is_one_line(pipeline, images, message):
    with pytest.raises(ClearSRError, match=message):
        pipeline(images)


def test_another_output_type_is_one_line(pipeline, picture):
    with pytest.raises(ClearSRError, match=r"output_type: accepted are pil, np, pt \(got 'latent'\)"):
        pipeline(picture, output_type="latent")


@pytest.mark.parametrize("given", [5, [torch.Generator(), torch.Generator()]])
def test_what_is_no_generator_is_one_line(pipeline, picture, given):
    with pytest.raises(ClearSRError, match="generator: expected one torch.Generator for all images"):
        pipeline(picture, generator=given)
