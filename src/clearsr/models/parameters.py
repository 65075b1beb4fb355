"""How many parameters each part of a network has, counted on the real classes (paper, Table 5); no memory."""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from clearsr.config.model import ModelConfig
from clearsr.errors import ClearSRError
from clearsr.models.build import base_configs, meta_network
from clearsr.models.sd21 import meta_text_encoder

# Every part, in the order in which it is listed.
PART_LABELS = {
    "detail_preserving": "DPM: ControlNet on x_lr",
    "cross_attention": "CA: window cross-attention",
    "structure_preserving": "SPM: ResBlocks on x_lr",
    "vae_lora": "LoRA of the VAE encoder (E')",
    "unet_lora": "LoRA of the U-Net decoder",
    "unet": "U-Net",
    "vae": "VAE",
    "lr_encoder": "LR encoder (E')",
    "painter": "painter (our own)",
    "text_encoder": "text encoder",
    "image_encoder": "image encoder",
    "null_prompt": "null prompt",
}
# Prefixes of tensor names; LoRA and window cross-attention are told from them by a word inside.
_PREFIXES = {
    "detail_preserving.": "detail_preserving",
    "structure_preserving.": "structure_preserving",
    "latents.lr_encoder.": "lr_encoder",
    "latents.vae.": "vae",
    "painter.": "painter",
    "unet.": "unet",
    "image_prompt.": "image_encoder",
    "null_prompt": "null_prompt",
}

_KINDS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}  # safetensors' words, and ours

# Wan et al., "ClearSR: Latent Low-Resolution Image Embeddings Help Diffusion-Based Real-World Super
# Resolution Models See Clearer", appendix E of the submitted version, Table 5, column ClearSR. In millions;
# what its total counts is not listed, and no plain choice of parts gives both numbers.
PAPER_TABLE_5 = {"trainable": 525, "total": 2511}


class ParameterTable(NamedTuple):
    """Parameters by part.

    Attributes:
        parts: counts by the keys of `PART_LABELS`, in that order; what the model has not is left out.
        trained: the parts that the `clearsr` stage trains.
    """

    parts: dict[str, int]
    trained: frozenset[str]

    @property
    def trainable(self) -> int:
        return sum(count for part, count in self.parts.items() if part in self.trained)

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def as_dict(self) -> dict[str, Any]:
        """`{"trainable": int, "total": int, "parts": {name: int}}`."""
        return {"trainable": self.trainable, "total": self.total, "parts": dict(self.parts)}


def parameter_table(config: ModelConfig) -> ParameterTable:
    """Every part of the network that `config` describes, and of a base also the text encoder.

    Shapes only: takes no memory, and of a base on the hub fetches no weights. On a base the null prompt is an
    output of the text encoder, not a parameter.

    Raises:
        ClearSRError: the base cannot be found, or the configuration cannot be built.
    """
    network = meta_network(config)
    network.set_trainable()
    parameters = list(network.named_parameters())
    counts = _count((name, parameter.numel()) for name, parameter in parameters)
    trained = frozenset(part_of(name) for name, parameter in parameters if parameter.requires_grad)
    if config.base_model is not None:
        del counts["null_prompt"]
        encoder = meta_text_encoder(base_configs(config))
        counts["text_encoder"] = sum(parameter.numel() for parameter in encoder.parameters())
    return ParameterTable(_in_order(counts), trained)


def stored_parts(weights: Path) -> dict[str, int]:
    """Parameters by part of what a safetensors file holds; reads its header alone.

    Raises:
        ClearSRError: the file cannot be read, or holds a tensor that is not a ClearSR network's.
    """
    try:
        with safe_open(weights, framework="pt") as file:
            return _in_order(_count((n, math.prod(file.get_slice(n).get_shape())) for n in file.keys()))  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ClearSRError(f"{weights}: cannot be read as safetensors ({error})") from None
    except KeyError as error:
        raise ClearSRError(f"{weights}: holds {error}, which no ClearSR network has") from None


def stored_precision(weights: Path) -> str:
    """What the numbers in a safetensors file are, such as `fp16`; reads its header alone."""
    with safe_open(weights, framework="pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return " and ".join(sorted(_KINDS.get(kind, kind) for kind in kinds))


def part_of(name: str) -> str:
    """The part that a parameter of a network belongs to, a key of `PART_LABELS`.

    Raises:
        KeyError: no network has such a name.
    """
    if ".lora_" in name:
        return "unet_lora" if name.startswith("unet.") else "vae_lora"
    if ".lr_attention." in name:
        return "cross_attention"
    for prefix, part in _PREFIXES.items():
        if name.startswith(prefix):
            return part
    raise KeyError(name)


def _count(sizes: Iterable[tuple[str, int]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for name, size in sizes:
        counts[part_of(name)] += size
    return counts


def _in_order(counts: Counter[str]) -> dict[str, int]:
    return {part: counts[part] for part in PART_LABELS if counts[part]}
