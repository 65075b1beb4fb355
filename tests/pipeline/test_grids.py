"""Where grids lie: on the device, in main memory, on disk, by what is free at the time."""

import pytest
import torch

from clearsr.pipeline import store as disk_tensor
from clearsr.pipeline.store import DiskTensor, GridStore

CPU, ACCELERATOR = torch.device("cpu"), torch.device("meta")
SHAPE = (1, 4, 10, 25)  # 4000 bytes in fp32


@pytest.fixture
def free(monkeypatch):
    """Bytes that are free on each device, to be changed."""
    there = {"cpu": 0, "meta": 0}
    monkeypatch.setattr(disk_tensor, "free_bytes", lambda max_memory, device: there[device.type])
    return there


def test_feature_maps_go_where_there_is_room_beside_the_work(free, tmp_path):
    store = GridStore(ACCELERATOR, None, tmp_path, beside=500)
    for on_device, on_cpu, expected in ((4500, 0, "meta"), (4499, 4000, "cpu"), (4499, 3999, "disk")):
        free.update(meta=on_device, cpu=on_cpu)
        found = store.feature_map(SHAPE, torch.float32)
        assert tuple(found.shape) == SHAPE
        place = "disk" if isinstance(found, DiskTensor) else found.device.type
        assert place == expected
    assert store.feature_map(SHAPE, torch.bfloat16).dtype == torch.bfloat16


def test_half_the_bytes_of_16_bits_count(free, tmp_path):
    free["cpu"] = 2000
    store = GridStore(CPU, None, tmp_path)
    assert isinstance(store.feature_map(SHAPE, torch.bfloat16), torch.Tensor)
    on_disk = store.feature_map(SHAPE, torch.float32)
    assert isinstance(on_disk, DiskTensor) and on_disk.dtype == torch.float32


def test_latents_take_a_small_share_of_what_is_free_or_go_to_disk(free, tmp_path):
    store = GridStore(CPU, None, tmp_path)
    free["cpu"] = int(4000 / disk_tensor.LATENTS_SHARE)
    assert torch.equal(store.latents(SHAPE), torch.zeros(SHAPE))
    free["cpu"] -= 100
    assert isinstance(store.latents(SHAPE), DiskTensor)
