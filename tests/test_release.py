"""What is published: version, citation, CI, and packages that work in an environment of their own."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
# Python runs this before anything else: whatever would reach the network is an error.
_NO_NETWORK = """
import socket
def refuse(*_, **__):
    raise AssertionError("something reached for the network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
"""


def _files_below(folder):
    """Paths relative to the project, less what Python leaves behind."""
    paths = (p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(ROOT).as_posix() for p in paths if p.suffix != ".pyc"}


def _stated_version():
    return re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[1]


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == _stated_version() == version("clearsr")
    paper = citation["preferred-citation"]
    assert "Latent Low-Resolution Image Embeddings" in paper["title"] and paper["year"] == 2025
    assert (
        paper["authors"][0] == {"family-names": "Wan", "given-names": "Yuhao"} and len(paper["authors"]) == 7
    )


def test_no_second_place_states_the_version():
    pattern = re.compile(r"(__version__|^version)\s*=\s*[\"']\d", re.MULTILINE)
    sources = [path for path in _files_below("src/clearsr") if path.endswith(".py")]
    assert len(sources) > 100
    assert not [path for path in sources if pattern.search((ROOT / path).read_text("utf-8"))]


def test_the_hosted_ci_runs_what_is_here():
    text = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    pythons = jobs["test"]["strategy"]["matrix"]["python"]
    least = re.search(r'requires-python = ">=(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"))[1]
    assert pythons[0] == least and len(pythons) == 4
    targets = re.findall(r"\bmake (\w+)", text)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert all((ROOT / path).exists() for path in re.findall(r"tests/\S+\.py", text))


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The wheel and the sdist, built from this working tree."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


@pytest.mark.slow
def test_the_wheel_holds_the_whole_package_and_nothing_else(packages):
    wheel, _ = packages
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        weights = archive.getinfo("clearsr/weights/compact/model.safetensors")
        assert weights.file_size == (ROOT / "src" / weights.filename).stat().st_size
    assert inside == {path.removeprefix("src/") for path in _files_below("src/clearsr")}


@pytest.mark.slow
def test_the_sdist_holds_what_the_tests_need(packages):
    _, sdist = packages
    with tarfile.open(sdist) as archive:
        inside = {member.name.partition("/")[2] for member in archive.getmembers()}
    needed = {
        path
        for folder in ("src", "tests", "configs", "docs", "benchmarks", "comfyui", "examples")
        for path in _files_below(folder)
    }
    needed |= {"pyproject.toml", "constraints.txt", "Makefile", "README.md", "CHANGELOG.md", "LICENSE"}
    needed |= {"CITATION.cff", "mkdocs.yml", ".github/workflows/ci.yml", ".ci/run"}
    needed |= {"Dockerfile", ".dockerignore", "compose.yaml"}
    assert needed <= inside, needed - inside
    assert not [path for path in inside if re.search(r"\.pyc$|^(\.venv|dist|site|runs)/", path)]


@pytest.mark.slow
def test_a_wheel_made_of_the_sdist_is_the_same(packages, tmp_path):
    wheel, sdist = packages
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    project = next(tmp_path.iterdir())
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=project, check=True)
    with zipfile.ZipFile(next(project.glob("dist/*.whl"))) as second, zipfile.ZipFile(wheel) as first:
        assert {i.filename: i.CRC for i in second.infolist()} == {i.filename: i.CRC for i in first.infolist()}


@pytest.mark.slow
def test_the_wheel_upscales_in_an_empty_environment_without_network(packages, tmp_path):
    wheel, _ = packages
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "CLEARSR", "HF_"))}
    environment["HF_HOME"] = str(tmp_path / "nothing")

    def call(*command):
        done = subprocess.run(
            [str(part) for part in command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    call(sys.executable, "-m", "venv", "venv")
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    call(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    # Dependencies come from here; this line is no site folder, so an editable clearsr in it is not seen.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "sitecustomize.py").write_text(_NO_NETWORK)

    assert Path(call(python, "-c", "import clearsr; print(clearsr.__file__)")).is_relative_to(site)
    assert call(scripts / "clearsr", "--version") == f"clearsr {_stated_version()}"
    assert call(python, "-m", "clearsr", "--version") == f"clearsr {_stated_version()}"
    x = np.linspace(0, 255, 24).astype(np.uint8)
    picture = Image.fromarray(np.stack(np.broadcast_arrays(x[None], x[:20, None], 90), -1).astype(np.uint8))
    picture.save(tmp_path / "photo.png")
    call(scripts / "clearsr", "upscale", "photo.png", "--device", "cpu", "--precision", "fp32")
    with Image.open(tmp_path / "photo_x4.png") as result:
        assert result.size == (96, 80)
        bicubic = np.asarray(picture.resize((96, 80), Image.Resampling.BICUBIC), float)
        difference = np.abs(np.asarray(result, float) - bicubic).mean()
    assert 0 < difference < 20  # the network ran, and it shows the same picture
