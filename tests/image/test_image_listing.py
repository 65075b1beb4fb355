"""Which files a list of files and folders stands for."""

import os
from pathlib import Path
from typing import Any

import pytest

from clearsr.errors import ClearSRError
from clearsr.image import IMAGE_SUFFIXES, list_images, output_suffixes


def _tree(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_folders_are_listed_sorted_with_paths_below_them(tmp_path: Path) -> None:
    _tree(tmp_path, "b.PNG", "a.jpg", "z/1.webp", "c/2.tif", "c/d/3.heic", "notes.txt", "c/Thumbs.db")
    _tree(tmp_path, ".hidden.png", ".cache/x.png", "._a.jpg", ".clearsr-1-ab.tmp", "folder.png/inner.png")
    listed = list_images([tmp_path])
    expected = ["a.jpg", "b.PNG", "c/2.tif", "c/d/3.heic", "folder.png/inner.png", "z/1.webp"]
    assert [image.relative.as_posix() for image in listed] == expected
    assert [image.file for image in listed] == [tmp_path / name for name in expected]
    assert [image.relative.name for image in list_images([tmp_path], recursive=False)] == ["a.jpg", "b.PNG"]


def test_named_files_are_always_tried_and_listed_once(tmp_path: Path) -> None:
    _tree(tmp_path, "photo.weird", ".hidden.png", "in/a.png")
    given = [tmp_path / "photo.weird", tmp_path / ".hidden.png", tmp_path / "in", tmp_path / "in/a.png"]
    listed = list_images([*given, given[0]])
    assert [image.relative.name for image in listed] == ["photo.weird", ".hidden.png", "a.png"]


def test_links_are_followed_but_never_in_circles(tmp_path: Path) -> None:
    _tree(tmp_path, "in/a.png", "elsewhere/b.png")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "in")
    (tmp_path / "in/broken.png").symlink_to(tmp_path / "gone.png")
    listed = [image.relative.as_posix() for image in list_images([tmp_path / "in"])]
    assert listed == ["a.png", "more/b.png"]


def test_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClearSRError, match="missing.png: does not exist"):
        list_images([tmp_path / "missing.png"])
    with pytest.raises(ClearSRError, match="cannot be read"):
        list_images([tmp_path / ("n" * 300)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClearSRError, match=r"empty: holds no images \(accepted suffixes: .*\.png") as caught:
        list_images([tmp_path / "empty"])
    assert "\n" not in str(caught.value)

    def deny(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(ClearSRError, match="empty: the folder cannot be read: permission denied"):
        list_images([tmp_path / "empty"])


def test_every_output_can_be_an_input_again() -> None:
    assert set(output_suffixes()) <= IMAGE_SUFFIXES


def test_what_is_passed_over_in_folders_is_counted_by_suffix(tmp_path: Path, caplog: Any) -> None:
    _tree(tmp_path, "a.png", "b.nef", "b.NEF", "deep/c.exr", "d.jpg_large", "README", ".hidden.txt")
    list_images([tmp_path, tmp_path / "deep/c.exr"])
    assert caplog.messages == [
        "5 files in folders are passed over, as by their names they are no pictures that can be read: "
        "2 .nef, 1 without suffix, 1 .exr, 1 .jpg_large"
    ]
    caplog.clear()
    list_images([tmp_path / "a.png", tmp_path / "d.jpg_large"])
    assert not caplog.messages
    _tree(tmp_path, *(f"many/{n}.s{n}" for n in range(12)), "many/a.png", "many/b.s3")
    list_images([tmp_path / "many"])
    assert "13 files" in caplog.text and "2 .s3" in caplog.text and caplog.text.endswith("4 of other kinds\n")
    with pytest.raises(ClearSRError, match=r"deep: holds no images but 1 \.exr \(accepted"):
        list_images([tmp_path / "deep"])


def test_jpeg_xl_counts_where_it_can_be_read(tmp_path: Path, caplog: Any, monkeypatch: Any) -> None:
    _tree(tmp_path, "a.png", "b.jxl")
    for reads, count in ((True, 2), (False, 1)):
        monkeypatch.setattr("clearsr.image.listing._reads_jxl", lambda reads=reads: reads)
        assert len(list_images([tmp_path])) == count
    assert caplog.text.count("1 .jxl") == 1
