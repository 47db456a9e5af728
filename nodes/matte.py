"""The matte that an Imprint UNet predicts besides the usual output: from `MatteUNet`, through `MatteReader`."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.patcher_extension
import torch

from ..imprint.config import ImprintConfig
from ..imprint.errors import ImprintError, require_finite
from ..imprint.matte import matte_pixels, split_matte
from .tensors import PRECISION

_MATTE = "imprint_matte"  # in the transformer_options: the `MatteReader`


class MatteUNet(comfy.model_base.UNetModel):
    """A UNet that also predicts a matte; to ComfyUI it is an ordinary UNet that returns only the usual prediction.

    The matte of each positive conditioning goes to the `MatteReader` in the transformer_options, if there is one.
    """

    def __init__(self, config: ImprintConfig, **options: Any):
        super().__init__(**options)
        self.imprint = config

    # Not `forward`: the patches that ComfyUI wraps around this method expect the latent's number of channels.
    def _forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        y: torch.Tensor | None = None,
        control: dict[str, Any] | None = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        transformer_options = {} if transformer_options is None else transformer_options
        output = super()._forward(x, timesteps, context, y, control, transformer_options, **kwargs)
        prediction, matte = split_matte(output, self.imprint)
        if _MATTE in transformer_options:
            kinds = transformer_options["cond_or_uncond"]  # of the batch's chunks: 0 for a positive conditioning
            each = zip(kinds, matte.chunk(len(kinds)))
            transformer_options[_MATTE].logits += [logits for kind, logits in each if kind == 0]
        return prediction


class MatteReader:
    """Reads the matte from sampling's last evaluation: `common_ksampler(reader.watch(model), ...)`, then `reader.read`.

    It is an object, not a function: a compiled UNet would be recompiled for each new function.
    """

    def __init__(self):
        self.logits: list[torch.Tensor] = []  # of each positive conditioning, (B, 2 * matte**2, h, w)

    def watch(self, model: Any) -> Any:
        """A clone of the MODEL to sample with."""
        watched = model.clone()
        watched.model_options["transformer_options"][_MATTE] = self
        watched.add_wrapper(comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, self._evaluate)
        return watched

    def _evaluate(self, proceed: Any, base: Any, conditionings: list, *arguments: Any) -> list[torch.Tensor]:
        """ComfyUI's wrapper of one evaluation of all conditionings, in one batch or in several."""
        earlier, self.logits = self.logits, []
        predictions = proceed(base, conditionings, *arguments)
        # A patch may skip an evaluation; others, like PAG and SAG, add one of a single conditioning, whose result is
        # used as a negative.
        if not self.logits or len(conditionings) == 1:
            self.logits = earlier
        return predictions

    def read(self, hole: torch.Tensor, config: ImprintConfig) -> tuple[torch.Tensor, torch.Tensor]:
        """Alpha and shadow, each (B, h * downscale, w * downscale), in the latents' hole (B, 1, h, w); 0 outside.

        Combined conditionings are averaged, as in ComfyUI. Raises `ImprintError` if none covers the whole picture.
        """
        seen, self.logits = self.logits, []
        # A conditioning for an area is evaluated only on that part of the latents.
        whole = [each.to(hole) for each in seen if each[:, :1].shape == hole.shape]
        if not whole:
            raise ImprintError(
                "sampling gave no matte of the whole picture: a patch of the MODEL skips it, or every positive "
                "conditioning is limited to an area; remove that patch or area"
            )
        logits = require_finite(torch.stack(whole).mean(0), "the matte that was predicted", PRECISION)
        return matte_pixels(logits, hole, config)
