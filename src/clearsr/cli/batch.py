"""`clearsr batch`: folders and buckets of pictures through a pool of workers, with a manifest to go on by."""

from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from clearsr.cli.flags import Overrides, add_config_flags, build
from clearsr.cli.model import pipeline_options, resolve_sampling
from clearsr.cli.terminal import busy
from clearsr.cli.upscale import add_work_arguments, chosen_suffix, collect_work
from clearsr.config.batch import BatchConfig

if TYPE_CHECKING:
    from clearsr.batch.spool import Plan
    from clearsr.cli.reporter import Reporter
    from clearsr.files.upscale import Result

POOL_FLAGS = {
    "--engine": "engine",
    "--workers": "workers",
    "--threads-per-worker": "threads_per_worker",
    "--gpus-per-worker": "gpus_per_worker",
    "--address": "address",
    "--max-attempts": "max_attempts",
}

_EPILOG = """\
INPUT and OUT may be local or any URL that fsspec knows, such as s3://bucket/photos. Folders below a named
folder are mirrored in OUT. A line per input goes to OUT/manifest.jsonl: what became of it, its result's
SHA-256, the seed of its noise. The same command again goes on where a run stopped, or does nothing; inputs
that changed are done again. Results are the same, byte for byte, as those of `clearsr upscale`.

examples:
  clearsr batch photos/ -o larger/
  clearsr batch photos/ -o larger/ --workers 2 --threads-per-worker 2 --engine local
  clearsr batch s3://bucket/in -o s3://bucket/out --manifest run.jsonl --address auto --gpus-per-worker 1
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image files, folders, and URLs of either")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="a folder or its URL")
    parser.add_argument("--manifest", type=Path, metavar="FILE", help="default: manifest.jsonl in OUT")
    parser.add_argument("--parquet", metavar="FILE|URL", help="write the manifest as Parquet, too")
    parser.add_argument("--overwrite", action="store_true", help="do all again, with a new manifest")
    parser.add_argument("--retry-failed", action="store_true", help="do again what failed in an earlier run")
    parser.add_argument("--json", action="store_true", help="one JSON object per file on stdout")
    add_config_flags(parser.add_argument_group("workers"), POOL_FLAGS, BatchConfig())
    add_work_arguments(parser)


def run(args: Namespace) -> int:
    """Go through all; 1 if a file failed, now or in an earlier run of the manifest."""
    config = _pool(args)
    suffix = chosen_suffix(args)
    sampling_given, output_config = collect_work(args, suffix)

    with busy("starting", args.quiet):
        from clearsr.batch.manifest import check_parquet, write_parquet
        from clearsr.batch.run import run_batch
        from clearsr.config.batch import WorkConfig

    if args.parquet is not None:
        check_parquet(args.parquet)
    options = pipeline_options(args)
    work = WorkConfig(
        model=_absolute(args.model),
        pipeline={**options, "base_model": _absolute(options["base_model"])},
        sampling=resolve_sampling(args, sampling_given),
        output=output_config,
        suffix=suffix,
    )
    report = _Report(args)
    try:
        summary = run_batch(
            args.inputs, args.output, work, config,
            manifest=args.manifest, on_plan=report.begin, on_row=report.add,
        )  # fmt: skip
    finally:
        failures = report.close()
    if args.parquet is not None:
        write_parquet(summary.manifest, args.parquet)
    return 1 if failures or summary.settled["failed"] else 0


class _Report:
    """The reporter of a run, from the moment that the number of pictures is known."""

    def __init__(self, args: Namespace) -> None:
        self._args = args
        self._stack = ExitStack()
        self._reporter: Reporter | None = None

    def begin(self, plan: "Plan") -> None:
        """Say what there is to do."""
        from clearsr.cli.reporter import Reporter

        self._reporter = Reporter("ok", plan.total, as_json=self._args.json, quiet=self._args.quiet)
        settled = plan.settled
        if settled:
            counts = ", ".join(f"{settled[status]} {status}" for status in ("ok", "skipped", "failed"))
            hint = "; --retry-failed does the failed ones again" if settled["failed"] else ""
            self._reporter.say(f"{settled.total()} done by an earlier run ({counts}{hint})")
        if plan.changed:
            self._reporter.say(f"{plan.changed} done again: the input has changed, or the result is gone")
        self._stack.enter_context(self._reporter.working(plan.to_do.count))

    def add(self, row: "Result") -> None:
        """A picture is through."""
        assert self._reporter is not None
        self._reporter.add(row)

    def close(self) -> int:
        """The failures and the summary; 1 if there were any."""
        self._stack.close()
        return 0 if self._reporter is None else self._reporter.close()


def _pool(args: Namespace) -> BatchConfig:
    """The settings of the pool. (`--set` and `--config` are the sampling's.)"""
    given = {path: flag for flag, path in POOL_FLAGS.items() if getattr(args, path) is not None}
    values = {path: getattr(args, path) for path in given}
    values |= {"overwrite": args.overwrite, "retry_failed": args.retry_failed}
    return build(BatchConfig, Overrides(values, given))


def _absolute(source: str | None) -> str | None:
    """A local folder by its whole path, for workers that may be elsewhere; hub ids as they are."""
    return str(Path(source).absolute()) if source is not None and Path(source).is_dir() else source
