"""A description of a checkpoint's contents."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .checkpoint import FORMAT_VERSION, load_checkpoint


def describe(path: Path, as_json: bool) -> str:
    """A checkpoint's parts and configuration, as a table or as JSON, after verifying its checksum.

    Raises `ImprintError` as `load_checkpoint` does.
    """
    checkpoint = load_checkpoint(path)
    parts = {
        part: {
            "tensors": len(tensors),
            "parameters": sum(tensor.numel() for tensor in tensors.values()),
            "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
            "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        }
        for part, tensors in checkpoint.parts.items()
    }
    config = asdict(checkpoint.config)
    if not as_json:
        return _table(path, parts, config)
    found = {"file": str(path), "format_version": FORMAT_VERSION, "checksum": "verified"}
    return json.dumps(found | {"parts": parts, "config": config}, indent=1)


def _table(path: Path, parts: dict[str, dict[str, Any]], config: dict[str, Any]) -> str:
    lines = [
        f"{path}: format version {FORMAT_VERSION}, checksum verified\n",
        f"{'part':<10}{'tensors':>8}{'parameters':>15}{'bytes':>15}  dtype",
    ]
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
