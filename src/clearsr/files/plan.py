"""Which picture becomes which file, decided and checked before any work.

The rules lose nothing and hold for a second run of the same command: no two inputs share an output, no output
is an input, and results of an earlier run are not taken for inputs. `plan_jobs` has all names in memory, and
can tell apart what would meet; `plan_folders`, for a million pictures and for URLs, has those of one folder.
"""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from clearsr.config.output import suffix_for
from clearsr.config.sampling import WISHES, SamplingConfig
from clearsr.errors import ClearSRError, display_name
from clearsr.files.storage import (
    contains,
    hash_of,
    join,
    kind_of,
    list_folder,
    normalise,
    real_location,
    shown,
    split,
)
from clearsr.files.upscale import Job
from clearsr.image import IMAGE_SUFFIXES, ListedImage, list_images, output_suffixes
from clearsr.image.listing import Listing, no_images_in, once_each, tell_of_others, walk

logger = logging.getLogger(__name__)

COMPARISON_MARK = "_comparison"
# What marks the results of a size: `_width1920`, `_2.5mp`, `_fit1920x1080`.
_SIZE_MARKS = {name: f"_{name.removesuffix('_side')}{{}}" for name in WISHES} | {"megapixels": "_{:.10g}mp"}
# A file name that an earlier run gave, without suffix.
_MARKED = re.compile(
    r"(?P<origin>.+)_(x\d+(\.\d+)?|(width|height|longest|shortest)\d+|\d+(\.\d+)?mp|fit\d+x\d+)"
    rf"({COMPARISON_MARK})?",
    re.DOTALL,
)


def mark_of(sampling: SamplingConfig) -> str:
    """What marks a result beside its input: `_x4`, `_x2.5`, or its size, such as `_width1920`."""
    if (wish := sampling.size.wish) is not None:
        return _SIZE_MARKS[wish].format(getattr(sampling.size, wish))
    return f"_x{sampling.upscale:.10g}"


def plan_jobs(
    inputs: Sequence[Path],
    output: Path | None,
    suffix: str = ".png",
    mark: str = "_x4",
    results: Sequence[Path] = (),
    listed: list[ListedImage] | None = None,
) -> list[Job]:
    """One job per picture, each with an output of its own.

    With an output folder, the folders below a named folder are mirrored: `OUT/<folder>/<stem><suffix>`.
    Inputs that would meet in one name are told apart by the folders that they come from, and within one
    folder by keeping their whole name (`a.jpg.png`, `a.png.png`). Those in the output folder are no inputs.
    Without one, results lie beside their inputs as `<stem><mark><suffix>`, and earlier ones are no inputs.

    Args:
        inputs: files and folders.
        output: a folder, which need not exist; or, for one input file, the name of a file; or None.
        suffix: of the files to write, with its dot, or `config.output.SAME`.
        mark: comes between stem and suffix where results lie beside their inputs.
        results: further folders of results, which are no inputs.
        listed: what `list_images(inputs)` gave, if it was asked already.

    Raises:
        ClearSRError: an input is missing or unreadable, or an output is impossible or one of the inputs.
    """
    listed = list_images(inputs) if listed is None else listed
    if output is not None and names_file(output):
        if len(inputs) > 1 or os.path.isdir(inputs[0]):
            what = f"there are {len(inputs)} inputs" if len(inputs) > 1 else "the input is a folder"
            raise ClearSRError(f"-o {display_name(output)}: names one file, but {what}; give a folder")
        jobs = [_job(listed[0], output)]
    else:
        if output is not None and any(_same_folder(output, given) for given in inputs):
            raise ClearSRError(
                f"-o {display_name(output)}: is also an input; choose another folder, "
                "or leave -o out to have results beside their inputs"
            )
        kept = _without_results(listed, inputs, output, results)
        outputs = _beside(kept, suffix, mark) if output is None else _mirrored(kept, output, suffix)
        jobs = [_job(item, path) for item, path in zip(kept, outputs, strict=True)]
    if not jobs:
        raise ClearSRError(f"{display_name(inputs[0])}: holds no images but results of earlier runs")
    _check_outputs(jobs, None if output is None or names_file(output) else output)
    return jobs


def _job(item: ListedImage, output: Path) -> Job:
    return Job(str(item.file), item.relative.as_posix(), str(output))


def names_file(output: Path) -> bool:
    """Whether an output names one image file, by its suffix, and not a folder."""
    return output.suffix.lower() in IMAGE_SUFFIXES | set(output_suffixes()) and not os.path.isdir(output)


def _without_results(
    listed: list[ListedImage], inputs: Sequence[Path], output: Path | None, results: Sequence[Path]
) -> list[ListedImage]:
    """The inputs, less what an earlier run of the same command wrote among them."""
    named = {os.path.abspath(path) for path in inputs if not path.is_dir()}
    if output is None:
        names = {(item.file.parent, name) for item in listed for name in (item.file.stem, item.file.name)}
        marks = [_MARKED.fullmatch(item.file.stem) for item in listed]
        stays = [
            not m or (i.file.parent, m["origin"]) not in names for i, m in zip(listed, marks, strict=True)
        ]
    else:
        folders = [output, *results]
        stays = [
            os.path.abspath(item.file) in named or not any(_lies_in(item, folder) for folder in folders)
            for item in listed
        ]
    if not all(stays):
        example = listed[stays.index(False)].file
        count = stays.count(False)
        logger.warning(
            "%s left out as results of an earlier run (%s)",
            "1 file is" if count == 1 else f"{count} files are",
            display_name(example),
        )
    return [item for item, stay in zip(listed, stays, strict=True) if stay]


def _same_folder(output: Path, given: Path) -> bool:
    return given.is_dir() and os.path.realpath(output) == os.path.realpath(given)


def _lies_in(item: ListedImage, output: Path) -> bool:
    """Whether a file was found in the output folder, which lies inside the folder that was named."""
    root = Path(os.path.realpath(item.file.parents[len(item.relative.parts) - 1]))
    target = Path(os.path.realpath(output))
    return root in target.parents and target in Path(os.path.realpath(item.file)).parents


def _beside(listed: list[ListedImage], suffix: str, mark: str) -> list[Path]:
    """Outputs next to their inputs."""
    outputs = [
        item.file.with_name(f"{item.file.stem}{mark}{suffix_for(item.file.name, suffix)}") for item in listed
    ]
    return _told_apart(listed, outputs, mark, suffix)


def _mirrored(listed: list[ListedImage], folder: Path, suffix: str) -> list[Path]:
    """Outputs below `folder`, in folders as the inputs are in theirs."""
    outputs = [
        folder / item.relative.parent / f"{item.file.stem}{suffix_for(item.file.name, suffix)}"
        for item in listed
    ]
    places = [Path(os.path.abspath(item.file.parent)) for item in listed]
    for group in _meeting(outputs):
        common = os.path.commonpath([places[i] for i in group])
        if len({places[i] for i in group}) > 1:
            for i in group:
                outputs[i] = folder / places[i].relative_to(common) / outputs[i].name
    return _told_apart(listed, outputs, "", suffix)


def _told_apart(listed: list[ListedImage], outputs: list[Path], mark: str, suffix: str) -> list[Path]:
    """Outputs of one name replaced by names that hold the input's own suffix."""
    folders = defaultdict(list)
    for index, path in enumerate(outputs):
        folders[os.path.abspath(path.parent)].append(index)
    for group in folders.values():
        names = output_names([listed[i].file.name for i in group], suffix, outputs[group[0]].parent, mark)
        for i, name in zip(group, names, strict=True):
            outputs[i] = outputs[i].with_name(name)
    return outputs


def output_names(names: Sequence[str], suffix: str, folder: Path | str = "", mark: str = "") -> list[str]:
    """What the files of one folder become: `<stem><mark><suffix>`, or with the whole name where stems meet.

    Args:
        suffix: with its dot, or `SAME`.
        folder: for messages.

    Raises:
        ClearSRError: two would become one even so.
    """
    # Not pathlib, which keeps every name that it has seen: there may be millions.
    stems = (name[:dot] if 0 < (dot := name.rfind(".")) < len(name) - 1 else name for name in names)
    ends = [f"{mark}{suffix_for(name, suffix)}" for name in names]
    results = [f"{stem}{end}" for stem, end in zip(stems, ends, strict=True)]
    while len(count := Counter(results)) < len(results):  # again: a whole name may be another's (x.png.png)
        before = results
        results = [
            f"{name}{end}" if count[result] > 1 else result
            for name, end, result in zip(names, ends, results, strict=True)
        ]
        if results == before:
            break
    if len(set(results)) < len(results):
        double = next(result for result, number in Counter(results).items() if number > 1)
        a, b, *_ = (name for name, result in zip(names, results, strict=True) if result == double)
        raise ClearSRError(f"{a!r} and {b!r} would both become {double!r} in {folder}; upscale one at a time")
    return results


def _meeting(outputs: list[Path]) -> list[list[int]]:
    """Indices of outputs that share a name, group by group."""
    groups = defaultdict(list)
    for index, path in enumerate(outputs):
        groups[os.path.abspath(path)].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _check_outputs(jobs: Sequence[Job], folder: Path | None) -> None:
    """Refuse outputs that are inputs, of no known format, or in places that cannot be written."""
    inputs = {os.path.realpath(job.input) for job in jobs}
    checked: set[Path] = set() if folder is None else {folder}
    if folder is not None:
        _check_folder(folder)
    for output in (Path(job.output) for job in jobs):
        name = display_name(output)
        if os.path.realpath(output) in inputs:
            raise _is_an_input(name)
        if output.suffix.lower() not in output_suffixes(are_frames=True):
            raise ClearSRError(f"{name}: accepted for output: {', '.join(output_suffixes())}")
        if os.path.isdir(output):  # of a name that is too long pathlib would raise; writing says so
            raise ClearSRError(f"{name}: is a folder; it is to become a picture")
        if output.parent not in checked:
            checked.add(output.parent)
            _check_folder(output.parent)


def _is_an_input(name: str) -> ClearSRError:
    return ClearSRError(f"{name}: is also an input, which would be lost; choose another -o")


def _check_folder(folder: Path) -> None:
    """The folder can be written to, or made."""
    name = f"-o {display_name(folder)}"
    try:
        standing = next(path for path in (folder, *folder.parents) if path.exists())
        is_folder = standing.is_dir()
    except (OSError, ValueError) as error:
        raise ClearSRError(f"{name}: cannot be written: {getattr(error, 'strerror', error)}") from None
    if not is_folder:
        raise ClearSRError(f"{name}: {display_name(standing)} is a file; expected a folder")
    if not os.access(standing, os.W_OK | os.X_OK):
        raise ClearSRError(f"{name}: no permission to write in {display_name(standing)}")


def plan_folders(inputs: Sequence[str], output: str, suffix: str) -> Iterator[tuple[str, list[Job]]]:
    """Folder by folder of the inputs, where its results go and its jobs; outputs are as `plan_jobs` has them.

    Args:
        inputs: files, folders and URLs of either.
        output: a folder or its URL; folders below a named folder are mirrored in it.
        suffix: of the files to write, with its dot, or `config.output.SAME`.

    Raises:
        ClearSRError: an input is missing or unreadable, two would become one file, or an input would be lost.
    """
    output = normalise(output)
    folders, files = _sort_inputs([normalise(given) for given in inputs], output)
    at_risk = _inputs_below(real_location(output), files)
    seen = _Seen() if len(folders) + len(files) > 1 else None
    count, others = 0, Counter[str]()
    for folder, relative, listing in _listings(folders, files, real_location(output)):
        others.update(listing.others)
        target = join(output, *relative)
        jobs = []
        names = listing.images
        for name, result in zip(names, output_names(names, suffix, folder), strict=True):
            place, version = "/".join((*relative, name)), listing.versions.get(name, "")
            job = Job(join(folder, name), place, join(target, result), version)
            if at_risk and real_location(job.output) in at_risk:
                raise _is_an_input(shown(job.output))
            if seen is None or seen.is_new(job):
                jobs.append(job)
        count += len(jobs)
        yield target, jobs
    if not count:
        raise no_images_in(shown(inputs[0]), others)
    tell_of_others(others)


class _Seen:
    """Inputs and outputs so far, as hashes of 8 bytes; needed where several inputs are named."""

    def __init__(self) -> None:
        self._inputs: set[int] = set()
        self._outputs: set[int] = set()

    def is_new(self, job: Job) -> bool:
        """Whether the input was not there yet.

        Raises:
            ClearSRError: another input has the same output.
        """
        input, output = hash_of(real_location(job.input)), hash_of(job.output)
        if input in self._inputs:
            return False
        if output in self._outputs:
            raise ClearSRError(
                f"{shown(job.input)}: would become {shown(job.output)}, as would another input; "
                "go through them in two runs with an -o of their own"
            )
        self._inputs.add(input)
        self._outputs.add(output)
        return True


def _sort_inputs(inputs: Sequence[str], output: str) -> tuple[list[str], dict[str, list[str]]]:
    """The folders among the inputs, and the names of the files by the folder that they are in."""
    folders = []
    files: dict[str, set[str]] = {}
    for given in inputs:
        kind = kind_of(given)
        if kind is None:
            raise ClearSRError(f"{shown(given)}: does not exist; expected an image file or a folder")
        if kind == "file":
            folder, name = split(given)
            files.setdefault(folder, set()).add(name)
            continue
        if contains(real_location(output), real_location(given)):
            raise ClearSRError(
                f"-o {shown(output)}: is or holds the input {shown(given)}; choose one beside or below it"
            )
        folders.append(given)
    return folders, {folder: sorted(names) for folder, names in files.items()}


def _inputs_below(real_output: str, files: dict[str, list[str]]) -> set[str]:
    """Files that were named and lie where results go."""
    real = (real_location(join(folder, name)) for folder, names in files.items() for name in names)
    return {path for path in real if contains(real_output, path)}


def _listings(
    folders: Sequence[str], files: dict[str, list[str]], real_output: str
) -> Iterator[tuple[str, tuple[str, ...], Listing]]:
    """What the inputs stand for, folder by folder as `walk` gives it; no results, and each folder once."""
    is_new = once_each(real_location)
    for root in folders:
        yield from walk(
            root, lambda f: not contains(real_output, real_location(f)) and is_new(f), list_folder, join
        )
    for folder, names in files.items():
        yield folder, (), Listing(names, [], {}, Counter())
