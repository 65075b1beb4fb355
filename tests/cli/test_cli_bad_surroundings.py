"""`degrade`, `evaluate --save`, `make-testset`, `batch` and `train`: stopped, or short of files or room."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import clearsr.batch.run
import clearsr.batch.worker
import clearsr.evaluation.evaluate
import clearsr.evaluation.testset
import clearsr.files.comparison

LOCAL = ["--engine", "local", "--steps", "0", "--device", "cpu", "--threads-per-worker", "1"]
COMMANDS = {
    "degrade": ["degrade", "{in}", "-o", "{out}", "--hr-out", "{out}/hr", "--preset", "bicubic"],
    "evaluate": ["evaluate", "--lr", "{in}", "--model", "none", "--baselines", "bicubic"]
    + ["--measures", "niqe", "--save", "{out}"],
    "make-testset": ["data", "make-testset", "{in}", "-o", "{out}", "--crop", "96", "--preset", "bicubic"],
    "batch": ["batch", "{in}", "-o", "{out}", "--model", "{model}", "--workers", "1", *LOCAL],
}
# Where each command does something to one picture, told its file or what has it.
READERS = {
    "degrade": (clearsr.files.comparison, "read_image", lambda path: path),
    "evaluate": (clearsr.evaluation.evaluate, "_upscaled", lambda _method, pair, *_: pair.lr),
    "make-testset": (clearsr.evaluation.testset, "_read", lambda item: item.path),
    "batch": (clearsr.batch.worker, "fetch", lambda file, _folder: Path(file)),
}


@pytest.fixture(autouse=True)
def heeded_interrupts():
    """Ctrl-C counts, here and in what a test starts, also where these tests run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


on_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has other signals and limits")


@pytest.fixture
def start(run, model, tmp_path):
    """Runs a command of the table on three pictures of noise: a, b and c."""
    (tmp_path / "in").mkdir()
    for number, name in enumerate("abc"):
        noise = np.random.default_rng(number).integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "in" / f"{name}.png")
    places = {"in": tmp_path / "in", "out": tmp_path / "out", "model": model}

    def call(name, **changed):
        return run(*(part.format(**{**places, **changed}) for part in COMMANDS[name]))

    return call


def _before_each(monkeypatch, name, act):
    """Have `act` called with the name of each picture before the command reads it."""
    module, function, path_of = READERS[name]
    original = getattr(module, function)

    def wrapped(*arguments, **options):
        act(path_of(*arguments).name)
        return original(*arguments, **options)

    monkeypatch.setattr(module, function, wrapped)


def _whole_files(folder):
    """Names of the pictures below a folder, each of which must be whole; nothing may be half-written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.name.startswith(".clearsr-")]
    pictures = [path for path in files if path.suffix == ".png"]
    for path in pictures:
        with Image.open(path) as image:
            image.load()
    return {path.name for path in pictures}


@on_posix
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("number", "code", "says"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_in_order_and_a_later_run_does_the_rest(
    start, tmp_path, monkeypatch, name, number, code, says
):
    def stop(picture):
        if picture == "b.png":
            os.kill(os.getpid(), number)
            time.sleep(5)

    with monkeypatch.context() as patch:
        _before_each(patch, name, stop)
        outcome = start(name)
    assert outcome.code == code
    assert outcome.err.splitlines()[-1] == f"clearsr: error: {says}" and len(outcome.errors) == 1
    assert "Traceback" not in outcome.err
    assert _whole_files(tmp_path / "out") == {"a.png"}
    outcome = start(name)
    assert outcome.code == 0, outcome.err
    assert _whole_files(tmp_path / "out") == {"a.png", "b.png", "c.png"}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_input_that_vanishes_is_one_line(start, tmp_path, monkeypatch, name):
    gone = tmp_path / "in" / "b.png"
    _before_each(monkeypatch, name, lambda _picture: gone.unlink(missing_ok=True))
    outcome = start(name)
    assert outcome.code == 1
    assert len(outcome.errors) == 1 and "Traceback" not in outcome.err
    assert (
        f"{gone}: does not exist" in outcome.errors[0] or f"{gone.name}: does not exist" in outcome.errors[0]
    )
    # Means over fewer pictures would be of another set: `evaluate` stops, the others go on.
    expected = {"a.png"} if name == "evaluate" else {"a.png", "c.png"}
    assert _whole_files(tmp_path / "out") == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_below_a_file_is_said(start, tmp_path, name):
    (tmp_path / "file").write_bytes(b"mine")
    outcome = start(name, out=tmp_path / "file" / "out")
    assert outcome.code in (1, 2)
    assert outcome.errors and all(str(tmp_path / "file") in line for line in outcome.errors)
    assert outcome.err.count("\n") <= 8 and "Traceback" not in outcome.err
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("is_there", [False, True], ids=["to be made", "there"])
def test_a_read_only_output_is_said(start, tmp_path, monkeypatch, name, is_there):
    out = tmp_path / "out"
    if is_there:
        out.mkdir()

    def refusing(original, writes):
        def call(path, *arguments, **options):
            if str(path).startswith(str(out)) and writes(arguments):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return original(path, *arguments, **options)

        return call

    is_new = lambda path: not Path(path).exists()  # noqa: E731
    make = os.mkdir
    monkeypatch.setattr(
        os, "mkdir", lambda path, *a, **o: refusing(make, lambda _: is_new(path))(path, *a, **o)
    )
    monkeypatch.setattr(os, "open", refusing(os.open, lambda rest: bool(rest and rest[0] & os.O_CREAT)))
    monkeypatch.setattr(io, "open", refusing(io.open, lambda rest: bool(rest and set(rest[0]) & set("wax+"))))
    outcome = start(name)
    assert outcome.code == 1
    assert outcome.errors and "Traceback" not in outcome.err
    for line in outcome.errors:
        assert str(out) in line and "read-only file system" in line.lower()
    assert not out.exists() or not list(out.iterdir())


@on_posix
def test_a_full_disk_ends_training_with_one_line_and_what_was_saved(run, model, photo, tmp_path, monkeypatch):
    import resource

    monkeypatch.chdir(tmp_path)
    photo("photographs/a.png", 64, 64)
    recipe = {
        "stage": "autoencoder",
        "output": "run",
        "model": json.loads((model / "config.json").read_text())["model"],
        "data": {"train": ["photographs"], "crop_size": 32, "workers": 0},
        "steps": 4,
        "batch_size": 1,
        "validate_every": 0,
        "checkpoint_every": 2,
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        outcome = run("train", "recipe.yaml")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert outcome.code == 1
    assert len(outcome.errors) == 1 and "Traceback" not in outcome.err
    assert "cannot be written" in outcome.errors[0] and "file too large" in outcome.errors[0].lower()
    left = [path for path in Path("run").rglob("*") if path.suffix == ".safetensors"]
    assert not left
    assert run("train", "recipe.yaml").code == 0
    assert (Path("run") / "export").is_dir()


def _command(model, tmp_path, *more):
    arguments = ["batch", tmp_path / "in", "-o", tmp_path / "out", "--model", model, *LOCAL, *more]
    return [str(part) for part in (sys.executable, "-m", "clearsr", *arguments)]


def _start(command):
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _wait_for_rows(manifest, count, process):
    deadline = time.monotonic() + 120
    while not manifest.exists() or len(manifest.read_bytes().splitlines()) < count:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def many(photo):
    return [photo(f"in/{number:03d}.png", 16, 20).name for number in range(200)]


@on_posix
@pytest.mark.slow
def test_a_second_batch_on_the_same_manifest_is_refused_while_the_first_works(many, model, tmp_path):
    manifest = tmp_path / "out" / "manifest.jsonl"
    first = _start(_command(model, tmp_path, "--workers", "1"))
    try:
        _wait_for_rows(manifest, 5, first)
        first.send_signal(signal.SIGSTOP)  # so that they overlap however fast the machine is
        so_far = manifest.read_bytes()
        second = subprocess.run(_command(model, tmp_path), capture_output=True, text=True, timeout=120)
        assert manifest.read_bytes() == so_far
    finally:
        first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=240)
    assert len(so_far.splitlines()) < len(many) and first.returncode == 0, err
    assert second.returncode == 1
    says = "another run is writing it; wait for it, or name another one"
    assert second.stderr == f"clearsr: error: --manifest {manifest}: {says}\n"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert sorted(Path(row["input"]).name for row in rows) == many
    assert {row["status"] for row in rows} == {"ok"} and _whole_files(tmp_path / "out") == set(many)


@on_posix
@pytest.mark.slow
def test_two_batches_with_own_manifests_lose_nothing(many, model, tmp_path):
    manifests = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    runs = [
        _start(_command(model, tmp_path, "--workers", "2", "--manifest", str(path))) for path in manifests
    ]
    for process in runs:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    statuses = []
    for path in manifests:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert sorted(Path(row["input"]).name for row in rows) == many  # each once
        assert {row["status"] for row in rows} <= {"ok", "skipped"}
        statuses += [row["status"] for row in rows]
    assert statuses.count("ok") >= len(many)
    assert _whole_files(tmp_path / "out") == set(many)


@on_posix
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_batch_and_its_workers(many, model, tmp_path, number, code):
    manifest = tmp_path / "out" / "manifest.jsonl"
    process = _start(_command(model, tmp_path, "--workers", "2"))
    _wait_for_rows(manifest, 5, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert process.returncode == code and "Traceback" not in err and len(rows) < len(many)
    for worker in {int(row["worker"].rpartition(":")[2]) for row in rows}:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    _whole_files(tmp_path / "out")
    assert subprocess.run(_command(model, tmp_path, "--workers", "2"), capture_output=True).returncode == 0
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert sorted(Path(row["input"]).name for row in rows) == many
    assert _whole_files(tmp_path / "out") == set(many)


@on_posix
@pytest.mark.slow
def test_workers_keep_what_libtiff_prints_to_themselves(photo, model, tmp_path):
    photo("in/a.png")
    Image.radial_gradient("L").save(tmp_path / "in" / "b.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "in" / "b.tif").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = b"\xff" * 200
    (tmp_path / "in" / "b.tif").write_bytes(data)
    done = subprocess.run(_command(model, tmp_path, "--workers", "2"), capture_output=True, text=True)
    assert done.returncode == 1 and "LZW" not in done.stderr and "TIFF" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "b.tif" in line]
    assert line.startswith(f"clearsr: error: {tmp_path / 'in' / 'b.tif'}: is damaged or incomplete")
