"""Images of any size through a network: the steps, how much is done at once, and where it lies meanwhile.

`upscale` is all of it in one call; `pipeline.py` has the pipeline.
"""

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from clearsr.pipeline.pipeline import ClearSRPipeline


def upscale(
    array: "np.ndarray",
    factor: float | None = None,
    *,
    model: str = "compact",
    device: str = "auto",
    **settings: Any,
) -> "np.ndarray":
    """An image upscaled: H×W, or H×W×C with grey, grey and alpha, RGB or RGBA; the dtype stays.

    The model is loaded by the first call and kept.

    Args:
        array: uint8, uint16, or floats in [0, 1].
        factor: unset: 4, unless the settings say a size.
        settings: fields of `SamplingConfig`, such as `seed=1`, `size={"width": 1920}` or
            `lsa={"preset": "fidelity"}`.

    Raises:
        ClearSRError: the array is no such image, or a setting cannot be used.
    """
    from clearsr.image.modes import from_array, to_array

    pipeline = _loaded(model, device)
    image = from_array(array, "upscale")
    if factor is not None or "size" not in settings:
        settings["upscale"] = 4 if factor is None else factor
    (larger,) = pipeline.upscale([image], pipeline.configure(**settings))
    return to_array(larger, like=array)


@functools.lru_cache(maxsize=1)
def _loaded(model: str, device: str) -> "ClearSRPipeline":
    from clearsr.pipeline.pipeline import ClearSRPipeline

    return ClearSRPipeline.from_pretrained(model, device=device)
