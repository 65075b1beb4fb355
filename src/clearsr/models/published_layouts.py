"""What tensors are called in other projects' weights and in ours: the map of `clearsr convert`, as data.

`LDM` leads from the original names (Stable Diffusion, ControlNet, DiffBIR) to diffusers', `CONTROL` from
those of a ControlNet to DPM and SPM, `PAPER` from what ClearSR's own file may look like to ours.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch

from clearsr.models.lora import ADAPTER


class Row(NamedTuple):
    """How names begin, and where such tensors belong.

    Attributes:
        pattern: regular expression; its group `block` counts the blocks through all levels.
        targets: what stands there instead, once for every place that takes the tensor. `{level}` and
            `{layer}` come from `block`, `{layers}` are the ResBlocks of a level, `{inner}` leads past the
            window attention.
        first: the block that level 0 begins with.
        hook: gives one tensor for each target, where theirs has another form.
    """

    pattern: str
    targets: tuple[str, ...]
    first: int = 0
    hook: Callable[[torch.Tensor], Sequence[torch.Tensor]] | None = None


class Layout(NamedTuple):
    """A form in which weights are published.

    Attributes:
        sign: how a name begins that this layout has and no other.
        prefix: of its names.
        holds: a text-to-image U-Net, a ControlNet, or all that ClearSR trains.
        rows: from its names to diffusers' (`network`: to ours); none, where they are diffusers'.
        seen: where the names were read.
    """

    title: str
    sign: str
    prefix: str
    holds: Literal["unet", "control", "network"]
    rows: tuple[Row, ...]
    seen: str


# The original U-Net and ControlNet (latent-diffusion's names) -> diffusers'.
LDM = (
    Row(r"time_embed\.0\.", ("time_embedding.linear_1.",)),
    Row(r"time_embed\.2\.", ("time_embedding.linear_2.",)),
    Row(r"input_blocks\.0\.0\.", ("conv_in.",)),
    Row(r"input_blocks\.(?P<block>\d+)\.0\.op\.", ("down_blocks.{level}.downsamplers.0.conv.",), 1),
    Row(r"input_blocks\.(?P<block>\d+)\.0\.", ("down_blocks.{level}.resnets.{layer}.",), 1),
    Row(r"input_blocks\.(?P<block>\d+)\.1\.", ("down_blocks.{level}.attentions.{layer}.",), 1),
    Row(r"middle_block\.0\.", ("mid_block.resnets.0.",)),
    Row(r"middle_block\.1\.", ("mid_block.attentions.0.",)),
    Row(r"middle_block\.2\.", ("mid_block.resnets.1.",)),
    Row(r"output_blocks\.(?P<block>\d+)\.[12]\.conv\.", ("up_blocks.{level}.upsamplers.0.conv.",)),
    Row(r"output_blocks\.(?P<block>\d+)\.0\.", ("up_blocks.{level}.resnets.{layer}.",)),
    Row(r"output_blocks\.(?P<block>\d+)\.1\.", ("up_blocks.{level}.attentions.{layer}.",)),
    Row(r"out\.0\.", ("conv_norm_out.",)),
    Row(r"out\.2\.", ("conv_out.",)),
    Row(r"zero_convs\.(\d+)\.0\.", (r"controlnet_down_blocks.\1.",)),
    Row(r"middle_block_out\.0\.", ("controlnet_mid_block.",)),
)
_LDM_RESBLOCK = {
    "in_layers.0.": "norm1.",
    "in_layers.2.": "conv1.",
    "emb_layers.1.": "time_emb_proj.",
    "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.",
    "skip_connection.": "conv_shortcut.",
}

# diffusers' ControlNet -> ours; what DPM and SPM both have goes to both, DPM first.
_DPM, _SPM = "detail_preserving.", "structure_preserving."
CONTROL = (
    Row(r"conv_in\.", (_DPM + "conv_in.", _SPM + "conv_in.")),
    Row(r"time_embedding\.", (_DPM + "time_embedding.",)),
    Row(
        r"down_blocks\.(\d+)\.resnets\.(\d+)\.",
        (_DPM + r"down_blocks.\1.resnets.\2.", _SPM + r"levels.\1.\2."),
    ),
    Row(
        r"down_blocks\.(\d+)\.downsamplers\.0\.",
        (_DPM + r"down_blocks.\1.downsamplers.0.", _SPM + r"levels.\1.{layers}."),
    ),
    Row(
        r"(down_blocks\.\d+|mid_block)\.attentions\.(\d+)\.transformer_blocks\.(\d+)\.",
        (_DPM + r"\1.attentions.\2.transformer_blocks.\3.{inner}",),
    ),
    Row(r"(down_blocks|mid_block)\.", (_DPM + r"\1.",)),
    Row(r"controlnet_down_blocks\.(\d+)\.", (_DPM + r"zero_convs.\1.",)),
    Row(r"controlnet_mid_block\.", (_DPM + "mid_zero_conv.",)),
)


def _transposed(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Swin's table of biases, offsets×heads -> ours, heads×offsets."""
    return [tensor.T]


def _halves(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Keys and values by one layer -> by two."""
    return list(tensor.chunk(2))


# ClearSR's own weights -> ours. Neither its code nor its weights were to be found (November 2026), so these
# rows are the paper's words around diffusers' and Swin's names, and a guess: who has the file mends them
# here. A wrong guess cannot pass: here every tensor must find its place, and every place its tensor.
_CA = r"dpm\.(.+\.transformer_blocks\.\d+)\.ca\."
_LR_ATTENTION = _DPM + r"\1.lr_attention."
PAPER = (
    Row(_CA + "relative_position_bias_table$", (_LR_ATTENTION + "position_bias",), hook=_transposed),
    Row(_CA + r"kv\.", (_LR_ATTENTION + "to_k.", _LR_ATTENTION + "to_v."), hook=_halves),
    Row(_CA + r"q\.", (_LR_ATTENTION + "to_q.",)),
    Row(_CA + r"proj\.", (_LR_ATTENTION + "to_out.",)),
    Row(_CA, (_LR_ATTENTION,)),
    *(row._replace(pattern=r"dpm\." + row.pattern, targets=row.targets[:1]) for row in CONTROL),
    *(
        row._replace(pattern=r"g?spm\." + row.pattern, targets=row.targets[1:])
        for row in CONTROL
        if len(row.targets) > 1
    ),
    Row(r"vae_lora\.(.+)\.lora_([AB])\.", (rf"latents.vae.\1.lora_\2.{ADAPTER}.",)),
    Row(r"unet_lora\.(.+)\.lora_([AB])\.", (rf"unet.\1.lora_\2.{ADAPTER}.",)),
)

LAYOUTS = (
    Layout(
        "Stable Diffusion, one file",
        r"model\.diffusion_model\.input_blocks\.",
        "model.diffusion_model.",
        "unet",
        LDM,
        "DiffBIR scripts/convert_diffusers_to_sd.py and diffbir/model/cldm.py; diffusers' single-file loader",
    ),
    Layout(
        "ControlNet, one file with its U-Net",
        r"control_model\.zero_convs\.",
        "control_model.",
        "control",
        LDM,
        "lllyasviel/ControlNet cldm/cldm.py; DiffBIR v1 model/cldm.py",
    ),
    Layout(
        "ControlNet alone (DiffBIR v1, v2 and v2.1)",
        r"zero_convs\.",
        "",
        "control",
        LDM,
        "DiffBIR diffbir/model/controlnet.py and load_controlnet_from_ckpt of diffbir/model/cldm.py",
    ),
    Layout(
        "ControlNet of diffusers (SeeSR's too)",
        r"controlnet_down_blocks\.",
        "",
        "control",
        (),
        "diffusers ControlNetModel; SeeSR models/controlnet.py, in controlnet/ by train_seesr.py",
    ),
    Layout(
        "U-Net of diffusers (SeeSR's too)",
        r"up_blocks\.",
        "",
        "unet",
        (),
        "diffusers UNet2DConditionModel; SeeSR models/unet_2d_blocks.py, in unet/ by train_seesr.py",
    ),
    Layout("ClearSR, by the paper's names", r"dpm\.", "", "network", PAPER, "a guess: nothing is published"),
)

# What has no place here, by how the name begins.
_NO_PLACE = {
    r"(control_model\.)?input_hint_block\.|controlnet_cond_embedding\.": (
        "reads a hint picture; here x_lr goes straight into conv_in"
    ),
    r".*\.image_attentions\.": "attends to SeeSR's tags, which ClearSR has not",
    r"(first_stage_model|cond_stage_model)\.": "VAE and text encoder are the base's",
    r"(cond_encoder|preprocess_model)\.": "prepares DiffBIR's hint; here x_lr is the LR image's latent",
    r"model_ema\.": "a running average; the weights beside it are taken",
    r"\w+$": "no weight of a network (noise schedule)",
}


def moved(
    name: str, tensor: torch.Tensor, rows: Sequence[Row], layers: int, inner: str = ""
) -> list[tuple[str, torch.Tensor]]:
    """Where a tensor belongs, and in which form, by the first row that its name begins as; [] if none.

    Args:
        layers: ResBlocks of a level.
        inner: what stands between a transformer block of the DPM and its layers.
    """
    for row in rows:
        if not (match := re.match(row.pattern, name)):
            continue
        level = layer = 0
        if "block" in match.groupdict():
            level, layer = divmod(int(match["block"]) - row.first, layers + 1)
        fields = {"level": level, "layer": layer, "layers": layers, "inner": inner}
        rest = name[match.end() :]
        for old, new in _LDM_RESBLOCK.items():
            if rest.startswith(old):
                rest = new + rest.removeprefix(old)
                break
        tensors = [tensor] * len(row.targets) if row.hook is None else row.hook(tensor)
        heads = [match.expand(target.format(**fields)) for target in row.targets]
        return [(head + rest, part) for head, part in zip(heads, tensors, strict=True)]
    return []


def reason_passed(name: str) -> str:
    """Why a tensor that no row leads anywhere is not taken."""
    reasons = (reason for pattern, reason in _NO_PLACE.items() if re.match(pattern, name))
    return next(reasons, "no such tensor in ClearSR")
