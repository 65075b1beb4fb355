"""Whether a model folder is whole: the weights' SHA-256, and that their names and shapes fit config.json.

Only the file's header is read for names and shapes; the digest reads all of it once.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from clearsr.config.base import build_config
from clearsr.config.model import ModelConfig
from clearsr.errors import ClearSRError

_CHUNK = 1 << 20


class Weights(NamedTuple):
    """The weights of a model folder, found whole.

    Attributes:
        tensors: how many the file holds.
        sha256: of the file.
        is_recorded: config.json states that digest; if not, it states none.
    """

    folder: Path
    bytes: int
    tensors: int
    sha256: str
    is_recorded: bool


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_weights(folder: Path) -> Weights:
    """What a model folder holds, after a look at all of it.

    Names and shapes are checked for a model without a base; what a base adds is not known here.

    Raises:
        ClearSRError: the file is damaged, is another than config.json states, or does not fit it.
    """
    from clearsr.models.build import meta_network
    from clearsr.models.checkpoint import DIGEST_KEY, WEIGHTS_NAME, check_shapes, read_description

    description = read_description(folder)
    config = build_config(ModelConfig, description["model"])
    path = folder / WEIGHTS_NAME
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        digest = sha256_of(path)
    except (OSError, SafetensorError) as error:
        raise ClearSRError(f"{path}: cannot be read as safetensors ({error})") from None
    if config.base_model is None:
        state = meta_network(config).state_dict()
        check_shapes({name: tuple(value.shape) for name, value in state.items()}, shapes, folder)
    stated = description.get(DIGEST_KEY)
    if stated not in (None, digest):
        raise ClearSRError(
            f"{path}: is another file than its config.json states (SHA-256 {digest[:12]}..., expected "
            f"{str(stated)[:12]}...); install or download the model again"
        )
    return Weights(folder, path.stat().st_size, len(shapes), digest, stated is not None)
