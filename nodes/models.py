"""A checkpoint as ComfyUI's MODEL, CLIP_VISION and VAE, plus the adapter and the light network.

Nothing in `comfy` is patched. Names are looked up when they are used, since ComfyUI replaces `CoreModelPatcher` after
importing the nodes.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfyui_version
import torch

from ..imprint.adapter import ContentAdapter
from ..imprint.checkpoint import Checkpoint
from ..imprint.errors import ImprintError
from ..imprint.lightnet import LightNet, load_light
from ..imprint.model import Unfilled
from ..imprint.third_party import kind_of, open_checkpoint
from .clip_vision import build_clip_vision
from .control import attach_control
from .shapes import shapes_of
from .unet import build_model
from .vae import build_vae

LEAST_COMFYUI = (0, 25)
"""The first version that supports a DINOv2 for pictures of sizes other than 518 px."""


def load(path: str) -> tuple[Any, Any, Adapter, Any]:
    """A file -> MODEL, CLIP_VISION, adapter and VAE; None for the VAE of a file that holds none.

    Raises `ImprintError` for a ComfyUI older than `LEAST_COMFYUI`, and as `open_checkpoint` does.
    """
    version = comfyui_version.__version__
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < LEAST_COMFYUI:
        least = ".".join(map(str, LEAST_COMFYUI))
        raise ImprintError(f"this is ComfyUI {version}, and Imprint's models need {least} or newer; update ComfyUI")
    checkpoint = open_checkpoint(path)
    if checkpoint.names == "ldm":
        logging.info("Imprint: %s is read as third-party weights of kind %s", path, kind_of(checkpoint.config))
    built = {part: build(checkpoint) for part, build in _BUILDERS.items() if part in checkpoint.parts}
    if checkpoint.config.background == "control":
        attach_control(built["unet"], checkpoint)
    for part, thing in built.items():
        # ComfyUI uses this to reload the part for hooks under dynamic VRAM, and for a second GPU.
        _patcher(thing).cached_patcher_init = (reload_patcher, (path, part))
    return built["unet"], built["encoder"], built["adapter"], built.get("vae")


def reload_patcher(path: str, part: str, disable_dynamic: bool = False) -> Any:
    """One part's ModelPatcher, reloaded from the file. As in ComfyUI, only a UNet can disable dynamic VRAM."""
    checkpoint = open_checkpoint(path)
    return _patcher(build_model(checkpoint, disable_dynamic) if part == "unet" else _BUILDERS[part](checkpoint))


class _AdapterModule(ContentAdapter):
    device = None  # a plain attribute instead of the property: the ModelPatcher assigns the weights' device to it


class Adapter:
    """The content adapter under ComfyUI's memory management, like its CLIP_VISION objects."""

    def __init__(self, checkpoint: Checkpoint):
        self.config, self.encoder = checkpoint.config.adapter, checkpoint.config.encoder
        self.changes = checkpoint.config.changes
        self.controlled = checkpoint.config.background == "control"
        tensors = checkpoint.check("adapter", shapes_of(ContentAdapter(self.config, device="meta")))
        manage = comfy.model_management
        self.load_device, offload_device = manage.text_encoder_device(), manage.text_encoder_offload_device()
        dtype = manage.text_encoder_dtype(self.load_device)
        self.model = _AdapterModule(self.config, comfy.ops.manual_cast, dtype=dtype, device=offload_device).eval()
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.model, load_device=self.load_device, offload_device=offload_device
        )
        self.model.load_state_dict(tensors, strict=False, assign=self.patcher.is_dynamic())

    @torch.no_grad()
    def contexts(
        self, tokens: torch.Tensor, strength: float, nothing: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, V, N, C) tokens -> the context with the object and the one without, both (1, V * N', C').

        nothing: the tokens of no object, for an adapter without a learned embedding for it.
        """
        comfy.model_management.load_model_gpu(self.patcher)
        context = self.model(tokens.to(self.load_device, torch.float32))
        if nothing is None:
            null = self.model.null_context(context)
        else:
            null = self.model(nothing.to(self.load_device, torch.float32))
        device = comfy.model_management.intermediate_device()
        return self.model.scale(context, strength, null).to(device), null.to(device)


class _LightModule(LightNet):
    device = None  # as in `_AdapterModule`


class Light:
    """The light network of a file under ComfyUI's memory management. Raises `ImprintError` as `load_light` does."""

    def __init__(self, path: str):
        net, manage = load_light(path), comfy.model_management
        with Unfilled():
            model = _LightModule(net.config).eval().requires_grad_(False)
        model.load_state_dict(net.state_dict(), assign=True)
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            model, load_device=manage.get_torch_device(), offload_device=manage.unet_offload_device()
        )

    def loaded(self) -> LightNet:
        """The network, loaded on its device; for `relight`."""
        comfy.model_management.load_model_gpu(self.patcher)
        return self.patcher.model


_BUILDERS = {"unet": build_model, "encoder": build_clip_vision, "adapter": Adapter, "vae": build_vae}


def _patcher(thing: Any) -> Any:
    return getattr(thing, "patcher", thing)
