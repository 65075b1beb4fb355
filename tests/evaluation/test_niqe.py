"""NIQE: the fit recovers what was drawn, features equal a naive loop, scores rise with the damage."""

import io

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy import ndimage, special, stats

from clearsr.errors import ClearSRError
from clearsr.evaluation.metrics import luma_batch
from clearsr.evaluation.niqe import (
    NiqeModel,
    default_niqe_model,
    fit_aggd,
    model_of_blocks,
    mscn,
    niqe,
    niqe_features,
    sharp_features,
)

ALPHAS = np.arange(0.2, 10.0005, 0.001)
RATIOS = special.gamma(2 / ALPHAS) ** 2 / (special.gamma(1 / ALPHAS) * special.gamma(3 / ALPHAS))


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """H×W or H×W×3 of 8 bits as C×H×W in [0, 1]."""
    return torch.from_numpy(np.atleast_3d(pixels).copy()).permute(2, 0, 1).double() / 255


@pytest.fixture(scope="module", params=["astronaut", "chelsea", "coffee"])
def photograph(request: pytest.FixtureRequest) -> np.ndarray:
    return getattr(skimage.data, request.param)()


@pytest.fixture(scope="module")
def cat() -> torch.Tensor:
    return to_tensor(skimage.data.chelsea())


def draw_aggd(alpha: float, left: float, right: float, count: int) -> np.ndarray:
    """Samples of the density exp(-(|x| / beta)^alpha) by the gamma distribution of |x / beta|^alpha."""
    rng = np.random.default_rng(11)
    magnitude = rng.gamma(1 / alpha, size=count) ** (1 / alpha)
    is_left = rng.random(count) < left / (left + right)
    return np.where(is_left, -left * magnitude, right * magnitude)


def naive_aggd(samples: np.ndarray) -> tuple[float, float, float]:
    left = np.sqrt(np.mean(samples[samples < 0] ** 2))
    right = np.sqrt(np.mean(samples[samples > 0] ** 2))
    g = left / right
    ratio = np.mean(np.abs(samples)) ** 2 / np.mean(samples**2) * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    alpha = ALPHAS[np.argmin((RATIOS - ratio) ** 2)]
    factor = np.sqrt(special.gamma(1 / alpha) / special.gamma(3 / alpha))
    return alpha, left * factor, right * factor


def naive_block_features(block: np.ndarray) -> list[float]:
    alpha, left, right = naive_aggd(block)
    features = [alpha, (left + right) / 2]
    for down, across in ((0, 1), (1, 0), (1, 1), (-1, 1)):
        neighbour = np.roll(np.roll(block, down, axis=0), across, axis=1)
        alpha, left, right = naive_aggd(block * neighbour)
        mean = (right - left) * special.gamma(2 / alpha) / special.gamma(1 / alpha)
        features += [alpha, mean, left, right]
    return features


def naive_normalised(luma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    taps = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    mean = ndimage.correlate(luma, kernel, mode="nearest")
    deviation = np.sqrt(np.abs(ndimage.correlate(luma**2, kernel, mode="nearest") - mean**2))
    return (luma - mean) / (deviation + 1), deviation


@pytest.mark.parametrize(
    ("alpha", "left", "right"), [(2.0, 1.0, 1.0), (0.8, 0.5, 1.5), (1.3, 2.0, 0.7), (4.0, 1.0, 2.0)]
)
def test_the_fit_recovers_what_was_drawn(alpha: float, left: float, right: float):
    samples = torch.from_numpy(draw_aggd(alpha, left, right, 200_000))[None]
    fitted = torch.cat(fit_aggd(samples)).tolist()
    assert fitted == pytest.approx([alpha, left, right], rel=0.05)


def test_the_fit_scales_with_its_samples_and_mirrors():
    samples = torch.from_numpy(draw_aggd(0.8, 0.5, 1.5, 5_000))[None]
    alpha, left, right = fit_aggd(torch.cat([samples, 10 * samples, -samples]))
    assert alpha.tolist() == pytest.approx([alpha[0].item()] * 3, abs=1.1e-3)
    assert left.tolist() == pytest.approx([left[0].item(), 10 * left[0].item(), right[0].item()], rel=5e-3)


def test_rows_that_cannot_be_fitted_are_nan():
    rows = torch.stack([torch.zeros(50), torch.full((50,), 0.5), torch.linspace(-1, 1, 50)]).double()
    assert fit_aggd(rows)[0].isnan().tolist() == [True, True, False]


def test_normalised_luma_equals_scipy(cat: torch.Tensor):
    luma = luma_batch(cat)[0]
    for result, expected in zip(mscn(luma), naive_normalised(luma.numpy()), strict=True):
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


def test_features_equal_a_naive_loop_over_the_blocks(cat: torch.Tensor):
    image = cat[:, 20:230, 100:400]  # 2 rows and 3 columns of blocks, and a remainder
    features, sharpness = niqe_features(image)
    luma = np.round(luma_batch(image)[0].numpy())[:192, :288]
    half = np.asarray(Image.fromarray(luma.astype(np.float32)).resize((144, 96), Image.Resampling.BICUBIC))
    (full_scale, deviation), (half_scale, _) = (
        naive_normalised(luma),
        naive_normalised(half.astype(np.float64)),
    )
    expected, expected_sharpness = [], []
    for row in range(2):
        for column in range(3):
            block = np.s_[96 * row : 96 * row + 96, 96 * column : 96 * column + 96]
            small = np.s_[48 * row : 48 * row + 48, 48 * column : 48 * column + 48]
            expected.append(naive_block_features(full_scale[block]) + naive_block_features(half_scale[small]))
            expected_sharpness.append(deviation[block].mean())
    np.testing.assert_allclose(features.numpy(), expected, atol=3e-3)  # a step of alpha is 0.001
    np.testing.assert_allclose(sharpness.numpy(), expected_sharpness, atol=1e-9)


def test_the_score_is_the_distance_of_the_paper(cat: torch.Tensor):
    model = default_niqe_model()
    features = niqe_features(cat)[0].numpy()
    difference = features.mean(axis=0) - model.mean.numpy()
    covariance = (model.covariance.numpy() + np.cov(features, rowvar=False)) / 2
    expected = np.sqrt(difference @ np.linalg.pinv(covariance) @ difference)
    assert niqe(cat) == pytest.approx(expected, rel=1e-6)


def test_the_model_in_the_package_is_a_gaussian_that_names_its_origin():
    model = default_niqe_model()
    assert model.mean.shape == (36,)
    assert model.mean.dtype == model.covariance.dtype == torch.float64
    torch.testing.assert_close(model.covariance, model.covariance.T)
    assert torch.linalg.eigvalsh(model.covariance).min() > 0
    assert int(model.meta["images"]) > 100
    assert int(model.meta["blocks"]) > 1000
    assert "fitted by clearsr fit-niqe" in model.meta["description"]
    assert {"date", "software"} <= set(model.meta)


def test_blur_raises_the_score(photograph: np.ndarray):
    pixels = photograph.astype(np.float64)
    scores = [
        niqe(to_tensor(ndimage.gaussian_filter(pixels, (s, s, 0)).round())) for s in (0, 0.8, 1.4, 2.2, 3.5)
    ]
    assert scores == sorted(scores)
    assert scores[-1] > scores[0] + 3


def test_noise_raises_the_score(photograph: np.ndarray):
    noise = np.random.default_rng(0).standard_normal(photograph.shape)
    noisy = [np.clip(np.round(photograph + s * noise), 0, 255) for s in (4, 8, 15, 25, 40)]
    scores = [niqe(to_tensor(pixels)) for pixels in noisy]
    assert scores == sorted(scores)
    assert scores[-1] > scores[0] + 2


def test_strong_jpeg_compression_raises_the_score(photograph: np.ndarray):
    scores = []
    for quality in (75, 40, 20, 8):
        stream = io.BytesIO()
        Image.fromarray(photograph).save(stream, "JPEG", quality=quality)
        scores.append(niqe(to_tensor(np.asarray(Image.open(stream)))))
    assert scores == sorted(scores)
    assert scores[-1] > scores[0] + 1


@pytest.mark.parametrize("damage", ["blur", "noise", "jpeg"])
def test_scores_rank_with_the_damage_over_all_photographs(damage: str):
    """Spearman's correlation between strength and score, photographs pooled."""
    strengths, scores = [], []
    noise = np.random.default_rng(0).standard_normal((512, 600, 3))
    for name in ("astronaut", "chelsea", "coffee"):
        pixels = getattr(skimage.data, name)()[:288, :288]
        for strength in (1, 2, 3, 4):
            if damage == "blur":
                damaged = ndimage.gaussian_filter(pixels.astype(float), (0.8 * strength, 0.8 * strength, 0))
            elif damage == "noise":
                damaged = pixels + 10 * strength * noise[:288, :288]
            else:
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, "JPEG", quality=(60, 30, 15, 7)[strength - 1])
                damaged = np.asarray(Image.open(stream))
            strengths.append(strength)
            scores.append(niqe(to_tensor(np.clip(np.round(damaged), 0, 255))))
    assert stats.spearmanr(strengths, scores).statistic > 0.8


def test_a_grey_picture_scores_as_its_rgb_copy(cat: torch.Tensor):
    grey = cat[1:2, :200, :300]
    assert niqe(grey) == pytest.approx(niqe(grey.expand(3, -1, -1)[None]), abs=1e-6)


def test_flat_blocks_do_not_count(cat: torch.Tensor):
    detail = cat[:, :192, :288]
    beside_white = torch.cat([torch.ones(3, 192, 96), detail], dim=2)
    features, sharpness = niqe_features(beside_white)
    assert features.isfinite().all()
    assert features.shape == (6, 36)
    assert sharpness.shape == (6,)


def test_a_single_block_has_a_score(cat: torch.Tensor):
    assert 0 < niqe(cat[:, 100:196, 100:196]) < 1000


def test_a_fitted_model_is_the_gaussian_of_the_sharp_blocks():
    images = [to_tensor(getattr(skimage.data, name)()) for name in ("coffee", "brick", "grass", "gravel")]
    model = model_of_blocks([sharp_features(image) for image in images], {"description": "four pictures"})
    blocks = []
    for image in images:
        features, sharpness = niqe_features(image)
        blocks.append(features[sharpness > 0.75 * sharpness.max()].numpy())
    assert 0 < len(blocks[0]) < len(niqe_features(images[0])[0])  # a table in and out of focus
    stacked = np.concatenate(blocks)
    np.testing.assert_allclose(model.mean.numpy(), stacked.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(model.covariance.numpy(), np.cov(stacked, rowvar=False), atol=1e-12)
    assert model.meta == {"description": "four pictures", "images": "4", "blocks": str(len(stacked))}


def test_a_model_survives_its_file(tmp_path, cat: torch.Tensor):
    model = NiqeModel(
        torch.rand(36).double(), torch.eye(36).double(), {"description": "a test", "images": "1"}
    )
    model.save(tmp_path / "model.safetensors")
    loaded = NiqeModel.load(tmp_path / "model.safetensors")
    torch.testing.assert_close(loaded.mean, model.mean, rtol=0, atol=0)
    torch.testing.assert_close(loaded.covariance, model.covariance, rtol=0, atol=0)
    assert loaded.meta == model.meta
    assert niqe(cat, loaded) == niqe(cat, model) != niqe(cat)


def test_files_that_hold_no_model_are_errors(tmp_path):
    with pytest.raises(ClearSRError, match="absent.safetensors: cannot be read"):
        NiqeModel.load(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ClearSRError, match="text.safetensors: cannot be read"):
        NiqeModel.load(tmp_path / "text.safetensors")
    save_file({"mean": torch.zeros(18)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ClearSRError, match=r"other.safetensors: is no NIQE model.*\(18,\)"):
        NiqeModel.load(tmp_path / "other.safetensors")
    with pytest.raises(ClearSRError, match="cannot be written"):
        default_niqe_model().save(tmp_path / "no such folder" / "model.safetensors")


def test_pictures_without_a_score_are_errors(cat: torch.Tensor):
    with pytest.raises(ClearSRError, match="at least 96x96, got 300x95"):
        niqe(cat[:, :95, :300])
    with pytest.raises(ClearSRError, match="flat"):
        niqe(torch.full((3, 200, 200), 0.4))
    with pytest.raises(ClearSRError, match="batch of 2"):
        niqe(cat[:, :100, :100].expand(2, -1, -1, -1))


def test_a_fit_needs_enough_blocks_and_names_the_image_at_fault(cat: torch.Tensor):
    assert len(sharp_features(cat)) <= 36
    with pytest.raises(ClearSRError, match="1 photographs gave .* at least 37"):
        model_of_blocks([sharp_features(cat)], {})
    with pytest.raises(ClearSRError, match="0 photographs gave 0 sharp blocks"):
        model_of_blocks([], {})
