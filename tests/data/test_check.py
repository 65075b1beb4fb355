"""`clearsr data check`: what it counts, what it finds, and the shards that it writes."""

import hashlib
import json

import pytest
import torch
from PIL import Image

from clearsr.cli import main
from clearsr.data.check import check_images
from clearsr.data.shards import ShardWriter, crop_grid
from clearsr.data.sources import decode, list_items
from clearsr.errors import ClearSRError
from clearsr.image import ImageData, write_image


@pytest.fixture
def folder(tmp_path, make_picture):
    """Two pictures, a copy of the first in another format, one that is too small, two broken ones."""
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png")):
        write_image(ImageData(make_picture(32, 40 + 30 * number, seed=number)), folder / name)
    with Image.open(folder / "a.png") as picture:
        picture.save(folder / "inner" / "copy.bmp")
    write_image(ImageData(make_picture(9, 50)), folder / "small.png")
    (folder / "empty.jpg").touch()
    (folder / "half.png").write_bytes((folder / "b.png").read_bytes()[:500])
    return folder


def test_everything_is_counted_and_what_is_wrong_is_named(folder):
    seen = []
    report = check_images(
        list_items([folder]), crop=16, on_image=lambda done, total: seen.append((done, total))
    )
    assert report.images == 6 and seen == [(n, 6) for n in range(1, 7)]
    assert sorted(report.sizes) == [(40, 32), (40, 32), (50, 9), (70, 32)]
    assert report.shorter_sides() == (9, 32, 32)
    assert report.pixels == 2 * 40 * 32 + 50 * 9 + 70 * 32
    assert report.bytes == sum(path.stat().st_size for path in folder.rglob("*.*"))
    assert report.small == [str(folder / "small.png")]
    assert report.duplicates == [[str(folder / "a.png"), str(folder / "inner" / "copy.bmp")]]
    assert [line.split(": ")[0] for line in report.unreadable] == [
        str(folder / "empty.jpg"),
        str(folder / "half.png"),
    ]


def test_the_command_fails_if_an_image_cannot_be_read(folder, capsys):
    assert main(["data", "check", str(folder), "-q"]) == 1
    out = capsys.readouterr().out
    assert "6 images, 4 readable" in out and "1 duplicates" in out and "2 cannot be read" in out
    for name in ("empty.jpg", "half.png"):
        assert str(folder / name) in out
        (folder / name).unlink()
    assert main(["data", "check", str(folder), "--json", "-q"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == report["readable"] == 4 and report["unreadable"] == []
    assert report["shorter_side"] == {"min": 9, "median": 32, "max": 32}


def test_what_leads_to_no_image_is_reported_and_the_rest_is_checked(folder, capsys):
    (folder / "broken.tar").write_bytes(b"no archive" * 100)
    (folder / "dead.jpg").symlink_to(folder / "nowhere.jpg")
    for name in ("photo.NEF", "inner/photo.nef", "README", ".hidden"):
        (folder / name).write_bytes(b"something")
    (folder / "list.txt").write_text("a.png\ngone.png\n")
    assert main(["data", "check", str(folder), str(folder / "list.txt"), "--json", "-q"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["images"], report["readable"]) == (6, 4)
    assert report["other_files"] == {".nef": 2, "no suffix": 1, ".txt": 1}
    reasons = dict(line.split(": ", 1) for line in report["unreadable"])
    assert reasons.keys() == {
        str(folder / name) for name in ("empty.jpg", "half.png", "broken.tar", "gone.png", "dead.jpg")
    }
    assert "uncompressed tar" in reasons[str(folder / "broken.tar")]
    assert "link" in reasons[str(folder / "dead.jpg")]
    assert main(["data", "check", str(folder), "-q"]) == 1
    assert "4 files of other kinds, not looked at: 2 .nef, 1 .txt, 1 no suffix" in capsys.readouterr().out


def test_training_stops_at_what_the_check_only_reports(folder):
    (folder / "broken.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(ClearSRError, match="broken.tar"):
        list_items([folder])


def test_shards_hold_every_pixel_row_once_and_no_duplicates(folder, tmp_path, capsys):
    shards = tmp_path / "shards"
    assert main(["data", "check", str(folder), "--shards", str(shards), "--crop", "16", "--json", "-q"]) == 1
    assert json.loads(capsys.readouterr().out)["crops"] == 2 * 2 + 2 * 4  # a: 40x32, b: 70x32
    items = list_items([shards])
    assert [item.name for item in items[:4]] == [
        "a_y00000_x00000.png", "a_y00000_x00024.png", "a_y00016_x00000.png", "a_y00016_x00024.png",
    ]  # fmt: skip
    whole = decode(list_items([folder / "a.png"])[0])
    assert torch.equal(decode(items[3]), whole[:, 16:32, 24:40])
    assert sorted(path.name for path in shards.iterdir()) == ["crops-00000.tar", "crops-00000.tar.index.json"]


def test_the_same_images_give_the_same_bytes_and_shards_are_split(folder, tmp_path):
    digests = []
    for name in ("one", "two"):
        with ShardWriter(tmp_path / name, 16, shard_bytes=4000) as writer:
            check_images(list_items([folder]), 16, keep=writer.add)
        files = sorted((tmp_path / name).iterdir())
        digests.append([(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])
    assert digests[0] == digests[1] and len(digests[0]) > 2
    assert len(list_items([tmp_path / "one"])) == writer.crops == 12


def test_an_interrupted_shard_is_removed(folder, tmp_path):
    items = list_items([folder / "a.png"])
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "out", 16) as writer:
        writer.add(items[0], decode(items[0]))
        raise KeyboardInterrupt
    assert list((tmp_path / "out").iterdir()) == []


def test_names_that_would_meet_are_told_apart(tmp_path, make_picture):
    for name in ("x/a.png", "x-a.png", "x.a.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(ImageData(make_picture(8, 8, seed=len(name))), tmp_path / "in" / name)
    with ShardWriter(tmp_path / "out", 8) as writer:
        for item in list_items([tmp_path / "in"]):
            writer.add(item, decode(item))
    names = [item.name for item in list_items([tmp_path / "out"])]
    assert sorted(names) == ["x-a-2_y00000_x00000.png", "x-a-3_y00000_x00000.png", "x-a_y00000_x00000.png"]


def test_a_folder_with_shards_is_not_written_to(tmp_path):
    (tmp_path / "old.tar").touch()
    with pytest.raises(ClearSRError, match="holds shards already"):
        ShardWriter(tmp_path, 16)


@pytest.mark.parametrize(
    ("size", "corners"),
    [((16, 16), [(0, 0)]), ((20, 31), [(2, 7)]), ((33, 16), [(0, 0), (17, 0)])],
)
def test_crops_reach_from_edge_to_edge(size, corners):
    assert list(crop_grid(*size, 16)) == corners


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--crop", "0"], "--crop 0"),
        (["--shards", "out"], "needs --crop"),
        (["--crop", "x"], "--crop"),
    ],
)
def test_wrong_flags_are_named(folder, flags, message, capsys):
    assert main(["data", "check", str(folder), *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_folder_is_named(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path / "gone")]) == 1
    assert "gone" in capsys.readouterr().err


def test_shards_are_not_written_among_the_photographs_nor_without_a_crop(folder, tmp_path, capsys):
    before = sorted(folder.rglob("*"))
    given = ["data", "check", str(folder), "-q", "--crop"]
    assert main([*given, "16", "--shards", str(folder / "shards")]) == 1
    assert "is or lies in the input" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before
    assert main([*given, "512", "--shards", str(tmp_path / "none")]) == 1
    assert "--crop 512: no photograph is as large" in capsys.readouterr().err
    assert not list(tmp_path.glob("none/*"))
