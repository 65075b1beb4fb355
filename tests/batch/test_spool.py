"""Planning a batch: the outputs of `clearsr upscale`, nothing lost, and little memory for many pictures."""

import os
import tracemalloc

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from clearsr.batch.manifest import Manifest
from clearsr.batch.spool import plan_batch
from clearsr.config.batch import BatchConfig
from clearsr.errors import ClearSRError
from clearsr.files.plan import plan_jobs
from clearsr.files.storage import version_of
from clearsr.files.upscale import Result

NAMES = ("a.png", "b.jpg", "b.png", "b.webp", "deep/er/c.tif", "deep/d.bmp", "deep/d.png", "other/a.png")


@pytest.fixture
def tree(tmp_path):
    """Empty files with names of pictures, and some that are not to be found."""
    for name in (*NAMES, ".hidden.png", ".cache/e.png", "notes.txt"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "in"


@pytest.fixture
def plan(tmp_path):
    """`plan(inputs, output)`: the plan with a manifest of these rows, which the test's folder holds."""

    def make(inputs, output, rows=(), since=0.0, **config):
        manifest = Manifest(tmp_path / "manifest.jsonl")
        manifest.append(rows)
        manifest.close()
        manifest = Manifest(tmp_path / "manifest.jsonl")
        try:
            texts = [str(given) for given in inputs]
            return plan_batch(texts, str(output), ".png", manifest, since, BatchConfig(**config))
        finally:
            manifest.clear()
            manifest.close()

    return make


def outputs(spool):
    return {item.input: item.output for item in spool}


def test_the_same_files_as_upscale_makes(tree, plan, tmp_path):
    expected = {str(job.input): str(job.output) for job in plan_jobs([tree], tmp_path / "out")}
    found = plan([tree], tmp_path / "out")
    assert outputs(found.to_do) == expected
    assert len(expected) == len(NAMES) == found.total


def test_files_that_are_named_are_told_apart_too(tree, plan, tmp_path):
    named = [tree / name for name in ("a.png", "b.jpg", "b.png", "b.png")]
    expected = {str(job.input): str(job.output) for job in plan_jobs(named, tmp_path / "out")}
    assert outputs(plan(named, tmp_path / "out").to_do) == expected


def test_each_picture_once_however_often_it_is_named(tree, plan, tmp_path):
    (tree / "link").symlink_to(tree / "deep")
    found = plan([tree, tree / "deep", tree / "a.png"], tmp_path / "out")
    assert sorted(os.path.realpath(item.input) for item in found.to_do) == sorted(
        str(tree / n) for n in NAMES
    )


def test_two_inputs_never_become_one_file(tree, plan, tmp_path):
    with pytest.raises(
        ClearSRError, match=r"other/a\.png: would become .*out/a\.png, as would another input"
    ):
        plan([tree / "a.png", tree / "other/a.png"], tmp_path / "out")


def test_a_folder_is_listed_once(tree, plan, tmp_path, monkeypatch):
    for name in ("out/deep", "out/other"):
        (tmp_path / name).mkdir(parents=True)
    listed = []
    for name in ("scandir", "listdir"):
        look = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, look=look: listed.append(str(path)) or look(path))
    plan([tree, tree / "deep"], tmp_path / "out")
    folders = ["in", "in/deep", "in/deep/er", "in/other", "out", "out/deep", "out/deep/er", "out/other"]
    assert sorted(listed) == [str(tmp_path / folder) for folder in folders]


def test_results_below_the_inputs_are_no_inputs(tree, plan):
    (tree / "out").mkdir()
    (tree / "out/a.png").write_bytes(b"x")
    assert len(outputs(plan([tree], tree / "out").to_do)) == len(NAMES)


@pytest.mark.parametrize("output", ["in", ".", "link"])
def test_a_folder_that_is_or_holds_the_input_is_refused(tree, plan, tmp_path, output):
    (tmp_path / "link").symlink_to(tree)
    with pytest.raises(ClearSRError, match="is or holds the input"):
        plan([tree], tmp_path / output)


def test_a_named_file_is_never_overwritten(tree, plan, tmp_path):
    (tmp_path / "link").symlink_to(tree)
    for output in (tree, tmp_path / "link"):
        with pytest.raises(ClearSRError, match=r"a\.png: is also an input, which would be lost"):
            plan([tree / "a.png"], output, overwrite=True)


@pytest.mark.parametrize("given", ["nothing", "empty"])
def test_what_holds_no_picture_is_an_error(plan, tmp_path, given):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClearSRError, match=f"{given}: (does not exist|holds no images)"):
        plan([tmp_path / given], tmp_path / "out")


def test_going_on_from_a_manifest(tree, plan, tmp_path):
    out = tmp_path / "out"
    out.mkdir()

    def row(name, status="ok", version=None):
        (out / name).write_bytes(b"result")
        given = tree / name
        return Result(str(given), str(out / name), status, version=version or version_of(str(given)))

    (tree / "b.jpg").unlink()
    (tree / "b.webp").unlink()
    for name in ("e.png", "f.png", "g.png", "h.png"):
        (tree / name).write_bytes(b"x")
    rows = [
        row("a.png"),
        row("b.png", version="1-1"),
        row("e.png"),
        row("f.png", "failed"),
        row("g.png", "skipped"),
    ]
    (out / "e.png").unlink()  # lost
    (out / "f.png").unlink()  # failed, so never there
    (out / "h.png").write_bytes(b"somebody else's")
    os.utime(out / "h.png", (1, 1))
    (out / "deep").mkdir()
    (out / "deep/d.bmp.png").write_bytes(b"written before a kill, its row was not")

    def names(spool):
        return sorted(os.path.relpath(item.input, tree) for item in spool)

    found = plan([tree], out, rows, since=1000.0)
    unknown = ["deep/d.bmp", "deep/d.png", "deep/er/c.tif", "other/a.png"]
    assert names(found.to_do) == sorted(["b.png", "e.png", *unknown])
    assert found.settled == {"ok": 1, "failed": 1, "skipped": 1}
    assert names(found.in_the_way) == ["h.png"]
    assert found.changed == 2
    again = plan([tree], out, rows, since=1000.0, retry_failed=True)
    assert names(again.to_do) == sorted(["b.png", "e.png", "f.png", *unknown])
    everything = plan([tree], out, rows, since=1000.0, overwrite=True)
    assert everything.to_do.count == everything.total == 10


class Synthetic(AbstractFileSystem):
    """A bucket of `folders` folders with a thousand pictures each, listed but never stored."""

    protocol = "synthetic"
    cachable = False
    folders = 0

    def info(self, path, **_):
        return {"name": path, "type": "directory"}

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path).strip("/")
        if "out" in path:
            raise FileNotFoundError(path)
        if path == "in":
            return [{"name": f"in/{n:05}", "type": "directory", "size": 0} for n in range(self.folders)]
        return [
            {"name": f"{path}/{n:05}.jpg", "type": "file", "size": n, "ETag": f"{n:032x}"}
            for n in range(1000)
        ]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pictures(plan):
    fsspec.register_implementation("synthetic", Synthetic, clobber=True)

    def peak(folders):
        Synthetic.folders = folders
        tracemalloc.start()
        found = plan(["synthetic://in"], "synthetic://out")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert found.to_do.count == folders * 1000
        return most

    few, many = peak(10), peak(200)
    assert many < few + 100_000  # 190,000 pictures more
