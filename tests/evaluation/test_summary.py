"""The table that `clearsr evaluate` prints, and the medians in it."""

import math

import numpy as np

from clearsr.config.evaluation import EvaluationConfig
from clearsr.evaluation.evaluate import Evaluation, Row
from clearsr.evaluation.results import as_document
from clearsr.evaluation.table import summary_table

GENERATOR = np.random.default_rng(0)


def an_evaluation(values, name="sharpness", method="m"):
    """Values by seed and picture."""
    rows = [
        Row(str(image), seed, {name: value})
        for seed, of_seed in enumerate(values)
        for image, value in enumerate(of_seed)
    ]
    return Evaluation(method, (name, "fid"), EvaluationConfig(measures=(name,)), rows=rows)


def test_the_median_is_that_of_the_pictures_each_the_mean_over_its_seeds():
    values = GENERATOR.normal(1, 0.3, (3, 8))
    values[:, 2] = 50
    found = an_evaluation(values).medians()
    np.testing.assert_allclose(found["sharpness"], np.median(values.mean(axis=0)))
    assert math.isnan(found["fid"])  # of folders: it has no value for each picture


def test_what_is_not_defined_is_left_out_of_the_median():
    assert an_evaluation([[1.0, math.nan, 3.0, 100.0]]).medians()["sharpness"] == 3


def test_the_table_has_a_row_of_medians_that_is_ranked_with_nothing():
    """The second method has the better median and the worse mean."""
    evaluations = [an_evaluation([[0.9, 0.9, 0.9]], method="a"), an_evaluation([[1.0, 1.0, 9.0]], method="b")]
    table = summary_table(evaluations, 3, EvaluationConfig())
    cells = {row.cells[0]: (row.values["sharpness"], row.group) for row in table.rows}
    assert cells["a, median"] == (0.9, None) and cells["b, median"] == (1.0, None)
    assert cells["b"][0] > 3 and cells["b"][1] is not None
    assert any("median" in note for note in table.notes)


def test_of_two_pictures_there_is_no_such_row():
    table = summary_table([an_evaluation([[0.9, 1.1]])], 2, EvaluationConfig())
    assert [row.cells[0] for row in table.rows] == ["m"]


def test_the_document_has_medians():
    class NoScorer:
        config, names, missing, versions = EvaluationConfig(), ["sharpness"], {}, {}

    assert as_document([an_evaluation([[1.0, 2.0, 9.0]])], NoScorer())["median"]["sharpness"] == 2
