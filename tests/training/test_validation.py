"""Crops shared by processes, and which validation is the best by measures whose units differ."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from clearsr.training.validation import Validation, is_preferred, summed_up


@pytest.mark.parametrize(
    ("weights", "columns"),
    [
        ({"psnr": 1.0}, {"psnr": lambda g: g.integers(20, 26, 9)}),
        ({"niqe": 1.0, "psnr": 0.5}, {"psnr": lambda g: g.normal(24, 1, 9), "niqe": lambda g: g.random(9)}),
        ({"lpips": 1.0, "sharpness": 1.0, "musiq": 3.0}, {
            "lpips": lambda g: g.integers(1, 4, 9), "sharpness": lambda g: g.integers(1, 9, 9) / 4,
            "musiq": lambda g: g.integers(60, 64, 9),
        }),
    ],
)  # fmt: skip
def test_ranks_are_those_of_scipy(weights, columns):
    """Low is good of NIQE and LPIPS, near to 1 of sharpness; equals share a rank."""
    badness = {"psnr": np.negative, "musiq": np.negative, "sharpness": lambda v: abs(v - 1)}
    seen = set()
    for seed in range(20):
        generator = np.random.default_rng(seed)
        drawn = {name: column(generator) for name, column in columns.items()}
        ranks = sum(
            weight * rankdata(badness.get(name, np.positive)(drawn[name]), method="min")
            for name, weight in weights.items()
        )
        new, held, *others = [{name: float(v[i]) for name, v in drawn.items()} for i in range(9)]
        assert is_preferred(new, held, others, weights) == (ranks[0] < ranks[1])
        seen.add(is_preferred(new, held, others, weights))
    assert seen == {True, False}


def test_those_between_two_validations_tell_how_far_apart_they_are():
    """The new one is a little worse by one measure and better than five by the other."""
    new, held = {"psnr": 24.0, "niqe": 4.0}, {"psnr": 24.1, "niqe": 5.0}
    weights = {"psnr": 2.0, "niqe": 1.0}
    assert not is_preferred(new, held, [], weights)
    assert is_preferred(new, held, [{"psnr": 20.0, "niqe": 4.1 + i / 10} for i in range(5)], weights)


def test_what_has_no_value_is_last():
    weights = {"niqe": 1.0}
    assert is_preferred({"niqe": 9.0}, {"psnr": 20.0}, [], weights)
    assert not is_preferred({"psnr": 20.0}, {"niqe": 9.0}, [], weights)
    assert not is_preferred({"psnr": 20.0}, {"psnr": 30.0}, [], weights)


@pytest.mark.parametrize("stage", ["clearsr", "autoencoder", "prior"])
def test_shares_of_the_crops_are_the_whole(make_run, photos, network, stage):
    """Bit for bit, in any order; a process more than there are crops has none."""
    model = {"prediction": "epsilon"} if stage == "prior" else {}
    config = make_run(
        stage,
        model=model,
        data={"validation": [str(photos)]},
        validation={"count": 3, "crop_size": 32, "sampling": {"steps": 2}},
    )
    whole = Validation(config).run(network)
    shares = [Validation(config, shard=(index, 4)).look(network) for index in range(4)]
    assert [[look.number for look in share] for share in shares] == [[0], [1], [2], []]
    together = summed_up(look for share in reversed(shares) for look in share)
    assert together.scores == whole.scores and torch.equal(together.picture, whole.picture)
    assert len({look.scores["psnr"] for share in shares for look in share}) == 3
