"""The examples of docs/web.md, as they are written there, against `clearsr serve` on a free port."""

import json
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


@pytest.fixture(scope="module")
def address(run_server):
    pytest.importorskip("gradio", reason="the extra `web` is not installed")
    with run_server() as (address, _):
        yield address


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
        environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path / "downloads"), "NO_PROXY": "*"}
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
    assert len(python) == 2 and len(shell) == 2
    assert {*python, *shell} == {
        *examples("python", "httpx"),
        *examples("python", "gradio_client"),
        *examples("sh", "/v1/upscale"),
        *examples("sh", "jq"),
    }


def test_curl(run_example, tmp_path):
    need("bash", "curl")
    (block,) = examples("sh", "/v1/upscale")
    run_example(block, "sh")
    assert shape_of(tmp_path / "photo_x2.png") == ("PNG", (80, 60))


def test_python_over_http(run_example, tmp_path):
    (block,) = examples("python", "httpx")
    run_example(block, "python")
    assert shape_of(tmp_path / "photo_x2.jpg") == ("JPEG", (80, 60))


def test_gradios_client(run_example):
    (block,) = examples("python", "gradio_client")
    path = Path(run_example(block + "print(path)\n", "python").splitlines()[-1])
    assert path.name == "photo_x4.jpg"
    assert shape_of(path) == ("JPEG", (160, 120))


def test_gradios_api_with_curl(run_example, address, tmp_path):
    need("bash", "curl", "jq")
    (block,) = examples("sh", "jq")
    event, data = run_example(block, "sh").strip().splitlines()[-2:]
    assert event == "event: complete"
    (result,) = json.loads(data.removeprefix("data: "))
    target = tmp_path / "result.png"
    target.write_bytes(subprocess.run(["curl", "-sf", result["url"]], capture_output=True, check=True).stdout)
    assert shape_of(target) == ("PNG", (160, 120))
