"""LoRA files (arXiv 2106.09685) under kohya's names, as training writes them and ComfyUI's own loader reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch

from .checkpoint import LORA_PREFIX, open_safetensors
from .errors import ImprintError, require_finite

FEW_STEPS = Path(__file__).parent / "assets" / "loras" / "imprint-tiny-2-steps.safetensors"
"""With it the shipped checkpoint draws in two steps."""

_AGAIN = "export or download the file again"
_PARTS = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}


class LoraLayer(NamedTuple):
    """What a LoRA adds to the weight of one linear layer or convolution: alpha / rank * up @ down."""

    down: torch.Tensor
    """(rank, inputs) or, of a convolution, (rank, inputs, height, width)."""
    up: torch.Tensor
    """(outputs, rank), or with a height and a width of 1."""
    alpha: torch.Tensor

    @property
    def rank(self) -> int:
        """0 if the three do not belong together."""
        rank = len(self.down) if min(self.down.ndim, self.up.ndim) > 1 else 0
        return rank if self.up.shape[1:].numel() == rank and self.alpha.numel() == 1 else 0

    def change(self, shape: torch.Size) -> torch.Tensor:
        """The addition in fp32. Raises `ValueError` for a weight of another shape."""
        changed = (*self.up.shape[:1], *self.down.shape[1:])
        if changed != tuple(shape):
            raise ValueError(f"it changes a weight of shape {changed}, and the model's has {tuple(shape)}")
        added = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return float(self.alpha) / self.rank * added.view(shape)


def is_lora(path: str | os.PathLike) -> bool:
    """Whether a safetensors file is a LoRA of a UNet. Raises `ImprintError` for any other kind of file."""
    with open_safetensors(Path(path), "a LoRA") as file:
        return any(name.startswith(LORA_PREFIX) for name in file.keys())


def read_lora(path: str | os.PathLike) -> dict[str, LoraLayer]:
    """The layers that a LoRA changes, by their names with underscores for dots.

    Raises `ImprintError` for a file that cannot be read, and unless it holds such layers alone, all of them whole and
    finite.
    """
    path, found = Path(path), {}
    with open_safetensors(path, "a LoRA") as file:
        for name in sorted(file.keys()):
            layer, _, part = name.partition(".")
            if not layer.startswith(LORA_PREFIX) or part not in _PARTS:
                raise ImprintError(
                    f"{path} is no LoRA of a UNet under kohya's names, since it holds '{name}'; give one that stage "
                    "finetune of training.train has written"
                )
            tensor = require_finite(file.get_tensor(name), f"{path}: '{name}'", _AGAIN)
            found.setdefault(layer.removeprefix(LORA_PREFIX), {})[_PARTS[part]] = tensor
    if not found:
        raise ImprintError(f"{path} is no LoRA, since it holds nothing; {_AGAIN}")
    for layer, parts in found.items():
        if missing := _PARTS.values() - parts.keys():
            raise ImprintError(
                f"{path}: of the LoRA's layer '{layer}', {' and '.join(sorted(missing))} is missing; {_AGAIN}"
            )
        if not LoraLayer(**parts).rank:
            shapes = ", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in sorted(parts.items()))
            raise ImprintError(f"{path}: of the LoRA's layer '{layer}', {shapes} do not belong together; {_AGAIN}")
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
