"""The template browser shows this pack's first template first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from server import PromptServer

PACK = Path(__file__).parents[1]


def serve_other_templates() -> None:
    """Add a route for each file of `workflows/`.

    ComfyUI lists what is in `example_workflows/` before what is in `workflows/`, within a folder in the disk's order, but
    serves the files of the former alone. So the first template has that folder for itself.
    """
    for file in (PACK / "workflows").glob("*.*"):
        PromptServer.instance.routes.get(f"/workflow_templates/{PACK.name}/{file.name}")(_sender(file))


def _sender(file: Path) -> Callable[[web.Request], Awaitable[web.FileResponse]]:
    async def send(_: web.Request) -> web.FileResponse:
        return web.FileResponse(file)

    return send
