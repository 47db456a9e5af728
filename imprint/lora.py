"""LoRA files: what they change, added to the weights for good. (The pipeline's `load_lora_weights` takes peft.)"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .errors import ImprintError

FEW_STEPS = Path(__file__).parent / "assets" / "loras" / "imprint-tiny-2-steps.safetensors"
"""With it the shipped checkpoint draws in two steps."""


def merge_lora(unet: torch.nn.Module, path: str | os.PathLike) -> None:
    """Add to the UNet's weights what a LoRA (arXiv 2106.09685) changes: W + alpha / rank * up @ down.

    path: a .safetensors file under kohya's names, as training writes it, for linear layers and convolutions. Raises
    `ImprintError` for a file that cannot be read or is of another model; the weights are then unchanged.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ImprintError(f"{path} cannot be read as a LoRA ({error}); give a .safetensors file") from error
    layers = {"lora_unet_" + name.replace(".", "_"): layer for name, layer in unet.named_modules()}
    changes = {}
    for name in {each.partition(".")[0] for each in tensors}:
        try:
            down, up = (tensors[f"{name}.lora_{side}.weight"].float() for side in ("down", "up"))
            weight, scale = layers[name].weight, float(tensors[f"{name}.alpha"]) / len(down)
            changes[weight] = scale * (up.flatten(1) @ down.flatten(1)).view_as(weight)
        except (KeyError, AttributeError, RuntimeError) as error:
            raise ImprintError(
                f"{path} is no LoRA of this model: its layer '{name}' does not fit ({error}); give one that was trained "
                "from this checkpoint"
            ) from error
    with torch.no_grad():
        for weight, change in changes.items():
            weight += change.to(weight)
