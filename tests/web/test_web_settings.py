"""The dial from fidelity to detail, names of files, and estimates."""

import pytest

from clearsr.config.sampling import LSA_PRESETS, SamplingConfig
from clearsr.config.serving import ServingConfig
from clearsr.web.api import safe_name
from clearsr.web.estimate import Estimator
from clearsr.web.settings import command_line, detail_of, sampling_of, strengths_of


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
    assert all(0 <= value <= 0.05 for pair in strengths for value in pair)
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
    estimator = Estimator.measured(tiny_pipeline)
    small, large, long = (estimator.estimate(*case).seconds for case in ((1, 1), (10, 1), (10, 20)))
    assert 0 < small < large <= long
    for _ in range(30):
        estimator.learn(10, 20, 100.0, 0)
    assert estimator.estimate(10, 20).seconds == pytest.approx(100, rel=0.05)


def test_the_command_line_names_what_was_changed():
    base = SamplingConfig(steps=3)
    fields = {"alpha": 0.03, "beta": 0.01, "color": "adain", "guidance_scale": 2.5, "tile": 96}
    line = command_line("a b.png", sampling_of(base, fields, ServingConfig()), base)
    changed = "--alpha 0.03 --beta 0.01 --guidance-scale 2.5 --color adain --tile 96"
    assert line == f'clearsr upscale "a b.png" --upscale 4 --seed 0 {changed}'
