"""A test-only pack: which models are alive in the server's process, what it occupies, tensors that no core node makes,
and a background removal without weights."""

import gc
import os

import comfy.bg_removal_model
import comfy.clip_vision
import comfy.model_management
import psutil
import torch
from aiohttp import web
from comfy_api.latest import ComfyExtension, io
from server import PromptServer

_NAMES = {"CleanBackground", "Dinov2Model", "_AdapterModule", "TAESD"}
_FILLS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}


@PromptServer.instance.routes.get("/imprint_probe")
async def probe(_request: web.Request) -> web.Response:
    gc.collect()
    alive = sorted(type(thing).__name__ for thing in gc.get_objects() if type(thing).__name__ in _NAMES)
    loaded = len(comfy.model_management.current_loaded_models)
    resident = psutil.Process(os.getpid()).memory_info().rss
    return web.json_response({"alive": alive, "loaded": loaded, "resident": resident})


class ProbeTensor(io.ComfyNode):
    """A tensor of any shape, with one value or random ones, and a block of another value in its middle."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeTensor",
            inputs=[io.String.Input("shape"), io.String.Input("fill"), io.String.Input("middle", default="")],
            outputs=[io.Image.Output(display_name="image"), io.Mask.Output(display_name="mask")],
        )

    @classmethod
    def execute(cls, shape: str, fill: str, middle: str) -> io.NodeOutput:
        size = [int(side) for side in shape.split("x")] if shape else []
        if fill == "random":
            tensor = torch.rand(size, generator=torch.Generator().manual_seed(0))
        else:
            tensor = torch.full(size, _FILLS.get(fill) or float(fill))
        if middle:
            area = slice(1, 3) if len(size) in (3, 4) else slice(0, 2)
            block = [slice(None)] * tensor.ndim
            block[area] = [slice(side // 4, max(side * 3 // 4, 1)) for side in size[area]]
            tensor[tuple(block)] = _FILLS.get(middle) or float(middle)
        return io.NodeOutput(tensor, tensor.clone())


class ProbeConditioning(io.ComfyNode):
    """Conditioning of any shape, like that of another family's text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeConditioning",
            inputs=[io.String.Input("shape"), io.String.Input("fill")],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, shape: str, fill: str) -> io.NodeOutput:
        size = [int(side) for side in shape.split("x")]
        return io.NodeOutput([[torch.full(size, _FILLS.get(fill) or float(fill)), {}]])


class ProbeClipVision(io.ComfyNode):
    """A CLIP_VISION other than the checkpoint's: a CLIP, or a DINOv2 of another width."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeClipVision",
            inputs=[io.ClipVision.Input("clip_vision"), io.Combo.Input("kind", options=["clip", "narrow"])],
            outputs=[io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls, clip_vision: comfy.clip_vision.ClipVisionModel, kind: str) -> io.NodeOutput:
        options = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 1}
        made = comfy.clip_vision.ClipVisionModel(clip_vision.config | options)
        for parameter in made.model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        if kind == "clip":
            made.model_type = "clip_vision_model"
        return io.NodeOutput(made)


class BorderRemoval:
    """A model for core's Remove Background: the object is everything whose colour differs from the photo's border."""

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], 1).mean(1)
        return ((image - border[:, None, None]).abs().amax(-1) > 0.2).float()


_load = comfy.bg_removal_model.load_background_removal_model
comfy.bg_removal_model.load_background_removal_model = lambda sd: (
    BorderRemoval() if "imprint_probe" in sd else _load(sd)
)


class Probe(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ProbeTensor, ProbeConditioning, ProbeClipVision]


def comfy_entrypoint() -> Probe:
    return Probe()
