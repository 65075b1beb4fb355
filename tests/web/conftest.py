"""A tiny model behind the real server, called in this process without a network."""

import io
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="the extra `web` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `web` is not installed")

from clearsr.config.base import build_config  # noqa: E402
from clearsr.config.sampling import SamplingConfig  # noqa: E402
from clearsr.config.serving import ServingConfig  # noqa: E402
from clearsr.pipeline import ClearSRPipeline  # noqa: E402


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

    from clearsr.web.server import build_server

    @contextmanager
    def start(with_page=False, pipeline=None, **limits):
        server = build_server(
            pipeline or tiny_pipeline, build_config(ServingConfig, limits), with_page=with_page
        )
        try:
            with TestClient(server.app, base_url="http://localhost", raise_server_exceptions=False) as client:
                client.server = server
                yield client
        finally:
            server.close()

    return start
