"""ClearSR's nodes for ComfyUI: this folder goes into `custom_nodes/`, the package `clearsr` into its Python.

ComfyUI takes V1's mappings where a module has them, so they are there only where it has no V3 interface.
"""

from .nodes import NODES, v1_class, v3_extension

try:
    from comfy_api.latest import ComfyExtension, io
except ImportError:
    NODE_CLASS_MAPPINGS = {node.id: v1_class(node) for node in NODES}
    NODE_DISPLAY_NAME_MAPPINGS = {node.id: node.title for node in NODES}
else:

    async def comfy_entrypoint() -> ComfyExtension:
        """What ComfyUI calls to have the nodes."""
        return v3_extension(io, ComfyExtension)
