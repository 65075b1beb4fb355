"""ClearSR: real-world image super-resolution that stays true to the photograph.

The public names are loaded when they are first used, so `import clearsr` itself costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clearsr.config.output import OutputConfig
    from clearsr.config.sampling import LSAConfig, SamplingConfig, SizeConfig, TileConfig
    from clearsr.errors import ClearSRError
    from clearsr.pipeline import upscale
    from clearsr.pipeline.pipeline import ClearSRPipeline

    __version__: str

__all__ = [
    "ClearSRError",
    "ClearSRPipeline",
    "LSAConfig",
    "OutputConfig",
    "SamplingConfig",
    "SizeConfig",
    "TileConfig",
    "__version__",
    "upscale",
]

_MODULES = {
    "ClearSRError": "clearsr.errors",
    "ClearSRPipeline": "clearsr.pipeline.pipeline",
    "LSAConfig": "clearsr.config.sampling",
    "OutputConfig": "clearsr.config.output",
    "SamplingConfig": "clearsr.config.sampling",
    "SizeConfig": "clearsr.config.sampling",
    "TileConfig": "clearsr.config.sampling",
    "upscale": "clearsr.pipeline",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("clearsr")
    elif name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
