"""LR images made from HR ones: the second-order model of Real-ESRGAN, and mixtures of its named sets."""

from clearsr.config.degradation import DegradationConfig, DegradationMix, preset_config
from clearsr.degradation.pipeline import crop_to_multiple, degrade, degrade_batch, degrade_mixed

__all__ = [
    "DegradationConfig",
    "DegradationMix",
    "crop_to_multiple",
    "degrade",
    "degrade_batch",
    "degrade_mixed",
    "preset_config",
]
