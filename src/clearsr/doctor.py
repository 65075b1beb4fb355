"""What an installation has, lacks and has broken: `examine` looks, and loads no network.

A problem keeps `clearsr upscale` from working; what is absent only keeps something optional from it.
Each part is examined on its own, so that a broken package is one finding and not the end of the examination.
"""

import importlib.metadata as metadata
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from packaging.requirements import Requirement

from clearsr.errors import ClearSRError, installing

Status = Literal["ok", "absent", "problem"]
_NOT_SHOWN = ("all", "dev", "docs")  # made of the others, and for developers


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        part: what it belongs to: versions, devices, weights, formats, extras.
        status: `absent` is optional and not there.
        text: what was found.
        remedy: what to do about it, where it is not ok.
        facts: the same in JSON's types, where there is more than the text.
    """

    part: str
    name: str
    status: Status
    text: str
    remedy: str | None = None
    facts: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The finding without what it has not."""
        return {key: value for key, value in self._asdict().items() if value is not None}


def examine() -> list[Finding]:
    """Everything, in the order in which it matters. Never raises for what is wrong with the installation."""
    parts: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": _versions,
        "devices": _devices,
        "weights": _weights,
        "formats": _formats,
        "extras": _extras,
    }
    findings: list[Finding] = []
    for part, look in parts.items():
        try:
            findings += look()
        except Exception as error:  # a broken package raises anything when it is imported
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            remedy = "install ClearSR again in an environment of its own"
            findings.append(Finding(part, part, "problem", f"cannot be examined ({reason})", remedy))
    return findings


def _versions() -> Iterator[Finding]:
    """Python, ClearSR and all that it needs, held against what its metadata asks for."""
    python = platform.python_version()
    wanted = metadata.metadata("clearsr")["Requires-Python"]
    fits = Requirement(f"python{wanted}").specifier.contains(python, prereleases=True)
    remedy = None if fits else f"use Python {wanted}"
    yield Finding(
        "versions", "python", "ok" if fits else "problem", f"{python} on {platform.platform()}", remedy
    )
    import clearsr

    yield Finding("versions", "clearsr", "ok", f"{clearsr.__version__} in {Path(clearsr.__file__).parent}")
    for requirement in _requirements(""):
        found = _installed(requirement)
        if found is not None and _is_satisfied(requirement):
            yield Finding("versions", requirement.name, "ok", found)
        else:
            text = "is missing" if found is None else f"{found} does not satisfy {requirement.specifier}"
            yield Finding("versions", requirement.name, "problem", text, f'pip install "{requirement}"')


def _devices() -> Iterator[Finding]:
    """Processor, memory, accelerators, and what is chosen when nothing is said."""
    import torch

    from clearsr.hardware import check_compiler, choose_device, choose_precision, describe_devices
    from clearsr.pipeline.budget import as_text, available_bytes

    available = available_bytes()
    text = f"{as_text(available)} available"
    yield Finding("devices", "memory", "ok", text, facts={"available_bytes": available})
    limit = os.environ.get("OMP_NUM_THREADS")
    for device in describe_devices():
        text = device.text
        facts: dict[str, Any] = {"bf16": device.has_bf16}
        if device.name == "cpu":
            text += f" (OMP_NUM_THREADS={limit})" if limit else ""
            facts |= {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
        yield Finding("devices", device.name, "ok", text, facts=facts)
    chosen = choose_device("auto")
    precision = str(choose_precision("auto", chosen)).removeprefix("torch.")
    yield Finding("devices", "default", "ok", f"{chosen} in {precision}")
    if chosen.type == "cpu" and torch.version.cuda is None and torch.version.hip is None:
        text = "this torch is built without support for GPUs"
        yield Finding("devices", "gpu", "absent", text, "to use one, see https://pytorch.org/get-started")
    try:
        check_compiler(chosen)
        yield Finding("devices", "--compile", "ok", "a compiler is there")
    except ClearSRError as error:
        reason = str(error).removeprefix("--compile: ")
        yield Finding("devices", "--compile", "absent", reason, "needed for --compile alone")


def _weights() -> Iterator[Finding]:
    """The models in the package: there, unchanged, and fitting their configuration."""
    from clearsr.models.checkpoint import EMBEDDED_MODELS, check_weights, locate
    from clearsr.pipeline.budget import as_text

    for name in EMBEDDED_MODELS:
        try:
            weights = check_weights(locate(name))
        except ClearSRError as error:
            yield Finding("weights", name, "problem", str(error), "install ClearSR again")
            continue
        compared = "as recorded" if weights.is_recorded else "none recorded to compare with"
        text = (
            f"{weights.tensors} tensors fit the configuration, {as_text(weights.bytes)}, "
            f"SHA-256 {weights.sha256[:12]}... {compared}"
        )
        facts = {"sha256": weights.sha256, "bytes": weights.bytes, "folder": str(weights.folder)}
        yield Finding("weights", name, "ok", text, facts=facts)


def _formats() -> Iterator[Finding]:
    """Image formats that depend on how Pillow was built. (HEIC is an extra.)"""
    from PIL import features

    for feature in ("webp", "avif", "jpg_2000"):
        name = {"jpg_2000": "jpeg 2000"}.get(feature, feature)
        if features.check(feature):
            yield Finding("formats", name, "ok", features.version(feature) or "there")
        else:
            text = "this Pillow is built without it"
            yield Finding("formats", name, "absent", text, "pip install --force-reinstall pillow")


def _extras() -> Iterator[Finding]:
    """The extras that the package's metadata declares, and which of their packages are missing."""
    for extra in metadata.metadata("clearsr").get_all("Provides-Extra") or []:
        if extra in _NOT_SHOWN:
            continue
        needed = _requirements(extra)
        missing = [str(requirement) for requirement in needed if not _is_satisfied(requirement)]
        if missing:
            text = f"lacks {', '.join(missing)}"
            yield Finding("extras", extra, "absent", text, installing(extra))
        else:
            text = ", ".join(f"{requirement.name} {_installed(requirement)}" for requirement in needed)
            yield Finding("extras", extra, "ok", text)


def _requirements(extra: str) -> list[Requirement]:
    """What the package needs on this system for itself ("") or, beyond that, for an extra."""
    found = []
    for line in metadata.requires("clearsr") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        in_core = marker is None or marker.evaluate({"extra": ""})
        if in_core if not extra else not in_core and marker is not None and marker.evaluate({"extra": extra}):
            requirement.marker = None
            found.append(requirement)
    return found


def _installed(requirement: Requirement) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None


def _is_satisfied(requirement: Requirement) -> bool:
    """Whether the package is installed in a version that is accepted."""
    found = _installed(requirement)
    return found is not None and requirement.specifier.contains(found, prereleases=True)
