"""What a batch has to do: the planner's jobs, less what the manifest says is settled, in a temporary file."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence

from clearsr.atomic import remove_unfinished_among
from clearsr.batch.manifest import Manifest
from clearsr.config.batch import BatchConfig
from clearsr.files.plan import plan_folders
from clearsr.files.storage import changed_at, is_url, names_in, split, version_of
from clearsr.files.upscale import Job, Result


class Spool:
    """Jobs in a temporary file, written once and read as often as need be."""

    def __init__(self) -> None:
        file = tempfile.TemporaryFile("w+", encoding="ascii", prefix="clearsr-plan-")  # noqa: SIM115
        self._file = file  # gone with this object
        self.count = 0

    def add(self, job: Job) -> None:
        """Append one."""
        self._file.write(json.dumps(job) + "\n")
        self.count += 1

    def __iter__(self) -> Iterator[Job]:
        self._file.seek(0)
        for line in self._file:
            yield Job(*json.loads(line))


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


def plan_batch(
    inputs: Sequence[str], output: str, suffix: str, manifest: Manifest, since: float, config: BatchConfig
) -> Plan:
    """Go through the inputs and set apart what is to be done.

    Args:
        inputs: files, folders and URLs of either.
        output: a folder or its URL.
        suffix: of the files to write, with its dot.
        since: outputs written later, in seconds since 1970, are the manifest's even if it has no row of them.

    Raises:
        ClearSRError: as `plan_folders` does.
    """
    plan = Plan()
    for folder, jobs in plan_folders(inputs, output, suffix):
        names = names_in(folder)
        if not is_url(folder):
            remove_unfinished_among(names, folder)
        taken = set() if config.overwrite else names
        for job in jobs:
            _sort_in(plan, _with_version(job), split(job.output)[1] in taken, manifest, since, config)
    return plan


def in_the_way(job: Job) -> Result:
    """The row of a job whose output is somebody else's."""
    reason = f"{job.output}: was there before; --overwrite replaces it"
    return Result(job.input, job.output, "skipped", reason, version=job.version)


def _sort_in(
    plan: Plan, job: Job, is_there: bool, manifest: Manifest, since: float, config: BatchConfig
) -> None:
    """Put a job where it belongs."""
    known = None if config.overwrite else manifest.lookup(job.input, job.version)
    if known is not None and known.is_current and (is_there or not known.has_output):
        if known.status != "failed" or not config.retry_failed:
            plan.settled[known.status] += 1
            return
    elif known is not None:
        plan.changed += 1
    elif is_there and (changed_at(job.output) or 0.0) < since:
        plan.in_the_way.add(job)
        return
    plan.to_do.add(job)


def _with_version(job: Job) -> Job:
    return job if job.version else job._replace(version=version_of(job.input))
