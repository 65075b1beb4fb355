"""Flags made from configuration fields: values, precedence, and errors in the user's words."""

import pytest

from clearsr.cli.flags import add_config_files, add_config_flags, build, collect
from clearsr.cli.parser import Parser, UsageError
from clearsr.config.output import OutputConfig
from clearsr.config.sampling import SamplingConfig

FLAGS = {
    "--upscale": "upscale",
    "--steps": "steps",
    "--lsa": "lsa.preset",
    "--alpha": "lsa.alpha",
    "--negative-prompt": "negative_prompt",
    "--tile": "tile.size",
}
OUTPUT_FLAGS = {"--bit-depth": "output.bit_depth"}


@pytest.fixture
def parse():
    def call(*arguments):
        parser = Parser("clearsr x", "try flags")
        add_config_flags(parser, FLAGS, SamplingConfig())
        add_config_flags(parser, OUTPUT_FLAGS, OutputConfig(), "output")
        add_config_files(parser, "a.b=1")
        return collect(parser.parse_args([str(a) for a in arguments]), FLAGS | OUTPUT_FLAGS)

    return call


def test_values_reach_their_fields(parse):
    given = parse(
        "--upscale", "2.5", "--steps", "3", "--lsa", "off", "--alpha", "0.5", "--negative-prompt", "007"
    )
    config = build(SamplingConfig, given)
    assert (config.upscale, config.steps, config.negative_prompt) == (2.5, 3, "007")
    assert (config.lsa.preset, config.lsa.alpha, config.lsa.beta) == ("off", 0.5, None)


def test_what_is_not_given_is_left_to_the_base(parse):
    config = build(SamplingConfig, parse("--alpha", "0.5"), {"steps": 7, "lsa": {"beta": 0.25}})
    assert (config.steps, config.lsa.alpha, config.lsa.beta) == (7, 0.5, 0.25)


def test_flags_win_over_set_and_set_over_files(parse, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("steps: 5\nupscale: 3\nlsa: {alpha: 0.1, beta: 0.2}\n")
    given = parse("--config", file, "--set", "upscale=2", "--set", "lsa.alpha=0.3", "--alpha", "0.4")
    config = build(SamplingConfig, given)
    assert (config.steps, config.upscale, config.lsa.alpha, config.lsa.beta) == (5, 2.0, 0.4, 0.2)


def test_sections(parse):
    given = parse("--bit-depth", "16", "--set", "output.png_compression=1", "--steps", "3")
    assert build(OutputConfig, given.section("output")) == OutputConfig(bit_depth=16, png_compression=1)
    assert build(SamplingConfig, given.without("output")).steps == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--upscale", "-1"], "--upscale: must be greater than 0 (got -1)"),
        (["--upscale", "nan"], "--upscale: must be"),
        (["--upscale", "big"], "--upscale: must be a valid number"),
        (["--steps", "2.5"], "--steps: must be a valid integer"),
        (["--steps", "1001"], "--steps: must be less than or equal to 1000 (got 1001)"),
        (["--lsa", "strong"], "--lsa: must be 'clearsr', 'fidelity' or 'off' (got 'strong')"),
        (["--alpha", "2"], "--alpha: must be less than or equal to 1 (got 2)"),
        (["--tile", "33"], "--tile: must be a multiple of 16 (got 33)"),
        (["--set", "steps=zero"], "--set steps: must be a valid integer"),
        (["--set", "lsa.alhpa=1"], "--set lsa.alhpa: unknown key; did you mean alpha?"),
        (["--set", "steps"], "--set steps: expected KEY=VALUE"),
        (["--set", "tile.overlap=48"], "--set tile: overlap must be at most half the size, 32"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_errors_name_what_the_user_wrote(parse, arguments, says):
    with pytest.raises(UsageError) as caught:
        build(SamplingConfig, parse(*arguments))
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_errors_in_a_file_name_the_file(parse, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("steps: -3\n")
    with pytest.raises(UsageError, match=r"settings\.yaml: steps: must be greater"):
        build(SamplingConfig, parse("--config", file))


def test_several_mistakes_are_all_named(parse):
    with pytest.raises(UsageError) as caught:
        build(SamplingConfig, parse("--upscale", "0", "--alpha", "7"))
    assert "--upscale: " in str(caught.value) and "; --alpha: " in str(caught.value)


def test_help_has_description_and_default():
    parser = Parser("clearsr x", "try flags")
    add_config_flags(parser, FLAGS, SamplingConfig(steps=12))
    text = " ".join(parser.format_help().split())
    description = SamplingConfig.model_fields["upscale"].description
    assert f"--upscale X {description} (default: 4)" in text
    assert "(default: 12)" in text
    assert "{clearsr,fidelity,off}" in text
