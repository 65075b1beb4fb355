"""Window cross-attention against a loop over heads and queries; its bias table against Swin's recipe."""

import math

import pytest
import torch

from clearsr.errors import ClearSRError
from clearsr.models.window_attention import (
    UNPARTITIONED_TABLE_SIDE,
    WindowCrossAttention,
    merge_windows,
    partition_windows,
)

CHANNELS, HEAD_DIM, LATENT = 16, 8, 3


@pytest.fixture
def make_attention(randomise):
    def make(window_size, ratio):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            attention = WindowCrossAttention(CHANNELS, LATENT, HEAD_DIM, window_size, ratio)
        return randomise(attention, spread=0.5)

    return make


def _naive(attention, hidden, z_lr, ratio, window):
    """Eq. 2, query by query; the bias is looked up by the distance on the latent grid."""
    height, width = z_lr.shape[-2:]
    rows, columns = math.ceil(height / ratio), math.ceil(width / ratio)
    reach = window or UNPARTITIONED_TABLE_SIDE
    table_side = 2 * reach - ratio
    table = attention.position_bias.view(-1, table_side, table_side)
    queries = attention.to_q(attention.norm(hidden)).view(-1, rows, columns, attention.heads, HEAD_DIM)
    keys = attention.to_k(z_lr.permute(0, 2, 3, 1)).unflatten(-1, (attention.heads, HEAD_DIM))
    values = attention.to_v(z_lr.permute(0, 2, 3, 1)).unflatten(-1, (attention.heads, HEAD_DIM))
    result = torch.zeros(len(z_lr), rows, columns, attention.heads, HEAD_DIM)
    side = window or ratio * max(rows, columns)
    for b, y, x, head in torch.cartesian_prod(
        *(torch.arange(n) for n in (len(z_lr), rows, columns, attention.heads))
    ).tolist():
        top, left = y * ratio // side * side, x * ratio // side * side
        ys = range(top, min(top + side, height))
        xs = range(left, min(left + side, width))
        limit = table_side - 1
        down = torch.tensor([min(max(y * ratio - k + reach - 1, 0), limit) for k in ys])
        across = torch.tensor([min(max(x * ratio - k + reach - 1, 0), limit) for k in xs])
        bias = table[head][down][:, across]
        key = keys[b, ys.start : ys.stop, xs.start : xs.stop, head]
        scores = (key @ queries[b, y, x, head]) / math.sqrt(HEAD_DIM) + bias
        weights = torch.softmax(scores.flatten(), 0).view_as(scores)
        value = values[b, ys.start : ys.stop, xs.start : xs.stop, head]
        result[b, y, x, head] = torch.einsum("yx,yxc->c", weights, value)
    return attention.to_out(result.reshape(len(z_lr), rows * columns, CHANNELS))


@torch.no_grad()
@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(8, 16), (11, 13), (3, 17), (16, 9)])
def test_equals_the_naive_loop_also_where_neither_window_nor_ratio_divides(
    ratio, size, make_attention, normal
):
    attention = make_attention(8, ratio)
    z_lr = normal(2, LATENT, *size)
    cells = math.ceil(size[0] / ratio) * math.ceil(size[1] / ratio)
    hidden = normal(2, cells, CHANNELS, seed=1)
    expected = _naive(attention, hidden, z_lr, ratio, 8)
    torch.testing.assert_close(attention(hidden, z_lr), expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("ratio", [1, 2, 4])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (2, 70)])
def test_without_windows_every_query_sees_every_key(ratio, size, make_attention, normal):
    attention = make_attention(None, ratio)
    z_lr = normal(1, LATENT, *size)
    cells = math.ceil(size[0] / ratio) * math.ceil(size[1] / ratio)
    hidden = normal(1, cells, CHANNELS, seed=1)
    expected = _naive(attention, hidden, z_lr, ratio, None)
    torch.testing.assert_close(attention(hidden, z_lr), expected, atol=2e-5, rtol=1e-4)
    moved = attention(hidden, z_lr + torch.eye(size[1])[-1] * 3)  # the last column alone
    assert ((moved - expected).abs().amax(-1) > 1e-6).all()


@torch.no_grad()
@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_a_window_of_x_lr_touches_one_window_of_queries(ratio, make_attention, normal):
    attention, side = make_attention(8, ratio), 8 // ratio
    z_lr, hidden = normal(1, LATENT, 16, 24), normal(1, 16 * 24 // ratio**2, CHANNELS, seed=1)
    before = attention(hidden, z_lr).view(16 // ratio, 24 // ratio, CHANNELS)
    z_lr[..., 8:16, 16:24] += normal(8, 8, seed=2)
    changed = (attention(hidden, z_lr).view_as(before) != before).any(-1)
    expected = torch.zeros_like(changed)
    expected[side : 2 * side, 2 * side : 3 * side] = True
    assert torch.equal(changed, expected)


@torch.no_grad()
def test_rows_of_a_batch_are_independent(make_attention, normal):
    attention = make_attention(8, 2)
    z_lr, hidden = normal(3, LATENT, 11, 13), normal(3, 6 * 7, CHANNELS, seed=1)
    together = attention(hidden, z_lr)
    for row in range(3):
        alone = attention(hidden[row : row + 1], z_lr[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone)


@torch.no_grad()
def entries_used(side, ratio):
    """Which entry of the table each (query, key) pair of a window looks at, S²×s²."""
    attention = WindowCrossAttention(CHANNELS, LATENT, CHANNELS, side, ratio)
    attention.position_bias.copy_(torch.arange(attention.position_bias.shape[1]))
    return attention._bias(side)[0].long()


def test_the_index_is_made_once_and_moves_with_the_weights():
    with torch.device("meta"):
        attention = WindowCrossAttention(CHANNELS, LATENT, HEAD_DIM, 8, 2)
    attention.to_empty(device="cpu")
    _, kept = attention._index
    assert kept[0] == 7 * 14 + 7  # a query and the key at its own place
    attention._bias(8)
    assert attention._index[1] is kept and not list(attention.buffers())
    assert attention.to("meta")._index[1] is kept  # where there is nothing to compute


def test_the_index_of_a_whole_map_is_that_of_its_size():
    attention = WindowCrossAttention(CHANNELS, LATENT, HEAD_DIM, None, 1)
    shapes = [tuple(attention._bias(side).shape) for side in (4, 6, 4)]
    assert shapes == [(2, 16, 16), (2, 36, 36), (2, 16, 16)]


@pytest.mark.parametrize("side", [2, 5, 8])
def test_bias_index_at_equal_resolution_is_swins(side):
    grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
    relative = grid[:, :, None] - grid[:, None, :] + side - 1
    expected = relative[0] * (2 * side - 1) + relative[1]
    assert torch.equal(entries_used(side, 1), expected)


@pytest.mark.parametrize(("ratio", "entries"), [(1, 31), (2, 30), (4, 28), (8, 24)])
def test_bias_table_has_one_entry_per_distance(ratio, entries):
    attention = WindowCrossAttention(CHANNELS, LATENT, HEAD_DIM, 16, ratio)
    assert attention.position_bias.shape == (CHANNELS // HEAD_DIM, entries**2)
    used = entries_used(16, ratio)
    assert torch.equal(used.unique(), torch.arange(entries**2))  # every entry is used, none is missing
    distances = {}
    for query in range((16 // ratio) ** 2):
        for key in range(16**2):
            dy = query // (16 // ratio) * ratio - key // 16
            dx = query % (16 // ratio) * ratio - key % 16
            assert distances.setdefault((dy, dx), int(used[query, key])) == used[query, key]
    assert len(distances) == entries**2  # no two distances share an entry


@pytest.mark.parametrize(("height", "width", "side"), [(8, 12, 4), (6, 6, 6), (3, 9, 1), (10, 5, 5)])
def test_partition_cuts_row_by_row_and_merge_is_its_inverse(height, width, side, normal):
    grid = normal(2, height, width, 5)
    windows = partition_windows(grid, side)
    cut = [
        grid[b, top : top + side, left : left + side].reshape(-1, 5)
        for b in range(2)
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
    assert torch.equal(windows, torch.stack(cut))
    assert torch.equal(merge_windows(windows, height, width), grid)


def test_adds_nothing_at_first_but_learns(normal):
    attention = WindowCrossAttention(CHANNELS, LATENT, HEAD_DIM, 8, 2)
    added = attention(normal(1, 6 * 7, CHANNELS), normal(1, LATENT, 11, 13))
    assert not added.any()
    added.sum().backward()
    assert attention.to_out.weight.grad.abs().sum() > 0


def test_padding_leaves_no_trace_in_half_precision(make_attention, normal):
    attention = make_attention(8, 2).to(torch.bfloat16)
    hidden, z_lr = normal(1, 5 * 5, CHANNELS).bfloat16(), normal(1, LATENT, 9, 9).bfloat16()
    added = attention(hidden, z_lr)
    assert added.isfinite().all()
    reference = make_attention(8, 2)(hidden.float(), z_lr.float())
    torch.testing.assert_close(added.float(), reference, atol=0.1, rtol=0.1)


def test_window_that_the_ratio_does_not_divide_is_refused():
    with pytest.raises(ClearSRError, match="window_size: 6 must be a multiple of 4"):
        WindowCrossAttention(CHANNELS, LATENT, HEAD_DIM, 6, 4)
