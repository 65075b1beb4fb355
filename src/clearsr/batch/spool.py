"""Which picture becomes which file, decided folder by folder, so that a million take little memory.

In memory are the names of one folder at a time; what is to be done goes to a temporary file. The rules are
those of `clearsr upscale -o FOLDER`: no two inputs share an output, no output is an input, and results of
an earlier run are no inputs.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from clearsr.atomic import remove_unfinished
from clearsr.batch.manifest import Manifest, Row, hash_of
from clearsr.batch.worker import Item
from clearsr.config.batch import BatchConfig
from clearsr.errors import ClearSRError
from clearsr.files.plan import output_names
from clearsr.files.storage import (
    Listing,
    changed_at,
    contains,
    is_url,
    join,
    kind_of,
    list_folder,
    names_in,
    normalise,
    real_location,
    shown,
    split,
    version_of,
)
from clearsr.image import IMAGE_SUFFIXES


class Spool:
    """Items in a temporary file, written once and read as often as need be."""

    def __init__(self) -> None:
        file = tempfile.TemporaryFile("w+", encoding="ascii", prefix="clearsr-plan-")  # noqa: SIM115
        self._file = file  # gone with this object
        self.count = 0

    def add(self, item: Item) -> None:
        """Append one."""
        self._file.write(json.dumps(item) + "\n")
        self.count += 1

    def __iter__(self) -> Iterator[Item]:
        self._file.seek(0)
        for line in self._file:
            yield Item(*json.loads(line))


class Plan:
    """What is to be done, and what is not.

    Attributes:
        to_do: pictures to upscale.
        in_the_way: pictures whose output was there before the manifest began; it is kept.
        settled: how many pictures an earlier run settled, by status.
        changed: how many of those to do were settled before they changed, or their results were lost.
    """

    def __init__(self) -> None:
        self.to_do, self.in_the_way = Spool(), Spool()
        self.settled: Counter[str] = Counter()
        self.changed = 0

    @property
    def total(self) -> int:
        """All pictures that the inputs stand for."""
        return self.to_do.count + self.in_the_way.count + self.settled.total()


class _Group(NamedTuple):
    """The pictures of one folder.

    Attributes:
        folder: where they are.
        relative: the folder's path below the one that was named, in parts.
        listing: their names.
    """

    folder: str
    relative: tuple[str, ...]
    listing: Listing


def plan_batch(
    inputs: Sequence[str], output: str, suffix: str, manifest: Manifest, since: float, config: BatchConfig
) -> Plan:
    """Go through the inputs and set apart what is to be done.

    Args:
        inputs: files, folders and URLs of either.
        output: a folder or its URL; folders below a named folder are mirrored in it.
        suffix: of the files to write, with its dot.
        since: outputs written later, in seconds since 1970, are the manifest's even if it has no row of them.

    Raises:
        ClearSRError: an input is missing or unreadable, two would become one file, or an input would be lost.
    """
    plan = Plan()
    output = normalise(output)
    folders, files = _sort_inputs([normalise(given) for given in inputs], output)
    at_risk = _inputs_below(real_location(output), files)
    seen = _Seen() if len(folders) + len(files) > 1 else None
    for group in _groups(folders, files, real_location(output)):
        target = join(output, *group.relative)
        if not is_url(target):
            remove_unfinished([target])
        taken = set() if config.overwrite else names_in(target)
        names = group.listing.images
        for name, result in zip(names, output_names(names, suffix, group.folder), strict=True):
            item = Item(join(group.folder, name), join(target, result), group.listing.versions.get(name, ""))
            if at_risk and real_location(item.output) in at_risk:
                raise ClearSRError(
                    f"{shown(item.output)}: is also an input, which would be lost; choose another -o"
                )
            if seen is None or seen.is_new(item):
                _sort_in(plan, _with_version(item), result in taken, manifest, since, config)
    if not plan.total:
        accepted = " ".join(sorted(IMAGE_SUFFIXES))
        raise ClearSRError(f"{shown(inputs[0])}: holds no images (accepted suffixes: {accepted})")
    return plan


def in_the_way(item: Item) -> Row:
    """The row of an item whose output is somebody else's."""
    reason = f"{item.output}: was there before; --overwrite replaces it"
    return Row(item.input, item.output, "skipped", reason, version=item.version)


def _sort_in(
    plan: Plan, item: Item, is_there: bool, manifest: Manifest, since: float, config: BatchConfig
) -> None:
    """Put an item where it belongs."""
    known = None if config.overwrite else manifest.lookup(item.input, item.version)
    if known is not None and known.is_current and (is_there or known.status == "failed"):
        if known.status != "failed" or not config.retry_failed:
            plan.settled[known.status] += 1
            return
    elif known is not None:
        plan.changed += 1
    elif is_there and (changed_at(item.output) or 0.0) < since:
        plan.in_the_way.add(item)
        return
    plan.to_do.add(item)


def _with_version(item: Item) -> Item:
    return item if item.version else item._replace(version=version_of(item.input))


class _Seen:
    """Inputs and outputs so far, as hashes of 8 bytes; needed where several inputs are named."""

    def __init__(self) -> None:
        self._inputs: set[int] = set()
        self._outputs: set[int] = set()

    def is_new(self, item: Item) -> bool:
        """Whether the input was not there yet.

        Raises:
            ClearSRError: another input has the same output.
        """
        input, output = hash_of(real_location(item.input)), hash_of(item.output)
        if input in self._inputs:
            return False
        if output in self._outputs:
            raise ClearSRError(
                f"{shown(item.input)}: would become {shown(item.output)}, as would another input; "
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


def _groups(folders: Sequence[str], files: dict[str, list[str]], real_output: str) -> Iterator[_Group]:
    """The pictures that the inputs stand for, folder by folder; each folder is entered once."""
    entered: set[str] = set()
    for folder in folders:
        yield from _below(folder, real_output, entered)
    for folder, names in files.items():
        yield _Group(folder, (), Listing(names, [], {}))


def _below(root: str, real_output: str, entered: set[str]) -> Iterator[_Group]:
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        relative = waiting.pop()
        folder = join(root, *relative)
        real = real_location(folder)
        if real in entered or contains(real_output, real):
            continue
        entered.add(real)
        listing = list_folder(folder)
        yield _Group(folder, relative, listing)
        waiting.extend((*relative, name) for name in reversed(listing.folders))
