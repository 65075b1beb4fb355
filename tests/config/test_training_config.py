"""Settings of training that contradict each other are refused."""

import pytest

from clearsr.config.base import build_config, merge
from clearsr.config.training import TrainConfig
from clearsr.errors import ClearSRError

BASE = {"stage": "clearsr", "output": "run", "data": {"train": ["photographs"]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"train": []}}, "data.train"),
        ({"data": {"crop_size": 510}}, "crop_size must be a multiple of upscale, 4"),
        ({"batch_size": 8, "accumulation": 3}, "batch_size must be a multiple of accumulation, 3"),
        ({"precision": "bf16", "frozen_precision": "fp16"}, "the same as precision, bf16"),
        (
            {"model": {"preset": "compact"}, "precision": "bf16", "frozen_precision": "bf16"},
            "needs a frozen base",
        ),
        ({"model": {"preset": "compact"}, "loss": {"min_snr_gamma": 5}}, "min_snr_gamma needs"),
        ({"stage": "prior"}, "model.base_model must be null"),
        ({"stage": "prior", "model": {"preset": "compact"}}, "prediction must be epsilon or v_prediction"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "optimizer.betas"),
        ({"stage": "unet"}, "stage"),
        ({"optimzer": {}}, "did you mean optimizer"),
    ],
)
def test_contradictions_are_named(changes, message):
    with pytest.raises(ClearSRError, match=message):
        build_config(TrainConfig, merge(BASE, changes))


def test_every_field_says_what_it_is():
    def undescribed(schema, prefix=""):
        for name, field in schema.model_fields.items():
            nested = getattr(field.annotation, "model_fields", None)
            if nested:
                yield from undescribed(field.annotation, f"{prefix}{name}.")
            elif not field.description:
                yield prefix + name

    assert list(undescribed(TrainConfig)) == []
