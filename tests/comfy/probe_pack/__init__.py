"""A test-only pack: tells which models are alive in the server's process, and what it occupies."""

import gc
import os

import comfy.model_management
import psutil
from aiohttp import web
from comfy_api.latest import ComfyExtension
from server import PromptServer

_NAMES = {"CleanBackground", "Dinov2Model", "_AdapterModule", "TAESD"}


@PromptServer.instance.routes.get("/imprint_probe")
async def probe(_request: web.Request) -> web.Response:
    gc.collect()
    alive = sorted(type(thing).__name__ for thing in gc.get_objects() if type(thing).__name__ in _NAMES)
    loaded = len(comfy.model_management.current_loaded_models)
    resident = psutil.Process(os.getpid()).memory_info().rss
    return web.json_response({"alive": alive, "loaded": loaded, "resident": resident})


class Probe(ComfyExtension):
    async def get_node_list(self) -> list:
        return []


def comfy_entrypoint() -> Probe:
    return Probe()
