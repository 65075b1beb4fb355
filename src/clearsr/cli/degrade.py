"""`clearsr degrade`: low-resolution versions of photographs, to test and to train with."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from clearsr.cli.flags import add_config_files, add_config_flags, build, collect
from clearsr.cli.parser import UsageError
from clearsr.config.degradation import DegradationConfig

FLAGS = {"--preset": "preset"}

_EPILOG = """\
presets:
  full     Real-ESRGAN's own: two rounds of strong blur, resizing, noise and JPEG
  light    StableSR's milder set
  camera   the slightly soft, nearly clean picture of a real camera
  real     as cameras blur and sharpen: fitted to pairs that cameras took
  compressed
           camera behind a JPEG that shows, blurred or sharpened before it
  bicubic  shrinking alone

The result depends on the picture, its path below the named folder, the settings and the seed alone.
HR images are cropped at the right and bottom to a multiple of --upscale; LR images are 8-bit PNG.

examples:
  clearsr degrade photo.jpg -o photo-lr.png --preset light
  clearsr degrade photos/ -o pairs/lr --hr-out pairs/hr --seed 7
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="image files and folders")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="a folder, or a .png for one input"
    )
    parser.add_argument("--hr-out", type=Path, metavar="OUT", help="write the cropped HR images here")
    parser.add_argument(
        "--upscale", type=int, default=4, metavar="N", help="HR size over LR size (default: 4)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of every draw (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="do again what is done already")
    parser.add_argument("--json", action="store_true", help="one JSON object per file on stdout")
    add_config_flags(parser, FLAGS, DegradationConfig())
    add_config_files(parser, "second.blur.probability=0.5")


def run(args: Namespace) -> int:
    """Degrade; 1 if a file failed."""
    config = build(DegradationConfig, collect(args, FLAGS))
    if not 1 <= args.upscale <= 64:
        raise UsageError(f"--upscale: must be from 1 to 64 (got {args.upscale})")
    _check_names(args)

    from clearsr.atomic import remove_unfinished
    from clearsr.cli.reporter import Reporter
    from clearsr.files.comparison import degrade_file
    from clearsr.files.plan import plan_jobs
    from clearsr.files.upscale import Job, is_done
    from clearsr.image import list_images

    folders = [path for path in (args.output, args.hr_out) if path is not None]
    listed = list_images(args.inputs)
    jobs = plan_jobs(args.inputs, args.output, results=folders, listed=listed)
    hr_jobs = []
    if args.hr_out is not None:
        hr_jobs = plan_jobs(args.inputs, args.hr_out, results=folders, listed=listed)
    hr_outputs = {job.input: Path(job.output) for job in hr_jobs}
    remove_unfinished({Path(job.output).parent for job in [*jobs, *hr_jobs]})
    reporter = Reporter("degraded", len(jobs), as_json=args.json, quiet=args.quiet)

    def take(job: Job) -> None:
        hr_output = hr_outputs.get(job.input)
        if is_done(job) and (hr_output is None or hr_output.is_file()) and not args.overwrite:
            reporter.skip(job)
            return
        reporter.start(job)
        reporter.add(degrade_file(job, config, args.seed, args.upscale, hr_output))

    try:
        with reporter.working(len(jobs)):
            for job in jobs:
                take(job)
    finally:
        code = reporter.close()
    return code


def _check_names(args: Namespace) -> None:
    """The two outputs must not meet, and LR images are PNG."""
    if args.hr_out is not None and args.hr_out.resolve() == args.output.resolve():
        raise UsageError(
            f"--hr-out {args.hr_out}: is the same as -o; LR and HR images would overwrite each other"
        )
    for flag, path in (("-o", args.output), ("--hr-out", args.hr_out)):
        if path is not None and path.suffix.lower() in (".jpg", ".jpeg", ".webp", ".avif"):
            raise UsageError(f"{flag} {path}: only lossless files are written; use .png or a folder")
