"""The manifest: what a kill leaves is always good to go on from, and nothing else's file is touched."""

import dataclasses
import json
import os

import pytest

from clearsr.batch import manifest as module
from clearsr.batch.manifest import (
    Known,
    Manifest,
    as_line,
    check_parquet,
    from_line,
    read_rows,
    write_parquet,
)
from clearsr.errors import ClearSRError, Notice
from clearsr.files.upscale import Result

ROWS = [
    Result("/in/a.png", "/out/a.png", "ok", None, 1.5, 64, 48, "ab" * 32, 2**62 + 1, "10-1", "host:1"),
    Result(
        "/in/b.png",
        "/out/b.png",
        "failed",
        "b.png: is empty (0 bytes)",
        version="0-1",
        warnings=(Notice("frames", "holds 2 \u00fc"),),
    ),  # fmt: skip
    Result("/in/\u00fc\u4e2d.png", "/out/\u00fc\u4e2d.png", "skipped", "was there", version="12-1"),
]


def write(path, rows):
    manifest = Manifest(path)
    manifest.append(rows)
    manifest.close()


def test_rows_are_json_lines_and_come_back(tmp_path):
    path = tmp_path / "new" / "manifest.jsonl"
    write(path, ROWS)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [r.as_dict() for r in ROWS]
    assert list(read_rows(path)) == ROWS


@pytest.mark.parametrize("warnings", [3, [3], [{}], [{"kind": "x", "text": "y"}], [{"kind": [], "text": ""}]])
def test_warnings_that_are_none_make_no_row(warnings):
    with pytest.raises(ValueError, match="."):
        from_line(json.dumps({**ROWS[0].as_dict(), "warnings": warnings}))


def test_a_row_of_a_time_before_there_were_warnings():
    values = ROWS[0].as_dict()
    del values["warnings"]
    assert from_line(json.dumps(values)) == ROWS[0]


def test_lookup_tells_status_and_whether_the_input_is_the_same(tmp_path):
    path = tmp_path / "manifest.jsonl"
    write(path, [*ROWS, dataclasses.replace(ROWS[1], status="ok", error=None, version="7-2")])
    manifest = Manifest(path)
    assert manifest.lookup("/in/a.png", "10-1") == Known("ok", True, True)
    assert manifest.lookup("/in/a.png", "10-2") == Known("ok", True, False)
    assert manifest.lookup("/in/b.png", "7-2") == Known("ok", True, True)  # the last row counts
    assert manifest.lookup("/in/b.png", "0-1") == Known("ok", True, False)
    assert manifest.lookup(ROWS[2].input, "12-1") == Known("skipped", True, True)
    assert manifest.lookup("/in/c.png", "10-1") is None
    manifest.close()


def test_a_kill_at_any_byte_costs_the_torn_row_alone(tmp_path):
    whole = "".join(f"{as_line(row)}\n" for row in ROWS).encode()
    path = tmp_path / "manifest.jsonl"
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    near_ends = {end + step for end in ends for step in (-1, 0, 1)} - {len(whole)}
    for cut in sorted({*range(0, len(whole), 29), *range(12), *near_ends}):
        path.write_bytes(whole[:cut])
        manifest = Manifest(path)
        kept = whole[:cut].count(b"\n")
        known = [manifest.lookup(row.input, row.version) is not None for row in ROWS]
        assert known == [i < kept for i in range(3)]
        manifest.append(ROWS[kept:])
        manifest.close()
        assert list(read_rows(path)) == ROWS


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\nIHDR", b"notes", b"notes\n", b"{}\n", b'{"input": 3}\n']
)
def test_another_file_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ClearSRError, match=r"notes\.txt: line 1 is no row of a manifest"):
        Manifest(path)
    assert path.read_bytes() == content


def test_damage_in_the_middle_is_named(tmp_path):
    path = tmp_path / "manifest.jsonl"
    write(path, ROWS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * 20 + b"\n" + lines[2])
    with pytest.raises(ClearSRError, match="line 2 is no row"):
        Manifest(path)


def test_two_runs_cannot_write_it_at_once(tmp_path):
    first = Manifest(tmp_path / "manifest.jsonl")
    first.append(ROWS[:1])
    with pytest.raises(ClearSRError, match="another run is writing it"):
        Manifest(tmp_path / "manifest.jsonl")
    first.close()
    Manifest(tmp_path / "manifest.jsonl").close()


def test_nothing_is_left_of_a_run_that_wrote_nothing(tmp_path):
    Manifest(tmp_path / "manifest.jsonl").close()
    assert list(tmp_path.iterdir()) == []


def test_compact_keeps_the_last_row_of_each_input(tmp_path):
    path = tmp_path / "manifest.jsonl"
    newer = [dataclasses.replace(ROWS[0], seconds=number) for number in (7.0, 8.0)]
    write(path, ROWS)
    manifest = Manifest(path)
    manifest.append(newer)
    manifest.compact()
    manifest.close()
    assert list(read_rows(path)) == [ROWS[1], ROWS[2], newer[1]]
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.jsonl"]


def test_repeats_of_a_killed_run_are_dropped_by_the_next(tmp_path):
    path = tmp_path / "manifest.jsonl"
    write(path, [*ROWS, dataclasses.replace(ROWS[1], error="again")])
    manifest = Manifest(path)
    manifest.compact()
    manifest.close()
    assert [row.error for row in read_rows(path)] == [None, "was there", "again"]


def test_a_name_that_is_no_unicode(tmp_path):
    name = b"/in/\xff.png".decode("utf-8", "surrogateescape")
    write(tmp_path / "m.jsonl", [Result(name, "/out/x.png", "ok", version="1-1")])
    manifest = Manifest(tmp_path / "m.jsonl")
    assert manifest.lookup(name, "1-1") == Known("ok", True, True)
    manifest.close()


def test_parquet_holds_the_same_rows(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "m.jsonl", ROWS)
    write_parquet(tmp_path / "m.jsonl", str(tmp_path / "table.parquet"))
    assert parquet.read_table(tmp_path / "table.parquet").to_pylist() == [row.as_dict() for row in ROWS]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.jsonl", "table.parquet"]
    with pytest.raises(ClearSRError, match=r"expected a name that ends in \.parquet"):
        check_parquet("table.csv")


def test_a_file_that_an_ending_run_replaced_is_opened_anew(tmp_path, monkeypatch):
    path = tmp_path / "manifest.jsonl"
    path.write_text("")
    lock, calls = module.lock, []

    def replaced_before_the_lock(file):
        if not calls:  # between opening and locking, the other run compacts and lets go
            (tmp_path / "new").write_text(as_line(ROWS[0]) + "\n")
            os.replace(tmp_path / "new", path)
        calls.append(file)
        return lock(file)

    monkeypatch.setattr(module, "lock", replaced_before_the_lock)
    book = Manifest(path)
    book.append([ROWS[1]])
    book.close()
    assert len(calls) == 2
    assert list(read_rows(path)) == ROWS[:2]
