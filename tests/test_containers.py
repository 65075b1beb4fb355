"""Dockerfile and compose.yaml, as far as can be seen without Docker. Continuous integration builds them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from clearsr.cli import parser_of

ROOT = Path(__file__).parents[1]


def _stages():
    """Name -> its instructions, with lines put together."""
    text = (ROOT / "Dockerfile").read_text("utf-8")
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    stages = {}
    for instruction, _, rest in (line.partition(" ") for line in lines if line):
        if instruction == "FROM":
            origin, _, name = rest.partition(" AS ")
            stages[name] = [*stages.get(origin, []), (instruction, rest)]
        else:
            stages[name].append((instruction, rest))
    return stages


@pytest.fixture(params=["cpu", "cuda"])
def target(request):
    return dict(_stages()[request.param])  # the last of each instruction counts


def _parsed(command):
    return parser_of(command[0]).parse_args(command[1:])


def test_each_target_serves_as_a_user_without_rights(target):
    user = re.search(r"useradd .*--uid (\d+)", "\n".join(rest for _, rest in _stages()["base"]))[1]
    assert target["USER"] == user != "0"
    assert json.loads(target["ENTRYPOINT"]) == ["clearsr"]
    args = _parsed(json.loads(target["CMD"]))
    assert args.host == "0.0.0.0"


def test_its_health_check_asks_the_server(target):
    command = json.loads(target["HEALTHCHECK"].partition("CMD ")[2])
    compile(command[2], "HEALTHCHECK", "exec")
    assert f"127.0.0.1:{target['EXPOSE']}/healthz" in command[2]


def test_what_is_copied_is_there_and_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    sources = [
        source
        for instructions in _stages().values()
        for instruction, rest in instructions
        if instruction == "COPY"
        for source in rest.split()[:-1]
    ]
    assert sources and all((ROOT / source).exists() and source in kept for source in sources)
    assert kept == set(sources), "what nothing copies need not be sent"


def test_compose_builds_these_targets_and_starts_commands_that_there_are():
    document = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    for name, service in document["services"].items():
        assert service["build"]["target"] in _stages(), name
        if "entrypoint" not in service and "command" in service:
            _parsed(service["command"])
        for other in service.get("depends_on", {}):
            assert "healthcheck" in document["services"][other]
    port = dict(_stages()["cpu"])["EXPOSE"]
    assert document["services"]["serve"]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_continuous_integration_builds_every_target():
    text = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    assert set(re.findall(r"docker build --target (\w+)", text)) == {"cpu", "cuda"}


def test_the_linter_finds_nothing():
    linter = shutil.which("hadolint") or pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stdout, done.stdout
