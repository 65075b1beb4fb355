"""Window-based cross-attention from control features to the latent LR embedding (paper, Eq. 2).

The query map is `ratio` times coarser than the latent grid (1, 2, 4, 8 at the levels of the U-Net), and both
are cut into the same N windows: s×s latent cells as keys and values, S×S = (s/ratio)² cells as queries.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from clearsr.errors import ClearSRError

# Side of the bias table where there is one window for the whole map ("w/o window partition"): the latent grid
# of a 512 px image. Offsets beyond it share the outermost entry.
UNPARTITIONED_TABLE_SIDE = 64


def partition_windows(grid: torch.Tensor, side: int) -> torch.Tensor:
    """B×H×W×C -> (B·N)×side²×C, windows in row-major order; H and W are multiples of `side`."""
    batch, height, width, channels = grid.shape
    grid = grid.view(batch, height // side, side, width // side, side, channels)
    return grid.transpose(2, 3).reshape(-1, side * side, channels)


def merge_windows(windows: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of `partition_windows`: (B·N)×side²×C -> B×height×width×C."""
    side = int(windows.shape[1] ** 0.5)
    rows, columns = height // side, width // side
    grid = windows.view(-1, rows, columns, side, side, windows.shape[-1])
    return grid.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def aligned_offsets(
    query_side: int, key_side: int, ratio: int, table_reach: int, device: torch.device
) -> torch.Tensor:
    """Index into a bias table for every (query, key) pair of a window: S²·s², int32, query by query.

    Positions are aligned on the latent grid: query cell q lies at latent row ratio·q, so offsets ratio·q - k
    run over 2s - ratio values. With equal sides this is Swin's table. `table_reach` is the s that the table
    was made for.
    """
    table_side = 2 * table_reach - ratio
    queries, keys = (torch.arange(side, device=device, dtype=torch.int32) for side in (query_side, key_side))
    offsets = queries[:, None] * ratio - keys[None, :]
    offsets = (offsets + table_reach - 1).clamp(0, table_side - 1)  # S×s
    return (offsets[:, None, :, None] * table_side + offsets[None, :, None, :]).flatten()  # Sy×Sx×sy×sx


class WindowCrossAttention(nn.Module):
    """CA(Q, K, V) = softmax(QKᵀ/√d + B)V within windows; queries from features, keys and values from x_lr.

    The output projection starts at zero, so that at first nothing is added.
    """

    def __init__(
        self, channels: int, latent_channels: int, head_dim: int, window_size: int | None, ratio: int
    ) -> None:
        """`window_size` is s on the latent grid; None is one window for the whole map.

        Raises:
            ClearSRError: `window_size` is not a multiple of `ratio`.
        """
        super().__init__()
        if window_size is not None and window_size % ratio:
            raise ClearSRError(f"control.window_size: {window_size} must be a multiple of {ratio}")
        self.heads, self.ratio, self.window_size = channels // head_dim, ratio, window_size
        self.norm = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(latent_channels, channels, bias=False)
        self.to_v = nn.Linear(latent_channels, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)
        table_side = 2 * self._reach - ratio
        # No buffer: it has values also where the network has none (`meta`), and no checkpoint holds it.
        self._index: tuple[int, torch.Tensor] | None = None
        if window_size is not None:
            self._index = window_size, self._index_of(window_size, torch.device("cpu"))
        self.position_bias = nn.Parameter(torch.empty(self.heads, table_side**2))
        nn.init.trunc_normal_(self.position_bias, std=0.02)

    def forward(self, hidden: torch.Tensor, z_lr: torch.Tensor) -> torch.Tensor:
        """What x_lr adds to the features.

        Args:
            hidden: B×L×C, L = ceil(h/ratio)·ceil(w/ratio) cells in row-major order.
            z_lr: B×c×h×w.
        """
        batch, _, height, width = z_lr.shape
        rows, columns = -(-height // self.ratio), -(-width // self.ratio)
        key_side = self.window_size or self.ratio * max(rows, columns)
        query_side = key_side // self.ratio
        pad_y, pad_x = -height % key_side, -width % key_side
        padded_rows, padded_columns = (height + pad_y) // self.ratio, (width + pad_x) // self.ratio

        latent = F.pad(z_lr, (0, pad_x, 0, pad_y)).permute(0, 2, 3, 1)
        grid = hidden.view(batch, rows, columns, -1)
        grid = F.pad(self.norm(grid), (0, 0, 0, padded_columns - columns, 0, padded_rows - rows))
        q = self._heads(partition_windows(self.to_q(grid), query_side))
        k = self._heads(partition_windows(self.to_k(latent), key_side))
        v = self._heads(partition_windows(self.to_v(latent), key_side))
        bias = self._bias(key_side).to(q.dtype)[None]
        if pad_y or pad_x:
            real = F.pad(z_lr.new_ones(1, height, width, 1), (0, 0, 0, pad_x, 0, pad_y))
            padding = partition_windows(real, key_side).view(-1, 1, 1, key_side**2) == 0
            masked = bias.masked_fill(padding, torch.finfo(q.dtype).min)  # N×heads×S²×s²
            bias = masked.repeat(batch, 1, 1, 1)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        windows = attended.transpose(1, 2).flatten(2)
        merged = merge_windows(windows, padded_rows, padded_columns)[:, :rows, :columns]
        return self.to_out(merged.reshape(batch, rows * columns, -1))

    def _heads(self, windows: torch.Tensor) -> torch.Tensor:
        """M×tokens×C -> M×heads×tokens×head_dim."""
        return windows.unflatten(2, (self.heads, -1)).transpose(1, 2)

    @property
    def _reach(self) -> int:
        return self.window_size or UNPARTITIONED_TABLE_SIDE

    def _index_of(self, key_side: int, device: torch.device) -> torch.Tensor:
        return aligned_offsets(key_side // self.ratio, key_side, self.ratio, self._reach, device)

    def _apply(self, fn: Callable[..., torch.Tensor], recurse: bool = True) -> "WindowCrossAttention":
        """As every module does when it is moved; the index comes along."""
        super()._apply(fn, recurse)
        if self._index is not None and not self.position_bias.is_meta:
            self._index = self._index[0], self._index[1].to(self.position_bias.device)
        return self

    def _bias(self, key_side: int) -> torch.Tensor:
        """heads×S²×s² out of the table; its index is made once for windows, else when the side is another."""
        if self._index is None or self._index[0] != key_side:
            self._index = key_side, self._index_of(key_side, self.position_bias.device)
        return self.position_bias.index_select(1, self._index[1]).unflatten(1, (-1, key_side**2))
