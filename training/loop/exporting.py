"""The checkpoint of a saved state, without training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from imprint.errors import ImprintError
from imprint.files import read_json, require_writable

from ..arguments import require_other
from ..settings import read_train
from .model import export
from .run import Run


def export_state(state: Path, output: Path) -> None:
    """Write the averaged model of `state`, a run's folder state-NUMBER, as the run itself writes it; on the CPU.

    Frozen parts come from the run's --init, and its autoencoder from there or from --vae. Raises `ImprintError` for
    a folder that is not a whole state, or no longer fits those files.
    """
    options = state.parent / "options.json"
    if not (averages := state / "custom_checkpoint_0.pkl").is_file():  # accelerate's name for `Run.average`
        raise ImprintError(f"{state} is not a state: it holds no {averages.name}; give a run's folder state-NUMBER")
    settings = replace(
        read_train(options), output=state.parent, device="cpu", precision="no", compile=None, wandb=False,
        text_encoder=None, optimizer="adamw",
    )  # fmt: skip
    require_other(output, settings.init, settings.vae)
    require_writable(output)
    run = Run(settings)
    try:
        found = torch.load(averages, map_location="cpu", weights_only=True)
        shapes = {name: tensor.shape for name, tensor in found.items()}
    except Exception as error:  # torch and pickle raise many kinds of error on truncated files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ImprintError(f"{averages} cannot be read ({reason}); give another state") from error
    expected = {name: tensor.shape for name, tensor in run.average.values.items()}
    if shapes != expected or json.loads(run.config.to_json()) != read_json(options, "repair it").get("model"):
        raise ImprintError(
            f"{state} is of another model than {settings.init or settings.sizes} is now; put that as it was when the "
            "run began"
        )
    run.average.load_state_dict(found)
    run.average.gather()
    export(run.ema, run.autoencoder, run.config, run.stage, output)
