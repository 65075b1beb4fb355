"""What upscaling with the embedded model must not import: each of these takes longer than a small picture."""

import json
import subprocess
import sys

from PIL import Image

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
