"""Averaging the weights of several checkpoints."""

from __future__ import annotations

import torch

from imprint.checkpoint import Checkpoint
from imprint.errors import ImprintError


def average(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The mean of all tensors, computed in fp32, in the first one's precision and with its configuration.

    Raises `ImprintError` for fewer than two, and for checkpoints whose parts, tensors or configurations differ.
    """
    if len(checkpoints) < 2:
        raise ImprintError(f"got {len(checkpoints)} checkpoint(s) to average; give two or more")
    first, *others = checkpoints
    shapes = _shapes(first)
    for other in others:
        if other.config != first.config or _shapes(other) != shapes:
            raise ImprintError(
                f"{other.path} and {first.path} are of different kinds (configuration, parts or tensors); only what "
                "was trained from one another, with the same options, can be averaged"
            )
    parts = {
        part: {
            name: torch.stack([each.parts[part][name].float() for each in checkpoints]).mean(0).to(tensor.dtype)
            for name, tensor in tensors.items()
        }
        for part, tensors in first.parts.items()
    }
    return Checkpoint(first.config, parts)


def _shapes(checkpoint: Checkpoint) -> dict[tuple[str, str], torch.Size]:
    return {
        (part, name): tensor.shape for part, tensors in checkpoint.parts.items() for name, tensor in tensors.items()
    }
