"""The network of Real-ESRGAN x4plus, with random weights until `realesrgan` loads the published ones.

Written from the description in Wang et al., "ESRGAN" (2018), section 3.1, and "Real-ESRGAN" (2021): residual
blocks of residual dense blocks at the input's resolution, then two nearest-neighbour enlargements.
"""

import torch
import torch.nn.functional as F
from torch import nn

RESIDUAL = 0.2  # what each residual is scaled by


class DenseBlock(nn.Module):
    """Five convolutions, each reading all that came before it."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        widths = [features + i * growth for i in range(5)]
        outputs = [growth] * 4 + [features]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, outputs, strict=True)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = [x]
        for conv in list(self.convs)[:-1]:
            seen.append(F.leaky_relu(conv(torch.cat(seen, dim=1)), 0.2))
        return x + RESIDUAL * self.convs[-1](torch.cat(seen, dim=1))


class ResidualOfDense(nn.Module):
    """Three dense blocks within a residual connection."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(features, growth) for _ in range(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + RESIDUAL * self.blocks(x)


class RRDBNet(nn.Module):
    """B×3×H×W -> B×3×4H×4W."""

    def __init__(self, blocks: int = 23, features: int = 64, growth: int = 32) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, padding=1)

        self.first = conv(3, features)
        self.body = nn.Sequential(*(ResidualOfDense(features, growth) for _ in range(blocks)))
        self.after_body = conv(features, features)
        self.enlarging = nn.ModuleList(conv(features, features) for _ in range(2))
        self.before_last, self.last = conv(features, features), conv(features, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        hidden = hidden + self.after_body(self.body(hidden))
        for conv in self.enlarging:
            hidden = F.leaky_relu(conv(F.interpolate(hidden, scale_factor=2, mode="nearest")), 0.2)
        return self.last(F.leaky_relu(self.before_last(hidden), 0.2))
