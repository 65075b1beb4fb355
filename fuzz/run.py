"""Fuzz one target with atheris: `python fuzz/run.py picture --minutes 20`. See docs/contributing.md.

What is found lies in the `--findings` folder; `--repeat FILE` runs it again, without atheris.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

INSTRUMENTED = (
    "PIL",
    "tifffile",
    "yaml",
    "json",
    "tarfile",
    "safetensors",
    "clearsr",
    "pictures",
    "documents",
)
MEGABYTES = 1500  # that one input may take
MAX_BYTES = 2**16


def main() -> None:
    """Fuzz until the time is over or something is found (exit code 77; 70 for a hang, 71 for memory)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seconds", type=int, default=10, help="that one input may take (default: 10)")
    parser.add_argument("--corpus", type=Path, help="kept between runs (default: a temporary folder)")
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="run one input and stop")
    args = parser.parse_args()
    if args.repeat is None:
        import atheris
        import peft  # noqa: F401 - takes seconds, which must not be an input's
        import torch  # noqa: F401, I001 - not to be instrumented

        with atheris.instrument_imports(include=list(INSTRUMENTED)):
            from targets import TARGETS, mutated
    else:
        from targets import TARGETS
    if args.target not in TARGETS:
        parser.error(f"{args.target}: no such target; accepted: {', '.join(TARGETS)}")
    target = TARGETS[args.target]
    logging.disable()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="clearsr-fuzz-", dir=memory if memory.is_dir() else None) as name:
        folder = Path(name) / "work"
        folder.mkdir()
        seeds = list(target.seeds(folder))
        if args.repeat is not None:
            target.check(args.repeat.read_bytes(), folder)
            return
        corpus = args.corpus or Path(name) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        args.findings.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds):
            (corpus / f"seed-{number:04d}").write_bytes(seed)
        options = [
            f"-max_total_time={round(60 * args.minutes)}", f"-timeout={args.seconds}",
            f"-max_len={MAX_BYTES}", f"-rss_limit_mb={MEGABYTES}",
            f"-artifact_prefix={args.findings}/{args.target}-",
            "-print_final_stats=1", "-reload=0",
        ]  # fmt: skip

        def check(data: bytes) -> None:
            try:
                target.check(data, folder)
            except BaseException:  # atheris has been seen to end by its own alarm before it wrote the input
                (args.findings / f"{args.target}-last").write_bytes(data)
                raise

        def mutator(data: bytes, size: int, seed: int) -> bytes:
            return mutated(data, lambda data: atheris.Mutate(data, size))[:size]

        atheris.Setup(
            [sys.argv[0], *options, str(corpus)],
            check,
            custom_mutator=mutator,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
