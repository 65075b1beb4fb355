"""What the networks' tests share."""

import weakref

import pytest
import torch


class LiveMaps:
    """Makes feature maps that hold nothing to read yet, and knows their bytes at the worst moment."""

    def __init__(self):
        self._made, self.most = [], 0

    def __call__(self, shape, dtype):
        made = torch.full(tuple(shape), torch.nan, dtype=dtype)
        self._made.append(weakref.ref(made))
        alive = [grid.nbytes for one in self._made if (grid := one()) is not None]
        self.most = max(self.most, sum(alive))
        return made


@pytest.fixture
def live_maps():
    """`live_maps()` is a `new_map`, whose `most` says how many bytes there were of its maps at a time."""
    return LiveMaps
