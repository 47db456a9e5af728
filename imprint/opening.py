"""Opens the pipeline of a command, on its device and in its precision.

Torch and diffusers are imported only where they are needed, so that the command line responds at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .errors import ImprintError
from .job_settings import JobSettings

if TYPE_CHECKING:
    from .pipeline import ImprintPipeline

UNUSED = ("peft", "scipy", "sklearn", "torchaudio", "torchvision")
"""Importing these took a quarter of the start-up time; of them only SciPy is used, and later."""


@contextmanager
def needs_diffusers() -> Iterator[None]:
    """Raise `ImprintError` if a package is missing inside: diffusers is an extra, since the nodes do not need it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImprintError(f"the package '{error.name}' is missing; pip install 'imprint[pipeline]'") from error


@contextmanager
def left_out(names: Sequence[str]) -> Iterator[None]:
    """Import as if these packages were not installed."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # None makes Python's import fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def open_pipeline(settings: JobSettings) -> ImprintPipeline:
    """The checkpoint's pipeline, on its device. Raises `ImprintError` if either cannot be had."""
    with left_out(UNUSED if settings.alone else ()):
        return _opened(settings)


def _opened(settings: JobSettings) -> ImprintPipeline:
    import torch

    from .checkpoint import SHIPPED

    with needs_diffusers():
        from .model import computes_in_bf16
        from .pipeline import ImprintPipeline

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    device = settings.device
    if device == "auto":
        device = next(name for name, found in available.items() if found)
    if not available[device]:
        raise ImprintError(
            f"there is no '{device}' device that torch {torch.__version__} can use; give --device auto or cpu"
        )
    half = settings.fast and settings.dtype == "auto" and device == "cpu" and computes_in_bf16()
    name = settings.dtype if settings.dtype != "auto" else "bf16" if half else "fp32"
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]
    pipeline = ImprintPipeline.from_checkpoint(settings.checkpoint or SHIPPED, torch_dtype=dtype).to(device)
    if settings.fast or (settings.steps is None and settings.uses_shipped):
        from diffusers import DPMSolverMultistepScheduler

        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    if half:  # in fp32 this would change its maps' last bits
        torch.nn.Module.to(pipeline.light, memory_format=torch.channels_last)
    if device == "cpu":  # a quarter faster on a CPU; on MPS several operations were wrong in this layout
        for module in (pipeline.unet, pipeline.vae):
            torch.nn.Module.to(module, memory_format=torch.channels_last)
    if settings.compile:
        pipeline.compile()
    return pipeline
