"""docs/training.md explains every setting, and its commands are accepted."""

import re
import shlex
from pathlib import Path

import pytest

from clearsr.cli import COMMANDS, data, train
from clearsr.cli.flags import build, collect
from clearsr.cli.parser import Parser
from clearsr.config.training import TrainConfig

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", "").splitlines()]


def fields(schema, prefix=""):
    for name, field in schema.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_setting_is_explained_and_none_that_is_not_there():
    explained = re.findall(r"^\| `([\w.]+)` \|", TEXT[TEXT.index("## Every setting") :], flags=re.MULTILINE)
    assert sorted(explained) == sorted(fields(TrainConfig))


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_command_is_accepted(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(line)
    if words[0] == "torchrun":
        words = ["clearsr", *words[words.index("clearsr") + 1 :]]
    assert words[0] == "clearsr" and words[1] in COMMANDS
    modules = {"train": train, "data": data}
    if words[1] not in modules:
        return
    parser = Parser("clearsr", "test")
    modules[words[1]].add_arguments(parser)
    args = parser.parse_args(words[2:])
    if words[1] == "train":
        assert build(TrainConfig, collect(args, {})).data.train
