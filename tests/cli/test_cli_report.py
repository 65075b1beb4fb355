"""`clearsr data make-testset` and `clearsr report`: from photographs to a table beside the published rows."""

import json

import pytest


@pytest.fixture
def photographs(photo, tmp_path):
    for name in ("a", "b"):
        photo(f"photographs/{name}.png", 48, 64)
    return tmp_path / "photographs"


def test_from_photographs_to_a_table(run, photographs, tmp_path):
    made = run(
        "data", "make-testset", photographs, "-o", tmp_path / "set", "--crop", "32", "--preset", "light",
        "--seed", "7", "--upscale", "2",
    )  # fmt: skip
    assert made.code == 0 and made.out.startswith(f"2 pairs in {tmp_path / 'set'}")
    settings = json.loads((tmp_path / "set" / "manifest.json").read_text())["settings"]
    assert (settings["seed"], settings["upscale"], settings["degradation"]["preset"]) == (7, 2, "light")
    hr = tmp_path / "set" / "test_HR"
    report = tmp_path / "r.json"
    assert run("evaluate", "--sr", hr, "--hr", hr, "--measures", "ssim_rounded", "--json", report).code == 0
    printed = run("report", report, "--dataset", "realsr", "--measures", "psnr", "--outputs", f"X={hr}",
                  "--hr", hr)  # fmt: skip
    assert printed.code == 0, printed.err
    assert "Table 1 on RealSR" in printed.out and "| SeeSR | Wu et al. 2024 | 25.18 |" in printed.out
    assert "| test\\_HR | measured | – | **1.0000 ± 0.0000** |" in printed.out
    assert "| X | measured | **inf**" in printed.out
    assert run("report", report, "--format", "latex", "-o", tmp_path / "t.tex").code == 0
    assert r"\caption{Measured on set}" in (tmp_path / "t.tex").read_text()


def test_crops_are_made_again_from_their_manifest(run, photographs, tmp_path):
    arguments = ("data", "make-testset", photographs)
    made = run(
        *arguments, "-o", tmp_path / "set", "--crop", "16", "--crops", "4", "--preset", "light", "--seed", "5"
    )
    assert made.code == 0 and made.out.startswith("8 pairs in "), made.err
    manifest = tmp_path / "set" / "manifest.json"
    again = run(*arguments, "-o", tmp_path / "again", "--like", manifest)
    assert again.code == 0 and again.err.strip() == ""
    assert (tmp_path / "again" / "manifest.json").read_bytes() == manifest.read_bytes()
    document = json.loads(manifest.read_text())
    document["images"][3]["test_LR"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(document))
    again = run(*arguments, "-o", tmp_path / "again", "--like", manifest)
    assert again.code == 0 and "1 of 8 pairs are other files than" in again.err


def test_the_published_table_alone(run):
    printed = run("report")
    assert printed.code == 0
    assert [f"Table 1 on {name}" in printed.out for name in ("DRealSR", "RealSR", "DIV2K-Val")] == [True] * 3


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["report", "--outputs", "X"], 2, "--outputs X: expected NAME=DIR"),
        (["report", "--outputs", "X=y"], 2, "--outputs: needs --hr DIR"),
        (["report", "nowhere.json"], 1, "nowhere.json: cannot be read as JSON"),
        (["data", "make-testset", "."], 2, "make-testset: needs -o OUT"),
        (
            ["data", "make-testset", ".", "-o", "o", "--crop", "30"],
            2,
            "crop must be a multiple of upscale, 4",
        ),
        (["data", "make-testset", ".", "-o", "o", "--preset", "x"], 2, "--preset: must be 'full'"),
        (["data", "make-testset", ".", "-o", "o", "--shards", "s"], 2, "--shards: belongs to check"),
        (["data", "make-testset", ".", "-o", "o", "--crops", "3"], 2, "crops needs crop"),
        (
            ["data", "make-testset", ".", "-o", "o", "--like", "m.json", "--seed", "1"],
            2,
            "--seed: m.json says it, which --like names; leave it out",
        ),
        (["data", "make-testset", ".", "-o", "o", "--like", "m.json"], 1, "m.json: cannot be read as the"),
        (["data", "check", ".", "--crops", "1"], 2, "--crops: belongs to make-testset"),
        (["data", "check", ".", "--seed", "1"], 2, "--seed: belongs to make-testset"),
        (["data", "check", ".", "--set", "a=1"], 2, "--set: belongs to make-testset"),
    ],
)
def test_wrong_usage_is_one_line(run, arguments, code, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run(*arguments)
    assert outcome.code == code and len(outcome.errors) == 1
    assert says in outcome.errors[0]
