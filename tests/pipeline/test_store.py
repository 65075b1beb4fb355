"""The tensor in a file against one in memory; and where grids lie, by what is free at the time."""

import pytest
import torch

from clearsr.pipeline import store
from clearsr.pipeline.store import DiskTensor, GridStore
from clearsr.tiling import Window

CPU = torch.device("cpu")
WINDOWS = [Window(0, 0, 9, 13), Window(2, 0, 5, 13), Window(1, 3, 8, 7), Window(8, 12, 9, 13)]
ACCELERATOR = torch.device("meta")
SHAPE = (1, 4, 10, 25)  # 4000 bytes in fp32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_reads_and_writes_as_a_tensor_in_memory(tmp_path, normal, dtype):
    on_disk = DiskTensor((2, 3, 9, 13), tmp_path, CPU, dtype)
    in_memory = torch.zeros(2, 3, 9, 13, dtype=dtype)
    for seed, window in enumerate(WINDOWS):
        part = normal(2, 3, *window.size, seed=seed)
        on_disk[window.cells] = part
        in_memory[window.cells] = part
        on_disk[window.cells] += 0.5
        in_memory[window.cells] += 0.5
        for other in WINDOWS:
            assert torch.equal(other.of(on_disk), other.of(in_memory))
    assert on_disk.shape == in_memory.shape and len(on_disk) == 2


def test_another_starts_at_zero_and_is_apart(tmp_path):
    first = DiskTensor((1, 2, 4, 4), tmp_path, CPU)
    second = first.new_zeros((1, 5, 3, 2))
    first[..., 0:4, 0:4] = torch.ones(1, 2, 4, 4)
    assert torch.equal(second[..., 0:3, 0:2], torch.zeros(1, 5, 3, 2))


def test_a_part_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="window 2×2"):
        DiskTensor((1, 1, 4, 4), tmp_path, CPU)[..., 0:2, 0:2] = torch.zeros(1, 1, 2, 3)


def test_nothing_is_left_in_the_folder(tmp_path):
    tensor = DiskTensor((1, 1, 4, 4), tmp_path, CPU)
    tensor[..., 0:4, 0:4] = torch.ones(1, 1, 4, 4)
    del tensor
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def free(monkeypatch):
    """Bytes that are free on each device, to be changed."""
    there = {"cpu": 0, "meta": 0}
    monkeypatch.setattr(store, "free_bytes", lambda max_memory, device: there[device.type])
    return there


def test_feature_maps_go_where_there_is_room_beside_the_work(free, tmp_path):
    grids = GridStore(ACCELERATOR, None, tmp_path, beside=500)
    for on_device, on_cpu, expected in ((4500, 0, "meta"), (4499, 4000, "cpu"), (4499, 3999, "disk")):
        free.update(meta=on_device, cpu=on_cpu)
        found = grids.feature_map(SHAPE, torch.float32)
        assert tuple(found.shape) == SHAPE
        place = "disk" if isinstance(found, DiskTensor) else found.device.type
        assert place == expected
    assert grids.feature_map(SHAPE, torch.bfloat16).dtype == torch.bfloat16


def test_half_the_bytes_of_16_bits_count(free, tmp_path):
    free["cpu"] = 2000
    grids = GridStore(CPU, None, tmp_path)
    assert isinstance(grids.feature_map(SHAPE, torch.bfloat16), torch.Tensor)
    on_disk = grids.feature_map(SHAPE, torch.float32)
    assert isinstance(on_disk, DiskTensor) and on_disk.dtype == torch.float32


def test_latents_take_a_small_share_of_what_is_free_or_go_to_disk(free, tmp_path):
    grids = GridStore(CPU, None, tmp_path)
    free["cpu"] = int(4000 / store.LATENTS_SHARE)
    assert torch.equal(grids.latents(SHAPE), torch.zeros(SHAPE))
    free["cpu"] -= 100
    assert isinstance(grids.latents(SHAPE), DiskTensor)
