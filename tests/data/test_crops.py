"""Batches are a function of (seed, step): not of processes, workers, interruptions or the cache."""

import os
import subprocess
import sys
from collections import Counter

import pytest
import torch

from clearsr.config.base import build_config
from clearsr.config.degradation import DegradationMix
from clearsr.config.training import DataConfig
from clearsr.data.crops import CropDataset, draw_place, iterate, make_loader
from clearsr.errors import ClearSRError
from clearsr.image import ImageData, write_image
from clearsr.seeds import make_generator

LIGHT = DegradationMix(weights={"light": 1.0})


@pytest.fixture
def folder(tmp_path, make_picture):
    """Five pictures; picture n is n·50 in red throughout."""
    for number in range(5):
        picture = make_picture(24, 28, seed=number)
        picture[0] = number * 50 / 255
        write_image(ImageData(picture), tmp_path / f"{number}.png")
    return tmp_path


def data(folder, **changes):
    return build_config(DataConfig, {"train": [str(folder)], "crop_size": 16, "workers": 0, **changes})


def dataset(folder, batch_size=4, seed=0, shard=(0, 1), degradation=LIGHT, **changes):
    return CropDataset(data(folder, **changes), degradation, batch_size, seed, shard)


def numbers(batch):
    """Which picture each sample of a batch is from."""
    return (batch.hr[:, 0].mean(dim=(1, 2)) * 255 / 50).round().int().tolist()


def test_a_batch_is_the_same_whatever_the_number_of_processes(folder):
    alone = [dataset(folder)[step] for step in (0, 1, 7)]
    shares = [[dataset(folder, shard=(rank, 2))[step] for rank in (0, 1)] for step in (0, 1, 7)]
    for whole, (first, second) in zip(alone, shares, strict=True):
        assert torch.equal(whole.hr, torch.cat([first.hr, second.hr]))
        assert torch.equal(whole.lr, torch.cat([first.lr, second.lr]))
        assert whole.sample_ids == first.sample_ids + second.sample_ids


def test_a_batch_is_the_same_however_it_is_split_into_micro_batches(folder):
    whole, halves = dataset(folder)[3], [dataset(folder, batch_size=2)[step] for step in (6, 7)]
    assert torch.equal(whole.hr, torch.cat([half.hr for half in halves]))
    assert torch.equal(whole.lr, torch.cat([half.lr for half in halves]))


def test_a_batch_is_the_same_without_cache_and_in_any_order(folder):
    ours, theirs = dataset(folder), dataset(folder, cache_megabytes=0)
    wanted = {step: ours[step] for step in (5, 0, 2)}
    assert all(torch.equal(theirs[step].hr, wanted[step].hr) for step in (0, 2, 5))


def test_a_worker_process_makes_the_same_batches(folder):
    here = list(iterate(make_loader(dataset(folder), range(2, 4), workers=0)))
    there = list(iterate(make_loader(dataset(folder), range(2, 4), workers=1)))
    assert [batch.sample_ids for batch in there] == [[8, 9, 10, 11], [12, 13, 14, 15]]
    for ours, theirs in zip(here, there, strict=True):
        assert torch.equal(ours.hr, theirs.hr) and torch.equal(ours.lr, theirs.lr)


def test_the_loader_leaves_the_global_random_state_alone(folder):
    before = torch.get_rng_state()
    list(iterate(make_loader(dataset(folder), range(2), workers=0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_epoch_shows_every_picture_once_in_an_order_of_its_own(folder):
    crops = dataset(folder, batch_size=5)
    epochs = [numbers(crops[epoch]) for epoch in range(4)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert crops.names_of([0, 1]) == [str(folder / f"{n}.png") for n in epochs[0][:2]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_lr_images_made_on_the_training_device_are_the_workers_bit_for_bit(folder, layout):
    mix = DegradationMix(weights={"full": 1.0, "camera": 1.0})
    here = dataset(folder, degradation=mix, degrade_on="device")
    waiting = list(iterate(make_loader(here, range(3), workers=1)))
    there = [dataset(folder, degradation=mix)[step] for step in range(3)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # the training process has more than a worker has
    try:
        made = [here.with_lr(batch._replace(hr=batch.hr.to(memory_format=layout))) for batch in waiting]
    finally:
        torch.set_num_threads(threads)
    for early, late, expected in zip(waiting, made, there, strict=True):
        assert early.lr is None and late.sample_ids == expected.sample_ids
        assert torch.equal(late.hr, expected.hr) and torch.equal(late.lr, expected.lr)


def test_lr_images_are_made_once_and_only_where_they_are_wanted(folder):
    batch = dataset(folder)[0]
    assert dataset(folder).with_lr(batch) is batch
    bare = dataset(folder, degradation=None, degrade_on="device")
    assert bare.with_lr(bare[0]).lr is None


def test_another_seed_gives_other_batches(folder):
    assert not torch.equal(dataset(folder)[0].hr, dataset(folder, seed=1)[0].hr)


def test_hr_is_a_crop_and_lr_its_size_divided(folder):
    batch = dataset(folder)[0]
    assert batch.hr.shape == (4, 3, 16, 16) and batch.lr.shape == (4, 3, 4, 4)
    assert batch.lr.min() >= 0 and batch.lr.max() <= 1
    assert dataset(folder, degradation=None)[0].lr is None


def test_crops_come_from_everywhere_mirrored_and_turned(folder):
    image = torch.arange(3 * 6 * 6, dtype=torch.float32).view(3, 6, 6)
    seen = Counter()
    config = data(folder, crop_size=4, upscale=2)
    for number in range(400):
        place = draw_place(make_generator("crop", number))
        crop = place.view(place.window(6, 6, config.crop_size).of(image), config.rotate)
        places = [
            (top, left, mirror, turn)
            for top in range(3)
            for left in range(3)
            for mirror in (False, True)
            for turn in (False, True)
            if torch.equal(crop, view(image[:, top : top + 4, left : left + 4], mirror, turn))
        ]
        assert len(places) == 1
        seen[places[0]] += 1
    assert len(seen) == 36  # 3·3 places, mirrored or not, turned or not


def view(crop, mirror, turn):
    if mirror:
        crop = torch.flip(crop, dims=(2,))
    return torch.rot90(crop, 1, dims=(1, 2)) if turn else crop


def test_without_rotate_crops_are_mirrored_only(folder):
    image = torch.arange(3 * 4 * 4, dtype=torch.float32).view(3, 4, 4)
    config = data(folder, crop_size=4, rotate=False)
    for number in range(20):
        crop = draw_place(make_generator("crop", number)).view(image, config.rotate)
        assert torch.equal(crop, image) or torch.equal(crop, image.flip(2))


def test_an_unreadable_picture_stops_and_is_named(folder):
    (folder / "2.png").write_bytes(b"no picture")
    with pytest.raises(ClearSRError, match=r"2\.png: is not an image.*clearsr data check.*skip_unreadable"):
        dataset(folder, batch_size=5)[0]
    batches = iterate(make_loader(dataset(folder, batch_size=5), range(2), workers=0))
    with pytest.raises(ClearSRError, match=r"2\.png"):
        next(batches)


def test_an_unreadable_picture_is_replaced_by_the_next_of_the_epoch_where_that_is_allowed(folder):
    whole = dataset(folder, batch_size=5)
    order = [numbers(whole[epoch]) for epoch in range(3)]
    (folder / "2.png").write_bytes(b"no picture")
    partial = dataset(folder, batch_size=5, skip_unreadable=True)
    for epoch in range(3):
        batch = partial[epoch]
        place = order[epoch].index(2)
        expected = list(order[epoch])
        expected[place] = order[epoch][(place + 1) % 5]
        assert numbers(batch) == expected
        assert len(batch.unreadable) == 1 and "2.png" in batch.unreadable[0]
        untouched = [i for i in range(5) if i != place]
        assert torch.equal(batch.hr[untouched], whole[epoch].hr[untouched])


def test_if_nothing_can_be_read_training_stops_even_so(folder):
    for number in range(5):
        (folder / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(ClearSRError, match="none of its 5 images can be read"):
        dataset(folder, skip_unreadable=True)[0]


@pytest.fixture
def sources(tmp_path, make_picture):
    """Folders of 2 and 6 pictures; red tells which one a crop is from: 0 and 1 are of the first."""
    for name, count, first in (("few", 2, 0), ("many", 6, 2)):
        (tmp_path / name).mkdir()
        for number in range(count):
            picture = make_picture(24, 28, seed=number)
            picture[0] = (first + number) * 30 / 255
            write_image(ImageData(picture), tmp_path / name / f"{number}.png")
    return tmp_path / "few", tmp_path / "many"


def mixed(sources, *settings, **changes):
    train = [{"path": str(path), **own} for path, own in zip(sources, settings, strict=True)]
    return CropDataset(data(None, train=train, **changes), None, 1, 0)


def seen(crops, count):
    """Which pictures the samples are from."""
    return [round(crops.batch([n]).hr[0, 0].mean().item() * 255 / 30) for n in range(count)]


def test_a_source_has_its_share_of_every_epoch_and_all_its_pictures_come_in_turn(sources):
    crops = mixed(sources, {"weight": 3}, {"weight": 1})
    assert crops.epochs.length == 8
    pictures = seen(crops, 72)  # nine epochs: 54 of the few, 18 of the many
    for begin in range(0, 72, 8):
        assert sum(picture < 2 for picture in pictures[begin : begin + 8]) == 6
    counts = Counter(pictures)
    assert [counts[picture] for picture in range(8)] == [27, 27, 3, 3, 3, 3, 3, 3]
    many = [picture for picture in pictures if picture >= 2]
    assert pictures[:8] != pictures[8:16] and many[:6] != many[6:12]


def test_a_rare_source_is_not_lost_to_rounding(sources):
    assert min(seen(mixed(sources, {"weight": 0.001}, {"weight": 1}), 9)) < 2


def test_several_crops_of_a_picture_lie_in_places_of_their_own(sources):
    crops = mixed(sources, {"crops": 3}, {})
    assert crops.epochs.length == 12
    assert Counter(seen(crops, 12)) == Counter({0: 3, 1: 3, **dict.fromkeys(range(2, 8), 1)})
    of_one = [crops.batch([n]).hr[0] for n in range(12) if seen(crops, 12)[n] == 0]
    assert not torch.equal(of_one[0], of_one[1]) and not torch.equal(of_one[1], of_one[2])


def test_the_mix_does_not_depend_on_processes_or_on_what_was_asked_before(sources):
    settings = ({"weight": 1, "crops": 2}, {"weight": 2})
    train = [{"path": str(path), **own} for path, own in zip(sources, settings, strict=True)]
    config = data(None, train=train)
    whole = [CropDataset(config, LIGHT, 4, 0)[step] for step in (9, 0, 4)]
    for step, batch in zip((9, 0, 4), whole, strict=True):
        halves = [CropDataset(config, LIGHT, 4, 0, (rank, 2))[step] for rank in (0, 1)]
        assert torch.equal(batch.hr, torch.cat([half.hr for half in halves]))
        assert torch.equal(batch.lr, torch.cat([half.lr for half in halves]))


def test_the_fingerprint_is_that_of_the_pictures_until_there_is_a_mix(sources):
    plain = mixed(sources, {}, {})
    assert plain.fingerprint() == plain.photographs.fingerprint()
    others = [mixed(sources, {"crops": 2}, {}), mixed(sources, {"weight": 1}, {"weight": 2})]
    assert len({crops.fingerprint() for crops in (plain, *others)}) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (({"weight": 1}, {}), "data.*: train: give all sources a weight, or none"),
        (({"weight": 0}, {"weight": 1}), "train.0.weight: Input should be greater than 0"),
        (({"wieght": 1}, {"weight": 1}), "train.0.wieght: unknown key; did you mean weight"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(sources, settings, message):
    with pytest.raises(ClearSRError, match=message.removeprefix("data.*: ")):
        mixed(sources, *settings)


def test_a_source_that_adds_nothing_cannot_have_a_weight(sources):
    few, _ = sources
    with pytest.raises(ClearSRError, match="0.png has a weight and no image that the others lack"):
        mixed((few, few / "0.png"), {"weight": 1}, {"weight": 1})


@pytest.fixture
def with_small(sources, make_picture):
    """The many have two pictures more, narrower than a crop of 16."""
    for name, size in (("narrow.png", (40, 12)), ("tiny.png", (8, 8))):
        picture = make_picture(*size)
        picture[0] = 240 / 255
        write_image(ImageData(picture), sources[1] / name)
    return sources


def test_small_pictures_are_left_out_and_counted(with_small):
    crops = mixed(with_small, {}, {}, small="skip")
    (line,) = crops.check_sizes()
    assert line == f"data.train: {with_small[1]}: 2 of 8 images are smaller than 16 pixels, and left out"
    assert sorted(seen(crops, 8)) == list(range(8))


def test_small_pictures_are_enlarged_and_counted(with_small):
    crops = mixed(with_small, {}, {}, small="resize")
    (line,) = crops.check_sizes()
    assert (
        line == f"data.train: {with_small[1]}: 2 of 8 images are smaller than 16 pixels, and enlarged to it"
    )
    assert Counter(seen(crops, 10))[8] == 2
    assert all(crops.batch([n]).hr.shape == (1, 3, 16, 16) for n in range(10))


def test_small_pictures_are_refused_by_name(with_small):
    with pytest.raises(
        ClearSRError, match=r"16 is larger than .*narrow.png \(12x40\).*set data.small to skip"
    ):
        mixed(with_small, {}, {}).check_sizes()
    with pytest.raises(ClearSRError, match="all 2 images are smaller than data.crop_size, 16"):
        mixed([with_small[1] / n for n in ("narrow.png", "tiny.png")], {}, {}, small="skip")


_PARENT = """
import multiprocessing, os, sys, time
from pathlib import Path

def child(place):
    parent = os.getppid()
    (place / "started").touch()
    while os.getppid() == parent:
        time.sleep(0.01)
    from clearsr.data.crops import _prepare_worker
    (place / "alone").touch()
    _prepare_worker(0)
    (place / "goes on").touch()

if __name__ == "__main__":
    place = Path(sys.argv[1])
    multiprocessing.get_context("spawn").Process(target=child, args=(place,)).start()
    while not (place / "started").exists():
        time.sleep(0.01)
    os._exit(9)
"""


@pytest.mark.skipif(os.name == "nt", reason="a process keeps its parent's number there")
def test_a_worker_whose_parent_was_killed_while_it_started_leaves(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    pipe = subprocess.run(  # ends when all who hold its end of the pipe have left
        [sys.executable, script, tmp_path], capture_output=True, text=True, timeout=120, check=False
    )
    assert pipe.returncode == 9 and "Traceback" not in pipe.stderr, pipe.stderr
    assert (tmp_path / "alone").exists() and not (tmp_path / "goes on").exists()
