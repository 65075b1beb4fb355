"""Texts of strangers: any mistake is one line, and no few lines become more than the memory holds."""

import pytest

from clearsr.config.base import load_config, parse_json, parse_yaml, shortened
from clearsr.config.sampling import SamplingConfig
from clearsr.errors import ClearSRError

_DEEP = "[" * 100_000


def _nested(line, levels=40):
    """A document that says ten times of each part that it is ten times the part before: 10^levels."""
    lines = ["a0: &a0 {k: 1}"] + [
        f"a{i}: &a{i} " + line.format(", ".join([f"*a{i - 1}"] * 10)) for i in range(1, levels)
    ]
    return "\n".join([*lines, f"steps: *a{levels - 1}"])


@pytest.mark.parametrize(
    "text",
    ["a: 2001-99-99", "a: [1", "a: 0b2", "!!python/object:os.system {}", "{? [1]: 2}", _DEEP, "a: 1:99:0x"],
    ids=lambda text: text[:12],
)
def test_yaml_that_cannot_be_read_is_one_line(text, tmp_path):
    try:
        assert parse_yaml(text) is not None
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ClearSRError, match="a.yaml|a: unknown key") as caught:
        load_config(SamplingConfig, [tmp_path / "a.yaml"])
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 2000


def test_a_date_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="does not exist"):
        parse_yaml("2001-99-99")


@pytest.mark.parametrize("line", ["[{0}]", "{{<<: [{0}], k: 2}}"])
def test_parts_named_again_and_again_cost_nothing(line, tmp_path):
    (tmp_path / "a.yaml").write_text(_nested(line))
    with pytest.raises(ClearSRError) as caught:
        load_config(SamplingConfig, [tmp_path / "a.yaml"])
    assert len(str(caught.value)) <= 2000


def test_merging_of_mappings_still_works():
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")["b"] == {"x": 1, "y": 3}


def test_json_nested_too_deeply_is_a_value_error():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(_DEEP)


def test_values_are_quoted_shortly():
    assert shortened([1, "a"]) == "[1, 'a']"
    assert len(shortened([["x" * 10**6] * 100] * 100)) < 5000


def test_an_error_is_one_printable_line_of_bounded_length():
    error = ClearSRError("a\nb\x1b[31mc" + "d" * 10_000)
    assert str(error).startswith("a b [31mcd") and str(error).isprintable() and len(str(error)) == 2000
    assert str(ClearSRError("plain: ümläut")) == "plain: ümläut"
