"""What benchmarks/before_after.py holds against each other does the same; all of it runs at tiny size."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def script():
    """The script as a module; what it imports lies beside it."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("before_after")
    sys.path.remove(str(ROOT / "benchmarks"))


def test_prompts_dropped_in_one_pass_are_those_decoded_twice(script):
    learn = script.make_pass(script.TINY, CPU)
    one = torch.tensor([True, False])

    def learnt(way, dropped):
        output = way(dropped)
        gradients = {n: p.grad.clone() for n, p in learn.network.named_parameters() if p.grad is not None}
        assert gradients and all(gradient.isfinite().all() for gradient in gradients.values())
        return output, gradients

    output, gradients = learnt(learn.decoded_twice, one)
    torch.testing.assert_close(learnt(learn.at_once, one), (output, gradients), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(
        learnt(learn.at_once, None)[0][0], output[0], atol=1e-3
    )  # the null prompt counts
    torch.testing.assert_close(learnt(learn.at_once, None)[0][1], output[1])


@pytest.mark.parametrize("window", [16, None])
def test_an_index_made_anew_is_the_index_kept(script, normal, window):
    layer = script.make_attention(script.TINY, window)
    hidden, z_lr = normal(1, 32 * 32, 32), normal(1, 4, 32, 32, seed=1)
    kept, again = layer(hidden, z_lr), []
    index = layer._index[1]
    script.index_anew(layer, lambda: again.append(layer(hidden, z_lr)))
    assert layer._index[1] is not index and torch.equal(layer._index[1], index)
    assert torch.equal(again[0], kept) and kept.any()


def test_ways_are_taken_in_turn_and_the_first_round_does_not_count(script):
    time, order = [0.0], []

    def take(name, durations):
        def way():
            order.append(name)
            time[0] += durations.pop(0)

        return way

    slow, fast = take("slow", [100.0, 3.0, 5.0, 4.0]), take("fast", [50.0, 1.0, 1.0, 2.0])
    seconds = script.in_turn([slow, fast], 3, lambda: time[0])
    assert script.medians(seconds) == [4.0, 1.0]
    assert order == ["slow", "fast"] * 4


def test_all_of_it_runs_in_small(script, capsys):
    script.main(["--tiny", "--rounds", "1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {5} and len(lines) == 2 + 14
    assert sum("not on this device" in line for line in lines) == (0 if torch.cuda.is_available() else 2)
    assert sum("left out" in line for line in lines) == 1  # `evaluate`, which starts processes
