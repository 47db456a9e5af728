"""What all jobs of a command share; options of the same names are the command line's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .files import same_file

if TYPE_CHECKING:
    from .config import ImprintConfig

FAST_STEPS = 4
"""Steps of `--fast` without the LoRA of `LORA_STEPS`: with 3 the shipped checkpoint's own drawing is recognised in 38
of 50 tasks instead of 46."""
LORA_STEPS = 2
"""Steps of `--fast` with the shipped checkpoint, for which `lora.FEW_STEPS` was trained."""
SHIPPED_STEPS = 8
"""The shipped checkpoint's default: as many steps of DPM++ 2M draw what 20 of Euler do."""


@dataclass(frozen=True)
class JobSettings:
    """What all jobs of a command share: the model, how it draws and blends, and what is written."""

    checkpoint: Path | None = None
    """By default the shipped one."""
    lora: Sequence[Path] = ()
    """Files of `lora.read_lora` that change its UNet."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """fp32, fp16, bf16 or auto: fp32, or with `fast` bf16 if the processor supports it."""
    fast: bool = False
    """Few steps of DPM++ 2M, `LORA_STEPS` if `few_steps`, otherwise `FAST_STEPS`; and a light network that looks once:
    see `LightNet.mirrors`."""
    steps: int | None = None
    """Of Euler or, with `fast`, DPM++ 2M; by default `SHIPPED_STEPS` of DPM++ 2M for the shipped checkpoint, and the
    checkpoint's own number for others."""
    compile: bool = False
    """As `ImprintPipeline.compile`."""
    guidance: float | None = None
    context: float | None = None
    resolution: int | None = None
    feather: int | None = None
    """These four, and those down to `detail`, as for `ImprintPipeline.__call__`."""
    feather_in: int = 0
    blend: str = "feather"
    colour_match: float = 0.0
    matte: bool = True
    detail: float = 1.0
    each_area: bool = False
    """One object in each area of a mask."""
    cutout: str = "off"
    """auto: cut out photos with neither mask nor transparency."""
    layers: Path | None = None
    """Folder for placed objects' layers."""
    many: bool = False
    """Write each picture's layers to a folder of their own."""
    overwrite: bool = False
    alone: bool = False
    """The process does nothing else, so the optional imports of diffusers and transformers can be skipped."""

    @property
    def uses_shipped(self) -> bool:
        """Whether the checkpoint is the shipped one."""
        from .checkpoint import SHIPPED  # which imports torch

        return self.checkpoint is None or same_file(self.checkpoint, SHIPPED)

    @property
    def few_steps(self) -> bool:
        """Whether the model draws with `lora.FEW_STEPS`, which was trained for this number of steps alone, without
        guidance or another LoRA.
        """
        plain = self.steps is None and self.guidance in (None, 1) and not self.lora
        return self.fast and plain and self.uses_shipped

    @property
    def sampling_steps(self) -> int | None:
        """The number of steps; None: the checkpoint's own."""
        if self.steps is not None:
            return self.steps
        if self.fast:
            return LORA_STEPS if self.few_steps else FAST_STEPS
        return SHIPPED_STEPS if self.uses_shipped else None

    def check(self, config: ImprintConfig) -> None:
        """Raise `ImprintError` for values that this model cannot draw with, even if no object is to be drawn."""
        from .blending import Finish
        from .hole import check_crop
        from .noise import check_sampling

        steps = config.sampling.steps if self.sampling_steps is None else self.sampling_steps
        check_sampling(config.noise, steps, self.guidance)
        check_crop(*config.crop_size(self.resolution, self.context), config.multiple)
        Finish(self.feather, self.feather_in, self.blend, self.colour_match, self.matte, self.detail)
