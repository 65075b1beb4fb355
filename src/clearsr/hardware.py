"""What depends on the hardware: which device, which precision, what is kept where, and compilation.

Nothing here changes a result beyond the rounding of the chosen precision.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from clearsr.errors import ClearSRError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_HOST_COMPILERS = ("g++", "c++", "clang++", "cl")


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first of CUDA, MPS, CPU that is there.

    Raises:
        ClearSRError: no such device here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, here in available.items() if here))
    kind, _, index = name.partition(":")
    known = kind in available and (not index or (kind == "cuda" and index.isdigit()))
    if not known or not available[kind] or (index and int(index) >= torch.cuda.device_count()):
        here = ", ".join(["auto", *(kind for kind, present in available.items() if present)])
        raise ClearSRError(f"--device {name}: not available here; accepted: {here}")
    return torch.device(name)


class Device(NamedTuple):
    """A device that is here, as a user is told of it."""

    name: str
    text: str
    has_bf16: bool  # computes in it, rather than imitates it


def describe_devices() -> list[Device]:
    """The processor and all accelerators."""
    cpu = torch.device("cpu")
    text = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    text += ", computes in bf16" if has_bf16(cpu) else ", without bf16"
    devices = [Device("cpu", text, has_bf16(cpu))]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = has_bf16(torch.device("cuda", index))
        text = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        devices.append(Device(f"cuda:{index}", text + ("" if bf16 else ", without bf16"), bf16))
    if torch.backends.mps.is_available():
        devices.append(Device("mps", "Apple GPU", False))
    return devices


def choose_precision(name: Precision, device: torch.device) -> torch.dtype:
    """The dtype that a precision stands for; `auto` is bf16 where the hardware computes in it.

    Raises:
        ClearSRError: an unknown name, or fp16 on a CPU.
    """
    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if has_bf16(device) else torch.float16
        return torch.bfloat16 if device.type == "cpu" and has_bf16(device) else torch.float32
    if name not in known:
        raise ClearSRError(f"--precision {name}: accepted: auto, {', '.join(known)}")
    if name == "fp16" and device.type == "cpu":
        raise ClearSRError(
            "--precision fp16: a CPU computes in bf16 or fp32; accepted here: auto, fp32, bf16"
        )
    return known[name]


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware itself computes in bf16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def mixed_precision(device: torch.device, precision: torch.dtype) -> AbstractContextManager[Any]:
    """Convolutions and matrix products in `precision` within the block; nothing changes at fp32."""
    if precision == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, precision)


def vae_precision(precision: torch.dtype, device: torch.device) -> torch.dtype:
    """The precision of the VAE under that of the network: never fp16.

    fp16 ends at 65504, which activations of Stable Diffusion's VAE are known to pass; bf16 and fp32 reach
    much further. Always, and not only when an overflow is seen, because an image's result must not depend on
    what else is in its batch.
    """
    if precision != torch.float16:
        return precision
    return torch.bfloat16 if has_bf16(device) else torch.float32


def store_in(network: nn.Module, dtype: torch.dtype) -> None:
    """Store the frozen convolutions and linear layers of a module in 16 bits, for use under autocast.

    They are nearly all of a network. Results are the same bit for bit: autocast would round the same weights
    at each use. Norms, embeddings and all that is trained stay as they are.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.requires_grad:
            module.to(dtype)


@contextmanager
def on_device(parts: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Within the block copies of the parts' tensors are on the device; afterwards the originals are back.

    Nothing is copied back, because inference changes no weights.
    """
    tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
    homes = [(tensor, tensor.data) for tensor in tensors]
    try:
        for tensor, home in homes:
            tensor.data = home.to(device, copy=True)
        yield
    finally:
        for tensor, home in homes:
            tensor.data = home


def check_compiler(device: torch.device) -> None:
    """See that what torch.compile needs is there.

    Raises:
        ClearSRError: it is not.
    """
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ClearSRError("--compile: on CUDA it needs triton, which is not installed; leave --compile out")
    names = (os.environ.get("CXX"), *_HOST_COMPILERS)
    if device.type != "mps" and not any(name and shutil.which(name) for name in names):
        raise ClearSRError(
            f"--compile: no C++ compiler found ({', '.join(_HOST_COMPILERS)}, or the one that CXX names); "
            "install one or leave --compile out"
        )
