"""Averaging the weights of several checkpoints or light networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from imprint.checkpoint import Checkpoint
from imprint.errors import ImprintError
from imprint.lightnet import LightNet, load_light


def average(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The mean of all tensors, computed in fp32, in the first one's precision and with its configuration.

    Raises `ImprintError` for fewer than two, and for checkpoints whose parts, tensors or configurations differ.
    """
    first = checkpoints[0]
    _require_alike([each.path for each in checkpoints], [(each.config, _shapes(each)) for each in checkpoints])
    parts = {
        part: {name: _mean([each.parts[part][name] for each in checkpoints]) for name in tensors}
        for part, tensors in first.parts.items()
    }
    return Checkpoint(first.config, parts)


def average_light(paths: Sequence[Path]) -> LightNet:
    """The mean of light networks' weights. Raises `ImprintError` for fewer than two, and for different sizes."""
    nets = [load_light(path) for path in paths]
    _require_alike(paths, [net.config for net in nets])
    weights = [net.state_dict() for net in nets]
    nets[0].load_state_dict({name: _mean([each[name] for each in weights]) for name in weights[0]})
    return nets[0]


def _require_alike(paths: Sequence[Path | None], kinds: Sequence[object]) -> None:
    """Raise `ImprintError` unless there are two or more files, all of the same kind."""
    if len(paths) < 2:
        raise ImprintError(f"got {len(paths)} checkpoint(s) to average; give two or more")
    for path, kind in zip(paths, kinds):
        if kind != kinds[0]:
            raise ImprintError(
                f"{path} and {paths[0]} are of different kinds (configuration, parts or tensors); only what "
                "was trained from one another, with the same options, can be averaged"
            )


def _mean(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Computed in fp32, in the first one's precision."""
    return torch.stack([each.float() for each in tensors]).mean(0).to(tensors[0].dtype)


def _shapes(checkpoint: Checkpoint) -> dict[tuple[str, str], torch.Size]:
    return {
        (part, name): tensor.shape for part, tensors in checkpoint.parts.items() for name, tensor in tensors.items()
    }
