"""Folders, lists and shards name the same images, and say what is wrong with them."""

import io
import json
import os
import tarfile

import pytest
import torch
from PIL import Image

from clearsr.data.photographs import Photographs
from clearsr.data.sources import ImageItem, KnownSizes, decode, list_items, pixel_size, write_index
from clearsr.errors import ClearSRError
from clearsr.image import ImageData, write_image
from clearsr.tiling import Window


@pytest.fixture
def folder(tmp_path, make_picture):
    """`photos/a.png`, `photos/inner/b.png`."""
    for number, name in enumerate(("a.png", "inner/b.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(ImageData(make_picture(20, 24 + number, seed=number)), path)
    return tmp_path / "photos"


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def shard(folder, tmp_path):
    """A shard as WebDataset writes them: an image and its label have one stem."""
    a, b = ((folder / name).read_bytes() for name in ("a.png", "inner/b.png"))
    files = {"0001.png": a, "0001.json": b"{}", "0002.png": b, "0002.cls": b"7", "._0003.png": b"mac"}
    return write_tar(tmp_path / "shard-000.tar", files)


def test_a_shard_holds_the_pixels_of_its_files(folder, shard):
    members = list_items([shard])
    assert [item.name for item in members] == ["0001.png", "0002.png"]
    for member, file in zip(members, list_items([folder]), strict=True):
        assert torch.equal(decode(member), decode(file))
        assert pixel_size(member) == pixel_size(file)
        assert member.byte_count() == file.byte_count() == len(member.read_bytes())
        assert member.label() == f"{shard}/{member.name}"


def test_an_index_replaces_the_walk_through_the_shard(shard, monkeypatch):
    walked = list_items([shard])
    write_index(shard)
    monkeypatch.setattr(tarfile, "open", None)
    assert list_items([shard]) == walked


def test_an_index_of_another_shard_is_passed_over(shard):
    walked = list_items([shard])
    write_index(shard)
    index = shard.with_name(shard.name + ".index.json")
    index.write_text(json.dumps({**json.loads(index.read_text()), "bytes": 1, "members": []}))
    assert list_items([shard]) == walked


def test_a_folder_stands_for_its_images_and_shards(folder, shard):
    shard.rename(folder / "inner" / "more.tar")
    assert [item.name for item in list_items([folder])] == ["a.png", "inner/b.png", "0001.png", "0002.png"]


def test_a_folder_of_shards_alone_will_do(shard, tmp_path):
    (tmp_path / "shards").mkdir()
    shard.rename(tmp_path / "shards" / "x.tar")
    assert len(list_items([tmp_path / "shards"])) == 2


def test_a_list_is_relative_to_itself_and_may_name_anything(folder, shard, tmp_path):
    lines = ["# ours", "", "photos/inner", f"  {folder / 'a.png'}  ", shard.name, "photos/a.png"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    assert [item.name for item in list_items([tmp_path / "list.txt"])] == [
        "b.png",
        "a.png",
        "0001.png",
        "0002.png",
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("# none\n", "names no image"),
        ("other.txt\n", "names another list"),
        ("gone.png\n", "gone.png: does not"),
    ],
)
def test_a_list_that_names_nothing_of_use_is_refused(tmp_path, lines, message):
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(ClearSRError, match=message):
        list_items([tmp_path / "list.txt"])


def test_a_shard_that_cannot_be_read_so_is_refused(folder, tmp_path):
    packed = write_tar(tmp_path / "packed.tar", {"a.png": (folder / "a.png").read_bytes()}, "w:gz")
    with pytest.raises(ClearSRError, match="uncompressed tar"):
        list_items([packed])
    empty = write_tar(tmp_path / "empty.tar", {"readme.md": b"nothing"})
    with pytest.raises(ClearSRError, match="holds no images"):
        list_items([empty])


def test_damage_inside_a_shard_names_shard_and_member(folder, tmp_path):
    content = (folder / "a.png").read_bytes()
    shard = write_tar(
        tmp_path / "x.tar", {"half.png": content[:200], "text.jpg": b"no image", "a.png": content}
    )
    half, text, whole = list_items([shard])
    with pytest.raises(ClearSRError, match="x.tar/half.png: is damaged or incomplete"):
        decode(half)
    for read in (decode, pixel_size):
        with pytest.raises(ClearSRError, match="x.tar/text.jpg: is not an image"):
            read(text)
    shard.write_bytes(shard.read_bytes()[: whole.offset + 10])
    with pytest.raises(ClearSRError, match="x.tar/a.png: the shard ends within it"):
        decode(whole)


def test_a_member_is_shown_upright(tmp_path):
    picture = Image.new("RGB", (6, 4))
    picture.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    item = list_items([write_tar(tmp_path / "x.tar", {"a.png": buffer.getvalue()})])[0]
    pixels = decode(item)
    assert pixels.shape == (3, 6, 4)
    assert pixels[:, 0, 3].tolist() == [255, 0, 0]


def test_the_fingerprint_follows_the_names_and_not_the_place(folder, tmp_path):
    ours = Photographs([folder]).fingerprint()
    folder.rename(tmp_path / "moved")
    assert Photographs([tmp_path / "moved"]).fingerprint() == ours
    (tmp_path / "moved" / "a.png").rename(tmp_path / "moved" / "c.png")
    assert Photographs([tmp_path / "moved"]).fingerprint() != ours


def test_too_small_images_are_named_from_their_headers(folder, shard):
    photographs = Photographs([folder, shard])
    assert photographs.smaller_than(20) == {}
    small = photographs.smaller_than(21)
    assert [line.split("/")[-1] for line in small.values()][:2] == ["a.png (24x20)", "b.png (25x20)"]
    assert any("0001.png" in line for line in small.values())
    assert photographs.by_source(small) == [2, len(small) - 2]


def test_crops_are_the_same_from_the_cache_which_keeps_what_fits_and_no_more(
    tmp_path, make_picture, monkeypatch
):
    for number in range(3):
        write_image(ImageData(make_picture(400, 400, seed=number)), tmp_path / f"{number}.png")
    cached = Photographs([tmp_path], cache_megabytes=1)  # two of 480,000 bytes
    plain = [cached[index] for index in range(3)]
    decoded = []

    def counted(item, choose=None):
        decoded.append((item.name, choose is None))
        return decode(item, choose)

    monkeypatch.setattr("clearsr.data.photographs.decode", counted)
    window = Window(100, 7, 164, 71)
    for index in (0, 1, 2, 0, 1, 2, 2):
        crop = cached.crop(index, lambda height, width: window)
        assert torch.equal(crop, window.of(plain[index]))
    assert decoded == [("0.png", True), ("1.png", True), *[("2.png", False)] * 3]


@pytest.fixture
def many(folder, tmp_path):
    """`photos/a.png`, `photos/inner/b.png` and a shard with two members of one name, which differ in size."""
    shard = folder / "twice.tar"
    with tarfile.open(shard, "w") as archive:
        for name in ("a.png", "inner/b.png"):
            archive.add(folder / name, "same.png")
    return list_items([folder])


@pytest.fixture
def opened(monkeypatch):
    """The labels of the images of which a header was read, in order."""
    labels, read = [], ImageItem.read_bytes

    def counted(item, limit=None):
        labels.append(item.label())
        return read(item, limit)

    monkeypatch.setattr(ImageItem, "read_bytes", counted)
    return labels


def sizes_by(file, items):
    known = KnownSizes(file, items)
    found = [known.of(item) for item in items]
    known.keep()
    return found


def test_the_second_start_opens_no_picture(many, tmp_path, opened):
    expected = [pixel_size(item) for item in many]
    assert expected == [(24, 20), (25, 20), (24, 20), (25, 20)]
    file = tmp_path / "sizes.json"
    opened.clear()
    assert sizes_by(file, many) == expected and len(opened) == 4
    written = file.read_bytes()
    opened.clear()
    assert sizes_by(file, many) == expected and not opened
    assert file.read_bytes() == written and not list(tmp_path.glob(".*"))
    assert sizes_by(None, many) == expected and len(opened) == 4


@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_file_that_changed_is_read_again_and_no_other(
    many, folder, tmp_path, opened, make_picture, keeps_time
):
    file, changed = tmp_path / "sizes.json", folder / "inner" / "b.png"
    before, length = changed.stat(), changed.stat().st_size
    sizes_by(file, many)
    opened.clear()
    content = (folder / "a.png").read_bytes()
    changed.unlink()
    changed.write_bytes(content[:length].ljust(length, b"\0"))  # another picture of the same length
    if keeps_time:
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sizes_by(file, many)[1] == (24, 20) and opened == [str(changed)]
    shard = folder / "twice.tar"
    os.utime(shard, ns=(0, 0))
    opened.clear()
    sizes_by(file, many)
    assert opened == [f"{shard}/same.png"] * 2


def test_what_is_gone_is_forgotten_and_what_is_no_cache_is_replaced(many, folder, tmp_path, opened):
    file = tmp_path / "sizes.json"
    sizes_by(file, many)
    sizes_by(file, many[1:])
    assert str(folder / "a.png") not in file.read_text() and len(json.loads(file.read_text())) == 2
    name = str(folder / "a.png")
    for content in (
        "",
        "[]",
        "{",
        "[" * 100_000,
        json.dumps({name: 3}),
        json.dumps({name: [[1], {"0": ["x", 2]}]}),
    ):
        file.write_text(content)
        opened.clear()
        assert sizes_by(file, many)[0] == (24, 20) and len(opened) == 4
        assert len(json.loads(file.read_text())) == 3


def test_one_header_that_cannot_be_read_costs_no_other(folder, tmp_path, opened):
    (folder / "b.png").write_bytes(b"no image")
    file = tmp_path / "sizes.json"
    for skip, read in ((False, ["a.png"]), (True, ["inner/b.png"]), (True, [])):
        opened.clear()
        photographs = Photographs([folder], sizes=file)
        if skip:
            assert photographs.smaller_than(21, skip_unreadable=True).keys() == {0, 2}
        else:
            with pytest.raises(ClearSRError, match="b.png: is not an image"):
                photographs.smaller_than(21)
        assert [label for label in dict.fromkeys(opened) if label != str(folder / "b.png")] == [
            str(folder / name) for name in read
        ]


def test_where_nothing_can_be_kept_the_headers_are_read_each_time(many, tmp_path, opened):
    for _ in range(2):
        opened.clear()
        assert len(sizes_by(tmp_path / "gone" / "sizes.json", many)) == len(opened) == 4
    assert not (tmp_path / "gone").exists()
