"""LoRA files (arXiv 2106.09685) under kohya's names, as training writes them and ComfyUI's own loader reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch

from .checkpoint import open_safetensors
from .errors import ImprintError

FEW_STEPS = Path(__file__).parent / "assets" / "loras" / "imprint-tiny-2-steps.safetensors"
"""With it the shipped checkpoint draws in two steps."""

_PREFIX = "lora_unet_"
_PARTS = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}


class LoraLayer(NamedTuple):
    """What a LoRA adds to the weight of one linear layer or convolution: alpha / rank * up @ down."""

    down: torch.Tensor
    """(rank, inputs) or, of a convolution, (rank, inputs, height, width)."""
    up: torch.Tensor
    """(outputs, rank), or with a height and a width of 1."""
    alpha: torch.Tensor

    def change(self, shape: torch.Size) -> torch.Tensor:
        """The addition in fp32. Raises `ValueError` for a weight of another shape."""
        down, up, alpha = self
        rank = len(down) if min(down.ndim, up.ndim) > 1 else 0
        if not rank or up.shape[1:].numel() != rank or alpha.numel() != 1:
            shapes = ", ".join(str(tuple(each.shape)) for each in self)
            raise ValueError(f"down, up and alpha of shapes {shapes} do not belong together")
        changed = (*up.shape[:1], *down.shape[1:])
        if changed != tuple(shape):
            raise ValueError(f"it changes a weight of shape {changed}, and the model's has {tuple(shape)}")
        return float(alpha) / rank * (up.float().flatten(1) @ down.float().flatten(1)).view(shape)


def is_lora(path: str | os.PathLike) -> bool:
    """Whether a safetensors file is a LoRA of a UNet. Raises `ImprintError` for any other kind of file."""
    with open_safetensors(Path(path), "a LoRA") as file:
        return any(name.startswith(_PREFIX) for name in file.keys())


def read_lora(path: str | os.PathLike) -> dict[str, LoraLayer]:
    """The layers that a LoRA changes, by their names with underscores for dots.

    Raises `ImprintError` for a file that cannot be read, and unless it holds such layers alone, all of them whole.
    """
    path, found = Path(path), {}
    with open_safetensors(path, "a LoRA") as file:
        for name in sorted(file.keys()):
            layer, _, part = name.partition(".")
            if not layer.startswith(_PREFIX) or part not in _PARTS:
                raise ImprintError(
                    f"{path} is no LoRA of a UNet under kohya's names, since it holds '{name}'; give one that stage "
                    "finetune of training.train has written"
                )
            found.setdefault(layer.removeprefix(_PREFIX), {})[_PARTS[part]] = file.get_tensor(name)
    if not found:
        raise ImprintError(f"{path} is no LoRA, since it holds nothing; export or download it again")
    for layer, parts in found.items():
        if missing := _PARTS.values() - parts.keys():
            raise ImprintError(
                f"{path}: of the LoRA's layer '{layer}', {' and '.join(sorted(missing))} is missing; export or "
                "download the file again"
            )
    return {layer: LoraLayer(**parts) for layer, parts in found.items()}


def merge_lora(unet: torch.nn.Module, path: str | os.PathLike) -> None:
    """Add to the UNet's weights, for good, what a LoRA changes. (The pipeline's `load_lora_weights` takes peft.)

    Raises `ImprintError` as `read_lora` does, and for a LoRA of another model; the weights are then unchanged.
    """
    modules = {name.replace(".", "_"): module for name, module in unet.named_modules()}
    changes = []
    for name, layer in read_lora(path).items():
        try:
            weight = getattr(modules.get(name), "weight", None)
            if weight is None:
                raise ValueError("the model has no such layer")
            changes.append((weight, layer.change(weight.shape)))
        except ValueError as error:
            raise ImprintError(
                f"{path} is a LoRA of another model: its layer '{name}' does not fit ({error}); give one that was "
                "trained from this checkpoint"
            ) from error
    with torch.no_grad():
        for weight, change in changes:
            weight += change.to(weight.device)  # rounded once, even if the weight is of half precision
