"""Layers in windows: how large a window may be, and what they say of themselves is what they do."""

import dataclasses
import itertools
import types

import pytest
import torch
from torch import nn

from clearsr.models.painter import Painter
from clearsr.models.windowed_layers import Convolution, SelfAttention, run_in_windows

CPU = torch.device("cpu")


def largest(fits):
    """The largest side that fits, counted up from 1, which is taken anyway."""
    return next(side for side in itertools.count(1) if not fits(side + 1))


@pytest.mark.parametrize("area", [1, 90, 1000, 4095, 4096, 30_000])
@pytest.mark.parametrize(("margin", "cells"), [(0, (1, 1)), (1, (1, 2)), (2, (4, 1)), (1, (2, 1))])
def test_a_window_is_the_largest_whose_tensors_have_no_more_than_the_area(area, margin, cells):
    layer = Convolution(nn.Identity(), 7, margin, cells=cells)
    expected = largest(lambda side: 7 * (max(cells) * (side + 2 * margin)) ** 2 <= area)
    assert layer.side(area) == expected


@pytest.mark.parametrize("area", [1, 90, 1000, 4095, 4096, 300_000])
@pytest.mark.parametrize(("heads", "channels"), [(1, 1), (1, 200), (8, 16), (2, 3)])
def test_a_window_of_attention_holds_its_scores_and_its_keys_and_values(area, heads, channels):
    layer = SelfAttention(types.SimpleNamespace(heads=heads), channels)
    expected = largest(lambda side: max(heads * side**4, 2 * channels * side**2) <= area)
    assert layer.side(area) == expected


def recorded(layer, found):
    """The layer, which adds to `found` how many channels it says and how many its input or result has."""

    def apply(values):
        result = layer.apply(values)
        found.append((layer.channels, max(values.shape[1], result.shape[1])))
        return result

    return dataclasses.replace(layer, apply=apply)


def test_the_painters_layers_count_what_is_inside_of_them():
    """A dense block's last convolution reads more than the block; behind the last layer all is enlarged."""
    painter, found = Painter(2).requires_grad_(False), []
    first, *blocks, after, last = [recorded(layer, found) for layer in painter._layers()]
    run_in_windows([first, *blocks, after, last], torch.zeros(1, 6, 16, 16), 10**6, CPU, make_map)
    folded, *widths = found
    assert folded[0] == 6 == painter.conv_in.in_channels // 16
    dense = max(conv.in_channels for conv in painter.body.modules() if isinstance(conv, nn.Conv2d))
    assert widths == [(dense, 64), (dense, 64), (64, 64), (64, 64)]


def make_map(shape, dtype):
    return torch.empty(tuple(shape), dtype=dtype)


@pytest.mark.parametrize("divisor", [1.0, 2.0])
def test_a_sum_is_divided_and_lies_where_what_was_kept_lay(divisor, normal):
    """Where it has the same shape, that is."""
    source, maps = normal(1, 3, 6, 5), []

    def new_map(shape, dtype):
        maps.append(make_map(shape, dtype))
        return maps[-1]

    doubled = Convolution(lambda values: 2 * values, 3, 0)
    started = dataclasses.replace(doubled, starts_residual=True)
    added = Convolution(lambda values: values + 1, 3, 0, shortcut=nn.Identity(), divisor=divisor)
    found = run_in_windows([doubled, started, added], source, 30, CPU, new_map)
    torch.testing.assert_close(found, (2 * source + 4 * source + 1) / divisor)
    assert len(maps) == 2 and found is maps[0]
    twice = lambda values: values.repeat(1, 2, 1, 1)  # noqa: E731
    wider = Convolution(twice, 6, 0, shortcut=twice)
    found = run_in_windows([doubled, started, wider], source, 30, CPU, new_map)
    assert len(maps) == 5 and found is maps[4]
