"""The study of control signals: divergences of what the network really computes, of every variant."""

import pytest
import torch

from clearsr.config.base import build_config
from clearsr.config.evaluation import AnalysisConfig
from clearsr.errors import ClearSRError
from clearsr.paper.figures.figures_2_8_control import (
    VARIANTS,
    control_signals,
    divergences,
    shown_signal,
    signal_ratios,
    study_control,
    visited_timesteps,
)
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.sampling.schedule import make_solver


@pytest.fixture(scope="module")
def study(pipeline, make_pair, sampling):
    pairs = [make_pair(seed=0), make_pair(64, 64, seed=1)]
    return study_control(pipeline, pairs, sampling, AnalysisConfig(timesteps=2, rows=1))


def test_divergence_is_the_mean_over_timesteps_and_signals(study, network, z_lr):
    assert study.timesteps == [999, 0]
    for variant in VARIANTS:
        passes = [control_signals(network, z_lr, t, variant) for t in study.timesteps]
        for name in ("spatial", "values"):
            values = [[divergences(signal[0], z_lr[0])[name] for signal in signals] for signals in passes]
            expected = torch.tensor(values).mean(dim=0)
            torch.testing.assert_close(torch.tensor(study.divergence[variant][0][name]), expected)
            assert study.means(variant, name)[0] == pytest.approx(expected.mean().item(), rel=1e-5)


def test_difference_is_without_less_with(study):
    without, with_ = study.means("controlnet", "spatial"), study.means("full", "spatial")
    assert study.differences("spatial") == pytest.approx([a - b for a, b in zip(without, with_, strict=True)])
    assert study.images == ["picture0", "picture1"]
    assert len(set(study.differences("spatial"))) == 2


def test_pictures_are_kept_of_the_first_images(study):
    (picture,) = study.pictures
    assert picture.lr.shape == (3, 96, 128)
    assert set(picture.signals) == set(VARIANTS)
    assert all(p.min() >= 0 and p.max() <= 1 for p in (picture.embedding, *picture.signals.values()))
    assert all(0 < share <= 1 for share in picture.explained.values())


def test_against_a_second_model_each_by_its_own_embedding(pipeline, make_network, make_pair, sampling):
    other = ClearSRPipeline(
        make_network(seed=5, control={"cross_attention": False, "structure_preserving": False}),
        device="cpu",
        precision="fp32",
    )
    pair, config = make_pair(), AnalysisConfig(timesteps=1)
    study = study_control(pipeline, [pair], sampling, config, other)
    alone = study_control(other, [pair], sampling, config)
    assert study.without == "against"
    assert study.divergence["against"] == alone.divergence["full"]
    # Where there is nothing to switch off, all variants are one.
    assert alone.divergence["controlnet"] == alone.divergence["full"]


def test_signal_grids_are_those_of_the_signals(network, z_lr):
    sizes = [signal.shape[-1] for signal in control_signals(network, z_lr, 0)]
    assert [-(-z_lr.shape[-1] // ratio) for ratio in signal_ratios(network)] == sizes


def test_shown_signal_is_the_last_on_the_grid_of_the_first_attention(network, make_network):
    assert shown_signal(network) == 1  # conv_in, then the first attending block, both on the full grid
    coarse = make_network(unet={"attention": (False, True, False)})
    assert shown_signal(coarse) == 3
    assert shown_signal(network, 4) == 4
    with pytest.raises(ClearSRError, match=r"--signal 9: this model has control signals 0 to 6"):
        shown_signal(network, 9)


@pytest.mark.parametrize(
    ("steps", "count", "places"), [(50, 3, [0, 24, 49]), (4, 9, [0, 1, 2, 3]), (1, 5, [0])]
)
def test_visited_timesteps_are_some_of_the_runs(sampling, steps, count, places):
    run = sampling.model_copy(update={"steps": steps})
    timesteps = make_solver(run, torch.device("cpu")).timesteps.tolist()
    assert visited_timesteps(run, count) == [timesteps[place] for place in places]


def test_no_steps_no_run(sampling):
    with pytest.raises(ClearSRError, match="--steps 0"):
        visited_timesteps(build_config(type(sampling), {"steps": 0}), 3)
