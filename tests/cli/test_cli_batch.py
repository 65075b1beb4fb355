"""`clearsr batch` in one process: results as `clearsr upscale` has them, a manifest, and runs that go on."""

import dataclasses
import hashlib
import json
import os
import re
import shlex
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from clearsr.batch import on_ray
from clearsr.batch.worker import Worker
from clearsr.cli import batch as command
from clearsr.cli.parser import Parser
from clearsr.files.upscale import Result
from clearsr.pipeline.pipeline import ClearSRPipeline

DOCS = (Path(__file__).parents[2] / "docs" / "batch.md").read_text(encoding="utf-8")
NOISY = ("--start", "noise", "--color", "none", "--steps", "2", "--seed", "7")


@pytest.fixture
def batch(run, model):
    """`clearsr batch` with the tiny model, in this process."""
    common = (
        "--model",
        model,
        "--device",
        "cpu",
        "--engine",
        "local",
        "--workers",
        1,
        "--threads-per-worker",
        1,
    )
    return lambda *arguments: run("batch", *common, *arguments)


@pytest.fixture
def tree(photo, tmp_path):
    """A folder of three pictures and a damaged one."""
    for name in ("in/a.png", "in/deep/b.jpg", "in/deep/c.png"):
        photo(name)
    (tmp_path / "in/bad.png").write_bytes((tmp_path / "in/a.png").read_bytes()[:60])
    return tmp_path / "in"


def rows_of(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["input"] for row in rows}) == len(rows)
    return {os.path.basename(row["input"]): row for row in rows}


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.suffix == ".png"}


def test_the_same_bytes_as_upscale_and_a_row_for_each(batch, upscale, tree, tmp_path, model):
    outcome = batch(tree, "-o", tmp_path / "out", *NOISY)
    assert outcome.code == 1
    assert upscale(tree, "-o", tmp_path / "expected", *NOISY).code == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert len(contents(tmp_path / "out")) == 3
    rows = rows_of(tmp_path / "out/manifest.jsonl")
    assert {name: row["status"] for name, row in rows.items()} == {
        "a.png": "ok", "b.jpg": "ok", "c.png": "ok", "bad.png": "failed",
    }  # fmt: skip
    assert rows["bad.png"]["error"].startswith(f"{tree}/bad.png: is damaged or incomplete")
    assert outcome.errors == [f"clearsr: error: {rows['bad.png']['error']}"]
    row = rows["b.jpg"]
    result = tmp_path / "out/deep/b.png"
    assert (row["input"], row["output"]) == (str(tree / "deep/b.jpg"), str(result))
    assert (row["width"], row["height"]) == (64, 48)
    assert row["sha256"] == hashlib.sha256(result.read_bytes()).hexdigest()
    assert row["worker"].endswith(f":{os.getpid()}")
    pipeline = ClearSRPipeline.from_pretrained(model, device="cpu")
    again = pipeline(Image.open(row["input"]), start="noise", color="none", steps=2, seed=row["seed"])
    assert np.array_equal(np.asarray(again), np.asarray(Image.open(result)))


def test_a_second_run_does_nothing(batch, tree, tmp_path, monkeypatch):
    batch(tree, "-o", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    manifest = (tmp_path / "out/manifest.jsonl").read_bytes()
    monkeypatch.setattr(Worker, "__init__", None)
    outcome = batch(tree, "-o", tmp_path / "out")
    assert outcome.code == 1  # one had failed
    assert outcome.out == ""
    assert "4 done by an earlier run (3 ok, 0 skipped, 1 failed; --retry-failed" in outcome.err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")} == before
    assert (tmp_path / "out/manifest.jsonl").read_bytes() == manifest


def test_what_changed_or_was_lost_is_done_again_and_no_more(batch, tree, photo, tmp_path):
    batch(tree, "-o", tmp_path / "out")
    first = contents(tmp_path / "out")
    photo("in/a.png", 16, 20)
    (tmp_path / "out/deep/c.png").unlink()
    outcome = batch(tree, "-o", tmp_path / "out", "--json")
    done = [json.loads(line)["input"] for line in outcome.out.splitlines()]
    assert sorted(map(os.path.basename, done)) == ["a.png", "c.png"]
    rows = rows_of(tmp_path / "out/manifest.jsonl")  # one row for each, still
    assert (rows["a.png"]["width"], rows["a.png"]["height"]) == (80, 64)
    changed = {path for path, content in contents(tmp_path / "out").items() if content != first.get(path)}
    assert [path.as_posix() for path in changed] == ["a.png"]


def test_failures_wait_for_retry_failed_or_for_another_file(batch, tree, photo, tmp_path):
    batch(tree, "-o", tmp_path / "out")
    assert batch(tree, "-o", tmp_path / "out", "--retry-failed").err.count("is damaged or incomplete") == 1
    photo("in/bad.png")
    assert batch(tree, "-o", tmp_path / "out").code == 0
    assert rows_of(tmp_path / "out/manifest.jsonl")["bad.png"]["status"] == "ok"


def test_other_settings_are_refused_until_overwrite(batch, tree, tmp_path):
    batch(tree, "-o", tmp_path / "out")
    first = contents(tmp_path / "out")
    outcome = batch(tree, "-o", tmp_path / "out", "--upscale", 2)
    assert (outcome.code, outcome.out) == (1, "")
    assert "was begun with other settings (sampling.upscale was 4.0, is 2.0); repeat those" in outcome.err
    assert contents(tmp_path / "out") == first
    batch(tree, "-o", tmp_path / "out", "--upscale", 2, "--overwrite")
    assert {row["width"] for row in rows_of(tmp_path / "out/manifest.jsonl").values()} == {32, None}
    assert batch(tree, "-o", tmp_path / "out", "--upscale", 2).out == ""


def test_somebody_elses_file_is_kept(batch, tree, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").write_bytes(b"not ours")
    batch(tree, "-o", tmp_path / "out")
    assert (tmp_path / "out/a.png").read_bytes() == b"not ours"
    row = rows_of(tmp_path / "out/manifest.jsonl")["a.png"]
    assert row["status"] == "skipped"
    assert "was there before" in row["error"]
    batch(tree, "-o", tmp_path / "out", "--overwrite")
    assert rows_of(tmp_path / "out/manifest.jsonl")["a.png"]["status"] == "ok"


def test_a_run_killed_between_result_and_row_does_that_picture_again(batch, tree, tmp_path):
    batch(tree, "-o", tmp_path / "out")
    manifest = tmp_path / "out/manifest.jsonl"
    whole = rows_of(manifest)
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join(lines[:2]) + lines[2][:50])
    outcome = batch(tree, "-o", tmp_path / "out")
    assert len(outcome.out.splitlines()) == 2
    rows = rows_of(manifest)
    assert {n: r["sha256"] for n, r in rows.items()} == {n: r["sha256"] for n, r in whole.items()}


def test_from_bucket_to_bucket(batch, upscale, tree, tmp_path):
    place = f"memory://{uuid.uuid4().hex}"
    fs = fsspec.filesystem("memory")
    fs.put(str(tree), f"{place}/in", recursive=True)
    arguments = (f"{place}/in", "-o", f"{place}/out", "--manifest", tmp_path / "run.jsonl", *NOISY)
    outcome = batch(*arguments)
    upscale(tree, "-o", tmp_path / "expected", *NOISY)
    found = {path.split("/out/")[1] for path in fs.find(f"{place}/out")}
    assert found == {"a.png", "deep/b.png", "deep/c.png"}
    for name in found:
        assert fs.cat_file(f"{place}/out/{name}") == (tmp_path / "expected" / name).read_bytes()
    rows = rows_of(tmp_path / "run.jsonl")
    assert rows["bad.png"]["error"].startswith(f"{place}/in/bad.png: is damaged")
    assert rows["c.png"]["output"] == f"{place}/out/deep/c.png"
    assert f"{place}/in/a.png -> {place}/out/a.png (64x48, " in outcome.out
    assert batch(*arguments).out == ""


def test_a_bug_in_one_picture_costs_that_picture(batch, tree, tmp_path, monkeypatch):
    upscale = ClearSRPipeline.upscale_with

    def stumble(self, images, *arguments):
        if images[0].source.endswith("b.jpg"):
            raise ZeroDivisionError("division by zero")
        return upscale(self, images, *arguments)

    monkeypatch.setattr(ClearSRPipeline, "upscale_with", stumble)
    assert batch(tree, "-o", tmp_path / "out").code == 1
    rows = rows_of(tmp_path / "out/manifest.jsonl")
    assert rows["b.jpg"]["error"] == f"{tree}/deep/b.jpg: unexpected ZeroDivisionError: division by zero"
    assert [rows[name]["status"] for name in ("a.png", "c.png")] == ["ok", "ok"]


def test_parquet_on_request(batch, tree, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    batch(tree, "-o", tmp_path / "out", "--parquet", tmp_path / "table.parquet")
    table = parquet.read_table(tmp_path / "table.parquet").to_pylist()
    assert {row["input"] for row in table} == {
        r["input"] for r in rows_of(tmp_path / "out/manifest.jsonl").values()
    }


def test_mistakes_are_said_before_a_model_is_loaded(batch, tree, tmp_path, monkeypatch):
    monkeypatch.setattr(Worker, "__init__", None)
    for arguments, says in (
        ((tmp_path / "nothing", "-o", tmp_path / "out"), "nothing: does not exist"),
        ((tree, "-o", tree), "is or holds the input"),
        ((tree, "-o", "memory://x"), "give --manifest FILE"),
        ((tree, "-o", tmp_path / "out", "--workers", "0"), "--workers: must be greater than or equal to 1"),
        ((tree, "-o", tmp_path / "out", "--parquet", "x.csv"), "--parquet x.csv: expected a name"),
        ((tree, "-o", tmp_path / "out", "--address", "auto"), "--address: is a Ray cluster's"),
    ):
        outcome = batch(*arguments)
        assert outcome.code in (1, 2)
        assert len(outcome.errors) == 1 and says in outcome.errors[0]
    monkeypatch.setattr(on_ray, "has_ray", lambda: False)
    outcome = batch(tree, "-o", tmp_path / "out", "--engine", "ray")
    assert outcome.errors == [
        "clearsr: error: --engine ray: Ray is not installed; install the extra batch: pip install "
        "'clearsr[batch]', or '.[batch]' in the folder of the source"
    ]


def test_docs_name_every_field_and_only_flags_that_there_are():
    table = DOCS[DOCS.index("## The manifest") : DOCS.index("## In Python")]
    fields = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE)))
    assert fields == [field.name for field in dataclasses.fields(Result)]
    parser = Parser("clearsr batch", "x")
    command.add_arguments(parser)
    lines = re.findall(r"^clearsr batch (.*)$", DOCS, flags=re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        parser.parse_args(shlex.split(line))
    assert set(re.findall(r"--[a-z][a-z-]+", DOCS)) <= {*parser._option_string_actions, "--head"}


def test_the_documentations_python_has_the_models_own_settings(photo, tmp_path, monkeypatch, capsys, run):
    photo("photos/a.png", 24, 24)
    monkeypatch.chdir(tmp_path)
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if "run_batch" in c)
    here = "BatchConfig(workers=1, engine='local', threads_per_worker=1)"
    assert "BatchConfig(workers=2)" in code
    exec(compile(code.replace("BatchConfig(workers=2)", here), "batch.md", "exec"), {})
    assert "'ok': 1" in capsys.readouterr().out
    run("upscale", "photos/a.png", "-o", "alone.png")
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "larger/a.png").read_bytes()
    settings = json.loads((tmp_path / "larger/manifest.settings.json").read_text())
    own = ClearSRPipeline.from_pretrained("compact").defaults.model_dump(mode="json")
    assert settings["sampling"] == own and own["steps"] == 1
