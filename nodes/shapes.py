"""The tensors of ComfyUI's modules, and checks of what it supports, before a checkpoint's part is built."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from ..imprint.checkpoint import Checkpoint
from ..imprint.errors import ImprintError

# For reading names and shapes: with dynamic VRAM, comfy.ops' own layers have no weights until they are loaded.
PLAIN_LAYERS = SimpleNamespace(
    Linear=torch.nn.Linear,
    Conv2d=torch.nn.Conv2d,
    GroupNorm=torch.nn.GroupNorm,
    LayerNorm=torch.nn.LayerNorm,
    Embedding=torch.nn.Embedding,
    conv_nd=lambda dims, *args, **kwargs: torch.nn.Conv2d(*args, **kwargs),
)


def shapes_of(module: torch.nn.Module) -> dict[str, torch.Size]:
    """The shape of each of the module's tensors, by name; it may be on `meta`."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def named_tensors(
    checkpoint: Checkpoint, part: str, shapes: dict[str, torch.Size], diffusers_names: dict[str, str]
) -> dict[str, torch.Tensor]:
    """A part's tensors under ComfyUI's names, which are latent diffusion's.

    shapes: of the module's tensors, by these names. diffusers_names: diffusers' names -> ComfyUI's; those that the
    module lacks are ignored. Raises `ImprintError` unless the names and shapes are the module's.
    """
    names = {name: name for name in shapes}
    if checkpoint.names == "diffusers":
        names = {theirs: name for theirs, name in diffusers_names.items() if name in shapes}
    tensors = checkpoint.check(part, {theirs: shapes[name] for theirs, name in names.items()})
    return {names[theirs]: tensor for theirs, tensor in tensors.items()}


def require_supported(condition: bool, checkpoint: Checkpoint, what: str) -> None:
    """Raise `ImprintError`, saying that the checkpoint has `what`, unless the condition holds."""
    if not condition:
        raise ImprintError(f"{checkpoint.path} has {what}, which ComfyUI cannot run; use the Python pipeline for it")
