"""Order of what is timed, and ratios; no test of the time itself."""

import torch

from clearsr.paper.complexity.timing import Timing, describe_machine, interleave, ratio


def test_runs_take_turns_and_warm_ups_do_not_count():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = interleave(runs, 3, torch.device("cpu"), warm_ups=2)
    assert "".join(calls) == "ab" * 5
    assert all(len(t.seconds) == len(t.cpu_seconds) == 3 for t in timings.values())
    assert all(second >= 0 for t in timings.values() for second in (*t.seconds, *t.cpu_seconds))


def test_ratio_is_the_median_of_each_rounds_own():
    """The second round ran on a machine ten times busier; the third is an outlier of one run."""
    ours, theirs = Timing([1.0, 10.0, 9.0], [1.0, 1.0, 1.0]), Timing([2.0, 20.0, 2.0], [4.0, 4.0, 4.0])
    assert ratio(ours, theirs) == 0.5 and ratio(ours, theirs, of_cpu=True) == 0.25
    assert ours.median == 9.0 and ours.as_dict()["median_cpu"] == 1.0


def test_the_machine_is_named():
    machine = describe_machine(torch.device("cpu"))
    assert machine["processor"] and machine["torch"] == torch.__version__ and machine["threads"] >= 1
