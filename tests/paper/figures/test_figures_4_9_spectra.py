"""What the spectra are taken of, and how they are averaged."""

import pytest
import torch

from clearsr.config.evaluation import AnalysisConfig
from clearsr.errors import ClearSRError
from clearsr.paper.figures.figures_2_8_control import control_signals
from clearsr.paper.figures.figures_4_9_spectra import _features, power_spectrum, study_spectra
from clearsr.paper.figures.hooks import recording
from clearsr.pipeline.pipeline import ClearSRPipeline


def test_dpm_and_spm_add_up_to_the_control_signal(network, z_lr):
    with recording(network) as record:
        signals = control_signals(network, z_lr, 700)
    shares = _features(network, record)
    for index, conv in enumerate(network.detail_preserving.zero_convs):
        total = shares["detail"][str(index)] + shares["structure"][str(index)] + conv.bias[:, None, None]
        torch.testing.assert_close(total, signals[index])


def test_spectra_are_means_over_the_timesteps(pipeline, network, z_lr, make_pair, sampling):
    study = study_spectra(pipeline, [make_pair()], sampling, AnalysisConfig(timesteps=2, layer=1))
    expected = torch.zeros(())
    for timestep in (999, 0):
        with recording(network) as record:
            control_signals(network, z_lr, timestep)
        expected = expected + power_spectrum(record.after["level 1a"][0]) / 2
    torch.testing.assert_close(study.spectra[0]["after"], expected)
    assert (study.layer, study.signal) == ("level 1a", 1)


def test_profiles_of_several_sizes_share_the_smallest_grid(pipeline, make_pair, sampling):
    pairs = [make_pair(128, 128), make_pair(64, 96, seed=1)]
    study = study_spectra(pipeline, pairs, sampling, AnalysisConfig(timesteps=1))
    grid, rows = study.profiles("detail")
    assert grid.tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rows.shape == (2, 4) and (rows > 0).all()
    shares = study.mean_shares()
    assert shares["detail"]["1"] == pytest.approx(sum(s["detail"]["1"] for s in study.shares) / 2)


def test_what_is_not_there_is_refused(pipeline, make_network, make_pair, sampling):
    bare = ClearSRPipeline(make_network(control={"structure_preserving": False}), device="cpu")
    with pytest.raises(ClearSRError, match="needs a model with window cross-attention and SPM"):
        study_spectra(bare, [make_pair()], sampling, AnalysisConfig())
    with pytest.raises(ClearSRError, match="--layer 3: this model has layers 0 to 2"):
        study_spectra(pipeline, [make_pair()], sampling, AnalysisConfig(layer=3))
    with pytest.raises(ClearSRError, match="--signal 6: is the middle's"):
        study_spectra(pipeline, [make_pair()], sampling, AnalysisConfig(signal=6))
