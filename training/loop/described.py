"""A run as options.json holds it."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import flattened
from .model import LORA_TARGETS

if TYPE_CHECKING:
    from .run import Run


def described(run: Run) -> dict[str, Any]:
    """A run's options, and what they resolved to."""
    settings = run.settings
    return (
        flattened(settings)
        | settings.origin.described()
        | {
            "processes": run.accelerator.num_processes,
            "layout": dataclasses.asdict(run.layout),
            "begun": run.begun.to_dict(),
            "device": str(run.device) if run.device.type == "cpu" else torch.cuda.get_device_name(run.device),
            "steps": run.steps,
            "trained": "everything" if run.trained_names == ("",) else list(run.trained_names),
            "lora": LORA_TARGETS if run.stage.lora else None,
            "trained_parameters": sum(parameter.numel() for parameter in run.trained),
            "split": run.split,
            "mix": dict(settings.mix),
            "model": json.loads(run.config.to_json()),
        }
    )
