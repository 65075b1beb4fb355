"""Stopping a network in the middle of a step: a check before each of its convolutions and matrix products.

A denoising step of a large picture takes long, and the VAE runs outside of the steps; `on_step` alone would
let a cancelled picture occupy the machine for all that time.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


@contextmanager
def checked(network: nn.Module, check: Callable[[], None]) -> Iterator[None]:
    """Within the block `check`, which may raise, is called before each layer that this thread runs.

    Other threads may run the same network; they do not see it.
    """
    thread = threading.get_ident()

    def before(_module: nn.Module, _inputs: Any) -> None:
        if threading.get_ident() == thread:
            check()

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                hooks.callback(module.register_forward_pre_hook(before).remove)
        yield
