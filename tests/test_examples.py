"""What is in examples/: notebooks, clean of outputs, every cell of which runs offline, and the Space."""

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

from clearsr import ClearSRPipeline

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
# Before the first cell: whatever would reach the network is an error. (The kernel's sockets are open then.)
_NO_NETWORK = """
import socket
def _refuse(*_, **__):
    raise AssertionError("something reached for the network")
socket.getaddrinfo = socket.create_connection = _refuse
"""


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_there_is_one():
    assert NOTEBOOKS


def test_it_is_valid_and_holds_no_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_cell_runs(notebook, tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(_NO_NETWORK))
    resources = {"metadata": {"path": tmp_path}}
    client.NotebookClient(notebook, timeout=280, kernel_name="python3", resources=resources).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 4
    measured = dict(re.findall(r"^([\w' ]+?)  +(\d+\.\d+)", printed, flags=re.MULTILINE))
    fidelity = [float(measured[name]) for name in ("truer", "the paper's", "crisper")]
    assert float(measured["ClearSR"]) > float(measured["bicubic"])
    assert fidelity == sorted(fidelity, reverse=True)


@pytest.mark.slow
def test_the_space_upscales_a_picture(monkeypatch):
    """examples/space/app.py, without its page being opened."""
    gradio = pytest.importorskip("gradio", reason="gradio is not installed")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    space = runpy.run_path(str(Path(__file__).parents[1] / "examples/space/app.py"), run_name="space")
    assert isinstance(space["demo"], gradio.Blocks)
    picture = Image.linear_gradient("L").resize((24, 16)).convert("RGB")
    before, after = space["upscale"](picture, 2, "fidelity", 3)
    assert before.size == after.size == (48, 32)
    pipeline = ClearSRPipeline.from_pretrained("compact")
    expected = pipeline(picture, upscale=2, seed=3, lsa={"preset": "fidelity"})
    assert after.tobytes() == expected.tobytes()
    with pytest.raises(gradio.Error, match="Choose a picture"):
        space["upscale"](None, 2, "fidelity", 3)
