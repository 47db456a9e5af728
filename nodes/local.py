"""ComfyUI's MODEL with ControlCom's conditions: what to change of the object, and its local tokens."""

from __future__ import annotations

from typing import Any

import comfy.conds
import comfy.model_base
import torch

from ..imprint.config import ImprintConfig
from ..imprint.errors import ImprintError
from ..imprint.local import LocalBlocks, LocalScene, input_blocks

CHANGE_KEY = "imprint_change"
"""Key in a conditioning: (1, 2), as in `imprint.changes.CHANGES`."""
LOCAL_KEY = "imprint_local"
"""Key in a conditioning: (1, N, D), the object's local tokens."""
CURE = "connect the Condition on Object of the same checkpoint"


class ToldModel(comfy.model_base.BaseModel):
    """Passes the conditioning's `CHANGE_KEY` to the UNet in further channels, and its `LOCAL_KEY` as local tokens."""

    def concat_cond(self, **given: Any) -> torch.Tensor:
        beside = super().concat_cond(**given)
        if CHANGE_KEY not in given:
            raise ImprintError(f"the conditioning does not say what to change of the object; {CURE}")
        told = given[CHANGE_KEY].to(beside)[:, :, None, None]
        return torch.cat([beside, told.expand(len(beside), -1, *beside.shape[2:])], 1)

    def extra_conds(self, **given: Any) -> dict[str, Any]:
        found = super().extra_conds(**given)
        if LOCAL_KEY in given:
            found["local_tokens"] = comfy.conds.CONDRegular(given[LOCAL_KEY].to(given["device"]))
        return found


class LocalUNet(comfy.model_base.UNetModel):
    """A UNet with local blocks, which run as a patch after its input blocks; to ComfyUI it is an ordinary UNet."""

    def __init__(self, config: ImprintConfig, **options: Any):
        super().__init__(**options)
        self.imprint = config
        self.after = {number: index for index, number in enumerate(input_blocks(config.unet))}
        factory = {name: options.get(name) for name in ("dtype", "device")}
        self.local = LocalBlocks(config.unet, config.encoder.width, options["operations"], **factory)

    # Not `forward`, as in `MatteUNet`.
    def _forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        y: torch.Tensor | None = None,
        control: dict[str, Any] | None = None,
        transformer_options: dict[str, Any] | None = None,
        local_tokens: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if local_tokens is None:
            raise ImprintError(f"the conditioning has no local tokens of the object; {CURE}")
        scene = LocalScene.of(x, local_tokens, self.imprint)

        def work_in(features: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
            _, number = options["block"]
            return self.local[self.after[number]](features, scene) if number in self.after else features

        options = dict(transformer_options or {})
        patches = options.get("patches", {})
        options["patches"] = patches | {"input_block_patch": [work_in, *patches.get("input_block_patch", ())]}
        return super()._forward(x, timesteps, context, y, control, options, **kwargs)
