"""What a run reports: the progress bar, stats.jsonl, TensorBoard and Weights & Biases."""

from __future__ import annotations

import math
import sys
import time

import torch
from tqdm import tqdm

from imprint.errors import ImprintError

from ..settings import Train
from .layout import Layout
from .meter import Meter
from .state import State


class Log:
    """Logs the losses and speed of the steps since the last line, and other values."""

    def __init__(self, settings: Train, state: State, meter: Meter, step: int, layout: Layout, described: dict):
        """step: steps done so far; described: the run as in options.json."""
        self.state, self.accelerator, self.meter = state, state.accelerator, meter
        self.accumulate, self.step_size = layout.accumulate, layout.step_size
        init = {
            "tensorboard": {"purge_step": step * self.step_size + 1},  # what came after the last state is done again
            "wandb": {"name": settings.output.name, "config": described},
        }
        self.accelerator.init_trackers("imprint", init_kwargs=init)
        main = self.accelerator.is_main_process
        self.bar = tqdm(
            total=settings.images, initial=step * self.step_size, unit="picture", disable=not main, mininterval=2
        )
        self.mark = step
        self.restart_clock()

    def restart_clock(self) -> None:
        """Exclude what was done since the last line, such as saving, from the speed."""
        self.marked_at = time.monotonic()

    def changes(self, step: int, found: list[str]) -> None:
        """Report what has changed in a resumed run, if anything."""
        if found and self.accelerator.is_main_process:
            self.state.log({"pictures": step * self.step_size, "step": step, "goes_on": found})
            for text in found:
                print(f"{self.state.folder} goes on after {step * self.step_size} pictures: {text}", file=sys.stderr)

    def advance(self) -> None:
        """One step is done."""
        self.bar.update(min(self.step_size, self.bar.total - self.bar.n))

    def steps(self, step: int, rate: float) -> None:
        """Log the means since last time; every process must call it. Raises `ImprintError` unless all are finite."""
        steps, device = step - self.mark, self.accelerator.device
        values = self.meter.read(self.accelerator, steps, self.accumulate)
        if not all(math.isfinite(value) for value in values.values() if isinstance(value, float)):
            raise ImprintError(
                f"the loss or gradient is not finite at step {step}; {self.state.last()}: lower --lr and run the "
                "same command again"
            )
        speed = steps * self.step_size / (time.monotonic() - self.marked_at)
        memory = {"gpu_gib": torch.cuda.max_memory_allocated(device) / 2**30} if device.type == "cuda" else {}
        self.write(step, **values, lr=rate, pictures_per_second=speed, **memory)
        self.mark = step
        self.restart_clock()

    def write(self, step: int, **values: float | dict[str, float]) -> None:
        """Write numbers, and groups of them, to stats.jsonl, the progress bar and the trackers."""
        if not self.accelerator.is_main_process:
            return
        pictures = step * self.step_size
        self.state.log({"pictures": pictures, "step": step} | values)
        numbers = {name: value for name, value in values.items() if isinstance(value, float)}
        self.bar.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()})
        for name, group in values.items():
            if isinstance(group, dict):
                numbers |= {f"{name}/{part}": value for part, value in group.items()}
        self.accelerator.log(numbers, step=pictures)
