"""Principal components against numpy's SVD; pictures that are bright where the guide is."""

import numpy as np
import pytest
import torch

from clearsr.paper.figures.figures_2_8_control import component_picture, principal_components


def test_equals_numpys_svd_of_the_centred_cells(normal):
    features = normal(6, 5, 7) * torch.tensor([5.0, 3, 2, 1, 1, 1])[:, None, None]
    samples = features.double().reshape(6, 35).T.numpy()
    samples = samples - samples.mean(0)
    _, strengths, directions = np.linalg.svd(samples, full_matrices=False)
    found = principal_components(features)
    expected = (samples @ directions[:3].T).T.reshape(3, 5, 7)
    np.testing.assert_allclose(np.abs(found.maps.numpy()), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(found.explained, (strengths**2 / (strengths**2).sum())[:3])
    correlation = np.corrcoef(found.maps.reshape(3, -1))
    np.testing.assert_allclose(correlation, np.eye(3), atol=1e-9)


def test_one_direction_is_one_component(normal):
    pattern = normal(8, 8)
    found = principal_components(torch.stack([2 * pattern, -pattern, 0.5 * pattern]))
    assert found.explained.tolist() == pytest.approx([1, 0, 0], abs=1e-9)


def test_fewer_channels_and_constant_features_leave_components_empty():
    found = principal_components(torch.ones(2, 4, 4))
    assert found.maps.shape == (3, 4, 4)
    assert not found.maps.any() and not found.explained.any()
    assert component_picture(found, torch.rand(4, 4)).isfinite().all()


def test_picture_is_bright_where_the_guide_is(normal):
    guide = normal(12, 12)
    picture = component_picture(principal_components(torch.stack([-guide, 3 * guide])), guide)
    assert picture.min() == 0 and picture.max() == 1
    assert torch.corrcoef(torch.stack([picture[0].flatten(), guide.flatten().double()]))[0, 1] > 0.95
