"""What C libraries print is kept from the user while a picture is decoded, and nothing else is."""

import io
import subprocess
import sys

import pytest
from PIL import Image

_SCRIPT = """
import os, sys
from clearsr.errors import ClearSRError
from clearsr.image import read_image
from clearsr.quiet import dropped, own_stderr
from pathlib import Path
if sys.argv[2] == "command":
    own_stderr()
try:
    read_image(Path(sys.argv[1]))
except ClearSRError:
    print("refused", file=sys.stderr)
with dropped(), dropped():
    os.write(2, b"inside\\n")
    print("python", file=sys.stderr)
os.write(2, b"after\\n")
"""


@pytest.fixture
def broken(tmp_path):
    """A TIFF about which libtiff complains by itself."""
    buffer = io.BytesIO()
    Image.radial_gradient("L").save(buffer, "TIFF", compression="tiff_lzw")
    data = bytearray(buffer.getvalue())
    middle = len(data) // 2
    data[middle : middle + 200] = b"\xff" * 200
    (tmp_path / "a.tif").write_bytes(bytes(data))
    return tmp_path / "a.tif"


@pytest.mark.skipif(sys.platform == "win32", reason="other descriptors")
def test_the_command_drops_them_and_a_program_of_others_keeps_them(broken):
    def lines(role):
        command = [sys.executable, "-c", _SCRIPT, str(broken), role]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        return done.stderr.splitlines()

    assert lines("command") == ["refused", "python", "after"]
    others = lines("library")
    assert others[-4:] == ["refused", "inside", "python", "after"] and len(others) > 4
