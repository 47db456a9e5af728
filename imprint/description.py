"""A description of what a checkpoint, or a light network's file, holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from . import lightnet
from .checkpoint import FORMAT_VERSION, load_checkpoint


def describe(path: Path, as_json: bool) -> str:
    """A file's parts and configuration, as a table or as JSON, after verifying its checksum.

    Raises `ImprintError` as `load_checkpoint` and `lightnet.read_light` do.
    """
    if lightnet.is_light(path):
        config, tensors = lightnet.read_light(path)
        kind, parts = {"format": lightnet.FORMAT}, {"light": tensors}
        side = config.resolution
        title = f"light network, which gives a placed object its light and shadow in a square of {side} x {side} px"
    else:
        checkpoint = load_checkpoint(path)
        kind, parts, config = {"format_version": FORMAT_VERSION}, checkpoint.parts, checkpoint.config
        title = f"format version {FORMAT_VERSION}"
    described = {part: _describe_part(tensors) for part, tensors in parts.items()}
    if not as_json:
        return _table(f"{path}: {title}, checksum verified\n", described, asdict(config))
    found = {"file": str(path), **kind, "checksum": "verified"}
    return json.dumps(found | {"parts": described, "config": asdict(config)}, indent=1)


def _describe_part(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
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
