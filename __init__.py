"""The ComfyUI side of Imprint: ComfyUI imports this folder, the nodes are in `nodes/`."""

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    # Imported late: outside ComfyUI (pytest, packaging) this file must import without it.
    from .nodes import ImprintExtension, register_model_folders

    register_model_folders()
    return ImprintExtension()
