"""`clearsr serve`: what is refused before anything is loaded. The server itself is tested in tests/web."""

import pytest


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--offload", "--concurrency", "2"], 2, "--offload: works on one picture at a time"),
        (["--offload", "--device", "cpu"], 1, "--offload: is for accelerators"),
        (["--max-memory", "lots"], 2, "--max-memory: "),
        (["--host", "0.0.0.0"], 2, "give --token"),
        (["--port", "70000"], 2, "--port: "),
        (["--token", "short"], 2, "--token: "),
    ],
)
def test_what_cannot_be_is_refused(run, monkeypatch, flags, code, said):
    monkeypatch.delenv("CLEARSR_TOKEN", raising=False)
    outcome = run("serve", *flags)
    assert (outcome.code, outcome.out) == (code, "")
    assert said in outcome.err
    assert outcome.err.count("\n") == 1
