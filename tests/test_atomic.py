"""Files appear whole or not at all, and nothing is left beside them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from clearsr.atomic import remove_unfinished, write_text, written_aside
from clearsr.errors import ClearSRError

with_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows")


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with written_aside(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old" and aside.parent == path.parent
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [OSError("disk"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file_and_nothing_else(failure, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(failure)), written_aside(path) as aside:
        aside.write_text("half")
        raise failure
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_two_writers_at_once_do_not_mix(tmp_path):
    path = tmp_path / "a.txt"
    with written_aside(path) as first, written_aside(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert first != second
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_text_makes_its_folder_and_says_why_it_cannot_be_written(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "ä\n")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "ä\n"
    with pytest.raises(ClearSRError, match=r"a\.txt.b: cannot be written \("):
        write_text(tmp_path / "new" / "a.txt" / "b", "text")


@pytest.fixture
def writer(tmp_path):
    """Processes that are in the middle of writing a file, as (process id, path of what is half)."""
    started = []

    def start():
        before = set(tmp_path.iterdir())
        process = os.fork()
        if process == 0:
            with written_aside(tmp_path / "a.txt") as aside:
                aside.write_text("half")
                time.sleep(600)
            os._exit(0)
        started.append(process)
        deadline = time.monotonic() + 60
        while not (found := [p for p in set(tmp_path.iterdir()) - before if p.stat().st_size == 4]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.utime(found[0], (1, 1))
        return process, found[0]

    yield start
    for process in started:
        kill(process)


def kill(process):
    try:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    except (ProcessLookupError, ChildProcessError):
        return


@with_fork
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(writer, tmp_path):
    (dead, left), (_, written) = writer(), writer()
    assert remove_unfinished([tmp_path]) == 0
    kill(dead)
    (tmp_path / "b.txt").write_text("mine")
    assert remove_unfinished([tmp_path, tmp_path / "no folder"]) == 1
    assert set(tmp_path.iterdir()) == {written, tmp_path / "b.txt"} and not left.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows")
@pytest.mark.parametrize(
    ("change", "age"),
    [
        (lambda name: name, 5),  # young: it may not be locked yet
        (lambda name: name[:9] + ("0" if name[9] != "0" else "1") + name[10:], 10**6),  # of another machine
        (lambda name: name.replace(".tmp", ".png"), 10**6),
        (lambda name: f"x{name}", 10**6),
    ],
    ids=["young", "elsewhere", "suffix", "prefix"],
)
def test_what_may_be_in_use_or_is_not_ours_stays(change, age, tmp_path):
    with written_aside(tmp_path / "a.txt") as aside:
        name = aside.name
    left = tmp_path / change(name)
    left.write_text("half")
    os.utime(left, (time.time() - age,) * 2)
    link = tmp_path / name.replace(name[-10:], "abcdef.tmp")
    link.symlink_to(tmp_path / "nowhere")
    os.utime(link, (1, 1), follow_symlinks=False)
    assert remove_unfinished([tmp_path]) == 0 and left.exists() and link.is_symlink()


def test_through_a_link_the_file_behind_it_is_written(tmp_path):
    (tmp_path / "there").write_text("old")
    link = tmp_path / "link"
    link.symlink_to("there")
    write_text(link, "new")
    assert link.is_symlink() and (tmp_path / "there").read_text() == "new"


@with_fork
def test_a_pipe_is_written_into_and_never_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "text")
    assert os.read(reader, 100) == b"text" and pipe.is_fifo()
    os.close(reader)
    with pytest.raises(OSError, match="device or pipe"), written_aside(pipe):
        pass
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


@with_fork
def test_standard_output_by_name_gets_all_in_order(tmp_path):
    code = """
import sys
from pathlib import Path
from clearsr.atomic import write_text
print("before")
write_text(Path("/dev/stdout"), "between\\n")
print("after")
"""
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text().split() == ["before", "between", "after"]
