"""Seeds that depend on what is drawn and not on when: one generator per image, per training sample, per path.

Results then do not change with batch size, worker count, tile order or a resume.
"""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) from any identifying parts, the same on every machine and Python version."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    identity = text.encode("utf-8", "surrogateescape")  # a file's name may be no valid Unicode
    return int.from_bytes(hashlib.blake2b(identity, digest_size=8).digest(), "big") >> 1


def file_seed(seed: int, name: str) -> int:
    """The seed of one file in a run with `seed`: every file draws noise of its own.

    `name` is the file's bare name, not its path. A path says differently what is the same file (named itself,
    found in a folder, fetched from a bucket), and the result must not depend on that.
    """
    return derive_seed("file", seed, name)


def make_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))
