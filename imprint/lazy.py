"""The pipeline of a command, on its device and in its precision, of which only those parts are loaded that are used."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from .checkpoint import SHIPPED, read_config
from .errors import ImprintError
from .importing import UNUSED, collector_paused, left_out, needs_diffusers
from .job_settings import JobSettings
from .lightnet import LightNet, at_full_speed, load_light
from .lora import FEW_STEPS, merge_lora, read_lora
from .model import computes_in_bf16

if TYPE_CHECKING:
    from .pipeline import ImprintPipeline, ImprintPipelineOutput


def open_pipeline(settings: JobSettings) -> LazyPipeline:
    """What a command makes composites with. Raises `ImprintError` for settings with which no object could be drawn."""
    settings.check(read_config(settings.checkpoint or SHIPPED))
    for path in settings.lora:
        read_lora(path)
    return LazyPipeline(settings)


class LazyPipeline:
    """An `ImprintPipeline` that is opened when it first draws.

    A placed object takes only the light network, which is loaded in less time than it takes to import diffusers.
    """

    def __init__(self, settings: JobSettings):
        """Raises `ImprintError` for a device that is not there."""
        self._settings, self._device = settings, _device(settings.device)
        self._unusable: ImprintError | None = None
        half = settings.fast and self._device == "cpu" and computes_in_bf16()
        name = settings.dtype if settings.dtype != "auto" else "bf16" if half else "fp32"
        self._dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]

    def __call__(self, **arguments: Any) -> ImprintPipelineOutput:
        """`ImprintPipeline.__call__`; also raises `ImprintError` if the model cannot be loaded."""
        return self.model(**arguments)

    @cached_property
    def light(self) -> LightNet:
        """The light network that comes with the package, with `fast` such that it takes less than half the time."""
        with collector_paused():
            light = load_light().to(self._dtype).to(self._device)
        if self._settings.fast:
            light.mirrors = False
            if self._device == "cpu":  # in this layout its maps' last bits differ
                torch.nn.Module.to(light, memory_format=torch.channels_last)
        return at_full_speed(light)

    @cached_property
    def model(self) -> ImprintPipeline:
        """The whole pipeline, with `light`. If it cannot be loaded, that is said again without another try."""
        if self._unusable:
            raise self._unusable
        try:
            with collector_paused(), left_out(UNUSED if self._settings.alone else ()):
                return self._opened()
        except ImprintError as error:
            self._unusable = error
            raise

    def _opened(self) -> ImprintPipeline:
        with needs_diffusers():
            from .pipeline import ImprintPipeline

        settings = self._settings
        pipeline = ImprintPipeline.from_checkpoint(settings.checkpoint or SHIPPED, self._dtype, light=self.light)
        for path in [FEW_STEPS] if settings.few_steps else settings.lora:
            merge_lora(pipeline.unet, path)
        pipeline.to(self._device)
        if settings.fast or (settings.steps is None and settings.uses_shipped):
            from diffusers import DPMSolverMultistepScheduler

            pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        if self._device == "cpu":  # a quarter faster on a CPU; on MPS several operations were wrong in this layout
            for module in (pipeline.unet, pipeline.vae):
                torch.nn.Module.to(module, memory_format=torch.channels_last)
        if settings.many:
            pipeline.set_progress_bar_config(disable=True)
        if settings.compile:
            pipeline.compile()
        return pipeline


def _device(name: str) -> str:
    """The device of `JobSettings.device`. Raises `ImprintError` for one that is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(each for each, found in available.items() if found)
    if not available[name]:
        raise ImprintError(
            f"there is no '{name}' device that torch {torch.__version__} can use; give --device auto or cpu"
        )
    return name
