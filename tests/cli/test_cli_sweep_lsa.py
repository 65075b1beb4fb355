"""`clearsr sweep-lsa` to the end on a tiny model, and what it refuses."""

import json
import sys

import pytest

pytestmark = pytest.mark.usefixtures("only_quick_measures")


@pytest.fixture
def testset(photo, tmp_path):
    for name, size in (("test_HR", (32, 48)), ("test_LR", (8, 12))):
        photo(f"set/{name}/a.png", *size)
    return tmp_path / "set"


def test_the_whole_command(run, model, testset, tmp_path):
    outcome = run(
        "sweep-lsa", "--testset", testset, "-o", tmp_path / "out", "--model", model, "--device", "cpu",
        "--alphas", "0,0.01", "--betas", "0,0.01",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    names = {"sweep.json", "table4.md", "figure7-pictures.png"} | {
        f"figure7.{s}" for s in ("png", "pdf", "json")
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert (tmp_path / "out" / "table4.md").read_text() in outcome.out + "\n"
    assert "| measured | ✓ | - |" in outcome.out and "PSNR covers" in outcome.out
    document = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert document["method"] == "alpha 0, beta 0" and len(document["others"]) == 3


def test_tables_need_no_matplotlib(run, model, testset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = ["sweep-lsa", "--testset", testset, "-o", tmp_path / "out", "--model", model]
    arguments += ["--alphas", "0.01", "--betas", "0", "--measures", "psnr"]
    refused = run(*arguments)
    assert refused.code == 1 and "clearsr[plots]" in refused.errors[0]
    assert run(*arguments, "--table-only").code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"sweep.json", "table4.md"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--alphas", "0,2"], "--alphas 0,2: must be from 0 to 1"),
        (["--betas", "a"], "--betas a: expected different numbers"),
        (["--alpha", "0.1"], "give --alphas and --betas"),
        (["--example", "z"], "--example z: is none of the pictures, such as a"),
    ],
)
def test_wrong_usage_is_one_line(run, testset, tmp_path, arguments, says):
    outcome = run("sweep-lsa", "--testset", testset, "-o", tmp_path / "out", *arguments)
    assert outcome.code == 2 and says in outcome.errors[0]
    assert run("sweep-lsa", "--lr", testset, "-o", tmp_path).code == 2
