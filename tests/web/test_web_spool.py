"""The spool folder: private, bounded, emptied, and a dead server's told from a living one's."""

import os
import stat
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from clearsr.config.serving import ServingConfig
from clearsr.web import spool
from clearsr.web.errors import RequestError
from clearsr.web.spool import Spool, delete_dead

HOLD = """
import sys, time
from clearsr.config.serving import ServingConfig
from clearsr.web.spool import Spool
spool = Spool(ServingConfig())
(spool.folder() / "picture.png").write_bytes(b"x" * 1000)
print(spool.root, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def other():
    """Another process with a spool; its folder is `other.root`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    process.root = spool.Path(process.stdout.readline().strip())
    assert process.root.is_dir()
    yield process
    process.kill()
    process.wait()


def test_for_its_owner_alone_and_gone_at_the_end():
    own = Spool(ServingConfig())
    folder = own.folder()
    assert stat.S_IMODE(own.root.stat().st_mode) == stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(folder.name) >= 32 and folder != own.folder()
    own.close()
    assert not own.root.exists()


def test_a_living_servers_folder_stays(other, tmp_path):
    own = Spool(ServingConfig())
    assert other.root.is_dir() and len(list(tmp_path.iterdir())) == 2
    own.close()
    assert other.root.is_dir()


def test_after_kill_9_the_next_one_empties_it(other, tmp_path):
    other.kill()
    other.wait()
    assert list(other.root.rglob("picture.png"))
    own = Spool(ServingConfig())
    assert list(tmp_path.iterdir()) == [own.root]
    own.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_stays(tmp_path):
    target = tmp_path / "precious"
    target.mkdir()
    (tmp_path / "clearsr-serve-link").symlink_to(target)
    (tmp_path / "clearsr-serve-file").write_text("")
    (tmp_path / "clearsr-serve-new").mkdir()  # of a server that is about to lock it
    old = tmp_path / "clearsr-serve-old"  # of one that was killed before it did
    old.mkdir()
    os.utime(old, (time.time() - 3600,) * 2)
    delete_dead()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["clearsr-serve-file", "clearsr-serve-link", "clearsr-serve-new", "precious"]


def test_between_its_making_and_its_locking_a_folder_stays(monkeypatch):
    real, started = spool.lock, []

    def lock(file):
        if not started:  # another server starts just now
            started.append(True)
            delete_dead()
        return real(file)

    monkeypatch.setattr(spool, "lock", lock)
    own = Spool(ServingConfig())
    assert started and own.root.is_dir()
    own.close()


def test_its_size_while_others_delete():
    own, stopped = Spool(ServingConfig()), threading.Event()

    def change():
        while not stopped.is_set():
            folder = own.folder() / "a" / "b"
            folder.mkdir(parents=True)
            own.delete(folder.parents[1])

    worker = threading.Thread(target=change)
    worker.start()
    try:
        for _ in range(3000):
            own.size()
    finally:
        stopped.set()
        worker.join()
        own.close()


def test_it_is_bounded_and_what_is_worked_on_stays():
    own = Spool(ServingConfig(max_disk_mb=0.01, keep_minutes=1e-4))
    working, done = own.folder(), own.folder()
    for folder in (working, done):
        (folder / "a").write_bytes(bytes(6000))
    with pytest.raises(RequestError) as refusal:
        own.folder()
    assert refusal.value.status == 507
    own.release(done)
    time.sleep(0.05)
    own.folder()
    assert working.is_dir() and not done.exists()
    own.close()
