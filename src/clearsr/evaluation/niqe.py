"""NIQE (Mittal, Soundararajan, Bovik 2013): naturalness without a reference, lower is better.

Each block of 96x96 gives 36 statistics of its locally normalised luma; the score is the distance between the
Gaussian of a picture's blocks and a Gaussian fitted to the sharp blocks of good photographs. The default
model was fitted by ourselves (`clearsr fit-niqe`) on 346 photographs with free licences (public domain and
CC0, CC BY, CC BY-SA, Free Art, Unsplash, Pexels); our thanks to their authors. With another model the level
of the scores is another: never print them beside numbers computed with the original's.
"""

import functools
import importlib.resources
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from clearsr.atomic import written_aside
from clearsr.data.photographs import Photographs
from clearsr.errors import ClearSRError
from clearsr.evaluation.metrics import filter_valid, gaussian_taps, luma_batch

BLOCK_SIZE = 96
NUM_FEATURES = 36
SHARPNESS_THRESHOLD = 0.75
_SCALES = 2
_WINDOW, _SIGMA = 7, 7 / 6
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # the neighbour to pair with: right, below, and both diagonals
_ALPHA_FIRST, _ALPHA_LAST, _ALPHA_STEP = 0.2, 10.0, 0.001
_FLAT_ENERGY = 1e-9  # mean square of the normalised luma; below it there is rounding only, nothing to fit
_BLOCKS_AT_ONCE = 256  # bounds the memory of a large picture: 19 MB per map


@dataclass(frozen=True)
class NiqeModel:
    """The Gaussian of good photographs' features: mean (36) and covariance (36×36), float64; its origin."""

    mean: Tensor
    covariance: Tensor
    meta: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: Path | str) -> None:
        """Write the model as safetensors, with `meta` in the header.

        Raises:
            ClearSRError: the file cannot be written.
        """
        tensors = {"mean": self.mean.contiguous(), "covariance": self.covariance.contiguous()}
        try:
            with written_aside(Path(path)) as aside:
                aside.write_bytes(to_bytes(tensors, metadata=dict(self.meta)))
        except OSError as error:
            raise ClearSRError(f"{path}: the NIQE model cannot be written ({error})") from None

    @classmethod
    def load(cls, path: Path | str) -> "NiqeModel":
        """The model that `save` wrote.

        Raises:
            ClearSRError: the file is missing, is not safetensors or holds something else.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                tensors = {name: file.get_tensor(name).double() for name in file.keys()}  # noqa: SIM118
                meta = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise ClearSRError(f"{path}: cannot be read as a NIQE model in safetensors ({error})") from None
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != {"mean": (NUM_FEATURES,), "covariance": (NUM_FEATURES, NUM_FEATURES)}:
            raise ClearSRError(
                f"{path}: is no NIQE model; expected mean (36) and covariance (36, 36), got {shapes}"
            )
        return cls(tensors["mean"], tensors["covariance"], meta)


@functools.cache
def default_niqe_model() -> NiqeModel:
    """The model in the package, read once."""
    resource = importlib.resources.files("clearsr.evaluation").joinpath("niqe_pristine.safetensors")
    with importlib.resources.as_file(resource) as path:
        return NiqeModel.load(path)


def niqe(image: Tensor, model: NiqeModel | None = None) -> float:
    """NIQE of one picture; lower is more natural.

    Only whole blocks of 96x96 from the top left count, and flat ones (a clipped sky) do not. Fewer blocks
    score higher (mean over 24 good photographs: 2.8 at 768x512, 5.4 in crops of 192x192, 8.9 in one block):
    compare only pictures of the same size.

    Args:
        image: C×H×W or 1×C×H×W in [0, 1], RGB or grey, at least 96x96.
        model: what to compare with; default is the one in the package.

    Raises:
        ClearSRError: the image is smaller than a block, flat all over, or a batch of several.
    """
    model = default_niqe_model() if model is None else model
    features, _ = niqe_features(image)
    covariance = torch.cov(features.T) if len(features) > 1 else torch.zeros_like(model.covariance)
    difference = features.mean(dim=0) - model.mean
    inverse = torch.linalg.pinv((model.covariance + covariance) / 2, hermitian=True)
    return (difference @ inverse @ difference).clamp(min=0).sqrt().item()


def sharp_features(image: Tensor) -> Tensor:
    """Features of the sharp blocks of one photograph, N×36, to fit a model to; errors as in `niqe`."""
    features, sharpness = niqe_features(image)
    return features[sharpness > SHARPNESS_THRESHOLD * sharpness.max()]


def model_of_blocks(features: list[Tensor], meta: Mapping[str, str]) -> NiqeModel:
    """The Gaussian of the blocks of several photographs; `meta` is completed with the numbers of both.

    Raises:
        ClearSRError: there are fewer than 37 blocks, too few for the covariance of 36 features.
    """
    blocks = torch.cat(features) if features else torch.empty(0, NUM_FEATURES)
    if len(blocks) <= NUM_FEATURES:
        raise ClearSRError(
            f"NIQE cannot be fitted: {len(features)} photographs gave {len(blocks)} sharp blocks of 96x96; "
            f"at least {NUM_FEATURES + 1} are needed, some hundred are advisable; add photographs"
        )
    counts = {"images": str(len(features)), "blocks": str(len(blocks))}
    return NiqeModel(blocks.mean(dim=0), torch.cov(blocks.T), {**meta, **counts})


def niqe_features(image: Tensor) -> tuple[Tensor, Tensor]:
    """Features and sharpness of the blocks of one picture that are not flat, row by row from the top left.

    Per scale (1, then 1/2) 18 features: shape and mean spread of the normalised luma, then shape, mean, left
    and right spread of its product with each of four neighbours. Sharpness is the mean local deviation at
    scale 1.

    Returns:
        N×36 and N, float64 on the CPU.

    Raises:
        ClearSRError: as in `niqe`.
    """
    luma = luma_batch(image).cpu()
    count, height, width = luma.shape
    if count != 1:
        raise ClearSRError(f"NIQE takes one image at a time, got a batch of {count}")
    rows, columns = height // BLOCK_SIZE, width // BLOCK_SIZE
    if rows == 0 or columns == 0:
        raise ClearSRError(f"NIQE needs an image of at least {BLOCK_SIZE}x{BLOCK_SIZE}, got {width}x{height}")
    # Rounded as in the original, which reads 8-bit files.
    luma = luma[:, : rows * BLOCK_SIZE, : columns * BLOCK_SIZE].round()
    features: list[Tensor] = []
    sharpness = torch.empty(0)
    for scale in range(_SCALES):
        normalised, deviation = mscn(luma[0])
        block_size = BLOCK_SIZE >> scale
        blocks = _blocks(normalised, block_size)
        features.append(torch.cat([_block_features(part) for part in blocks.split(_BLOCKS_AT_ONCE)]))
        if scale == 0:
            sharpness = _blocks(deviation, block_size).mean(dim=(-2, -1))
            half = (luma.shape[-2] // 2, luma.shape[-1] // 2)
            luma = F.interpolate(luma[None], size=half, mode="bicubic", antialias=True)[0]
    stacked = torch.cat(features, dim=1)
    is_usable = stacked.isfinite().all(dim=1)
    if not is_usable.any():
        raise ClearSRError("NIQE is not defined for this image: every block of 96x96 is flat")
    return stacked[is_usable], sharpness[is_usable]


def mscn(luma: Tensor) -> tuple[Tensor, Tensor]:
    """Mean-subtracted, contrast-normalised luma and the local deviation that it was divided by, both H×W."""
    taps = gaussian_taps(_WINDOW, _SIGMA)
    padded = F.pad(luma[None], (_WINDOW // 2,) * 4, mode="replicate")[0]
    mean = filter_valid(padded, taps)
    deviation = (filter_valid(padded.square(), taps) - mean.square()).abs().sqrt()
    return (luma - mean) / (deviation + 1), deviation


def fit_aggd(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric generalised Gaussians fitted by moments (Lasmar et al. 2009), one to each row of N×P.

    Density: proportional to exp(-(|x| / beta)^alpha), with its own beta left and right of zero.

    Returns:
        alpha (0.2 to 10, in steps of 0.001), left and right beta, N each; NaN for a flat or one-sided row.
    """
    squares = samples.square()
    is_left, is_right = samples < 0, samples > 0
    deviation_left = ((squares * is_left).sum(dim=1) / is_left.sum(dim=1)).sqrt()
    deviation_right = ((squares * is_right).sum(dim=1) / is_right.sum(dim=1)).sqrt()
    asymmetry = deviation_left / deviation_right
    energy = squares.mean(dim=1)
    ratio = samples.abs().mean(dim=1).square() / energy
    ratio = ratio * (asymmetry**3 + 1) * (asymmetry + 1) / (asymmetry.square() + 1).square()
    alphas, ratios = _moment_ratios()
    above = torch.searchsorted(ratios, ratio).clamp(1, len(ratios) - 1)
    is_below_nearer = ratio - ratios[above - 1] <= ratios[above] - ratio
    alpha = alphas[above - is_below_nearer.long()]
    alpha = alpha.masked_fill(~ratio.isfinite() | (energy < _FLAT_ENERGY), torch.nan)
    to_beta = torch.exp((torch.lgamma(1 / alpha) - torch.lgamma(3 / alpha)) / 2)
    return alpha, deviation_left * to_beta, deviation_right * to_beta


@functools.cache
def _moment_ratios() -> tuple[Tensor, Tensor]:
    """The grid of shapes alpha and E[|x|]² / E[x²] of the symmetric density with each; both rise."""
    steps = round((_ALPHA_LAST - _ALPHA_FIRST) / _ALPHA_STEP)
    alphas = torch.linspace(_ALPHA_FIRST, _ALPHA_LAST, steps + 1, dtype=torch.float64)
    log_ratios = 2 * torch.lgamma(2 / alphas) - torch.lgamma(1 / alphas) - torch.lgamma(3 / alphas)
    return alphas, log_ratios.exp()


def _block_features(blocks: Tensor) -> Tensor:
    """The 18 features of each normalised block: N×S×S -> N×18, NaN where a block is flat."""
    alpha, left, right = fit_aggd(blocks.flatten(1))
    features = [alpha, (left + right) / 2]
    for shift in _SHIFTS:
        products = blocks * torch.roll(blocks, shift, dims=(1, 2))
        alpha, left, right = fit_aggd(products.flatten(1))
        mean = (right - left) * torch.exp(torch.lgamma(2 / alpha) - torch.lgamma(1 / alpha))
        features += [alpha, mean, left, right]
    return torch.stack(features, dim=1)


def _blocks(values: Tensor, size: int) -> Tensor:
    """H×W cut into N×size×size, row by row; both sides are multiples of `size`."""
    rows, columns = values.shape[0] // size, values.shape[1] // size
    return values.reshape(rows, size, columns, size).transpose(1, 2).reshape(-1, size, size)


# Fitting NIQE's model to photographs on disk: the work behind `clearsr fit-niqe`.
# The photographs should be what NIQE is to call perfect: sharp at the pixel level, without noise, heavy JPEG
# compression or upscaling, and of many subjects. Some hundred are enough (the original used 125).
logger = logging.getLogger(__name__)


def fit_niqe_from_files(
    paths: Sequence[Path], source: str = "", on_progress: Callable[[int, int], None] | None = None
) -> NiqeModel:
    """The NIQE model of photographs on disk; write it with its `save`.

    Args:
        paths: image files, or folders of them (recursive).
        source: what to note about the photographs, such as "with free licences"; ends the description.
        on_progress: called with (done, total) after each photograph.

    Raises:
        ClearSRError: a file (named) is missing, unreadable, below 96x96 or flat, or there are too few.
    """
    photographs = Photographs(paths)
    total = len(photographs)
    sharp_blocks: list[torch.Tensor] = []
    for index, item in enumerate(photographs.items):
        image = photographs[index].double() / 255
        try:
            sharp_blocks.append(sharp_features(image))
        except ClearSRError as error:
            raise ClearSRError(f"{item.label()}: {error}") from None
        if on_progress is not None:
            on_progress(index + 1, total)
    meta = {
        "description": f"fitted by clearsr fit-niqe on {total} photographs {source}".rstrip(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "software": f"clearsr {version('clearsr')}, torch {torch.__version__}",
        "block_size": str(BLOCK_SIZE),
        "sharpness_threshold": str(SHARPNESS_THRESHOLD),
    }
    model = model_of_blocks(sharp_blocks, meta)
    logger.info("NIQE model of %s sharp blocks from %d photographs", model.meta["blocks"], total)
    return model
