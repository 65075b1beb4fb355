"""A tiny model behind the real server, called in this process without a network."""

import io
import os
import re
import subprocess
import sys
from contextlib import contextmanager, nullcontext

import pytest
import torch
from browsing import IS_FIREFOX, launched, without_policy
from PIL import Image

from clearsr.config.base import build_config
from clearsr.config.sampling import SamplingConfig
from clearsr.config.serving import ServingConfig
from clearsr.pipeline.pipeline import ClearSRPipeline
from clearsr.web.server import build_server


@pytest.fixture(scope="session")
def tiny_pipeline(make_network):
    """A pipeline with random weights, one step."""
    return ClearSRPipeline(make_network(), SamplingConfig(steps=1, scheduler="dpm++"), device="cpu")


@pytest.fixture(scope="session")
def picture():
    """`picture(24, 16)`: bytes of a PNG of that width and height, of noise."""

    def draw(width=24, height=16, **options):
        noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(0))
        file = io.BytesIO()
        Image.fromarray(noise.byte().numpy()).save(file, options.pop("format", "PNG"), **options)
        return file.getvalue()

    return draw


@pytest.fixture
def serve(tiny_pipeline):
    """`with serve(queue=1) as client:` talks to a server with these limits, which is `client.server`."""
    from starlette.testclient import TestClient

    @contextmanager
    def start(with_page=False, pipeline=None, **limits):
        server = build_server(build_config(ServingConfig, limits), with_page=with_page)
        server.take(pipeline or tiny_pipeline)
        try:
            with TestClient(server.app, base_url="http://localhost", raise_server_exceptions=False) as client:
                client.server = server
                yield client
        finally:
            server.close()

    return start


@pytest.fixture(scope="session")
def model_folder(make_network, tmp_path_factory):
    """A folder with the tiny model, which takes four steps."""
    from clearsr.models.checkpoint import save_network

    folder = tmp_path_factory.mktemp("model")
    save_network(
        make_network(), folder, ["autoencoder", "lr_encoder", "clearsr"], {"steps": 4, "scheduler": "ddpm"}
    )
    return folder


@pytest.fixture(scope="session")
def run_server(model_folder):
    """`with run_server("--queue", "2") as (address, process):` `clearsr serve`, tiny model."""

    @contextmanager
    def start(*flags):
        command = [sys.executable, "-m", "clearsr", "serve", "--model", str(model_folder), "--device", "cpu"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [*command, "--port", "0", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        try:
            line = process.stdout.readline()
            address = re.search(r"http://\S+", line)
            assert address, line + process.stderr.read()
            with without_policy(address[0]) if IS_FIREFOX else nullcontext(address[0]) as reached:
                yield reached, process
        finally:
            process.terminate()
            process.communicate(timeout=60)

    return start


@pytest.fixture(scope="module")
def address(run_server):
    """Of a server that runs while the tests of a file do."""
    with run_server() as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser():
    """Chromium, or what is asked for, for the tests of a file."""
    with launched() as browser:
        yield browser
