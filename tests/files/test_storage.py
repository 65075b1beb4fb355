"""Locations: paths and URLs are told apart, listed alike, and written whole or not at all."""

import uuid

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from clearsr.errors import ClearSRError
from clearsr.files import storage


@pytest.fixture
def bucket():
    """A folder of its own in fsspec's memory filesystem."""
    return f"memory://{uuid.uuid4().hex}"


def put(url, content):
    with fsspec.open(url, "wb") as file:
        file.write(content)


def test_one_spelling_of_a_location(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.normalise("a/../b/") == str(tmp_path / "b")
    assert storage.normalise(f"file://{tmp_path}/b/") == str(tmp_path / "b")
    assert storage.normalise("s3://bucket/photos//") == "s3://bucket/photos"
    assert storage.join("s3://bucket/", "", "a", "b.png") == "s3://bucket/a/b.png"
    assert storage.split("s3://bucket/a/b.png") == ("s3://bucket/a", "b.png")


def test_what_contains_what():
    assert (
        storage.contains("/a/b", "/a/b")
        and storage.contains("/a/b", "/a/b/c")
        and storage.contains("/", "/a")
    )
    assert not storage.contains("/a/b", "/a/bc") and not storage.contains("/a/b", "/a")
    assert storage.contains("s3://x/a", "s3://x/a/b") and not storage.contains("s3://x/a", "s3://x/ab")


def test_a_bucket_is_listed_as_a_folder_is(bucket, tmp_path):
    for name in ("b.png", "a.JPG", ".c.png", "notes.txt", "deep/d.png"):
        put(f"{bucket}/{name}", b"123")
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"123")
    here, there = storage.list_folder(str(tmp_path)), storage.list_folder(bucket)
    assert (here.images, here.folders) == (there.images, there.folders) == (["a.JPG", "b.png"], ["deep"])
    assert there.versions["b.png"] == storage.version_of(f"{bucket}/b.png")
    assert storage.names_in(bucket) == storage.names_in(str(tmp_path))
    assert storage.names_in(f"{bucket}/nothing") == storage.names_in(str(tmp_path / "nothing")) == set()
    assert [storage.kind_of(f"{bucket}{end}") for end in ("", "/b.png", "/x")] == ["folder", "file", None]


@pytest.mark.parametrize("place", ["memory", "local"])
def test_a_version_changes_with_the_file(bucket, tmp_path, place):
    url = f"{bucket}/a.png" if place == "memory" else str(tmp_path / "a.png")
    put(url, b"123")
    before = storage.version_of(url)
    assert storage.version_of(url) == before
    put(url, b"1234")
    assert storage.version_of(url) != before


def test_there_and_back(bucket, tmp_path):
    source = tmp_path / "a.png"
    source.write_bytes(b"picture")
    storage.store(source, f"{bucket}/deep/a.png")
    (tmp_path / "fetched").mkdir()
    back = storage.fetch(f"{bucket}/deep/a.png", tmp_path / "fetched")
    assert (back.name, back.read_bytes()) == ("a.png", b"picture")
    assert storage.changed_at(f"{bucket}/deep/a.png") == pytest.approx(source.stat().st_mtime, abs=60)


def test_a_stored_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    source, target = tmp_path / "new", tmp_path / "out/a.png"
    source.write_bytes(b"new")
    storage.store(source, str(target))
    target.write_bytes(b"old")

    def half(self, source, aside, **_):
        with open(aside, "wb") as file:
            file.write(b"ne")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalFileSystem, "put_file", half)
    with pytest.raises(ClearSRError, match=r"a\.png: cannot be reached: No space left on device"):
        storage.store(source, str(target))
    assert [file.name for file in target.parent.iterdir()] == ["a.png"]
    assert target.read_bytes() == b"old"


def test_a_missing_file_or_protocol_is_one_line(bucket, tmp_path):
    with pytest.raises(ClearSRError, match=r"/x\.png: does not exist"):
        storage.fetch(f"{bucket}/x.png", tmp_path)
    with pytest.raises(ClearSRError, match="nosuch://a: is no location that can be used .*nosuch"):
        storage.kind_of("nosuch://a")
