"""Freed memory goes back to the system, where the C library can do that."""

from pathlib import Path

import numpy as np
import pytest

from clearsr.pipeline.budget import _malloc_trim, give_back_freed_memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.skipif(_malloc_trim() is None, reason="not glibc")
def test_holes_between_what_is_in_use_are_given_back() -> None:
    blocks = [np.ones(60_000, np.uint8) for _ in range(4000)]  # 240 MB, too small each for pages of their own
    kept = blocks[::10]
    del blocks
    before = _resident_bytes()
    give_back_freed_memory()
    assert before - _resident_bytes() > 100e6
    assert all(block.all() for block in kept)


def _resident_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmRSS")).split()[1])
