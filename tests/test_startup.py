"""What upscaling with the embedded model must not import: each of these takes longer than a small picture."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import clearsr
from clearsr.errors import EXTRA_OF, ClearSRError, optional

SLOW = {
    "accelerate",
    "diffusers",
    "huggingface_hub",
    "peft",
    "requests",
    "scipy",
    "sympy",
    "tensorboard",
    "torch._dynamo",
    "transformers",
}
_RUN = """
import json, sys
from clearsr.cli import main
code = main(sys.argv[1:])
print()
print(json.dumps([code, sorted(sys.modules)]))
"""
# As where only the base is installed: whoever asks for a package of an extra does not get it.
_BASE_ALONE = f"""
import contextlib, io, json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(EXTRA_OF)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from clearsr.cli import main
ends = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    ends.append([code, err.getvalue()])
print()
print(json.dumps(ends))
"""
_UPSCALE = ["upscale", "in.png", "-o", "out.png", "--quiet", "--device", "cpu"]


def _imported(arguments, folder):
    """The modules that a process has imported when the command is done."""
    command = [sys.executable, "-c", _RUN, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0 and "clearsr.cli.upscale" in modules
    return set(modules)


def test_upscaling_imports_no_slow_package(tmp_path):
    Image.new("RGB", (12, 9), (200, 90, 40)).save(tmp_path / "in.png")
    modules = _imported(_UPSCALE, tmp_path)
    assert (tmp_path / "out.png").is_file() and "torch" in modules
    assert not SLOW & modules


def test_help_imports_not_even_torch(tmp_path):
    assert not {*SLOW, "torch", "numpy", "PIL"} & _imported(["upscale", "--help"], tmp_path)


def _with_base_alone(folder, *commands):
    """Exit code and standard error of each."""
    Image.new("RGB", (48, 48), (200, 90, 40)).save(folder / "in.png")
    command = [sys.executable, "-c", _BASE_ALONE, json.dumps(commands)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_compact_model_needs_no_extra(tmp_path):
    commands = [
        ["info", "--model", "compact"],
        ["doctor"],
        ["evaluate", "--sr", ".", "--hr", ".", "--measures", "psnr", "--quiet"],
        ["degrade", "in.png", "-o", "small.png", "--quiet"],
        ["batch", "in.png", "-o", "many", "--engine", "local", "--workers", "1", "--quiet"],
        _UPSCALE,
    ]
    for command, (code, error) in zip(commands, _with_base_alone(tmp_path, *commands), strict=True):
        assert code == 0, (command, error)


def test_what_needs_an_extra_names_it_in_one_line(tmp_path):
    recipe = str(Path(__file__).parents[1] / "configs/compact-1-autoencoder.yaml")
    expected = {
        "--scheduler euler: needs diffusers; install the extra sd": [*_UPSCALE, "--scheduler", "euler"],
        "a hub id: needs huggingface_hub; install the extra sd": [*_UPSCALE, "--model", "someone/model"],
        "install the extra sd: pip install 'clearsr[sd]', or '.[sd]' in the folder": [
            "init",
            "--base-model",
            "someone/base",
            "-o",
            "m",
        ],
        "training: needs accelerate; install the extra train: pip install 'clearsr[train]'": [
            "train",
            recipe,
        ],
    }
    ends = _with_base_alone(tmp_path, *expected.values())
    for message, (code, error) in zip(expected, ends, strict=True):
        assert code == 1 and message in error, error
        assert len(error.strip().splitlines()) == 1


def test_only_the_packages_of_extras_are_forgiven():
    with pytest.raises(ClearSRError, match="a LoRA: needs peft; install the extra sd"), optional("a LoRA"):
        raise ModuleNotFoundError("No module named 'peft.tuners'", name="peft.tuners")
    with pytest.raises(ModuleNotFoundError), optional("a LoRA"):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")


def test_every_import_of_such_a_package_says_what_it_is_for():
    folder = Path(clearsr.__file__).parent
    found = 0
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        blocks = [node for node in ast.walk(tree) if isinstance(node, ast.With | ast.If)]
        allowed = [
            block
            for block in blocks
            if "optional(" in ast.unparse(block).splitlines()[0]
            or ast.unparse(block).startswith("if TYPE_CHECKING")
        ]
        inside = {id(node) for block in allowed for node in ast.walk(block)}
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            if {name.partition(".")[0] for name in names} & EXTRA_OF.keys():
                found += 1
                assert id(node) in inside, f"{path}:{node.lineno}"
    assert found > 10


def test_how_an_extra_is_installed_is_said_in_one_place():
    """`errors.installing`: on no index as it is, `pip install clearsr[...]` alone says too little."""
    folder = Path(clearsr.__file__).parent
    texts = {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.py")}
    spelled = [path for path, text in texts.items() if re.search(r"clearsr\[\S+\]", text)]
    assert spelled == [folder / "errors.py"]
    asked = {extra for text in texts.values() for extra in re.findall(r"installing\(['\"](\w+)", text)}
    declared = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert len(asked) > 5 and all(f"\n{extra} = [" in declared for extra in asked)


def test_the_extras_bring_these_packages():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    base = text.partition("dependencies = [")[2].partition("\n]")[0]
    for package, extra in EXTRA_OF.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"{extra} = [")]
        assert f'"{package}>=' in line and package not in base
    (line,) = [line for line in text.splitlines() if line.startswith("all = [")]
    for extra in line.partition("clearsr[")[2].partition("]")[0].split(","):
        assert f"\n{extra} = [" in text, extra
