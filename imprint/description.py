"""A description of what the file of a checkpoint, a light network or a LoRA holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from . import lightnet
from .checkpoint import FORMAT_VERSION, load_checkpoint
from .lora import is_lora, read_lora


def describe(path: Path, as_json: bool) -> str:
    """A file's parts and configuration, as a table or as JSON, after verifying its checksum if it has one.

    Raises `ImprintError` as `load_checkpoint`, `lightnet.read_light` and `lora.read_lora` do.
    """
    if lightnet.is_light(path):
        light, tensors = lightnet.read_light(path)
        kind, parts, config = {"format": lightnet.FORMAT, "checksum": "verified"}, {"light": tensors}, asdict(light)
        side = light.resolution
        title = f"light network, which gives a placed object its light and shadow in a square of {side} x {side} px"
    elif is_lora(path):
        layers = read_lora(path)
        ranks = sorted({layer.rank for layer in layers.values()})
        tensors = {(name, part): tensor for name, layer in layers.items() for part, tensor in enumerate(layer)}
        kind, parts, config = {"format": "lora"}, {"unet": tensors}, {"layers": len(layers), "ranks": ranks}
        title = "LoRA, which changes layers of a checkpoint's UNet"
    else:
        checkpoint = load_checkpoint(path)
        kind, parts = {"format_version": FORMAT_VERSION, "checksum": "verified"}, checkpoint.parts
        config, title = asdict(checkpoint.config), f"format version {FORMAT_VERSION}"
    described = {part: _describe_part(tensors) for part, tensors in parts.items()}
    if not as_json:
        verified = ", checksum verified" if "checksum" in kind else ""
        return _table(f"{path}: {title}{verified}\n", described, config)
    return json.dumps({"file": str(path), **kind, "parts": described, "config": config}, indent=1)


def _describe_part(tensors: dict[Any, torch.Tensor]) -> dict[str, Any]:
    return {
        "tensors": len(tensors),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
    }


def _table(title: str, parts: dict[str, dict[str, Any]], config: dict[str, Any]) -> str:
    lines = [title, f"{'part':<10}{'tensors':>8}{'parameters':>15}{'bytes':>15}  dtype"]
    total = {name: sum(part[name] for part in parts.values()) for name in ("tensors", "parameters", "bytes")}
    total["dtypes"] = []
    for name, part in (parts | {"total": total}).items():
        counts = f"{part['tensors']:>8,}{part['parameters']:>15,}{part['bytes']:>15,}"
        lines.append(f"{name:<10}{counts}  {', '.join(part['dtypes'])}".rstrip())
    lines.append("")
    for name, values in config.items():
        fields = values.items() if isinstance(values, dict) else [("", values)]
        for key, value in fields:
            lines.append(f"{name + ('.' + key if key else ''):<32}{value}")
    return "\n".join(lines)
