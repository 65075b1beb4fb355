"""`clearsr upscale`: where results go, what is skipped, what is said, and that nothing is lost."""

import json
import os

import numpy as np
import pytest
import yaml
from PIL import Image

from clearsr.files.upscale import Job
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.seeds import file_seed


def size_of(path):
    with Image.open(path) as image:
        image.load()
        return image.size


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_one_file_goes_beside_its_input(upscale, photo, tmp_path):
    photo("a.png")
    outcome = upscale(tmp_path / "a.png")
    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.out.startswith(f"{tmp_path / 'a.png'} -> {tmp_path / 'a_x4.png'} (64x48, ")
    assert files_below(tmp_path) == ["a.png", "a_x4.png"]
    assert size_of(tmp_path / "a_x4.png") == (64, 48)


def test_folders_are_mirrored_and_no_temporary_file_is_left(upscale, photo, tmp_path):
    for name in ("in/a.png", "in/deep/er/b.jpg", "in/.hidden.png", "c.bmp"):
        photo(name)
    (tmp_path / "in/notes.txt").write_text("no picture")
    outcome = upscale(tmp_path / "in", tmp_path / "c.bmp", "-o", tmp_path / "out", "--upscale", "1.5")
    assert outcome.code == 0
    assert outcome.err.splitlines()[-1] == "3 upscaled, 0 skipped, 0 failed"
    assert files_below(tmp_path / "out") == ["a.png", "c.png", "deep/er/b.png"]
    assert size_of(tmp_path / "out/deep/er/b.png") == (24, 18)


def test_result_resembles_the_picture(upscale, photo, tmp_path, pixels):
    upscale(photo("a.png", 24, 32), "-o", tmp_path / "out")
    result = np.asarray(Image.open(tmp_path / "out/a.png"), dtype=float)
    assert np.abs(result - pixels(96, 128)).mean() < 12


@pytest.mark.parametrize(
    ("arguments", "name", "kind"),
    [
        (["--format", "jpg"], "a.jpg", "JPEG"),
        (["--format", "webp", "--quality", "50"], "a.webp", "WEBP"),
        (["--format", "tiff"], "a.tif", "TIFF"),
    ],
)
def test_formats(upscale, photo, tmp_path, arguments, name, kind):
    assert upscale(photo("a.png"), "-o", tmp_path / "out", *arguments).code == 0
    with Image.open(tmp_path / "out" / name) as image:
        assert (image.format, image.size) == (kind, (64, 48))


def test_quality_reaches_the_encoder(upscale, photo, tmp_path):
    source = photo("a.png", 32, 32)
    for quality in ("20", "95"):
        assert upscale(source, "-o", tmp_path / f"{quality}.jpg", "--quality", quality).code == 0
    assert (tmp_path / "20.jpg").stat().st_size < 0.7 * (tmp_path / "95.jpg").stat().st_size


def test_output_file_name_for_one_input(upscale, photo, tmp_path):
    outcome = upscale(photo("a.png"), "-o", tmp_path / "new/large.jpeg")
    assert outcome.code == 0
    with Image.open(tmp_path / "new/large.jpeg") as image:
        assert image.format == "JPEG"


def test_done_is_skipped_and_overwrite_does_it_again(upscale, photo, tmp_path):
    photo("in/a.png")
    photo("in/b.png")
    arguments = (tmp_path / "in", "-o", tmp_path / "out")
    upscale(tmp_path / "in/a.png", "-o", tmp_path / "out")
    (tmp_path / "out/a.png").write_bytes(b"kept")
    second = upscale(*arguments)
    assert second.code == 0
    assert f"{tmp_path / 'in/a.png'}: skipped, {tmp_path / 'out/a.png'} is there (--overwrite" in second.err
    assert second.err.splitlines()[-1] == "1 upscaled, 1 skipped, 0 failed"
    assert (tmp_path / "out/a.png").read_bytes() == b"kept"
    assert upscale(*arguments, "--overwrite").err.splitlines()[-1] == "2 upscaled, 0 skipped, 0 failed"
    assert size_of(tmp_path / "out/a.png") == (64, 48)


def test_second_run_beside_the_inputs_takes_no_result_for_an_input(upscale, photo, tmp_path):
    photo("a.png")
    upscale(tmp_path)
    again = upscale(tmp_path)
    assert again.code == 0
    assert "1 file is left out as results of an earlier run" in again.err
    assert files_below(tmp_path) == ["a.png", "a_x4.png"]


def test_no_file_is_compared_with_all_others(upscale, tmp_path, monkeypatch):
    count = 100
    (tmp_path / "in").mkdir()
    for index in range(count):
        (tmp_path / f"in/{index}.png").write_bytes(b"no picture")
    compared, same = [], Job.__eq__
    monkeypatch.setattr(Job, "__eq__", lambda a, b: compared.append(1) or same(a, b))
    outcome = upscale(tmp_path / "in", "-o", tmp_path / "out", "--quiet")
    assert outcome.code == 1 and len(outcome.errors) == count
    assert len(compared) < 10 * count


def test_no_weights_are_loaded_when_there_is_nothing_to_do(upscale, photo, model, tmp_path, monkeypatch):
    source = photo("a.png")
    upscale(source)
    monkeypatch.setattr("clearsr.pipeline.pipeline.load_network", None)
    assert upscale(source).code == 0


def test_model_is_loaded_once(upscale, photo, tmp_path, monkeypatch):
    from clearsr.pipeline import pipeline

    calls = []

    def load(*arguments):
        calls.append(arguments)
        return loaded(*arguments)

    loaded = pipeline.load_network
    monkeypatch.setattr(pipeline, "load_network", load)
    photo("in/a.png")
    photo("in/b.png")
    assert upscale(tmp_path / "in", "-o", tmp_path / "out").code == 0
    assert len(calls) == 1


def test_same_seed_same_bytes_whatever_else_is_upscaled(upscale, photo, tmp_path):
    source = photo("in/a.png")
    photo("in/0.png", 20, 20)
    common = ("--start", "noise", "--color", "none", "--steps", "2")
    upscale(source, "-o", tmp_path / "alone", "--seed", "7", *common)
    upscale(tmp_path / "in", "-o", tmp_path / "together", "--seed", "7", *common)
    upscale(source, "-o", tmp_path / "other", "--seed", "8", *common)
    first = (tmp_path / "alone/a.png").read_bytes()
    assert first == (tmp_path / "together/a.png").read_bytes()
    assert first != (tmp_path / "other/a.png").read_bytes()


def test_noise_follows_the_name_and_not_the_folder(upscale, photo, tmp_path, model):
    common = ("--start", "noise", "--color", "none", "--steps", "2", "--seed", "7")
    for name in ("in/a.png", "elsewhere/a.png", "in/b.png"):
        photo(name)
    upscale(tmp_path / "in", "-o", tmp_path / "out", *common)
    upscale(tmp_path / "elsewhere/a.png", "-o", tmp_path / "moved", *common)
    first = (tmp_path / "out/a.png").read_bytes()
    assert first == (tmp_path / "moved/a.png").read_bytes()
    assert first != (tmp_path / "out/b.png").read_bytes()
    pipeline = ClearSRPipeline.from_pretrained(model, device="cpu")
    again = pipeline(
        Image.open(tmp_path / "in/a.png"), start="noise", color="none", steps=2, seed=file_seed(7, "a.png")
    )
    assert np.array_equal(np.asarray(again), np.asarray(Image.open(tmp_path / "out/a.png")))


def test_json_is_one_object_per_file(upscale, photo, tmp_path):
    photo("in/a.png")
    (tmp_path / "in/bad.png").write_bytes(b"")
    outcome = upscale(tmp_path / "in", "-o", tmp_path / "out", "--json")
    records = [json.loads(line) for line in outcome.out.splitlines()]
    good, bad = records
    names = {"input", "output", "status", "seconds", "width", "height", "error", "warnings"}
    assert set(good) == set(bad) == names
    assert good["warnings"] == bad["warnings"] == []
    assert (good["status"], good["width"], good["height"], good["error"]) == ("upscaled", 64, 48, None)
    assert good["output"] == str(tmp_path / "out/a.png")
    assert good["seconds"] > 0
    assert (bad["status"], bad["width"]) == ("failed", None)
    assert "bad.png: is empty" in bad["error"]
    assert (
        json.loads(upscale(tmp_path / "in/a.png", "-o", tmp_path / "out", "--json").out)["status"]
        == "skipped"
    )


def test_quiet_says_only_errors(upscale, photo, tmp_path):
    photo("in/a.png")
    photo("in/b.png")
    assert upscale(tmp_path / "in", "-o", tmp_path / "out", "--quiet")[1:] == ("", "")
    (tmp_path / "in/bad.png").write_bytes(b"")
    outcome = upscale(tmp_path / "in", "-o", tmp_path / "out", "--quiet")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)


def test_settings_come_from_file_set_and_flags(upscale, photo, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({"upscale": 2, "steps": 1, "output": {"bit_depth": 16}}))
    outcome = upscale(photo("a.png"), "--config", settings, "--set", "upscale=3", "--tile", "32")
    assert outcome.code == 0
    with Image.open(tmp_path / "a_x3.png") as image:
        assert image.size == (48, 36)
    assert (tmp_path / "a_x3.png").read_bytes()[24] == 16  # bit depth in PNG's header


def test_out_of_memory_is_one_failed_file(upscale, photo, tmp_path, monkeypatch):
    import torch

    from clearsr.pipeline.steps import PipelineSteps

    decode = PipelineSteps.decode_signed

    def decode_small(self, latents, *arguments):
        if latents.shape[-1] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return decode(self, latents, *arguments)

    monkeypatch.setattr(PipelineSteps, "decode_signed", decode_small)
    photo("in/large.png", 16, 80)
    photo("in/small.png")
    outcome = upscale(tmp_path / "in", "-o", tmp_path / "out")
    assert outcome.code == 1
    assert "large.png: not enough memory; try a smaller --tile" in outcome.errors[0]
    assert files_below(tmp_path / "out") == ["small.png"]


def test_interrupted_run_says_how_far_it_came(upscale, photo, tmp_path, monkeypatch):
    from clearsr.pipeline.pipeline import ClearSRPipeline

    real, calls = ClearSRPipeline.upscale_with, []

    def stop_at_second(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(ClearSRPipeline, "upscale_with", stop_at_second)
    photo("in/a.png")
    photo("in/b.png")
    outcome = upscale(tmp_path / "in", "-o", tmp_path / "out")
    assert outcome.code == 130
    assert outcome.err.splitlines() == ["1 upscaled, 0 skipped, 0 failed", "clearsr: error: interrupted"]
    assert files_below(tmp_path / "out") == ["a.png"]


def test_relative_paths_and_working_folder(upscale, photo, tmp_path, monkeypatch):
    photo("in/a.png")
    monkeypatch.chdir(tmp_path)
    assert upscale("in", "-o", "out").code == 0
    assert files_below(tmp_path / "out") == ["a.png"]
    monkeypatch.chdir(tmp_path / "in")
    assert upscale("a.png").code == 0
    assert os.path.exists("a_x4.png")


def test_a_file_that_is_read_twice_is_warned_of_once(upscale, tmp_path, pixels):
    frames = [Image.fromarray(pixels()), Image.fromarray(pixels()[::-1])]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    outcome = upscale(tmp_path / "moving.gif", "--compare")
    assert outcome.code == 0 and (tmp_path / "moving_x4_comparison.png").is_file()
    assert outcome.err.count("holds 2 frames or pages; only the first is used") == 1


def test_warnings_are_on_the_terminal_and_in_the_record(upscale, tmp_path, pixels):
    frames = [Image.fromarray(pixels()), Image.fromarray(pixels()[::-1])]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    outcome = upscale(tmp_path / "moving.gif", "--json")
    text = "holds 2 frames or pages; only the first is used"
    assert json.loads(outcome.out)["warnings"] == [{"kind": "frames", "text": text}]
    assert outcome.err == f"clearsr: warning: {tmp_path / 'moving.gif'}: {text}\n"
    assert upscale(tmp_path / "moving.gif", "--quiet", "--overwrite").err == ""


def test_each_in_the_format_that_it_has(upscale, run, model, photo, tmp_path):
    for name in ("a.JPG", "b.jpeg", "c.webp", "d.tif", "e.bmp", "f.png", "b.png"):
        photo(f"in/{name}")
    expected = ["a.jpg", "b.jpeg", "b.png", "c.webp", "d.tif", "e.png", "f.png"]
    assert upscale(tmp_path / "in", "-o", tmp_path / "out", "--format", "same", "--quality", 60).code == 0
    assert files_below(tmp_path / "out") == expected
    formats = [Image.open(tmp_path / "out" / name).format for name in expected]
    assert formats == ["JPEG", "JPEG", "PNG", "WEBP", "TIFF", "PNG", "PNG"]
    pool = ["--engine", "local", "--workers", 1, "--device", "cpu", "--format", "same", "--quality", 60]
    assert run("batch", tmp_path / "in", "-o", tmp_path / "batch", "--model", model, *pool).code == 0
    for name in expected:
        assert (tmp_path / "batch" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert upscale(tmp_path / "in", "--format", "same").code == 0
    assert (tmp_path / "in/a_x4.jpg").exists() and (tmp_path / "in/b_x4.jpeg").exists()


def test_jpeg_is_another_name_of_jpg(upscale, photo, tmp_path):
    assert upscale(photo(), "-o", tmp_path / "out", "--format", "jpeg").code == 0
    assert files_below(tmp_path / "out") == ["photo.jpg"]
    assert upscale(photo(), "-o", tmp_path / "new.jpeg", "--format", "jpeg").code == 0


def test_a_stream_has_no_format_of_its_own(upscale, photo):
    outcome = upscale("-", "-o", "-", "--format", "same")
    assert outcome.code == 2 and "standard input has no name" in outcome.errors[0]


def test_the_time_of_the_input_is_kept_on_request(upscale, photo, tmp_path):
    source = photo()
    os.utime(source, (1_000_000_000, 1_100_000_000))
    for flags in ([], ["--baseline", "bicubic"], ["--width", 8]):
        out = tmp_path / f"out{len(flags)}{flags[:1]}"
        assert upscale(source, "-o", out, "--keep-time", *flags).code == 0
        assert (out / "photo.png").stat().st_mtime == 1_100_000_000
    assert upscale(source, "-o", tmp_path / "now").code == 0
    assert (tmp_path / "now/photo.png").stat().st_mtime > 1_600_000_000
