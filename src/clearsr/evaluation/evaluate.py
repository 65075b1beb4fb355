"""Scores of pictures against their originals, per image and as means; one table for every caller."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from clearsr.errors import ClearSRError
from clearsr.evaluation.metrics import psnr, ssim
from clearsr.evaluation.niqe import niqe
from clearsr.evaluation.sharpness import laplacian_variance
from clearsr.image import ImageData

METRICS = ("psnr", "ssim", "niqe", "sharpness")


@dataclass(frozen=True)
class Pair:
    """A low-resolution image and the original that it was made from."""

    name: str
    lr: ImageData
    hr: torch.Tensor  # 3×H×W in [0, 1]


@dataclass
class Scores:
    """Per-image rows of several methods."""

    rows: list[dict[str, float | str]] = field(default_factory=list)

    def add(self, method: str, image: str, values: Mapping[str, float]) -> None:
        """Keep the values of one image."""
        self.rows.append({"method": method, "image": image, **values})

    def means(self) -> dict[str, dict[str, float]]:
        """Mean of each metric per method, over the images for which it is defined."""
        result: dict[str, dict[str, float]] = {}
        for method in dict.fromkeys(str(row["method"]) for row in self.rows):
            own = [row for row in self.rows if row["method"] == method]
            result[method] = {}
            for metric in METRICS:
                values = torch.tensor([float(row[metric]) for row in own])
                result[method][metric] = float(values[values.isfinite()].mean())
        return result


def score(sr: torch.Tensor, hr: torch.Tensor) -> dict[str, float]:
    """PSNR-Y and SSIM-Y (4-pixel border cropped), NIQE (our own pristine model), relative sharpness.

    `sharpness` is the Laplacian's variance over that of `hr`: 1 is as crisp as the original. NIQE is NaN
    where the image is too small or too flat for it.
    """
    try:
        naturalness = niqe(sr)
    except ClearSRError:
        naturalness = float("nan")
    return {
        "psnr": psnr(sr, hr, crop_border=4).item(),
        "ssim": ssim(sr, hr, crop_border=4).item(),
        "niqe": naturalness,
        "sharpness": (laplacian_variance(sr) / laplacian_variance(hr)).item(),
    }


def evaluate(
    pairs: Iterable[Pair],
    methods: Mapping[str, Callable[[ImageData], ImageData]],
    on_result: Callable[[str, str, torch.Tensor], None] | None = None,
) -> Scores:
    """Run every method on every pair.

    Args:
        methods: LR image -> image of the original's size, by name.
        on_result: called with method, image name and picture, for instance to keep the pictures.
    """
    scores = Scores()
    for pair in pairs:
        for name, method in methods.items():
            picture = (
                method(pair.lr).color.clamp(0, 1).mul(255).round() / 255
            )  # as an 8-bit file would hold it
            scores.add(name, pair.name, score(picture, pair.hr))
            if on_result is not None:
                on_result(name, pair.name, picture)
    return scores
