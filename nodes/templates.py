"""Sorts this pack's templates by name in the template browser."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from server import PromptServer

PACK = Path(__file__).parents[1].name


def list_templates_in_order() -> None:
    """Sort the list of templates, which ComfyUI returns in the disk's order and the front end does not sort."""
    PromptServer.instance.app.middlewares.append(_in_order)


@web.middleware
async def _in_order(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    response = await handler(request)
    if request.path.removeprefix("/api") != "/workflow_templates" or response.status != 200:
        return response
    names = json.loads(response.text)
    names.get(PACK, []).sort()
    response.text = json.dumps(names)  # keeps the headers, which others may have set
    return response
