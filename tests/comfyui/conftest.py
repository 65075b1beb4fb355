"""What ComfyUI has of its own, as far as its documentation says and the nodes see it."""

import enum
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch

PACKAGE = Path(__file__).parents[2] / "comfyui"


class InterruptProcessingError(Exception):
    """ComfyUI's InterruptProcessingException."""


class ProgressBar:
    """`comfy.utils.ProgressBar`, keeping what it was told."""

    made = []

    def __init__(self, total, node_id=None):
        self.total, self.values = total, []
        self.made.append(self)

    def update_absolute(self, value, total=None, preview=None):
        self.values.append(value)


@pytest.fixture
def comfy(monkeypatch):
    """ComfyUI's `comfy`, on the processor; `comfy.stop_after(n)` interrupts at the n-th question."""
    root, management, utils = (
        types.ModuleType(f"comfy{name}") for name in ("", ".model_management", ".utils")
    )
    management.get_torch_device = lambda: torch.device("cpu")
    root.asked, root.limit = 0, None

    def asked():
        root.asked += 1
        if root.limit is not None and root.asked > root.limit:
            raise InterruptProcessingError

    management.InterruptProcessingError = InterruptProcessingError
    management.throw_exception_if_processing_interrupted = asked
    utils.ProgressBar, root.bars = ProgressBar, ProgressBar.made
    ProgressBar.made.clear()
    root.model_management, root.utils = management, utils
    root.stop_after = lambda count: setattr(root, "limit", count)
    for module in (root, management, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return root


def _kind(name, *known):
    """A type of the V3 schema. Its Input refuses what the documentation does not name."""
    common = {"display_name", "optional", "tooltip", "lazy", "extra_dict", *known}

    class Input:
        io_type = name

        def __init__(self, id, **options):
            unknown = options.keys() - common
            assert not unknown, f"{name}.Input takes no {unknown}"
            self.id, self.options = id, options
            self.optional = options.get("optional", False)

    class Output:
        io_type = name

        def __init__(self, id=None, display_name=None, tooltip=None, is_output_list=False):
            self.display_name = display_name

    return types.SimpleNamespace(Input=Input, Output=Output)


@pytest.fixture
def v3(monkeypatch):
    """`comfy_api.latest`."""
    number = ("default", "min", "max", "step", "display_mode")
    io = types.SimpleNamespace(
        Image=_kind("IMAGE"),
        Mask=_kind("MASK"),
        Int=_kind("INT", *number, "control_after_generate"),
        Float=_kind("FLOAT", *number, "round"),
        String=_kind("STRING", "default", "multiline", "placeholder"),
        Boolean=_kind("BOOLEAN", "default", "label_on", "label_off"),
        Combo=_kind("COMBO", "default", "options"),
        Custom=_kind,
        ComfyNode=type("ComfyNode", (), {}),
        NodeOutput=lambda *values: types.SimpleNamespace(result=values),
        NumberDisplay=enum.Enum("NumberDisplay", {"number": "number", "slider": "slider"}, type=str),
        Schema=lambda **fields: types.SimpleNamespace(**fields),
    )
    latest = types.ModuleType("comfy_api.latest")
    latest.io, latest.ComfyExtension = io, type("ComfyExtension", (), {})
    monkeypatch.setitem(sys.modules, "comfy_api", types.ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    return latest


def _load():
    name = str(PACKAGE).replace(".", "_x_")  # what ComfyUI calls a custom node's module
    spec = importlib.util.spec_from_file_location(name, PACKAGE / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        for loaded in [key for key in sys.modules if key.startswith(name)]:
            del sys.modules[loaded]
    return module


@pytest.fixture
def load_package():
    """`load_package()`: the custom node package, loaded as ComfyUI does it."""
    return _load
