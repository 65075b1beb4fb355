"""What the server of `clearsr serve` accepts, and how much it takes on at once."""

import ipaddress
from typing import Annotated

from pydantic import ByteSize, Field, model_validator

from clearsr.config.base import FrozenConfig

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
MIN_TOKEN_LENGTH = 12


class ServingConfig(FrozenConfig):
    """Address, access and limits."""

    host: str = Field("127.0.0.1", description="address to listen on; others than this machine need a token")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(7860, description="port; 0 takes a free one")
    token: Annotated[str, Field(min_length=MIN_TOKEN_LENGTH)] | None = Field(
        None, description="secret that every request must bring; better in the environment: CLEARSR_TOKEN"
    )
    no_auth: bool = Field(False, description="let everyone in who reaches the address")
    max_upload_mb: Positive = Field(32.0, description="largest request, in megabytes")
    max_megapixels: Positive = Field(12.0, description="largest picture to upscale, by its header")
    max_output_megapixels: Positive = Field(64.0, description="largest result")
    max_memory: Annotated[ByteSize, Field(ge=1_000_000)] | None = Field(
        None, description="peak memory of a picture, such as 1.5GB; unset: what is free"
    )
    max_steps: Annotated[int, Field(ge=0, le=1000)] = Field(100, description="most denoising steps")
    max_tile: Annotated[int, Field(ge=32)] = Field(128, description="largest tile, in latents")
    queue: Annotated[int, Field(ge=0)] = Field(8, description="pictures that may wait")
    concurrency: Count = Field(1, description="pictures upscaled at once")
    time_limit: Positive = Field(600.0, description="seconds that a picture may take, waiting not counted")
    upload_seconds: Positive = Field(60.0, description="seconds that an upload may take")
    max_disk_mb: Positive = Field(2000.0, description="uploads and results kept on disk, in megabytes")
    keep_minutes: Positive = Field(60.0, description="how long the page's pictures are kept")

    @model_validator(mode="after")
    def _is_guarded(self) -> "ServingConfig":
        if not self.is_local and self.token is None and not self.no_auth:
            raise ValueError(
                f"host {self.host} can be reached from elsewhere; give --token (or CLEARSR_TOKEN), "
                "or --no-auth to let everyone in"
            )
        if self.token is not None and self.no_auth:
            raise ValueError("no_auth and a token exclude each other; leave one of them out")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise ValueError("token: only printable ASCII characters can be sent in a header")
        return self

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def places(self) -> int:
        """Pictures in hand at once: those at work and those that wait."""
        return self.queue + self.concurrency
