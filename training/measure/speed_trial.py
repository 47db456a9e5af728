"""A training run whose steps are timed, counted and profiled."""

from __future__ import annotations

import gc
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from imprint.checkpoint import Checkpoint
from imprint.config import PRESETS
from imprint.errors import ImprintError
from imprint.model import build_modules, module_tensors

from ..loop.meter import Meter
from ..loop.run import Run
from ..loop.source import Source
from ..pairs.batches import Batch
from ..settings import Train
from .settings import Benchmark
from .speed_inputs import write_pictures

BLOCK = 4  # batches of pairs made at once


def random_checkpoint(config: str, device: torch.device) -> Checkpoint:
    """Random weights of a preset's sizes: a run from them trains what it would from a trained checkpoint's."""
    torch.manual_seed(0)
    with device:
        return Checkpoint(PRESETS[config], module_tensors(build_modules(PRESETS[config])), Path("random"))


class Again:
    """A source that gives one batch at every step."""

    def __init__(self, source: Source, batch: Batch):
        self.draw, self.weight, self.given = source.draw, source.weight, batch

    def batch(self, index: int) -> Batch:
        return self.given


class Trial:
    """A run of training whose steps are measured; the last one is kept, since compiling takes minutes."""

    def __init__(self, options: Benchmark):
        self.options = options
        self.cuda = torch.cuda.is_available() and not options.cpu
        self.scratch = Path(tempfile.mkdtemp(prefix="benchmark-"))
        self.key, self.run, self.source, self.meter = None, None, None, None
        self.failed: set[tuple] = set()

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if self.cuda else torch.device("cpu")

    def require_cuda(self) -> None:
        if not self.cuda:
            raise ImprintError("this row needs a CUDA device")

    def prepare(self, config: str, batch: int, mode: str, checkpointing: bool = False) -> Run:
        """The run of stage 2 of these words, from random weights, with pairs made."""
        key = (config, batch, mode, checkpointing)
        if key == self.key:
            return self.run
        if key in self.failed:
            raise ImprintError("a row before it failed with the same run")
        self.release()
        self.key = key
        data = self.scratch / "data"
        if not (data / "photos").exists():
            write_pictures(data, seed=int(os.environ.get("RANK", 0)))
        settings = Train.of(
            "compositing",
            output=self.scratch / "run",
            cutouts=str(data / "cutouts"),
            photos=str(data / "photos"),
            sizes=config,
            batch=batch,
            lr=1e-5,
            block=BLOCK,
            chunk=min(batch, 16 if config.startswith("sd") else 256),
            precision="bf16" if self.cuda else "no",
            device="auto" if self.cuda else "cpu",
            compile=None if mode == "eager" else mode,
            checkpointing=checkpointing,
        )
        self.run = Run(settings, random_checkpoint(config, self.device))
        self.free_cache()
        self.source = self.run.source()
        self.meter = Meter(self.run.config.noise.timesteps, self.device)
        return self.run

    def release(self) -> None:
        """Forget the last run and what was compiled for it."""
        self.key, self.run, self.source, self.meter = None, None, None, None
        torch._dynamo.reset()
        self.free_cache()

    def free_cache(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def step(self, index: int) -> None:
        self.run.step(self.source, index, self.meter)

    def timed(self, work: Callable[[], object], repeats: int, warmup: int = 3) -> float:
        """Seconds that `work` takes, on average."""
        for _ in range(warmup if repeats > 1 else min(warmup, 1)):
            work()
        self.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        self.synchronize()
        return (time.perf_counter() - began) / repeats

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def time_steps(self, steps: int | None = None) -> float:
        """Seconds per step, with pairs ready: the median of four windows."""
        cycle = BLOCK * self.run.settings.reuse
        for index in range(3):
            self.step(index)
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        windows, index = [], 3
        for _ in range(4):
            count = max(1, (steps or self.options.steps) // 4)
            rows = [(index + offset) % cycle for offset in range(count)]
            index += count
            windows.append(self.timed(lambda rows=rows: [self.step(row) for row in rows], 1, warmup=0) / count)
        return float(np.median(windows))

    def count_operations(self) -> float:
        """Floating-point operations per picture of a step, by PyTorch's own counter."""
        batch = self.source.batch(0)[slice(0, 2)]
        with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
            self.run.step(Again(self.source, batch), 0, self.meter)
        return counter.get_total_flops() / len(batch.target)

    def peak_memory(self) -> dict:
        if not self.cuda:
            return {}
        return {
            "allocated_gib": torch.cuda.max_memory_allocated() / 2**30,
            "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        }

    def try_batch(self, run: Run, pairs: Batch, size: int) -> dict | None:
        """The peak memory of two steps of `size` pictures; None if they do not fit."""
        rows = pairs[torch.arange(size, device=self.device) % len(pairs.target)]
        self.free_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            for index in range(2):
                run.step(Again(self.source, rows), index, self.meter)
            return self.peak_memory()
        except RuntimeError as error:  # cuDNN and cuBLAS have errors of their own for it
            if not re.search("memory|ALLOC_FAILED|engine", str(error)):
                raise
        # Not in the handler, where the traceback keeps the activations alive.
        run.optimizer.zero_grad(set_to_none=True)
        return None

    def largest(self, run: Run, pairs: Batch, guess: int) -> dict:
        """The largest batch that fits, searched from a guess in steps of 3 %: {fits, fails}."""
        fits, fails, stride = 0, None, max(1, guess // 32)
        size = guess
        for _ in range(8):
            if size < 1 or (fits and fails):
                break
            if self.try_batch(run, pairs, size):
                fits, size = size, size + stride
            else:
                fails, size = size, size - stride
        return {"fits": fits, "fails": fails}

    def profile(self, work: Callable[[], object]) -> list[tuple[str, float, float]]:
        """The device's kernels during `work`: name, start and end in microseconds."""
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        on_device = DeviceType.CUDA
        self.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            work()
            self.synchronize()
        kernels = (
            event for event in profiler.events() if event.device_type == on_device and not event.is_user_annotation
        )
        return sorted(
            ((event.name, event.time_range.start, event.time_range.end) for event in kernels),
            key=lambda kernel: kernel[1],
        )
