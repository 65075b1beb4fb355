"""The pool: who works where, what a dead worker costs, and that nothing is done twice."""

import os
import time

import pytest

from clearsr.batch import on_ray
from clearsr.batch.local import Share, run_processes
from clearsr.batch.on_ray import Ledger
from clearsr.batch.run import choose_engine, manifest_path, share_out
from clearsr.batch.spool import Spool
from clearsr.config.batch import BatchConfig, WorkConfig
from clearsr.errors import ClearSRError
from clearsr.files.upscale import Job, Result


@pytest.mark.parametrize(
    ("config", "machine", "expected"),
    [
        ({}, (8, 0, "auto"), Share(4, 2, 0.0)),
        ({}, (1, 0, "auto"), Share(1, 1, 0.0)),
        ({"workers": 2}, (8, 0, "auto"), Share(2, 4, 0.0)),
        ({"threads_per_worker": 4}, (8, 0, "auto"), Share(2, 4, 0.0)),
        ({}, (16, 4, "auto"), Share(4, 4, 1.0)),
        ({"gpus_per_worker": 0.5}, (16, 4, "cuda"), Share(8, 2, 0.5)),
        ({}, (16, 4, "cpu"), Share(8, 2, 0.0)),
        ({"workers": 9}, (4, 0, "auto"), Share(9, 1, 0.0)),
    ],
)
def test_workers_share_the_machine(config, machine, expected, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert share_out(BatchConfig(**config), *machine) == expected


@pytest.mark.parametrize(("asked", "threads"), [("1", 1), ("3", 3), ("", 8), ("0", 8), ("many", 8)])
def test_threads_of_the_environment_hold_where_no_flag_is_given(asked, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert share_out(BatchConfig(workers=1), 8, 0, "auto").threads == threads
    assert share_out(BatchConfig(workers=1, threads_per_worker=2), 8, 0, "auto").threads == 2


def test_without_ray_the_work_goes_on_here_with_a_notice(monkeypatch, caplog):
    monkeypatch.setattr(on_ray, "has_ray", lambda: False)
    assert choose_engine(BatchConfig()) == "local"
    assert "install the extra batch: pip install 'clearsr[batch]'" in caplog.text
    for config in (BatchConfig(engine="ray"), BatchConfig(address="auto")):
        with pytest.raises(ClearSRError, match="Ray is not installed; install the extra batch"):
            choose_engine(config)


def test_an_address_is_a_cluster():
    with pytest.raises(ClearSRError, match="--address"):
        choose_engine(BatchConfig(engine="local", address="auto"))


def test_a_manifest_is_a_local_file(tmp_path):
    assert manifest_path(str(tmp_path / "out"), None) == tmp_path / "out" / "manifest.jsonl"
    assert manifest_path("s3://bucket/out", tmp_path / "run.jsonl") == tmp_path / "run.jsonl"
    with pytest.raises(ClearSRError, match="give --manifest FILE"):
        manifest_path("s3://bucket/out", None)


def test_the_ledger_ends_what_ends_its_workers():
    ledger = Ledger(max_attempts=3, max_loads=5)
    assert [ledger.begin("a") for _ in range(5)] == [(None, None)] * 3 + [(None, 3)] * 2
    assert ledger.begin("b") == (None, None)


def test_the_ledger_knows_what_is_done_until_its_chunk_is():
    ledger = Ledger(max_attempts=1, max_loads=5)
    ledger.begin("a")
    ledger.finish("a", "row")
    assert ledger.begin("a") == ("row", None)
    ledger.forget(["a"])
    assert ledger.begin("a") == (None, None)


def test_the_ledger_ends_a_run_whose_workers_never_load():
    ledger = Ledger(max_attempts=3, max_loads=2)
    assert [ledger.may_load() for _ in range(3)] == [True, True, False]
    ledger.loaded()
    assert ledger.may_load()


@pytest.mark.parametrize(
    ("count", "workers", "longest"), [(200, 2, 2), (7, 4, 1), (1000, 1, 20), (9000, 2, 64)]
)
def test_chunks_hold_each_job_once_and_are_small(count, workers, longest):
    pytest.importorskip("pyarrow")
    spool = Spool()
    for number in range(count):
        spool.add(Job(f"/in/{number}", f"{number}", f"/out/{number}"))
    chunks = [chunk["job"].to_pylist() for chunk in on_ray._chunks(spool, workers)]
    assert max(map(len, chunks)) == longest
    assert [text for chunk in chunks for text in chunk] == [on_ray.json.dumps(job) for job in spool]


def serve(pipe, work, _threads, _device):
    """A worker process without a model: `kill` ends it, `once` the first time only."""
    if work.model == "broken":
        os._exit(1)
    pipe.send(True)
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        if item.input == "kill":
            os._exit(1)
        if item.input == "once" and not os.path.exists(item.output):
            open(item.output, "w").close()
            os._exit(1)
        time.sleep(0.005)
        pipe.send(Result(item.input, item.output, "ok", worker=str(os.getpid())))


@pytest.mark.slow
def test_dead_processes_are_replaced_and_no_item_is_lost_or_done_twice(tmp_path):
    names = [f"/in/{number}" for number in range(30)]
    names[5], names[20] = "kill", "once"
    items = [Job(name, name, str(tmp_path / "mark") if name == "once" else "") for name in names]
    pool = run_processes(items, WorkConfig(model="x"), Share(2, 1, 0.0), 3, serve)
    rows = [row for block in pool for row in block]
    assert sorted(row.input for row in rows) == sorted(names)
    assert {row.input: row.status for row in rows if row.status != "ok"} == {"kill": "failed"}
    assert "3 workers ended while they worked on it" in next(row.error for row in rows if row.error)
    assert len({row.worker for row in rows if row.worker}) >= 2


@pytest.mark.slow
def test_workers_that_cannot_load_end_the_run():
    items = [Job("/in/1", "1", "/out/1")]
    with pytest.raises(ClearSRError, match="workers end while they load the model"):
        list(run_processes(items, WorkConfig(model="broken"), Share(1, 1, 0.0), 3, serve))
