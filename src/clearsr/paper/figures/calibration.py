"""The paper's rule for the split points of Latent Space Adjustment (section 3.3, Figure 5a).

"We statistically select the highest point of the NIQE curve and the point where NIQE starts to fall below the
HR image to split the inference stage into three parts": structure refinement (ELA), content generation,
detail enhancement (LLA). The curves are means over a folder of images, sampled without LSA.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clearsr.errors import ClearSRError

MINIMUM_STEPS = 4  # three parts, and a step that shows where one ends
DEFAULT_STEPS = 20  # for a model whose own number of steps is less than that


@dataclass(frozen=True)
class SplitPoints:
    """What the rule finds on one NIQE curve. Steps count from 1.

    Attributes:
        steps: length of the curve.
        peak: the step with the highest NIQE, the first of equals.
        below: the first step after it with NIQE below the HR images'; None if there is none.
        ela_end: share of the steps that ELA acts on; None if the curve has no peak before its end.
        lla_start: share of the steps after which LLA acts; None if `below` is.
    """

    steps: int
    peak: int
    below: int | None
    ela_end: float | None
    lla_start: float | None

    @property
    def settings(self) -> dict[str, float]:
        """The fields of `LSAConfig` that were found."""
        found = {"ela_end": self.ela_end, "lla_start": self.lla_start}
        return {name: value for name, value in found.items() if value is not None}

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "steps": self.steps,
            "peak_step": self.peak,
            "below_hr_step": self.below,
            "ela_end": self.ela_end,
            "lla_start": self.lla_start,
        }


def split_points(niqe: Sequence[float], hr_niqe: float) -> SplitPoints:
    """The rule on a mean NIQE curve, one value per step, and the HR images' mean.

    ELA acts up to and including the step of the peak, LLA from the step on whose picture is below HR.

    Raises:
        ClearSRError: the curve is too short, or NIQE is not defined.
    """
    steps = len(niqe)
    require_steps(steps)
    if not all(map(math.isfinite, (*niqe, hr_niqe))):
        raise ClearSRError(
            "calibrate: NIQE is not defined on these images; give some of at least 96x96 pixels"
        )
    peak = max(range(steps), key=lambda step: niqe[step]) + 1  # max takes the first of equals
    below = next((step + 1 for step in range(peak, steps) if niqe[step] < hr_niqe), None)
    ela_end = peak / steps if peak < steps else None
    lla_start = None if below is None else (below - 1) / steps
    return SplitPoints(steps, peak, below, ela_end, lla_start)


def require_steps(steps: int) -> None:
    """Refuse a run that is too short to have three parts.

    Raises:
        ClearSRError: says how many steps are needed.
    """
    if steps < MINIMUM_STEPS:
        raise ClearSRError(
            f"--steps {steps}: too few to split a run into three parts; give {MINIMUM_STEPS} or more, "
            f"such as {DEFAULT_STEPS}"
        )
