"""What C libraries print on standard error by themselves, dropped while a picture is decoded.

libtiff says what is wrong with a file there, beside our own line. A process that gives Python's `sys.stderr`
a descriptor of its own (`own_stderr`, which the command line calls) loses nothing else by this; in every
other process nothing is dropped.
"""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_STDERR = 2
_lock = threading.Lock()  # guards what follows
_inside = 0
_owned: TextIO | None = None
_saved = -1


def own_stderr() -> None:
    """Have Python write its standard error through a copy of descriptor 2, for the rest of the process."""
    global _owned
    try:
        if sys.stderr.fileno() != _STDERR:
            return
        sys.stderr.flush()
        _owned = sys.stderr = open(  # noqa: SIM115 - as long as the process
            os.dup(_STDERR), "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors
        )
    except (OSError, ValueError, AttributeError):  # there is none, or it is no file
        return


@contextmanager
def dropped() -> Iterator[None]:
    """Within the block descriptor 2 leads nowhere, if Python does not use it."""
    if _owned is None:
        yield
        return
    with muted():
        yield


@contextmanager
def muted() -> Iterator[None]:
    """Within the block descriptor 2 leads nowhere, whoever writes there; threads share one change."""
    global _inside, _saved
    with _lock:
        if _inside == 0:
            _saved = os.dup(_STDERR)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, _STDERR)
            os.close(nowhere)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                os.dup2(_saved, _STDERR)
                os.close(_saved)
