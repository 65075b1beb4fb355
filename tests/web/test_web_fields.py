"""The dial from fidelity to detail, names of files, and estimates."""

import shlex
from pathlib import Path

import pytest

from clearsr.cli import parser_of
from clearsr.cli.upscale import collect_work
from clearsr.config.base import build_config, merge
from clearsr.config.output import OutputConfig
from clearsr.config.sampling import LSA_PRESETS, SAMPLING_FLAGS, SamplingConfig
from clearsr.config.serving import ServingConfig
from clearsr.web.api import safe_name
from clearsr.web.errors import RequestError
from clearsr.web.estimate import BusyError, Estimator
from clearsr.web.fields import (
    OUTPUT_FIELDS,
    SAMPLING_FIELDS,
    command_line,
    curl_line,
    detail_of,
    sampling_of,
    strengths_of,
)


def test_the_papers_settings_lie_on_the_dial():
    assert strengths_of(-50) == LSA_PRESETS["fidelity"]
    assert strengths_of(0) == LSA_PRESETS["clearsr"]
    assert detail_of(LSA_PRESETS["fidelity"]) == -50
    assert detail_of(LSA_PRESETS["clearsr"]) == 0


def test_the_dial_goes_one_way():
    strengths = [strengths_of(position) for position in range(-100, 101, 5)]
    alphas, betas = zip(*strengths, strict=True)
    assert list(alphas) == sorted(alphas, reverse=True)
    assert list(betas) == sorted(betas)
    assert max(alphas) == 0.25 and max(betas) == 0.01 and min(alphas) == min(betas) == 0
    assert strengths_of(-1000) == strengths[0]
    assert strengths_of(1000) == strengths[-1]


def test_the_models_own_settings_stay_where_nothing_is_said():
    base = SamplingConfig(steps=3, lsa={"ela_end": 0.4, "alpha": 0.02}, color="adain")
    sampling = sampling_of(base, {"seed": "5", "beta": "0.5", "steps": ""}, ServingConfig())
    assert sampling.lsa.strengths == (0.02, 0.5)
    assert (sampling.steps, sampling.seed, sampling.color, sampling.lsa.ela_end) == (3, 5, "adain", 0.4)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("photo.png", "photo.png"),
        ("Grüße (2) #1.JPG", "Grüße (2) #1.JPG"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\a.png", "a.png"),
        ("..", "picture"),
        ("", "picture"),
        ("a/", "picture"),
        ("nul\0.png", "nul.png"),
    ],
)
def test_names_stay_but_lead_nowhere(name, kept):
    assert safe_name(name) == kept


def test_long_names_fit_and_keep_their_suffix(tmp_path):
    name = safe_name("ä" * 400 + ".jpeg")
    assert name.endswith(".jpeg")
    (tmp_path / f"{name}_x4.jpg").touch()


def test_estimates_follow_what_is_measured(tiny_pipeline):
    estimator = Estimator()
    one, twenty = SamplingConfig(steps=1), SamplingConfig(steps=20)
    assert estimator.estimate(1, one) is None  # nothing is guessed
    estimator.measure(tiny_pipeline)
    small, large, long = (estimator.estimate(*case).seconds for case in ((1, one), (10, one), (10, twenty)))
    assert 0 < small < large <= long
    for _ in range(30):
        estimator.learn(10, twenty, 100.0, 0)
    assert estimator.estimate(10, twenty).seconds == pytest.approx(100, rel=0.05)


def test_estimates_take_guidance_into_account():
    estimator = Estimator()
    estimator._fixed, estimator._per_step, estimator._guided, estimator._is_measured = 1.0, 1.0, 1.5, True
    seconds = [
        estimator.estimate(1, SamplingConfig(steps=10, **more)).seconds
        for more in ({}, {"guidance_scale": 3}, {"guidance_scale": 3, "negative_prompt": "blurry"})
    ]
    assert seconds == [11, 16, 21]


def test_measuring_makes_way(tiny_pipeline):
    def check():
        raise BusyError

    estimator = Estimator()
    with pytest.raises(BusyError):
        estimator.measure(tiny_pipeline, check)
    assert not estimator.is_measured


def test_the_command_line_names_what_was_changed():
    base = SamplingConfig(steps=3)
    fields = {"alpha": 0.03456789, "beta": 1e-7, "color": "adain", "guidance_scale": 2.5, "tile": 96}
    without_flags = {"lsa.ela_end": 0.5, "spacing": "leading", "tile.overlap": 8, "lsa.target": "z_0"}
    sampling = sampling_of(base, {**fields, **without_flags, "negative_prompt": "it's"}, ServingConfig())
    output = OutputConfig(bit_depth=8, keep_metadata=False, png_compression=9, tiff_compression="none")
    words = shlex.split(command_line("a b $HOME.png", sampling, base, output))
    assert words[:3] == ["clearsr", "upscale", "a b $HOME.png"]
    args = parser_of("upscale").parse_args(words[2:])
    given, written = collect_work(args, ".png")
    assert build_config(SamplingConfig, merge(base.model_dump(exclude_unset=True), given.values)) == sampling
    assert written == output
    changed = ["--alpha", "--beta", "--guidance-scale", "--negative-prompt", "--color", "--tile"]
    flags = [word for word in words if word.startswith("--")]
    assert flags == ["--upscale", "--seed", *changed, *["--set"] * 4, "--bit-depth", *["--set"] * 3]


def test_a_picture_whose_name_looks_like_a_flag():
    words = shlex.split(command_line("-o.png", SamplingConfig(), SamplingConfig(), OutputConfig()))
    assert parser_of("upscale").parse_args(words[2:]).inputs == [Path("-o.png")]


def test_a_request_may_set_all_that_the_command_line_sets(setting_names):
    assert set(setting_names(SamplingConfig)) - set(SAMPLING_FIELDS.values()) == {
        "max_memory"
    }  # the server's own
    for flag in vars(parser_of("upscale").parse_args(["a.jpg"])):
        if flag in SAMPLING_FLAGS.values() and flag != "max_memory":
            assert flag in SAMPLING_FIELDS.values(), flag
    through_quality = {"jpeg_quality", "webp_quality", "webp_lossless", "avif_quality"}
    of_files = {"keep_time", "frames"}  # a response has no time; the limits are those of one picture
    assert {*OUTPUT_FIELDS, *through_quality, *of_files} == set(OutputConfig.model_fields)


def test_the_dial_sets_alpha_and_beta_where_they_are_not_given():
    def strengths(**fields):
        return sampling_of(SamplingConfig(), fields, ServingConfig()).lsa.strengths

    assert strengths(detail="-50") == (0.03, 0.01)
    assert strengths(detail="-50", beta="0.2") == (0.03, 0.2)
    for wrong in ("101", "much", "nan"):
        with pytest.raises(RequestError, match="detail: must be a number"):
            strengths(detail=wrong)


def test_curl_says_the_same():
    line = curl_line("http://localhost/", "a b.jpg", {"upscale": "2", "negative_prompt": "it's", "seed": ""})
    words = shlex.split(line)
    assert words[:3] == ["curl", "-F", "file=@a b.jpg"] and words[-1] == "http://localhost/v1/upscale"
    assert "upscale=2" in words and "negative_prompt=it's" in words and not [w for w in words if "seed" in w]
    # what curl would take for more than a name or a text
    line = curl_line("http://localhost/", 'a;"b,.jpg', {"negative_prompt": "@home;type=x"})
    words = shlex.split(line)
    assert words[2] == r'file=@"a;\"b,.jpg"'
    assert words[3:5] == ["--form-string", "negative_prompt=@home;type=x"]


def test_curl_brings_the_token_that_the_server_asks_for():
    line = curl_line("http://localhost/", "a.jpg", {}, needs_token=True)
    assert line.startswith('curl -H "Authorization: Bearer $CLEARSR_TOKEN" -F file=@a.jpg')


def test_settings_without_a_flag_go_by_their_dotted_names():
    fields = {"lsa.ela_end": "0.5", "spacing": "leading", "tile.overlap": "8", "negative_prompt": "12"}
    sampling = sampling_of(SamplingConfig(), fields, ServingConfig())
    assert (sampling.lsa.ela_end, sampling.spacing, sampling.tile.overlap) == (0.5, "leading", 8)
    assert sampling.negative_prompt == "12"
    with pytest.raises(RequestError, match=r"lsa\.ela_end"):
        sampling_of(SamplingConfig(), {"lsa.ela_end": "2"}, ServingConfig())


def test_memory_is_what_the_server_allows():
    limits = build_config(ServingConfig, {"max_memory": "1.5GB"})
    assert sampling_of(SamplingConfig(), {}, limits).max_memory == 1_500_000_000


def test_a_picture_of_a_few_pixels_teaches_nothing_of_large_ones(tiny_pipeline):
    estimator, config = Estimator(), SamplingConfig(steps=1)
    estimator.measure(tiny_pipeline)
    before = estimator.estimate(10, config).seconds
    for _ in range(30):
        estimator.learn(16e-6, config, 0.5, 0)
    assert estimator.estimate(10, config).seconds == before
    assert estimator.estimate(16e-6, config).seconds == estimator.estimate(0.065, config).seconds > 0
    estimator.learn(10, config, 1000 * before, 0)  # as when the machine slept meanwhile
    assert before < estimator.estimate(10, config).seconds < 3 * before
