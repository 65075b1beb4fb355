"""The paper's rule on curves whose parts are known, and what its answer makes LSA do."""

import json
import math

import pytest

from clearsr.config.sampling import LSAConfig
from clearsr.errors import ClearSRError
from clearsr.models.checkpoint import read_description, save_network, store_sampling
from clearsr.paper.figures.figure_5_trajectory import split_points
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.sampling.latent_space_adjustment import step_strengths

PARTS = [5, 6, 7, 8, 7, 6, 5, 4, 3, 2]  # highest at step 4, below 4.5 from step 8 on


def test_peak_and_fall_below():
    points = split_points(PARTS, 4.5)
    assert (points.peak, points.below) == (4, 8)
    assert points.settings == {"ela_end": 0.4, "lla_start": 0.7}


@pytest.mark.parametrize("steps", [10, 20, 37, 50])
def test_lsa_then_acts_up_to_the_peak_and_from_the_fall_on(steps):
    peak, fall = round(0.4 * steps), round(0.8 * steps)
    curve = [10 - abs(step - peak) / steps for step in range(1, steps + 1)]
    points = split_points(curve, curve[fall - 1] + 1e-9)
    lsa = LSAConfig(alpha=0.01, beta=0.02, **points.settings)
    acting = [step_strengths(step, steps, lsa) for step in range(steps)]
    assert [alpha > 0 for alpha, _ in acting] == [step < peak for step in range(steps)]
    assert [beta > 0 for _, beta in acting] == [step >= fall - 1 for step in range(steps)]


def test_what_lies_below_hr_before_the_peak_does_not_count():
    assert split_points([1, 1, 9, 5, 3, 1], 4).below == 5


def test_the_first_of_equal_peaks():
    assert split_points([4, 8, 8, 2], 3).peak == 2


def test_what_is_not_there_is_not_found():
    assert split_points(PARTS, 1).settings == {"ela_end": 0.4}  # never below HR
    rising = split_points([1, 2, 3, 4], 2.5)
    assert rising.settings == {} and rising.peak == 4  # never falls
    falling = split_points([9, 5, 4, 3], 3.5)
    assert falling.settings == {"ela_end": 0.25, "lla_start": 0.75}  # structure is there at once


def test_curves_that_cannot_be_split_are_refused():
    with pytest.raises(ClearSRError, match="--steps 3: too few"):
        split_points([1, 2, 1], 1)
    with pytest.raises(ClearSRError, match="NIQE is not defined"):
        split_points([1, 2, 3, math.nan], 1)
    with pytest.raises(ClearSRError, match="NIQE is not defined"):
        split_points(PARTS, math.nan)


def test_points_are_laid_over_the_models_settings(network, tmp_path):
    source = tmp_path / "model"
    save_network(network, source, ["clearsr"], {"steps": 7, "lsa": {"preset": "fidelity", "ela_end": 0.5}})
    weights = (source / "model.safetensors").read_bytes()
    store_sampling(source, tmp_path / "copy", {"lsa": {"ela_end": 0.3, "lla_start": 0.9}})
    defaults = ClearSRPipeline.from_pretrained(tmp_path / "copy", device="cpu").defaults
    assert (defaults.steps, defaults.lsa.preset) == (7, "fidelity")
    assert (defaults.lsa.ela_end, defaults.lsa.lla_start) == (0.3, 0.9)
    assert (tmp_path / "copy/model.safetensors").read_bytes() == weights
    assert read_description(source)["sampling"]["lsa"]["ela_end"] == 0.5

    before = json.loads((source / "config.json").read_text())
    store_sampling(source, source, {"lsa": {"lla_start": 0.6}})
    after = json.loads((source / "config.json").read_text())
    assert after["sampling"]["lsa"] == {**before["sampling"]["lsa"], "lla_start": 0.6}
    assert after["model"] == before["model"]
    assert sorted(path.name for path in source.iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(ClearSRError, match="lla_start"):
        store_sampling(source, source, {"lsa": {"lla_start": 2}})
