"""How configurations are filled: files, files they extend, overrides; and what a mistake is told."""

import pytest
from pydantic import Field

from clearsr.config.base import (
    FrozenConfig,
    build_config,
    load_config,
    merge,
    parse_override,
    read_yaml,
    write_yaml,
)
from clearsr.errors import ClearSRError


class Inner(FrozenConfig):
    rate: float = Field(0.5, ge=0, le=1, description="a share")
    names: tuple[str, ...] = ()


class Outer(FrozenConfig):
    steps: int = Field(10, gt=0, description="a count")
    label: str | None = None
    inner: Inner = Inner()
    maybe: Inner | None = None
    required: int


@pytest.fixture
def write(tmp_path):
    def make(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return make


def test_later_files_win_key_by_key_and_overrides_over_all(write):
    first = write("a.yaml", "required: 1\nsteps: 3\ninner: {rate: 0.1, names: [x, y]}\n")
    second = write("b.yaml", "steps: 4\ninner: {rate: 0.2}\n")
    config = load_config(Outer, [first, second], ["inner.rate=0.3", "label=null", "maybe.names=[a, b]"])
    assert config == Outer(
        required=1, steps=4, inner=Inner(rate=0.3, names=("x", "y")), maybe=Inner(names=("a", "b"))
    )


def test_a_file_extends_others_relative_to_itself(write):
    write("bases/deep/one.yaml", "required: 1\nsteps: 1\ninner: {names: [one]}\n")
    write("bases/two.yaml", "extends: deep/one.yaml\nsteps: 2\n")
    write("bases/three.yaml", "inner: {rate: 0.3}\n")
    top = write("top.yaml", "extends: [bases/two.yaml, bases/three.yaml]\nlabel: top\n")
    expected = Outer(required=1, steps=2, label="top", inner=Inner(rate=0.3, names=("one",)))
    assert load_config(Outer, [top]) == expected


def test_what_is_written_is_read_back_the_same(tmp_path):
    config = Outer(required=3, label="ä: #1", inner=Inner(names=("no", "1e3", "")), maybe=Inner(rate=1))
    write_yaml(config, tmp_path / "config.yaml")
    assert load_config(Outer, [tmp_path / "config.yaml"]) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps=5", {"steps": 5}),
        ("inner.rate=0.25", {"inner": {"rate": 0.25}}),
        ("inner.names=[a, b]", {"inner": {"names": ["a", "b"]}}),
        ("label=null", {"label": None}),
        ("label=", {"label": None}),
        ("label='5'", {"label": "5"}),
        ("label=a=b", {"label": "a=b"}),
        ("inner={rate: 1}", {"inner": {"rate": 1}}),
        ("a.b.c.d=true", {"a": {"b": {"c": {"d": True}}}}),
    ],
)
def test_overrides_are_read_as_yaml(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["steps", "=5", "a..b=1", "a b=1", ".a=1", "a.=1", "1a=2", ""])
def test_overrides_need_a_dotted_key_and_a_value(text):
    with pytest.raises(ClearSRError, match=f"--set {text}: expected KEY=VALUE"):
        parse_override(text)


def test_override_whose_value_is_not_yaml():
    with pytest.raises(ClearSRError, match="--set steps=\\[1: the value is not valid YAML") as error:
        parse_override("steps=[1")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"required": 1, "stesp": 2}, "stesp: unknown key; did you mean steps?"),
        ({"required": 1, "inner": {"rat": 1}}, "inner.rat: unknown key; did you mean rate?"),
        ({"required": 1, "maybe": {"ratte": 1}}, "maybe.ratte: unknown key; did you mean rate?"),
        ({"required": 1, "qqq": 1}, "qqq: unknown key; known here: inner, label, maybe, required, steps"),
        ({}, "required: must be given"),
        ({"required": 1, "steps": 0}, "steps: Input should be greater than 0 (got 0)"),
        (
            {"required": 1, "inner": {"rate": 2}},
            "inner.rate: Input should be less than or equal to 1 (got 2)",
        ),
        ({"required": "x"}, "required: Input should be a valid integer"),
        ({"required": 1, "inner": 5}, "inner: "),
        ({"steps": -1}, "steps: Input should be greater than 0 (got -1); required: must be given"),
    ],
)
def test_mistakes_are_told_in_one_line(values, message):
    with pytest.raises(ClearSRError) as error:
        build_config(Outer, values)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "is not valid YAML"),
        ("- 1\n- 2\n", "must hold a mapping of settings, got list"),
        ("5\n", "must hold a mapping of settings, got int"),
        ("a: !!python/object:os.system {}\n", "is not valid YAML"),
        ("extends: no-such-file.yaml\n", "no-such-file.yaml: cannot be read"),
        ("extends: 5\n", "extends must be"),
        ("extends: [1]\n", "extends must be"),
        ("extends: {a: b}\n", "extends must be"),
        ("extends: settings.yaml\n", "extends itself"),
        ("extends: ./other/../settings.yaml\n", "extends itself"),
        ("1: 2\n", "1: Keys should be strings"),
    ],
)
def test_files_that_cannot_be_used(write, tmp_path, text, message):
    (tmp_path / "other").mkdir()
    path = write("settings.yaml", text)
    with pytest.raises(ClearSRError, match=message) as error:
        load_config(Outer, [path])
    assert "\n" not in str(error.value)


def test_files_that_extend_each_other(write):
    write("a.yaml", "extends: b.yaml\n")
    path = write("b.yaml", "extends: a.yaml\n")
    with pytest.raises(ClearSRError, match="b.yaml: extends itself"):
        read_yaml(path)


def test_two_files_may_share_a_base(write):
    write("base.yaml", "steps: 1\n")
    write("left.yaml", "extends: base.yaml\nlabel: left\n")
    write("right.yaml", "extends: base.yaml\nrequired: 2\n")
    top = write("top.yaml", "extends: [left.yaml, right.yaml]\n")
    assert read_yaml(top) == {"steps": 1, "label": "left", "required": 2}


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00bad"])
def test_unreadable_files(tmp_path, content):
    path = tmp_path / "settings.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ClearSRError, match="settings.yaml: cannot be read .* expected a YAML file") as error:
        read_yaml(path)
    assert "\n" not in str(error.value)


def test_an_empty_file_sets_nothing(write):
    assert read_yaml(write("empty.yaml", "# nothing\n")) == {}


def test_merging_replaces_all_but_mappings_and_changes_neither():
    below, above = {"a": {"b": 1, "c": [1, 2]}, "d": 1}, {"a": {"c": [3]}, "d": {"e": 2}}
    assert merge(below, above) == {"a": {"b": 1, "c": [3]}, "d": {"e": 2}}
    assert below == {"a": {"b": 1, "c": [1, 2]}, "d": 1} and above == {"a": {"c": [3]}, "d": {"e": 2}}


def test_configurations_do_not_change():
    config = Outer(required=1)
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 2
