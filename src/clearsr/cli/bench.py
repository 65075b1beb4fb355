"""`clearsr bench`: how fast, how frugal, in one run and as ratios that hold on any machine."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearsr.cli.flags import add_config_files, add_config_flags, build, collect
from clearsr.cli.parser import check_json, write_json
from clearsr.config.evaluation import BenchmarkConfig

if TYPE_CHECKING:
    from rich.console import Console

FLAGS = {
    "--model": "model",
    "--device": "device",
    "--precision": "precision",
    "--threads": "threads",
    "--rounds": "rounds",
    "--steps": "steps",
}
LISTS = {"--sides": "sides", "--workers": "workers", "--batches": "batches"}
EPILOG = """sections:
  speed    128 -> 512 beside bicubic, the network of Real-ESRGAN x4plus and the naive loop
  pixels   time against the pixels of the output
  memory   peak memory against pixels, each in a fresh process
  workers  pictures per second against processes
  macs     multiply-accumulates at Stable Diffusion 2.1's size, ours and naive
  serve    seconds until `clearsr serve` listens and its page can be used, and what the page takes
  sd21     the same size with random weights, timed; heavy (6 GB), only with --only sd21

What is compared runs in turn, A B A B; ratios are medians over the rounds. The wall clock depends on what
else the machine does; CPU seconds hardly.

examples:
  clearsr bench
  clearsr bench --only speed,memory --threads 1 --json figures.json
  clearsr bench --only sd21 --device cuda --batches 1,8 --steps 50 --compile
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the flags."""
    parser.epilog = EPILOG
    defaults = BenchmarkConfig()
    parser.add_argument(
        "--only",
        type=_split,
        metavar="NAMES",
        help=f"sections, with commas (default: {','.join(defaults.only)})",
    )
    add_config_flags(parser, FLAGS, defaults)
    for flag, path in LISTS.items():
        shown = ",".join(str(value) for value in getattr(defaults, path))
        description = BenchmarkConfig.model_fields[path].description
        parser.add_argument(
            flag, dest=path, type=_split, metavar="N,N", help=f"{description} (default: {shown})"
        )
    parser.add_argument("--compile", action="store_true", default=None, help="also measure sd21 compiled")
    add_config_files(parser, "images=12")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to a JSON file")


def run(args: Namespace) -> int:
    """Measure, print each section as it is done, write --json."""
    from rich.console import Console

    from clearsr.cli.terminal import show_information
    from clearsr.paper.complexity.timing import run_benchmark

    if args.json is not None:
        check_json(args.json)
    flags = {**FLAGS, **LISTS, "--only": "only", "--compile": "compile"}
    config = build(BenchmarkConfig, collect(args, flags))
    console = Console() if sys.stdout.isatty() else Console(width=110)
    show_information()
    report: dict[str, Any] = {"config": config.model_dump(mode="json")}
    for name, figures in run_benchmark(config, lambda section: _announce(section, args.quiet)):
        report[name] = figures
        PRINTERS[name](console, figures)
        if args.json is not None:
            write_json(report, args.json)  # after each section: what was measured is not lost
    return 0


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _announce(section: str, quiet: bool) -> None:
    if not quiet:
        import rich

        rich.get_console().print(f"measuring: {section}", highlight=False)


def _print_machine(console: "Console", figures: dict[str, Any]) -> None:
    _table(console, "machine", ("", ""), [(name, str(value)) for name, value in figures.items()])


def _print_speed(console: "Console", figures: dict[str, Any]) -> None:
    rows = [(n, _seconds(t["median"]), _seconds(t["median_cpu"])) for n, t in figures["timings"].items()]
    loop = figures["loop"]
    title = f"speed: 128 -> {figures['side']}, {figures['precision']}; loops: {loop['steps']} steps, guided; "
    title += f"rrdbnet: {figures['rrdbnet']}"
    _table(console, title, ("", "seconds", "CPU seconds"), rows)
    ratios = [(n, f"{r['wall']:.3g}", f"{r['cpu']:.3g}") for n, r in figures["ratios"].items()]
    _table(console, "", ("ratio", "wall", "CPU"), ratios)


def _print_pixels(console: "Console", figures: dict[str, Any]) -> None:
    rows = [
        (
            side,
            f"{row['megapixels']:.2f}",
            _seconds(row["median"]),
            _seconds(row["seconds_per_megapixel"]),
            _seconds(row["cpu_seconds_per_megapixel"]),
        )
        for side, row in figures["sides"].items()
    ]
    header = ("output side", "megapixels", "seconds", "seconds per MP", "CPU seconds per MP")
    _table(console, "time against pixels", header, rows)


def _print_memory(console: "Console", figures: dict[str, Any]) -> None:
    rows = [("torch alone", "", _megabytes(figures["torch_bytes"]), "")]
    rows += [
        (side, f"{row['megapixels']:.2f}", _megabytes(row["peak_bytes"]), _megabytes(row["above_torch"]))
        for side, row in figures["sides"].items()
    ]
    _table(console, "peak memory against pixels", ("output side", "megapixels", "MB", "above torch"), rows)


def _print_workers(console: "Console", figures: dict[str, Any]) -> None:
    rows = [
        (workers, f"{row['images_per_second']:.2f}", f"{row['over_first']:.2f}")
        for workers, row in figures["workers"].items()
    ]
    _table(console, "workers of one thread each", ("workers", "images/s", "over the first"), rows)


def _print_macs(console: "Console", figures: dict[str, Any]) -> None:
    tables = {f"sd21, {name}": table for name, table in figures["sd21"].items()}
    tables["compact"] = figures["compact"]
    rows = [
        (
            name,
            str(t["steps"]),
            *(_giga(t[k][c]) for k in ("denoising", "total") for c in ("layers", "total")),
        )
        for name, t in tables.items()
    ]
    header = ("512 x 512", "steps", "U-Net+DPM+SPM", "with attention", "whole image", "with attention")
    _table(console, "MACs in units of 10^9", header, rows)


def _print_serve(console: "Console", figures: dict[str, Any]) -> None:
    rows = [(name, _seconds(seconds)) for name, seconds in figures["medians"].items()]
    title = f"starting a server; the page: {figures['page_requests']} requests, "
    title += f"{figures['page_bytes'] / 1e3:.0f} kB"
    _table(console, title, ("until", "seconds"), rows)


def _print_sd21(console: "Console", figures: dict[str, Any]) -> None:
    rows = []
    for name, row in figures["runs"].items():
        floors = (row["arithmetic_floor"], row["bandwidth_floor"])
        times = [
            row[f"{kind}_per_{what}"] for what in ("step", "image") for kind in ("seconds", "cpu_seconds")
        ]
        numbers = [_seconds(number) for number in (*times, *floors)]
        rows.append((name, *numbers, _megabytes(row["peak_bytes"])))
    header = ("", "s/step", "CPU s/step", "s/image", "CPU s/image", "floor: MACs", "floor: reads", "peak MB")
    title = f"Stable Diffusion 2.1 size, {figures['dtype']}, {figures['steps']} steps"
    _table(console, title, header, rows)


PRINTERS = {
    "machine": _print_machine,
    "speed": _print_speed,
    "pixels": _print_pixels,
    "memory": _print_memory,
    "workers": _print_workers,
    "macs": _print_macs,
    "serve": _print_serve,
    "sd21": _print_sd21,
}


def _table(console: "Console", title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.table import Table

    view = Table(title=title or None, title_justify="left", show_header=any(header))
    for index, name in enumerate(header):
        is_text = index == 0 or not any(header)
        view.add_column(name, justify="left" if is_text else "right", no_wrap=index == 0)
    for row in rows:
        view.add_row(*row)
    console.print(view)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _megabytes(value: int) -> str:
    return f"{value / 1e6:,.0f}"


def _giga(value: int) -> str:
    return f"{value / 1e9:,.0f}"
