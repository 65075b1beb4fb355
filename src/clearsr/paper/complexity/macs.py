"""How many multiply-accumulates (MACs) an image takes, counted on the modules as they are run.

The network is built on the meta device (shapes without memory) and the functions that sampling goes through
are called under torch's `FlopCounterMode`; nothing is computed from formulas of our own. Both countings are
kept: `layers`, convolutions and linear layers alone, is what thop-style tools see and what the papers of this
field print; `total` has the two products of attention as well.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clearsr.config.base import build_config
from clearsr.config.evaluation import BenchmarkConfig
from clearsr.config.model import ModelConfig, preset_model_config
from clearsr.config.sampling import SamplingConfig
from clearsr.models.build import base_configs, meta_network
from clearsr.models.checkpoint import locate, read_description
from clearsr.models.clearsr import ClearSRNetwork
from clearsr.models.parameters import PART_LABELS, part_of
from clearsr.models.sd21 import meta_text_encoder
from clearsr.sampling.guidance import Conditioning, Tiles, guided_z_0
from clearsr.tiling import Window

MAC_LABELS = {
    **PART_LABELS,
    "unet": "U-Net, encoder and middle",
    "unet_decoder": "U-Net, decoder",
    "vae": "VAE, encoder",
    "vae_decoder": "VAE, decoder",
}
# Where in a module's name the second half of a part is told from its first.
_DECODERS = {
    "unet": ("unet.up_blocks.", "unet.conv_out."),
    "vae": ("latents.vae.decoder.", "latents.vae.post_quant_conv."),
}
_DENOISING = (
    "detail_preserving",
    "cross_attention",
    "structure_preserving",
    "unet_lora",
    "unet",
    "unet_decoder",
)


class Macs(NamedTuple):
    """Multiply-accumulates of convolutions and linear layers, and of the two products of attention."""

    layers: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        return self.layers + self.attention

    def plus(self, other: "Macs", times: int = 1) -> "Macs":
        """The sum with `times` the other."""
        return Macs(self.layers + times * other.layers, self.attention + times * other.attention)


class MacTable(NamedTuple):
    """MACs by part, keys of `MAC_LABELS`.

    Attributes:
        once: what is done once per image (or, for the text encoder, once in all).
        per_step: what is done at each of the steps.
    """

    once: dict[str, Macs]
    per_step: dict[str, Macs]
    steps: int

    @property
    def parts(self) -> dict[str, Macs]:
        """Once and all steps together."""
        empty = Macs()
        names = [name for name in MAC_LABELS if name in self.once or name in self.per_step]
        return {
            name: self.once.get(name, empty).plus(self.per_step.get(name, empty), self.steps)
            for name in names
        }

    @property
    def total(self) -> Macs:
        """The whole image: encoders, all steps, decoder."""
        return add(self.parts.values())

    @property
    def denoising(self) -> Macs:
        """U-Net, DPM and SPM alone, without the VAE and the encoders of text and image."""
        return add(macs for name, macs in self.parts.items() if name in _DENOISING)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain numbers."""

        def plain(macs: Macs) -> dict[str, int]:
            return {**macs._asdict(), "total": macs.total}

        return {
            "steps": self.steps,
            "once": {name: plain(macs) for name, macs in self.once.items()},
            "per_step": {name: plain(macs) for name, macs in self.per_step.items()},
            "denoising": plain(self.denoising),
            "total": plain(self.total),
        }


def count_macs(
    config: ModelConfig,
    size: tuple[int, int] = (512, 512),
    steps: int = 50,
    guided: bool = True,
    naive: bool = False,
    merged: bool = True,
) -> MacTable:
    """MACs of one image of `size` (height, width of the output in pixels) as one tile.

    Args:
        guided: with classifier-free guidance, the null prompt as the unconditional branch.
        naive: as `benchmark.naive` runs the modules, everything anew at each step and for each branch; else
            as `sampling` does.
        merged: the LoRAs are folded into the weights, as `from_pretrained` does.

    Raises:
        ClearSRError: the base cannot be found, or the configuration cannot be built.
    """
    from clearsr.paper.complexity.naive import naive_z_0, stock_attention

    network = meta_network(config).requires_grad_(False).eval()
    network.alpha_bars = network.alpha_bars.to("meta")  # some of torch's shape functions refuse a mixture
    if merged:
        network.merge_adapters()
    multiple = network.pixel_multiple()
    height, width = (-(-side // multiple) * multiple for side in size)
    pixels = torch.empty(1, 3, height, width, device="meta")
    settings = build_config(SamplingConfig, {"guidance_scale": 2.0 if guided else 1.0})
    t = torch.tensor(500)

    conditioning, once = count(network, lambda: _condition(network, pixels))
    z_t = conditioning.embedding.mean
    if naive:
        with stock_attention(network):
            _, per_step = count(network, lambda: naive_z_0(network, conditioning, z_t, t, settings))
    else:
        whole = Window(0, 0, *z_t.shape[-2:])
        tile, structure = count(network, lambda: Tiles.cut(network, conditioning, [whole], keep=True))
        _, per_step = count(network, lambda: guided_z_0(network, tile, z_t, t, settings))
        once |= structure
    _, decoding = count(network, lambda: network.latents.decode(z_t))
    once |= decoding
    if (painter := network.painter) is not None:
        _, painting = count(network, lambda: painter(torch.cat([pixels, pixels], dim=1)))
        once |= painting
    if config.base_model is not None:
        once["text_encoder"] = _count_text_encoder(config)
    return MacTable(_in_order(once), _in_order(per_step), steps)


def count(
    network: nn.Module, run: Callable[[], Any], part: Callable[[str], str] | None = None
) -> tuple[Any, dict[str, Macs]]:
    """What `run` returns, and the MACs of the parts of `network` that it went through.

    Args:
        part: the part that a module belongs to, by its name; unset: those of a ClearSR network.
    """
    part = part or _part
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        result = _Root(network)(run)
    counts = {name: sum(operations.values()) // 2 for name, operations in counter.get_flop_counts().items()}
    every, _ = counts.pop("Global"), counts.pop(_Root.__name__)
    # A module with no other inside is a layer. What others have beyond the layers inside them is attention;
    # it belongs to the innermost.
    inside = {name: [other for other in counts if other.startswith(f"{name}.")] for name in counts}
    layers = {name for name in counts if not inside[name]}
    beyond = {name: counts[name] - sum(counts[n] for n in inside[name] if n in layers) for name in counts}
    parts: dict[str, Macs] = {}
    for name in counts:
        macs = Macs()
        if name in layers:
            macs = Macs(layers=counts[name])
        elif beyond[name] > 0 and not any(beyond[n] > 0 for n in inside[name] if n not in layers):
            macs = Macs(attention=beyond[name])
        if macs.total:
            key = part(name.removeprefix(f"{_Root.__name__}.network."))
            parts[key] = parts.get(key, Macs()).plus(macs)
    assert add(parts.values()).total == every, "an operation outside of the parts"
    return result, parts


def add(counts: Iterable[Macs]) -> Macs:
    """The sum."""
    total = Macs()
    for macs in counts:
        total = total.plus(macs)
    return total


class _Root(nn.Module):
    """Calls a function from inside a module, so that the counter knows all parts by their full names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, run: Callable[[], Any]) -> Any:
        return run()


def _condition(network: ClearSRNetwork, pixels: torch.Tensor) -> Conditioning:
    return Conditioning(network.latents.embed_lr(pixels), network.image_prompt(pixels))


def _count_text_encoder(config: ModelConfig) -> Macs:
    """One pass over the null prompt, which a ClearSR model stores the result of."""
    encoder = meta_text_encoder(base_configs(config)).eval()
    tokens = torch.zeros(1, config.null_prompt_tokens, dtype=torch.long, device="meta")
    _, parts = count(encoder, lambda: encoder(tokens), lambda _: "text_encoder")
    return parts["text_encoder"]


def _part(name: str) -> str:
    """The key of `MAC_LABELS` that a module belongs to."""
    part = part_of(f"{name}.")
    return f"{part}_decoder" if f"{name}.".startswith(_DECODERS.get(part, ())) else part


def _in_order(parts: dict[str, Macs]) -> dict[str, Macs]:
    return {name: parts[name] for name in MAC_LABELS if name in parts}


STEPS = 50


def measure_macs(_: BenchmarkConfig) -> dict[str, Any]:
    """Tables of `count_macs` at 512 x 512, and what sharing leaves of the naive work."""
    config = preset_model_config("sd21")
    tables = {}
    for guided in (True, False):
        for naive in (False, True):
            name = f"{'naive' if naive else 'ours'}, {'guided' if guided else 'unguided'}"
            tables[name] = count_macs(config, steps=STEPS, guided=guided, naive=naive)
    compact = _of_model("compact")
    shares = {
        kind: tables[f"ours, {kind}"].denoising.total / tables[f"naive, {kind}"].denoising.total
        for kind in ("guided", "unguided")
    }
    return {
        "sd21": {name: table.as_dict() for name, table in tables.items()},
        "ours_over_naive": shares,
        "compact": compact.as_dict(),
    }


def _of_model(source: str) -> MacTable:
    """A model by its own settings."""
    description = read_description(locate(source))
    sampling = build_config(SamplingConfig, description["sampling"])
    config = build_config(ModelConfig, description["model"])
    return count_macs(config, steps=sampling.steps, guided=sampling.guidance_scale > 1)
