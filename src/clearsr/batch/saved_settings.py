"""The settings that a manifest's pictures were made with, saved beside it: another run must have the same."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clearsr import __version__
from clearsr.atomic import written_aside
from clearsr.config.batch import WorkConfig
from clearsr.config.parsing import parse_json
from clearsr.errors import ClearSRError, display_name
from clearsr.models.checkpoint import CONFIG_NAME, WEIGHTS_NAME, locate, sha256_of

# Of the pipeline's options, those that a result depends on by more than rounding.
_OPTIONS = ("precision", "base_model")


class Settings(NamedTuple):
    """What is saved beside a manifest.

    Attributes:
        values: what the results depend on, nested.
        since: outputs written after this moment, in seconds since 1970, are of this manifest's runs.
    """

    values: dict[str, Any]
    since: float


def settings_path(manifest: Path) -> Path:
    """The file beside a manifest."""
    return manifest.with_suffix(".settings.json")


def settings_of(work: WorkConfig) -> dict[str, Any]:
    """All that a result depends on beside the picture, in JSON's types.

    Raises:
        ClearSRError: there is no such model.
    """
    folder = locate(work.model)
    return {
        "model": {name: sha256_of(folder / name) for name in (CONFIG_NAME, WEIGHTS_NAME)},
        **{name: work.pipeline.get(name) for name in _OPTIONS},
        "sampling": work.sampling.model_dump(mode="json"),
        "output": work.output.model_dump(mode="json"),
        "suffix": work.suffix,
    }


def find_settings(manifest: Path, work: WorkConfig, start_anew: bool) -> Settings:
    """The settings of a manifest that goes on, or those of a new one, which are still to be saved.

    Args:
        start_anew: forget what was there; every output may then be replaced.

    Raises:
        ClearSRError: the manifest was begun with other settings, or they are lost.
    """
    values = settings_of(work)
    if start_anew:
        return Settings(values, 0.0)
    if not manifest.exists() or manifest.stat().st_size == 0:
        return Settings(values, time.time())
    saved = _read(settings_path(manifest))
    if changes := _changes(saved.values, values):
        raise ClearSRError(
            f"{display_name(manifest)}: was begun with other settings ({'; '.join(changes)}); repeat those, "
            "choose another -o or --manifest, or do all again with --overwrite"
        )
    return saved


def save_settings(manifest: Path, settings: Settings) -> None:
    """Write the settings beside the manifest.

    Raises:
        ClearSRError: they cannot be written.
    """
    path = settings_path(manifest)
    document = {"clearsr": __version__, "since": settings.since, **settings.values}
    try:
        with written_aside(path) as aside:
            aside.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ClearSRError(f"{display_name(path)}: cannot be written: {error.strerror}") from None


def _read(path: Path) -> Settings:
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        del values["clearsr"]
        return Settings(values, float(values.pop("since")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClearSRError(
            f"{display_name(path)}: cannot be read, and says what the manifest beside it was made with "
            f"({error}); restore it, name another --manifest, or do all again with --overwrite"
        ) from None


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs, by dotted name."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _changes(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {_short(old)}, is {_short(new)}")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}...{text[-2:]}"
