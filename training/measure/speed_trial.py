"""A training run whose steps are timed, counted and profiled."""

from __future__ import annotations

import gc
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
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
from ..loop.source import BatchSource
from ..pairs.batches import Batch
from ..settings import Train
from .settings import Benchmark
from .speed_inputs import write_pictures

BLOCK = 4  # batches of pairs made at once


def random_checkpoint(config: str, device: torch.device) -> Checkpoint:
    """Random weights of a preset's sizes: a run from them trains the same parts as from a trained checkpoint."""
    torch.manual_seed(0)
    with device:
        return Checkpoint(PRESETS[config], module_tensors(build_modules(PRESETS[config])), Path("random"))


class Again:
    """A source that gives the same batch at every step."""

    def __init__(self, source: BatchSource, batch: Batch):
        self.draw, self.weight, self.given = source.draw, source.weight, batch

    def batch(self, index: int) -> Batch:
        return self.given


def median(seconds: Sequence[float]) -> dict:
    """-> the median in seconds, and the spread: the range relative to the median."""
    middle = float(np.median(seconds))
    return {"seconds": middle, "spread": (max(seconds) - min(seconds)) / middle}


class Trial:
    """A training run whose steps are measured; the last run is kept, since compiling takes minutes."""

    def __init__(self, options: Benchmark):
        self.options = options
        self.cuda = torch.cuda.is_available() and not options.cpu
        self._scratch = tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True)  # removed with it
        self.scratch = Path(self._scratch.name)
        self.key, self.run, self.source, self.meter = None, None, None, None
        self.failed: set[tuple] = set()

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if self.cuda else torch.device("cpu")

    def require_cuda(self) -> None:
        if not self.cuda:
            raise ImprintError("this row needs a CUDA device")

    def prepare(self, config: str, batch: int, mode: str, checkpointing: bool = False) -> Run:
        """The run of stage 2 for these words of a row, from random weights, with its pairs made."""
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
        """Discard the last run and what was compiled for it."""
        self.key, self.run, self.source, self.meter = None, None, None, None
        torch._dynamo.reset()
        self.free_cache()

    def free_cache(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def step(self, index: int) -> None:
        self.run.step(self.source, index, self.meter)

    def steps_from(self, first: int, count: int) -> None:
        """Run this many steps, one after another."""
        for index in range(first, first + count):
            self.step(index)

    def timed(self, work: Callable[[], object], repeats: int, warmup: int = 3) -> float:
        """Seconds that `work` takes, on average."""
        for _ in range(warmup if repeats > 1 else min(warmup, 1)):
            work()
        self.synchronize()
        began = time.perf_counter()
        for _ in range(repeats):
            work()
        self.synchronize()
        return self.slowest(time.perf_counter() - began) / repeats

    def slowest(self, seconds: float) -> float:
        """The longest time of any of the run's processes, which are synchronised by this."""
        if self.run is None or self.run.accelerator.num_processes == 1:
            return seconds
        return float(self.run.accelerator.gather(torch.tensor([seconds], device=self.device)).max())

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def warm_up(self) -> None:
        """Steps until all is compiled and, among several processes, DDP has sorted gradients into buckets.

        DDP does so after its first step, in the order of that step's gradients. A step of another kind must not come
        first: buckets would then wait for late gradients.
        """
        for index in range(3):
            self.step(index)
        self.source.wait()  # for the pairs of the next block, which are made during the steps
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def time_steps(self) -> dict:
        """Seconds per step, with pairs ready: the median of four windows, and their spread."""
        self.warm_up()
        cycle, count = BLOCK * self.run.settings.reuse, max(1, self.options.steps // 4)
        windows = []
        for first in range(3, 3 + 4 * count, count):
            rows = [index % cycle for index in range(first, first + count)]
            windows.append(self.timed(lambda rows=rows: [self.step(row) for row in rows], 1, warmup=0) / count)
        return median(windows)

    def count_operations(self) -> float:
        """Floating-point operations per picture of a step, by PyTorch's own counter.

        Counted in an eager step of this process only, after the timed ones: see `warm_up`.
        """
        run, batch = self.run, self.source.batch(0)[slice(0, 2)]
        with (
            run.accelerator.no_sync(run.model),
            torch.compiler.set_stance("force_eager"),
            FlopCounterMode(display=False) as counter,
        ):
            run.step(Again(self.source, batch), 0, self.meter)
        return counter.get_total_flops() / len(batch.target)

    def exchange(self) -> dict:
        """DDP's own report on its exchange of gradients: its buckets, and milliseconds per step."""
        if not isinstance(self.run.model, torch.nn.parallel.DistributedDataParallel):
            return {}
        said = self.run.model._get_ddp_logging_data()
        sizes = str(said.get("rebuilt_bucket_sizes") or said.get("bucket_sizes", ""))
        times = {
            "exchange_ms": "avg_backward_comm_time",
            "exchange_beside_backward_ms": "avg_backward_compute_comm_overlap_time",
        }
        return {"buckets": sizes.count(",") + 1} | {name: said.get(key, 0) / 1e6 for name, key in times.items()}

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
        except RuntimeError as error:  # cuDNN and cuBLAS raise their own errors for it
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
