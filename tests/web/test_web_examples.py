"""The examples of docs/web.md, as they are written there, against `clearsr serve` on a free port."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PAGE = (Path(__file__).parents[2] / "docs/web.md").read_text(encoding="utf-8")
WRITTEN = "http://127.0.0.1:7860/"


def examples(language, *words):
    """The fenced blocks in a language that hold all of these words."""
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [block for block in found if all(word in block for word in words)]


@pytest.fixture
def run_example(address, tmp_path):
    """`run_example(block, "sh")`: run it beside a photo.jpg, and return what it printed."""
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(tmp_path / "photo.jpg")

    def run(block, language):
        assert WRITTEN.rstrip("/") in block
        code = block.replace(WRITTEN.rstrip("/"), address.rstrip("/"))
        if language == "sh":
            command = ["bash", "-euo", "pipefail", "-c", code]
        else:
            command = [sys.executable, "-c", code]
        environment = {**os.environ, "NO_PROXY": "*"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def need(*programs):
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here")


def shape_of(path):
    with Image.open(path) as image:
        return image.format, image.size


def test_every_example_is_one_that_is_run_here():
    python = examples("python")
    shell = [block for block in examples("sh") if "curl" in block]
    assert len(python) == 2 and len(shell) == 1
    assert {*python, *shell} == {
        *examples("python", "/v1/upscale"),
        *examples("python", "/v1/jobs"),
        *examples("sh", "/v1/upscale"),
    }


def test_curl(run_example, tmp_path):
    need("bash", "curl")
    (block,) = examples("sh", "/v1/upscale")
    run_example(block, "sh")
    assert shape_of(tmp_path / "photo_x2.png") == ("PNG", (80, 60))


def test_python_over_http(run_example, tmp_path):
    (block,) = examples("python", "/v1/upscale")
    run_example(block, "python")
    assert shape_of(tmp_path / "photo_x2.jpg") == ("JPEG", (80, 60))


def test_a_job(run_example, tmp_path):
    (block,) = examples("python", "/v1/jobs")
    printed = run_example(block, "python").splitlines()
    assert "event: done" in printed
    assert shape_of(tmp_path / "photo_x2.png") == ("PNG", (80, 60))
    assert shape_of(tmp_path / "photo_x2.jpg") == ("JPEG", (80, 60))
