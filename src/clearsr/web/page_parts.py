"""What the page's actions work with: its components, uploaded files, results, and lines about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from clearsr.config.output import OutputConfig
from clearsr.web.errors import RequestError
from clearsr.web.fields import QUALITY_FIELDS, output_of
from clearsr.web.jobs import Progress
from clearsr.web.look import note, progress, warning
from clearsr.web.own_files import lies_below
from clearsr.web.upscaler import can_hold


class Picked(NamedTuple):
    """An uploaded file.

    Attributes:
        path: where Gradio put it.
        name: as the user's machine calls it.
    """

    path: str
    name: str


def picked(payload: Any, root: Path) -> list[Picked]:
    """The files in what Gradio's file component sends: a file, a list of files, or nothing.

    Raises:
        RequestError: 403, a file is not below `root`, where uploads go.
    """
    files = payload if isinstance(payload, list) else [payload] if payload else []
    for file in files:
        if not lies_below(file["path"], root):
            raise RequestError(403, "not_an_upload", "only files that were uploaded can be upscaled")
    return [Picked(file["path"], file.get("orig_name") or "") for file in files]


@dataclass(frozen=True)
class Page:
    """The page's components."""

    pictures: Any
    detail: Any
    upscale: Any
    steps: Any
    seed: Any
    alpha: Any
    beta: Any
    scheduler: Any
    start: Any
    start_timestep: Any
    noise_scale: Any
    guidance_scale: Any
    negative_prompt: Any
    color: Any
    gray: Any
    tile: Any
    bit_depth: Any
    keep_metadata: Any
    copy_format: Any
    copy_quality: Any
    status: Any
    slider: Any
    png: Any
    copy: Any
    summary: Any
    gallery: Any
    done: Any
    compare: Any
    sheet: Any
    estimate: Any
    run: Any
    cancel: Any

    def inputs(self) -> set[Any]:
        """What a run reads: as a set, so that its function gets a mapping."""
        return set(self.named_inputs().values())

    def outputs(self) -> list[Any]:
        """What a run changes."""
        return [
            self.status, self.slider, self.png, self.copy, self.summary, self.gallery, self.done, self.run,
            self.cancel,
        ]  # fmt: skip

    def named_inputs(self) -> dict[str, Any]:
        """Field -> component, of what a run reads."""
        names = [field.name for field in fields(self)]
        return {name: getattr(self, name) for name in names[: names.index("status")]}


class Finished(NamedTuple):
    """A result.

    Attributes:
        before: a file with the input enlarged, to compare with.
        result: the file; on the page a PNG.
        copy: the same in another format, if it was asked for and can hold it.
        caption: what was done.
        command: the command line that does it.
        warnings: what the result does not have as the picture had it, a line each.
    """

    before: str
    result: str
    copy: str | None
    caption: str
    command: str
    warnings: tuple[str, ...] = ()


def told(step: Progress, place: str, seconds: float) -> str:
    """A line about a job with its bar."""
    if step.steps == 0:
        return progress(0, 1, f"{place}{step.note or 'waiting'}")
    return progress(
        step.done,
        step.steps,
        f"{place}{step.note} · step {step.done} of {step.steps} · about {duration(seconds)} in all",
    )


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"


def memory(gigabytes: float) -> str:
    return f"about {gigabytes:.1f} GB of memory" if gigabytes >= 0.1 else "under 0.1 GB of memory"


def copy_of_run(
    given: Mapping[str, Any], stem: Path, size: tuple[int, int]
) -> tuple[Path | None, OutputConfig]:
    """The file of the second download, if one is wanted and can hold that size, and how it is written."""
    name = given.get("copy_format")
    if not name:
        return None, OutputConfig()
    quality = given["copy_quality"] if name in QUALITY_FIELDS else None
    suffix, output = output_of({**given, "format": name, "quality": quality})
    path = Path(f"{stem}{suffix}")
    return path if can_hold(path, size) else None, output


def outcome(finished: int, count: int, failures: Sequence[RequestError]) -> str:
    """What became of a run over `count` pictures."""
    lines = [note(f"Done: {finished} of {count}." if count > 1 else "Done.")] if finished else []
    for error in failures:
        lines.append(note("Cancelled.") if error.code == "cancelled" else warning(str(error)))
    return "".join(lines)
