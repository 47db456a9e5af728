"""ComfyUI's CONTROL_NET from an Imprint checkpoint, for a model that sees the background through one."""

from __future__ import annotations

from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.ops
import comfy.utils
import torch

import nodes  # ComfyUI's own, not this package

from ..imprint.checkpoint import Checkpoint
from ..imprint.config import ImprintConfig
from ..imprint.crop import Crop
from ..imprint.errors import ImprintError
from ..imprint.hint import CHANNELS, control_hint
from ..imprint.views import ObjectViews
from .local import CURE
from .shapes import PLAIN_LAYERS, named_tensors, shapes_of
from .unet import ModelConfig

VIEWS_KEY = "imprint_views"
"""Key in a conditioning: the object's `ObjectViews`, from which hints are made."""

_CONTROL = "imprint_control"  # the MODEL's attachment
_HINT_LAYERS = 8


def attach_control(model: Any, checkpoint: Checkpoint) -> None:
    """Attach part `control` to the MODEL as a CONTROL_NET, with the dtype and devices that ComfyUI chooses."""
    core, manage = ModelConfig(checkpoint.config), comfy.model_management
    options = {name: value for name, value in core.unet_config.items() if name != "out_channels"}
    options["hint_channels"] = CHANNELS
    shapes = shapes_of(comfy.cldm.cldm.ControlNet(**options, device="meta", operations=PLAIN_LAYERS))
    tensors = named_tensors(checkpoint, "control", shapes, _diffusers_names(core.unet_config))

    load_device, supported = manage.get_torch_device(), core.supported_inference_dtypes
    dtype = manage.unet_dtype(
        model_params=-1, supported_dtypes=supported, weight_dtype=comfy.utils.weight_dtype(tensors)
    )
    cast = manage.unet_manual_cast(dtype, load_device, supported)
    net = comfy.cldm.cldm.ControlNet(
        **options,
        dtype=dtype,
        device=manage.unet_offload_device(),
        operations=comfy.ops.pick_operations(dtype, cast),
    )
    net.load_state_dict(tensors, strict=False)
    control = comfy.controlnet.ControlNet(net, load_device=load_device, manual_cast_dtype=cast)
    model.set_attachments(_CONTROL, control)


def _diffusers_names(unet_config: dict[str, Any]) -> dict[str, str]:
    """diffusers' names of a ControlNet's tensors -> ComfyUI's, including unused names of a UNet."""
    names = comfy.utils.unet_to_diffusers(unet_config)
    blocks = sum(blocks + 1 for blocks in unet_config["num_res_blocks"])
    renamed = {f"controlnet_down_blocks.{index}": f"zero_convs.{index}.0" for index in range(blocks)}
    renamed["controlnet_mid_block"] = "middle_block_out.0"
    embedding = "controlnet_cond_embedding."
    for index in range(_HINT_LAYERS):
        layer = {0: "conv_in", _HINT_LAYERS - 1: "conv_out"}.get(index, f"blocks.{index - 1}")
        renamed[embedding + layer] = f"input_hint_block.{2 * index}"
    return names | {
        f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in renamed.items() for kind in ("weight", "bias")
    }


def hints(config: ImprintConfig, positive: list, crops: list[Crop]) -> torch.Tensor:
    """The hint for each crop, (B, `CHANNELS`, R, R), of the conditioning's object.

    Raises `ImprintError` for a conditioning without the object's pictures.
    """
    views = next((told[VIEWS_KEY] for _, told in positive if VIEWS_KEY in told), None)
    if not isinstance(views, ObjectViews):
        raise ImprintError(
            "the positive conditioning does not hold the object's pictures, from which this checkpoint's ControlNet "
            f"gets a sketch; {CURE}"
        )
    return torch.cat([control_hint(views, crop, config.encoder) for crop in crops])


def apply_control(model: Any, positive: list, negative: list, hints: torch.Tensor) -> tuple[list, list]:
    """Both conditionings with the MODEL's ControlNet and the hints; ControlNets already applied are kept."""
    apply = nodes.ControlNetApplyAdvanced().apply_controlnet
    return apply(positive, negative, model.get_attachment(_CONTROL), hints.movedim(1, -1), 1.0, 0.0, 1.0)
