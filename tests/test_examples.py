"""The notebooks of examples/: clean of outputs, and every cell runs offline, in a kernel of its own."""

import re
from pathlib import Path

import pytest

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
