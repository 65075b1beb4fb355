"""What pairs of photographs say of the blur between them: the figures that the preset `real` was fitted to.

    python benchmarks/real_pairs.py test_LR test_HR
    python benchmarks/real_pairs.py --photographs photographs --preset real

Needs scipy. Pairs have equal names; HR is four times as large, and square crops of 512 pixels are expected.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize

from clearsr.config.degradation import preset_config
from clearsr.degradation import degrade_pair
from clearsr.image import list_images, read_levels
from clearsr.seeds import make_generator

UPSCALE, SIDE = 4, 512
BORDER = 12  # LR pixels that are left out: the fit takes the picture as periodic
BANDS = np.arange(0.02, 0.5, 0.06)  # lower ends in cycles per LR pixel, each 0.06 wide
CENTRE = (UPSCALE - 1) / 2  # of an LR pixel, in HR pixels from its first


class Found(NamedTuple):
    """What one pair says.

    Attributes:
        sigma: standard deviations of the Gaussian, narrow and wide, in HR pixels.
        gain: contrast of LR over that of the blurred HR.
        transfer, coherence: of HR -> LR in the bands.
        softness: variance of HR's Laplacian over that of HR.
    """

    sigma: tuple[float, float]
    gain: float
    transfer: np.ndarray
    coherence: np.ndarray
    softness: float


def main() -> None:
    """Print the medians over the pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="LR HR", help="folders of pairs")
    parser.add_argument("--photographs", type=Path, help="make pairs of these photographs instead")
    parser.add_argument("--preset", default="real", help="degradation of --photographs")
    parser.add_argument("--count", type=int, default=24, help="of --photographs")
    args = parser.parse_args()
    if (args.photographs is None) == (len(args.folders) != 2):
        parser.error("give two folders, LR and HR, or --photographs")
    pairs = (
        made_pairs(args.photographs, args.preset, args.count)
        if args.photographs
        else read_pairs(*args.folders)
    )
    found = []
    for name, lr, hr in pairs:
        found.append(examine(lr, hr))
        narrow, wide = found[-1].sigma
        print(f"{name}: sigma {narrow:.2f} {wide:.2f}, gain {found[-1].gain:.2f}", flush=True)
    narrow, wide = (statistics.median(f.sigma[i] for f in found) for i in (0, 1))
    print(
        f"medians of {len(found)}: sigma {narrow:.2f} {wide:.2f}, "
        f"gain {np.median([f.gain for f in found]):.2f}"
    )
    for name in ("transfer", "coherence"):
        print(name, *(f"{value:.2f}" for value in np.median([getattr(f, name) for f in found], axis=0)))
    print(f"softness {np.median([f.softness for f in found]):.3f}")


def read_pairs(lr_folder: Path, hr_folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Luma of the pairs in two folders."""
    for file, relative in list_images([lr_folder]):
        yield relative.stem, luma(read_levels(file)), luma(read_levels(hr_folder / relative))


def made_pairs(folder: Path, preset: str, count: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Luma of pairs that the preset makes of the middle of photographs, evenly chosen."""
    files = [file for file, _ in list_images([folder])]
    made = 0
    for file in files[:: max(1, len(files) // (2 * count))]:
        levels = read_levels(file)
        top, left = ((length - SIDE) // 2 for length in levels.shape[1:])
        if min(top, left) < 0 or made == count:
            continue
        crop = levels[:, top : top + SIDE, left : left + SIDE].float() / 255
        pair = degrade_pair(crop.contiguous(), preset_config(preset), make_generator("pairs", made), UPSCALE)
        made += 1
        yield file.stem, luma(pair.lr * 255), luma(pair.hr * 255)


def luma(levels: torch.Tensor) -> np.ndarray:
    """Weighted sum of the channels, H×W, 0 to 255."""
    return np.tensordot([0.299, 0.587, 0.114], levels.double().numpy(), axes=1)


def examine(lr: np.ndarray, hr: np.ndarray) -> Found:
    """Measure one pair."""
    spectrum = np.fft.fft2(hr)
    f = np.fft.fftfreq(SIDE)
    fx, fy = np.meshgrid(f, f)
    inner = (slice(BORDER, -BORDER),) * 2

    def blurred(parameters: np.ndarray) -> np.ndarray:
        """HR through a turned Gaussian, shifted, and sampled where LR's pixels are."""
        wide, narrow, angle, dx, dy = parameters
        along, across = np.cos(angle) * fx + np.sin(angle) * fy, np.cos(angle) * fy - np.sin(angle) * fx
        gaussian = np.exp(-2 * np.pi**2 * ((wide * along) ** 2 + (narrow * across) ** 2))
        shift = np.exp(2j * np.pi * (fx * (dx + CENTRE) + fy * (dy + CENTRE)))
        return np.fft.ifft2(spectrum * gaussian * shift).real[::UPSCALE, ::UPSCALE]

    def fit(parameters: np.ndarray) -> tuple[float, float]:
        """Mean squared error with the best gain and offset, and that gain."""
        ours, theirs = blurred(parameters)[inner].ravel(), lr[inner].ravel()
        (gain, offset), *_ = np.linalg.lstsq(np.stack([ours, np.ones_like(ours)], 1), theirs, rcond=None)
        return float(np.mean((gain * ours + offset - theirs) ** 2)), float(gain)

    start = min(np.arange(0.8, 5, 0.4), key=lambda sigma: fit(np.array([sigma, sigma, 0, 0, 0]))[0])
    first = np.array([1.05 * start, 0.95 * start, 0.3, 0, 0])
    options = {"maxfev": 400, "xatol": 0.01, "fatol": 1e-4}
    best = minimize(lambda p: fit(p)[0], first, method="Nelder-Mead", options=options).x
    narrow, wide = sorted(np.abs(best[:2]))
    transfer, coherence = compare_spectra(lr, spectrum, fx, fy)
    steps = 4 * hr[1:-1, 1:-1] - hr[:-2, 1:-1] - hr[2:, 1:-1] - hr[1:-1, :-2] - hr[1:-1, 2:]
    return Found((narrow, wide), fit(best)[1], transfer, coherence, float(steps.var() / hr.var()))


def compare_spectra(
    lr: np.ndarray, spectrum: np.ndarray, fx: np.ndarray, fy: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """|LR·HR*| / |HR|² and the coherence in the bands, HR cut to the frequencies that LR can hold."""
    highest = 0.5 / UPSCALE
    kept = spectrum * np.exp(2j * np.pi * CENTRE * (fx + fy)) * ((abs(fx) < highest) & (abs(fy) < highest))
    low = np.fft.ifft2(kept).real[::UPSCALE, ::UPSCALE]
    window = np.outer(*(np.hanning(n) for n in lr.shape))
    ours, theirs = (np.fft.fft2((image - image.mean()) * window) for image in (low, lr))
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in lr.shape)))
    transfer, coherence = [], []
    for lowest in BANDS:
        band = (radius >= lowest) & (radius < lowest + 0.06)
        cross = abs((theirs * ours.conj())[band].sum())
        power, other = ((abs(s) ** 2)[band].sum() for s in (ours, theirs))
        transfer.append(cross / power)
        coherence.append(cross**2 / (power * other))
    return np.array(transfer), np.array(coherence)


if __name__ == "__main__":
    main()
