"""A demonstration that needs the package alone: a free photograph, degraded by our own pipeline and upscaled.

The photographs come inside scikit-image's wheel and are in the public domain or under CC0.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from clearsr.degradation import crop_to_multiple, degrade, preset_config
from clearsr.errors import ClearSRError, installing
from clearsr.evaluation.metrics import gradient_energy, psnr, ssim
from clearsr.files.comparison import side_by_side
from clearsr.image import ImageData, from_pil, read_image, resize, to_pil, write_image
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.seeds import make_generator

logger = logging.getLogger(__name__)

UPSCALE, MAX_SIDE = 4, 512
PHOTOGRAPHS = {
    "astronaut": "Eileen Collins, NASA, public domain",
    "chelsea": "the cat Chelsea, Stefan van der Walt, CC0",
    "coffee": "a cup of coffee, Rachel Michetti, CC0",
    "rocket": "launch of DSCOVR, SpaceX, CC0",
}


@dataclass(frozen=True)
class Scores:
    """How one enlargement compares with the original.

    Attributes:
        psnr: of the luma, in dB.
        ssim: of the luma, at most 1.
        sharpness: mean squared gradient over the original's; 1 is as sharp as the original.
        seconds: time that it took.
    """

    name: str
    psnr: float
    ssim: float
    sharpness: float
    seconds: float


@dataclass(frozen=True)
class Demo:
    """What a demonstration wrote and measured."""

    comparison: Path
    scores: tuple[Scores, ...]


def run_demo(
    pipeline: ClearSRPipeline,
    folder: Path,
    photograph: str,
    seed: int = 0,
) -> Demo:
    """Degrade a photograph to a quarter, upscale it, and write lr, bicubic, clearsr, hr, comparison (PNG).

    Args:
        photograph: a name of `PHOTOGRAPHS`, or an image file.
        seed: of the degradation (preset `light`) and of the sampling.

    Raises:
        ClearSRError: there is no such photograph, or the folder cannot be written.
    """
    lr, hr = degraded_photograph(photograph, seed)
    start = time.monotonic()
    bicubic = ImageData(resize(lr.color[None], (hr.height, hr.width))[0])
    middle = time.monotonic()
    config = pipeline.configure(upscale=UPSCALE, seed=seed)
    sr = pipeline.upscale([lr], config)[0]
    end = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClearSRError(f"-o {folder}: cannot be made a folder ({error.strerror})") from None
    pictures = {"lr": lr, "bicubic": bicubic, "clearsr": sr, "hr": hr}
    for name, image in pictures.items():
        write_image(image, folder / f"{name}.png")
    captions = (f"input, {lr.width}x{lr.height}", "bicubic x4", "ClearSR x4", "original")
    pairs = [(caption, to_pil(image)) for caption, image in zip(captions, pictures.values(), strict=True)]
    comparison = folder / "comparison.png"
    write_image(from_pil(side_by_side(pairs)), comparison)
    scores = (
        _score("bicubic", bicubic, hr, middle - start),
        _score("ClearSR", sr, hr, end - middle),
    )
    return Demo(comparison, scores)


def degraded_photograph(name: str, seed: int = 0) -> tuple[ImageData, ImageData]:
    """A photograph at a quarter of its size, damaged by the preset `light`, and the photograph itself.

    Raises:
        ClearSRError: there is no such photograph, or scikit-image is not installed.
    """
    hr = load_photograph(name)
    lr = degrade(hr.color, preset_config("light"), make_generator("demo", seed), UPSCALE)
    return ImageData(lr, source=name), hr


def load_photograph(name: str) -> ImageData:
    """The centre of a bundled photograph or of an image file: a square of at most 512 pixels a side.

    Raises:
        ClearSRError: there is no such photograph, or scikit-image is not installed.
    """
    image = _bundled(name) if name in PHOTOGRAPHS else _from_file(name)
    side = min(MAX_SIDE, image.height, image.width)
    top, left = (image.height - side) // 2, (image.width - side) // 2
    square = image.color[:, top : top + side, left : left + side]
    try:
        return ImageData(crop_to_multiple(square, UPSCALE).contiguous(), source=name)
    except ClearSRError as error:
        raise ClearSRError(f"--photo {name}: {error}") from None


def _bundled(name: str) -> ImageData:
    try:
        import skimage.data
    except ImportError:
        raise ClearSRError(
            f"the demo's photographs come with scikit-image, which is missing; give --photo a file, or "
            f"{installing('demo')}"
        ) from None
    pixels: Any = getattr(skimage.data, name)()
    return from_pil(Image.fromarray(pixels), name)


def _from_file(name: str) -> ImageData:
    path = Path(name)
    if not path.exists():
        raise ClearSRError(f"--photo {name}: is neither a file nor one of {', '.join(PHOTOGRAPHS)}")
    return read_image(path)


def _score(name: str, image: ImageData, hr: ImageData, seconds: float) -> Scores:
    color, truth = image.color.clamp(0, 1), hr.color
    sharpness = gradient_energy(color) / gradient_energy(truth).clamp_min(1e-12)
    return Scores(name, psnr(color, truth).item(), ssim(color, truth).item(), sharpness.item(), seconds)


def write_examples(folder: Path) -> list[Path]:
    """The bundled photographs, made small and damaged, as files to try a page with.

    None if scikit-image, which brings the photographs, is not installed.
    """
    paths = []
    for name in PHOTOGRAPHS:
        try:
            picture, _ = degraded_photograph(name)
        except ClearSRError as error:
            logger.info("no examples on the page: %s", error)
            return []
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(picture, path)
        paths.append(path)
    return paths
