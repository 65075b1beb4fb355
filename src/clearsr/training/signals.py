"""Leaving cleanly: SIGTERM and Ctrl-C set a flag that the loop looks at after each step."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

# torchrun passes a terminal's Ctrl-C on to processes that got it already; a later one is the user's patience.
_SAME_PRESS_SECONDS = 2.0


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM and Ctrl-C only set a flag, which the yielded function reads.

    A second Ctrl-C stops at once, with KeyboardInterrupt. Outside the main thread, where Python allows no
    handlers, the flag is never set.
    """
    received: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def handle(number: int, _: FrameType | None) -> None:
        if not received:
            logger.warning("stopping after the step in hand, which is saved; Ctrl-C again stops at once")
        elif number == signal.SIGINT and time.monotonic() - received[0] > _SAME_PRESS_SECONDS:
            raise KeyboardInterrupt
        received.append(time.monotonic())

    handlers = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
