"""Which files a list of files and folders stands for."""

import os
from pathlib import Path

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
