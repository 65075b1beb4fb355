"""The memory budget: how it is given, what it decides, and when it is too little."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clearsr.config.base import build_config
from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError
from clearsr.image.data import InputCost
from clearsr.pipeline import budget
from clearsr.pipeline.budget import (
    TileCost,
    VaeCost,
    Workload,
    _malloc_trim,
    give_back_freed_memory,
    images_at_once,
    plan_work,
)

CPU = torch.device("cpu")
GB = 1_000_000_000
COST = VaeCost(240.0)


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """The process holds 600 MB, and 10 GB are free."""
    monkeypatch.setattr(budget, "resident_bytes", lambda: 600_000_000)
    monkeypatch.setattr(budget, "available_bytes", lambda: 10 * GB)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("1.5GB", 1_500_000_000), ("800 MB", 800_000_000), ("2GiB", 2**31), (3 * GB, 3 * GB), (None, None)],
)
def test_a_budget_has_a_unit(given, expected):
    assert build_config(SamplingConfig, {"max_memory": given}).max_memory == expected


@pytest.mark.parametrize("given", ["1.5", "2", "much", "-1GB", 0])
def test_a_budget_that_is_none_is_refused(given):
    with pytest.raises(ClearSRError, match="max_memory"):
        build_config(SamplingConfig, {"max_memory": given})


def test_small_images_stay_whole_and_large_ones_go_in_blocks():
    assert not plan_work((512, 512), COST, int(1.5 * GB), CPU).is_in_blocks
    assert plan_work((8000, 8000), COST, int(1.5 * GB), CPU).is_in_blocks
    assert not plan_work((6000, 6000), COST, None, CPU).is_in_blocks  # of the 10 GB
    assert plan_work((20_000, 20_000), COST, None, CPU).is_in_blocks


def test_pieces_shrink_with_the_budget_until_it_is_too_little():
    budgets = (1.5, 1.1, 0.9, 0.75)
    sides = [plan_work((8000, 8000), COST, int(b * GB), CPU).piece for b in budgets]
    assert sides == sorted(sides, reverse=True) and sides[0] == 1024 and sides[-1] < 512
    for side, given in zip(sides, budgets, strict=True):
        assert (side + 320) ** 2 * 240 <= given * GB - 600_000_000
    with pytest.raises(ClearSRError, match="max_memory: 640 MB is too little; .* needs about .* MB"):
        plan_work((8000, 8000), COST, 640_000_000, CPU)


def test_what_a_vae_keeps_between_its_layers_counts_beyond_a_piece():
    cost = VaeCost(240.0, margin=0, kept_per_pixel=2000.0)
    assert not plan_work((1024, 1024), cost, 2 * GB, CPU).is_in_blocks
    assert plan_work((1024, 1032), cost, 2 * GB, CPU).is_in_blocks
    assert not plan_work((1024, 1032), cost, 4 * GB, CPU).is_in_blocks


def test_what_reading_takes_counts():
    """Of the whole where all is in memory; in blocks what the format forces to be decoded at once."""
    budget, size = int(1.3 * GB), (1000, 1000)
    assert not plan_work(size, COST, budget, CPU).is_in_blocks
    in_blocks = plan_work(size, COST, budget, CPU, InputCost(whole=200_000_000))
    assert in_blocks.is_in_blocks and in_blocks.piece == plan_work(size, COST, budget, CPU).piece
    held = plan_work(size, COST, budget, CPU, InputCost(300_000_000, 300_000_000))
    assert held.is_in_blocks and held.piece < in_blocks.piece
    with pytest.raises(ClearSRError, match="too little; .* needs about 1.36 GB"):
        plan_work(size, COST, budget, CPU, InputCost(680_000_000, 680_000_000))


def test_what_this_process_holds_is_measured(monkeypatch):
    monkeypatch.undo()
    before = budget.resident_bytes()
    held = torch.ones(50_000_000)
    assert budget.resident_bytes() - before > 0.9 * 4 * held.numel()
    assert budget.available_bytes() > 0


def test_a_smaller_tile_keeps_settings_that_fit():
    config = build_config(SamplingConfig, {"tile": {"size": 96, "overlap": 48}})
    smaller = Workload(tile=48).applied_to(config)
    assert (smaller.tile.size, smaller.tile.overlap) == (48, 24)
    assert Workload().applied_to(config) is config


def test_tiles_at_once_go_by_the_image_the_room_and_the_device():
    cost, large = TileCost(64 * 64, 7000.0), (2048, 2048)
    cuda = torch.device("cuda")
    assert (cost.at_once(large, GB, CPU), cost.at_once(large, GB, cuda)) == (2, 16)
    assert TileCost(128 * 128, 7000.0).at_once(large, GB, cuda) == 4
    for room in (10_000_000, 100_000_000, 300_000_000):
        at_once = cost.at_once(large, room, cuda)
        assert at_once == 1 or at_once * 64 * 64 * 7000 <= room < (at_once + 1) * 64 * 64 * 7000
    for side in (
        256,
        512,
        700,
        900,
        1024,
    ):  # with as many images as may be, no more in all than of a large one
        at_once = cost.at_once((side, side), GB, cuda)
        assert at_once == 1 or at_once * images_at_once(side, side) <= 16


def test_the_plan_gives_tiles_the_room_of_a_piece(monkeypatch):
    tile, cuda = TileCost(64 * 64, 7000.0), torch.device("cuda")
    assert plan_work((2048, 2048), COST, None, CPU, tile=tile).tiles == 2
    assert plan_work((2048, 2048), COST, None, CPU).tiles == 1
    short = plan_work((2048, 2048), COST, int(1.3 * GB), CPU, tile=tile)
    assert short.is_in_blocks and short.tiles == 1
    monkeypatch.setattr(budget, "free_bytes", lambda *_: 300_000_000)
    plan = plan_work((2048, 2048), COST, None, cuda, tile=tile)  # its tiles are not in the processor's memory
    assert plan.is_in_blocks and plan.tiles > 1
    room = (plan.piece + 320) ** 2 * 240
    assert plan.tiles * 64 * 64 * 7000 <= room < (plan.tiles + 1) * 64 * 64 * 7000


def test_less_memory_is_first_fewer_images_and_tiles_at_once():
    workload, seen = Workload(images=4, tiles=16), []
    while not workload.is_in_blocks:
        workload = workload.smaller(64)
        seen.append((workload.images, workload.tiles))
    assert seen == [(2, 8), (1, 4), (1, 2), (1, 1), (1, 1)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.skipif(_malloc_trim() is None, reason="not glibc")
def test_holes_between_what_is_in_use_are_given_back() -> None:
    blocks = [np.ones(60_000, np.uint8) for _ in range(4000)]  # 240 MB, too small each for pages of their own
    kept = blocks[::10]
    del blocks
    before = _resident_bytes()
    give_back_freed_memory()
    assert before - _resident_bytes() > 100e6
    assert all(block.all() for block in kept)


def _resident_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmRSS")).split()[1])
