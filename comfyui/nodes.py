"""The three nodes, each a function and a row of `NODES`; and how a row becomes a node of ComfyUI's V3 or V1.

Pictures are ComfyUI's: an IMAGE is B×H×W×C in [0, 1], a MASK B×H×W. The work is `ClearSRPipeline`'s; ClearSR
is imported when a node runs, so that ComfyUI starts as fast as without.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

MODEL = "CLEARSR_MODEL"
_NO_MASK = (64, 64)  # what Load Image hands out, all zeros, for a picture without transparency


class Input(NamedTuple):
    """An input of a node: what may be connected, or set, and ComfyUI's options for the control."""

    id: str
    kind: str
    options: dict[str, Any]
    optional: bool = False


class Node(NamedTuple):
    """A node. `run` takes the inputs by name and returns the outputs in their order."""

    id: str
    title: str
    about: str
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, str], ...]  # kind and name
    run: Callable[..., tuple[Any, ...]]


def load(model: str, device: str, precision: str) -> tuple[Any, ...]:
    """A pipeline on ComfyUI's device, or on the processor."""
    from comfy import model_management

    from clearsr import ClearSRPipeline

    where = str(model_management.get_torch_device()) if device == "ComfyUI's" else device
    return (ClearSRPipeline.from_pretrained(model.strip(), device=where, precision=precision),)


def upscale(
    model: Any,
    image: torch.Tensor,
    upscale: float,
    longest_side: int,
    detail: int,
    steps: int,
    seed: int,
    name: str = "",
    mask: torch.Tensor | None = None,
    mask_is_transparency: bool = False,
) -> tuple[Any, ...]:
    """The pictures and the mask, larger.

    One picture after the other: results are those of a batch, and a long one shows how far it is.
    """
    from comfy import model_management
    from comfy.utils import ProgressBar

    from clearsr.image import ImageData, resize_alpha
    from clearsr.seeds import file_seed
    from clearsr.web.estimate import checked
    from clearsr.web.fields import strengths_of

    settings: dict[str, Any] = {"seed": file_seed(seed, name) if name else seed, "upscale": upscale}
    if longest_side:
        settings["upscale"] = longest_side / max(image.shape[1:3])
    if steps >= 0:
        settings["steps"] = steps
    if detail:
        settings["lsa"] = dict(zip(("alpha", "beta"), strengths_of(detail), strict=True))
    config = model.configure(**settings)
    masks = _masks(mask, image)
    parts = max(1, config.steps) + 1  # of each picture; decoding is the last
    progress = ProgressBar(parts * len(image))
    pictures, larger_masks = [], []
    for index, pixels in enumerate(image.movedim(-1, 1).float().cpu()):
        color, alpha = pixels[:3].expand(3, -1, -1), pixels[3:] if len(pixels) == 4 else None
        if alpha is None and mask_is_transparency and masks is not None:
            alpha = 1 - masks[index, None]
        picture = ImageData(color.contiguous(), alpha, source=f"picture {index + 1}")

        def on_step(done: int, of: int, _z_0: Any, before: int = index * parts) -> None:
            progress.update_absolute(before + (parts - 1) * done // of)

        with checked(model.network, model_management.throw_exception_if_processing_interrupted):
            (larger,) = model.upscale([picture], config, on_step)
        progress.update_absolute((index + 1) * parts)
        has_alpha = len(pixels) == 4 and larger.alpha is not None
        planes = torch.cat([larger.color, larger.alpha]) if has_alpha else larger.color
        pictures.append(planes.clamp(0, 1).movedim(0, -1))
        size = (larger.height, larger.width)
        larger_masks.append(torch.zeros(size) if masks is None else resize_alpha(masks[index, None], size)[0])
    return torch.stack(pictures), torch.stack(larger_masks)


def compare(before: torch.Tensor, after: torch.Tensor, bicubic: bool) -> tuple[Any, ...]:
    """Input, bicubic and result side by side, as `clearsr upscale --compare` has them."""
    from clearsr.files.comparison import side_by_side
    from clearsr.image import ImageData, from_pil, resize, to_pil

    if len(before) != len(after):
        raise ValueError(f"before has {len(before)} pictures, after has {len(after)}; connect as many")
    sheets = []
    colors = (pictures[..., :3].movedim(-1, 1).expand(-1, 3, -1, -1) for pictures in (before, after))
    for lr, sr in zip(*colors, strict=True):
        shown = [("input", lr), ("ClearSR", sr)]
        if bicubic:
            shown.insert(1, ("bicubic", resize(lr[None].float().cpu(), tuple(sr.shape[1:]))[0].clamp(0, 1)))
        sheet = side_by_side([(caption, to_pil(ImageData(color.contiguous()))) for caption, color in shown])
        sheets.append(from_pil(sheet).color.movedim(0, -1))
    return (torch.stack(sheets),)


def _masks(mask: torch.Tensor | None, image: torch.Tensor) -> torch.Tensor | None:
    """One mask of a picture's size for each picture, or None where there is nothing in it."""
    if mask is None:
        return None
    mask = (mask[None] if mask.ndim == 2 else mask).float().cpu()
    size = tuple(image.shape[1:3])
    if tuple(mask.shape[1:]) != size:
        if tuple(mask.shape[1:]) == _NO_MASK and not mask.any():
            return None
        raise ValueError(
            f"the mask is {mask.shape[2]}x{mask.shape[1]}, the picture {size[1]}x{size[0]}; "
            "give a mask of the picture's size"
        )
    if len(mask) not in (1, len(image)):
        raise ValueError(f"{len(mask)} masks for {len(image)} pictures; give one, or one for each")
    return mask.expand(len(image), -1, -1)


NODES = (
    Node(
        "ClearSRLoad",
        "Load ClearSR",
        "A ClearSR model. `compact` comes with the package; nothing is downloaded for it.",
        (
            Input("model", "STRING", {"default": "compact", "tooltip": "compact, a folder, or a hub id"}),
            Input("device", "COMBO", {"options": ["ComfyUI's", "cpu"], "default": "ComfyUI's"}),
            Input("precision", "COMBO", {"options": ["auto", "fp32", "bf16", "fp16"], "default": "auto"}),
        ),
        ((MODEL, "model"),),
        load,
    ),
    Node(
        "ClearSRUpscale",
        "Upscale with ClearSR",
        "Larger and sharper pictures that stay true to what was photographed.",
        (
            Input("model", MODEL, {}),
            Input("image", "IMAGE", {}),
            Input(
                "upscale",
                "FLOAT",
                {"default": 4.0, "min": 0.25, "max": 16.0, "step": 0.25, "tooltip": "output over input size"},
            ),
            Input(
                "longest_side",
                "INT",
                {
                    "default": 0,
                    "min": 0,
                    "max": 16384,
                    "tooltip": "of the result, in pixels; 0: upscale says it",
                },
            ),
            Input(
                "detail",
                "INT",
                {
                    "default": 0,
                    "min": -100,
                    "max": 100,
                    "step": 5,
                    "display": "slider",
                    "tooltip": "-100: truest; 0: the model's own setting; 100: crispest",
                },
            ),
            Input(
                "steps",
                "INT",
                {"default": -1, "min": -1, "max": 1000, "tooltip": "-1: as many as the model asks for"},
            ),
            Input("seed", "INT", {"default": 0, "min": 0, "max": 2**63 - 1, "control_after_generate": True}),
            Input(
                "name",
                "STRING",
                {"default": "", "tooltip": "file name: draws the noise that `clearsr upscale` draws for it"},
                True,
            ),
            Input("mask", "MASK", {"tooltip": "made as large as the picture"}, True),
            Input(
                "mask_is_transparency",
                "BOOLEAN",
                {
                    "default": False,
                    "tooltip": "colours under the mask are not seen; fill them",
                },
                True,
            ),
        ),
        (("IMAGE", "image"), ("MASK", "mask")),
        upscale,
    ),
    Node(
        "ClearSRCompare",
        "Compare with ClearSR",
        "Input, bicubic interpolation and result side by side, under captions.",
        (
            Input("before", "IMAGE", {}),
            Input("after", "IMAGE", {}),
            Input("bicubic", "BOOLEAN", {"default": True}),
        ),
        (("IMAGE", "image"),),
        compare,
    ),
)


def v1_class(node: Node) -> type:
    """The node for ComfyUI without `comfy_api.latest`."""
    types: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
    for each in node.inputs:
        options = dict(each.options)
        kind = options.pop("options") if each.kind == "COMBO" else each.kind
        types["optional" if each.optional else "required"][each.id] = (kind, options)
    return type(
        node.id,
        (),
        {
            "INPUT_TYPES": classmethod(lambda _cls: types),
            "RETURN_TYPES": tuple(kind for kind, _ in node.outputs),
            "RETURN_NAMES": tuple(name for _, name in node.outputs),
            "CATEGORY": "image/upscaling",
            "DESCRIPTION": node.about,
            "FUNCTION": "run",
            "run": lambda _self, **inputs: node.run(**inputs),
        },
    )


def v3_class(node: Node, io: Any) -> type:
    """The node by ComfyUI's V3 schema; `io` is that of `comfy_api.latest`."""
    kinds = {
        "IMAGE": io.Image,
        "MASK": io.Mask,
        "INT": io.Int,
        "FLOAT": io.Float,
        "STRING": io.String,
        "BOOLEAN": io.Boolean,
        "COMBO": io.Combo,
        MODEL: io.Custom(MODEL),
    }

    def shown(each: Input) -> Any:
        options = dict(each.options)
        if "display" in options:
            options["display_mode"] = io.NumberDisplay(options.pop("display"))
        return kinds[each.kind].Input(each.id, optional=each.optional, **options)

    def define_schema(_cls: type) -> Any:
        return io.Schema(
            node_id=node.id,
            display_name=node.title,
            category="image/upscaling",
            description=node.about,
            inputs=[shown(each) for each in node.inputs],
            outputs=[kinds[kind].Output(display_name=name) for kind, name in node.outputs],
        )

    def execute(_cls: type, **inputs: Any) -> Any:
        return io.NodeOutput(*node.run(**inputs))

    methods = {"define_schema": classmethod(define_schema), "execute": classmethod(execute)}
    return type(node.id, (io.ComfyNode,), methods)


def v3_extension(io: Any, base: type) -> Any:
    """ClearSR's nodes as ComfyUI's V3 interface takes them; `base` is its `ComfyExtension`."""

    async def get_node_list(_self: Any) -> list[type]:
        return [v3_class(node, io) for node in NODES]

    return type("ClearSRExtension", (base,), {"get_node_list": get_node_list})()
