"""The table of what is fuzzed. Nothing here knows the fuzzer: `run.py` and a test call `TARGETS`."""

import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import documents
import pictures


class Target(NamedTuple):
    """One thing to fuzz.

    Attributes:
        seeds: whole and broken examples; called once, in the folder that `check` gets.
        check: takes bytes and an own folder, which it leaves as it was.
    """

    seeds: Callable[[Path], Iterable[bytes]]
    check: Callable[[bytes, Path], None]


TARGETS = {
    "picture": Target(pictures.corpus, pictures.check_picture),
    "tiff": Target(pictures.tiffs, pictures.check_picture),
    "metadata": Target(pictures.metadata_seeds, pictures.check_metadata),
    "weights": Target(documents.weight_seeds, documents.check_weight_file),
    "model-config": Target(documents.config_seeds, documents.check_config),
    "settings": Target(documents.settings_seeds, documents.check_settings),
    "manifest": Target(documents.manifest_seeds, documents.check_manifest),
    "listing": Target(documents.listing_seeds, documents.check_listing),
    "result": Target(documents.result_seeds, documents.check_result),
}


def mutated(data: bytes, mutate: Callable[[bytes], bytes]) -> bytes:
    """The bytes changed, and every other time a PNG with its checksums put right, or little is tried."""
    changed = mutate(data)
    if not changed.startswith(b"\x89PNG\r\n\x1a\n") or zlib.crc32(changed) % 2:
        return changed
    parts, position = [changed[:8]], 8
    while position + 12 <= len(changed):
        (size,) = struct.unpack(">I", changed[position : position + 4])
        body = changed[position + 4 : position + 8 + size]
        parts += [changed[position : position + 4], body, struct.pack(">I", zlib.crc32(body))]
        position += 12 + size
    return b"".join(parts) + changed[position:]
