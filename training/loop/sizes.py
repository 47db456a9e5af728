"""A model's sizes by name, or from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from imprint.config import PRESETS, ImprintConfig
from imprint.errors import ImprintError

from ..arguments import read_table


def read_sizes(name: str) -> ImprintConfig:
    """The configuration of a preset, or of a YAML or JSON file.

    The file holds a whole configuration, or `preset: NAME` and what differs from it. Raises `ImprintError` for anything
    else, and for parts that do not fit together.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if not path.is_file():
        raise ImprintError(
            f"--sizes {name} is neither a file nor a preset; presets are {', '.join(PRESETS)}, and a file says "
            "'preset: NAME' and what differs from it"
        )
    table = read_table(path, "--sizes is a preset's name, or a YAML file of a model's sizes")
    preset = table.pop("preset", None)
    if preset is not None:
        if preset not in list(PRESETS):  # YAML allows any type here
            raise ImprintError(f"{path} has the preset {preset!r}; presets are {', '.join(PRESETS)}")
        table = _changed(json.loads(PRESETS[preset].to_json()), table)
    try:
        config = ImprintConfig.from_json(json.dumps(table))
    except (TypeError, ValueError) as error:  # YAML has types that JSON lacks, and cycles
        raise ImprintError(f"{path}: {error}") from error
    from imprint.model import build_modules  # imports diffusers

    try:
        with torch.device("meta"):
            build_modules(config, with_vae=False)
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:  # numbers that cannot be sizes
        reason = str(error).partition("\n")[0]
        raise ImprintError(f"{path}: no model of these sizes can be built ({reason}); give smaller ones") from error
    return config


def _changed(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A table merged recursively with changes."""
    both = {name for name, value in changes.items() if isinstance(value, dict) and isinstance(table.get(name), dict)}
    return table | changes | {name: _changed(table[name], changes[name]) for name in both}
