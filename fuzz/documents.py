"""Weights, settings, manifests, lists, shards and results of strangers."""

import io
import itertools
import json
import struct
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from checking import ROOT, file, refusing, tests_module
from pictures import corpus

from clearsr.batch.manifest import Manifest, as_line, read_rows
from clearsr.batch.run import find_settings, save_settings, settings_path
from clearsr.config.base import build_config, load_config, parse_override
from clearsr.config.batch import WorkConfig
from clearsr.config.model import ModelConfig
from clearsr.config.sampling import SamplingConfig
from clearsr.config.training import TrainConfig
from clearsr.data.sources import INDEX_SUFFIX, decode, list_items, write_index
from clearsr.evaluation.results import read_results
from clearsr.files.upscale import Result
from clearsr.models.build import build_network
from clearsr.models.checkpoint import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    check_weights,
    load_network,
    read_description,
    save_network,
)


def _model_folder(folder: Path) -> Path:
    """A whole model, made once."""
    model = folder / "model"
    if not model.is_dir():
        config = build_config(ModelConfig, tests_module("cli/conftest.py").TINY_MODEL)
        save_network(build_network(config), model, ["autoencoder", "lr_encoder", "clearsr"], {"steps": 1})
    return model


def weight_seeds(folder: Path) -> Iterator[bytes]:
    whole = (_model_folder(folder) / WEIGHTS_NAME).read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    for header in (
        whole[8 : 8 + size],
        whole[8 : 8 + size // 2],
        b"{}",
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F8_E4M3","shape":[0],"data_offsets":[0,0]}}',
    ):
        yield from (b"\0" + struct.pack("<Q", len(header)) + header + bytes(4), b"\1" + header)


def check_weight_file(data: bytes, folder: Path) -> None:
    """A file of weights, or its header with the right length and room for its tensors."""
    header = data[1:].ljust(-(-len(data[1:]) // 8) * 8)
    content = struct.pack("<Q", len(header)) + header + bytes(2**17) if data[:1] == b"\1" else header
    check_model(content, folder, WEIGHTS_NAME)


def check_config(data: bytes, folder: Path) -> None:
    """The description beside good weights."""
    check_model(data, folder, CONFIG_NAME)


def check_model(data: bytes, folder: Path, name: str) -> None:
    model = _model_folder(folder)
    with file(model / name, data):
        with refusing():
            if build_config(ModelConfig, read_description(model)["model"]).base_model is not None:
                return  # leads to the hub
            check_weights(model)
        with refusing():
            load_network(model)


def config_seeds(folder: Path) -> Iterator[bytes]:
    whole = (_model_folder(folder) / CONFIG_NAME).read_bytes()
    yield whole
    document = json.loads(whole)
    yield from (json.dumps({**document, key: value}).encode() for key in document for value in ([], {}, 1))
    yield json.dumps({**document, "model": {"preset": "compact"}}).encode()


# Settings


def settings_seeds(_: Path) -> Iterator[bytes]:
    yield from (path.read_bytes() for path in sorted((ROOT / "configs").rglob("*.yaml")))
    yield from (
        b"steps: 2\nlsa: {preset: fidelity}\n",
        b"a: &a [1, 2]\nb: [*a, *a]\nsteps: *a\n",
        b"extends: recipe.yaml\n",
        b"steps: 2001-01-01\nseed: 0x1f\nupscale: .inf\n? [1]\n: 2\n",
    )


def check_settings(data: bytes, folder: Path) -> None:
    with file(folder / "recipe.yaml", data) as path:
        for schema in (TrainConfig, SamplingConfig):
            with refusing():
                load_config(schema, [path])
        with refusing():
            load_config(SamplingConfig, [], [data.decode("utf-8", "replace")])
        with refusing():
            parse_override(f"steps={data.decode('utf-8', 'replace')}")


# Batch


def manifest_seeds(_: Path) -> Iterator[bytes]:
    rows = [
        Result("/in/a.png", "/out/a.png", "ok", None, 0.5, 8, 8, "00", 7, "1-2", "host:1"),
        Result("/in/a.png", "/out/a.png", "failed", "why"),
        Result("s3://in/b", "s3://out/b", "skipped"),
    ]
    text = "".join(f"{as_line(row)}\n" for row in rows).encode()
    yield from (b"\0" + text, b"\0" + text[:-20], b"\0", b"\1" + b'{"clearsr": "0.1.0", "since": 0.0}')


def check_manifest(data: bytes, folder: Path) -> None:
    """The rows of a manifest, or the settings beside it."""
    path, work = folder / "manifest.jsonl", WorkConfig(model=str(_model_folder(folder)))
    if data[:1] == b"\1":
        with file(path, b"{}\n"), file(settings_path(path), data[1:]), refusing():
            save_settings(path, find_settings(path, work, start_anew=False))
        return
    with file(path, data[1:]):
        with refusing():
            list(read_rows(path))
        with refusing():
            manifest = Manifest(path)
            with closing(manifest):
                manifest.lookup("/in/a.png", "1-2")
                manifest.append([Result("/in/a.png", "/out/a.png", "ok")])
                manifest.compact()
        path.touch()  # an empty one goes


# Lists and shards


def listing_seeds(folder: Path) -> Iterator[bytes]:
    picture = next(iter(corpus(folder)))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("a.png", "b/c.jpg", "d.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(picture)
            archive.addfile(member, io.BytesIO(picture))
    shard = folder / "seed.tar"
    shard.write_bytes(buffer.getvalue())
    write_index(shard)
    index = shard.with_name(shard.name + INDEX_SUFFIX)
    yield from (b"\0" + buffer.getvalue(), b"\1# a list\nmodel\n../x.png\n", b"\2" + index.read_bytes())
    shard.unlink()
    index.unlink()


def check_listing(data: bytes, folder: Path) -> None:
    """A shard, a list, or the index beside a shard."""
    kind, body = data[:1], data[1:]
    if kind == b"\1":
        if b"/" in body or b".." in body:
            return  # would lead to all that is on the disk
        with file(folder / "list.txt", body) as path, refusing():
            list_items([path])
        return
    shard = folder / "shard.tar"
    content = body if kind != b"\2" else bytes(2048)
    with file(shard, content), file(shard.with_name(shard.name + INDEX_SUFFIX), body), refusing():
        for item in itertools.islice(list_items([shard]), 3):
            if item.size < 2**16:
                decode(item)


# Results of others


def result_seeds(_: Path) -> Iterator[bytes]:
    part = {
        "method": "a", "dataset": "d", "mean": {"psnr": 20.0}, "of_folders": [{"seed": None, "fid": 1}],
        "settings": {"steps": 2}, "images": [{"image": "x", "seed": 0, "psnr": 20.0, "ssim": None}],
    }  # fmt: skip
    yield json.dumps({**part, "others": [part], "evaluation": {"measures": ["psnr"]}}).encode()


def check_result(data: bytes, folder: Path) -> None:
    with file(folder / "ours.json", data) as path, refusing():
        for evaluation in read_results(path):
            evaluation.means()
