"""`clearsr serve`: the web page and the HTTP API, for this machine alone unless told otherwise."""

import logging
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from clearsr.cli.flags import add_config_files, add_config_flags, build, collect
from clearsr.cli.model import add_model_flags, load_pipeline
from clearsr.cli.parser import UsageError
from clearsr.cli.terminal import show_information, write_line
from clearsr.config.serving import ServingConfig
from clearsr.errors import ClearSRError

if TYPE_CHECKING:
    from clearsr.pipeline.pipeline import ClearSRPipeline

logger = logging.getLogger(__name__)

SERVING_FLAGS = {
    "--host": "host",
    "--port": "port",
    "--token": "token",
    "--queue": "queue",
    "--concurrency": "concurrency",
    "--time-limit": "time_limit",
    "--max-upload-mb": "max_upload_mb",
    "--max-megapixels": "max_megapixels",
    "--max-output-megapixels": "max_output_megapixels",
    "--max-memory": "max_memory",
}

_EPILOG = """\
The page is at http://127.0.0.1:7860/, the HTTP API at /v1/upscale there (described at /openapi.json), a
health check at /healthz and Prometheus' metrics at /metrics. Nothing is fetched from outside.

examples:
  clearsr serve
  CLEARSR_TOKEN=a-long-secret clearsr serve --host 0.0.0.0 --port 8080 --queue 16
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.epilog = _EPILOG
    add_model_flags(parser)
    parser.add_argument(
        "--offload", action="store_true", help="small GPUs: keep each part in main memory until it runs"
    )
    parser.add_argument("--api-only", action="store_true", help="no page, the HTTP API alone")
    group = parser.add_argument_group("serving")
    group.add_argument("--no-auth", action="store_true", help="let everyone in who reaches the address")
    add_config_flags(group, SERVING_FLAGS, ServingConfig())
    add_config_files(group, "keep_minutes=10")


def run(args: Namespace) -> int:
    """Serve until stopped."""
    config = build(ServingConfig, collect(args, SERVING_FLAGS), _from_environment(args))
    if args.offload and config.concurrency > 1:  # two pictures would move the same parts
        raise UsageError("--offload: works on one picture at a time; leave --concurrency at 1")
    if args.offload and args.device == "cpu":  # the rest is seen when the model is loaded
        raise ClearSRError("--offload: is for accelerators; leave it out with --device cpu")
    show_information()
    if not args.quiet:
        write_line("clearsr: starting", sys.stderr)
    from clearsr.web.server import run_server

    def load() -> "ClearSRPipeline":
        start = time.monotonic()
        pipeline = load_pipeline(args)
        logger.info("%s is loaded, after %.1f s", args.model, time.monotonic() - start)
        return pipeline

    run_server(config, load, _announce, with_page=not args.api_only)
    return 0


def _announce(address: str) -> None:
    write_line(f"serving at {address} (Ctrl-C stops)")
    sys.stdout.flush()  # whoever started us through a pipe waits for it


def _from_environment(args: Namespace) -> dict[str, object]:
    """What counts unless a flag or a file says otherwise."""
    values: dict[str, object] = {"no_auth": True} if args.no_auth else {}
    token = os.environ.get("CLEARSR_TOKEN")
    return values if args.no_auth or not token else {**values, "token": token}
