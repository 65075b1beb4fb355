"""Memory that was freed, given back to the system.

glibc keeps what is freed between blocks that are in use. A run in pieces of changing sizes leaves hundreds of
megabytes of such holes, which count as much as what is in use where memory is bounded.
"""

import ctypes
import functools
import sys
from collections.abc import Callable


def give_back_freed_memory() -> None:
    """Have the C library return what nobody uses; costs milliseconds. Does nothing where it is not glibc."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library, such as musl
        return None
