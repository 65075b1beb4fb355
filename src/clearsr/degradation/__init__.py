"""LR images made from HR ones: the second-order model of Real-ESRGAN, and mixtures of its named sets."""

from clearsr.config.degradation import DegradationConfig, DegradationMix, preset_config
from clearsr.degradation.degrade import (
    TrainingPair,
    crop_to_multiple,
    degrade,
    degrade_batch,
    degrade_mixed,
    degrade_pair,
)

__all__ = [
    "DegradationConfig",
    "DegradationMix",
    "TrainingPair",
    "crop_to_multiple",
    "degrade",
    "degrade_batch",
    "degrade_mixed",
    "degrade_pair",
    "preset_config",
]
