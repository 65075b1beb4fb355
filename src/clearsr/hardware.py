"""What depends on the hardware: which device, which precision, what is kept where, and compilation.

Nothing here changes a result beyond the rounding of the chosen precision.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from clearsr.errors import ClearSRError, first_line

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_HOST_COMPILERS = ("g++", "c++", "clang++", "cl")


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first of CUDA (or ROCm, which torch calls so), XPU, MPS, CPU.

    Raises:
        ClearSRError: no such device here.
    """
    here = {kind: count for kind in ("cuda", "xpu", "mps", "cpu") if (count := _count(kind))}
    if name == "auto":
        return torch.device(next(iter(here)))
    kind, colon, index = name.partition(":")
    has_index = kind in ("cuda", "xpu") and index.isdigit() and int(index) < here.get(kind, 0)
    if kind not in here or (colon and not has_index):
        raise ClearSRError(f"--device {name}: not available here; accepted: {', '.join(['auto', *here])}")
    return torch.device(name)


def _count(kind: str) -> int:
    """How many devices of a kind are here."""
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    backend = {"cuda": torch.cuda, "xpu": torch.xpu}.get(kind)
    if backend is None:
        return 1
    return backend.device_count() if backend.is_available() else 0


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
    found = [torch.device(kind, index) for kind in ("cuda", "xpu") for index in range(_count(kind))]
    for device in found:
        backend: Any = torch.cuda if device.type == "cuda" else torch.xpu
        properties = backend.get_device_properties(device.index)
        bf16 = has_bf16(device)
        text = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        text += ", by ROCm" if device.type == "cuda" and torch.version.hip else ""
        devices.append(Device(str(device), text + ("" if bf16 else ", without bf16"), bf16))
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
        if device.type in ("cuda", "xpu"):
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
    if device.type == "xpu":
        return torch.xpu.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def memory_of(device: torch.device) -> tuple[int, int] | None:
    """Bytes that this process has taken on an accelerator, and that it could still take; None on a CPU."""
    if device.type in ("cuda", "xpu"):
        backend = torch.cuda if device.type == "cuda" else torch.xpu
        taken = backend.memory_allocated(device)
        return taken, backend.mem_get_info(device)[0] + backend.memory_reserved(device) - taken
    if device.type == "mps":
        taken = torch.mps.current_allocated_memory()
        return taken, int(torch.mps.recommended_max_memory()) - taken
    return None


def release_cached_memory() -> None:
    """Have torch give back what it keeps on accelerators for later; after memory ran out."""
    for kind, backend in (("cuda", torch.cuda), ("xpu", torch.xpu), ("mps", torch.mps)):
        if _count(kind):
            backend.empty_cache()


def mixed_precision(device: torch.device, precision: torch.dtype) -> AbstractContextManager[Any]:
    """Convolutions and matrix products in `precision` within the block, whatever is around it."""
    return full_precision(device) if precision == torch.float32 else torch.autocast(device.type, precision)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast switched off; where only shapes are computed, on the meta device, there is none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


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


@contextmanager
def cuda_arithmetic(tf32: bool | None, cudnn_benchmark: bool) -> Iterator[None]:
    """Within the block fp32 is computed in TF32 on CUDA, or not, and cuDNN tries its algorithms out.

    None and False leave things as they are. These are settings of the whole process, put back afterwards; of
    torch's two names for those of TF32 the older ones, which all its versions know.
    """
    products: Any = torch.backends.cuda.matmul
    convolutions: Any = torch.backends.cudnn
    with ExitStack() as undone:
        if tf32 is not None:
            for settings in (products, convolutions):
                undone.callback(setattr, settings, "allow_tf32", settings.allow_tf32)
                settings.allow_tf32 = tf32
        if cudnn_benchmark:
            undone.callback(setattr, convolutions, "benchmark", convolutions.benchmark)
            convolutions.benchmark = True
        yield


def check_compiler(device: torch.device, name: str = "--compile") -> None:
    """See that what torch.compile needs is there; `name` is what it was asked for by.

    Raises:
        ClearSRError: it is not.
    """
    if device.type in ("cuda", "xpu") and importlib.util.find_spec("triton") is None:
        where = device.type.upper()
        raise ClearSRError(f"{name}: on {where} it needs triton, which is not installed; leave {name} out")
    compilers = (os.environ.get("CXX"), *_HOST_COMPILERS)
    if device.type != "mps" and not any(each and shutil.which(each) for each in compilers):
        raise ClearSRError(
            f"{name}: no C++ compiler found ({', '.join(_HOST_COMPILERS)}, or the one that CXX names); "
            f"install one or leave {name} out"
        )


def try_compiler(device: torch.device, name: str) -> None:
    """See that torch.compile works, by one small function: compilers may lack headers. Takes seconds.

    Raises:
        ClearSRError: it fails; says with what.
    """
    check_compiler(device, name)
    try:
        torch.compile(lambda values: values.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # of torch's own kinds, and of the compilers'
        raise ClearSRError(
            f"{name}: torch.compile does not work here ({first_line(error)}); leave {name} out"
        ) from None
