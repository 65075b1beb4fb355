"""The course of sampling is the pipeline's own, and its curves are means."""

import math

import pytest
import torch

from clearsr.config.evaluation import EvaluationConfig
from clearsr.evaluation.measures import Scorer
from clearsr.evaluation.metrics import psnr
from clearsr.paper.figures.figure_5_trajectory import Course, TrajectoryStudy, study_trajectory
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.seeds import file_seed


@pytest.mark.parametrize("model", [{}, {"painter": {"blocks": 1}}], ids=["alone", "with a painter"])
def test_the_last_picture_is_the_pipelines_result(model, make_network, make_pair, sampling):
    pipeline = ClearSRPipeline(make_network(**model), sampling, device="cpu", precision="fp32")
    pair, scorer = make_pair(), Scorer(EvaluationConfig(measures=("psnr", "niqe")))
    study = study_trajectory(pipeline, [pair, make_pair(seed=1)], sampling, scorer, kept=1)
    seeded = sampling.model_copy(update={"seed": file_seed(0, "picture0")})
    result = pipeline.upscale([pair.lr], seeded)[0].color.clamp(0, 1).mul(255).round() / 255
    first, second = study.courses
    assert len(first.pictures) == 4 and not second.pictures
    torch.testing.assert_close(first.pictures[-1], result)
    assert first.values["psnr"][-1] == pytest.approx(psnr(result, pair.hr).item())
    assert study.timesteps == [999, 666, 333, 0]
    assert first.lr.shape == pair.hr.shape


def course(name, niqe, of_hr=3.0):
    blank = torch.zeros(3, 1, 1)
    return Course(name, {"niqe": niqe}, {"niqe": of_hr}, [], blank, blank)


def test_means_leave_out_images_without_a_value(sampling):
    courses = [course("a", [1.0, 3.0]), course("b", [3.0, 5.0], 5.0), course("c", [9.0, math.nan])]
    study = TrajectoryStudy([1, 0], sampling, courses)
    assert study.mean("niqe") == [2, 4]
    assert study.of_hr("niqe") == 4
    assert study.error("niqe") == pytest.approx([0, 0])  # both rise by two, from different levels
    bent = TrajectoryStudy([1, 0], sampling, [course("a", [1.0, 3.0]), course("b", [3.0, 9.0])])
    assert bent.error("niqe") == pytest.approx([1, 1])  # deviations of 1 and 3 about their means, N = 2
    assert TrajectoryStudy([1, 0], sampling, courses[:1]).error("niqe") == [0, 0]
    nowhere = TrajectoryStudy([1, 0], sampling, courses[2:])
    assert nowhere.mean("niqe") == [] and math.isnan(nowhere.of_hr("niqe"))
