"""How fast training is on this machine, row by row."""

from __future__ import annotations

import json
import os
import re
import sys
import time

import numpy as np
import torch

from imprint.config import PRESETS
from imprint.errors import ImprintError
from imprint.files import write_text

from ..loop.run import Run
from .settings import Benchmark
from .speed_baseline import started, time_script
from .speed_inference import time_composites
from .speed_inputs import write_captioned_pictures, write_diffusers_model
from .speed_report import found, machine, markdown
from .speed_trial import BLOCK, Trial, median

CARDS = (24, 48, 80)  # GiB, minus 4 %: a GPU has slightly less than its name says and reserves some
CYCLES = 3  # of a loop: each makes its pairs
SELF = ("-m", "training.benchmark")
SEVERAL = ("pictures_per_second", "spread", "buckets", "exchange_ms", "exchange_beside_backward_ms")
"""The values that a row of several processes takes from each of them."""
KERNELS = {
    "attention": r"sdpa|flash|fmha|attention",
    "convolution": r"conv|fprop|dgrad|wgrad|implicit",
    "compiled (norms, activations, sums)": r"^triton_",
    "matrix product": r"gemm|nvjet|cutlass|cublas",
    "optimiser, average, gradient norm": r"multi_tensor|foreach|adam|lerp",
    "copies": r"memcpy|memset|copy|cat|nhwc",
    "other": r"",
}
"""Groups of kernels by their names: the first pattern that is found in one names its group."""


class OutOfTime(BaseException):
    """Raised by the alarm of `--time-limit`; no handler of a library may swallow it."""


class Bench(Trial):
    """The rows measured so far, and the measurement of each kind."""

    def __init__(self, options: Benchmark):
        super().__init__(options)
        self.rows: list[dict] = []

    def measure(self, row: str) -> None:
        """Measure one row; an error takes its place."""
        kind, *words = row.split(":")
        began = time.perf_counter()
        values = {"row": row}
        try:
            values |= getattr(self, f"row_{kind}")(*words)
        except Exception as error:  # the rows after it still count
            values["error"] = f"{type(error).__name__}: {error}"
            if kind != "diffusers" and not isinstance(error, ImprintError):
                self.failed.add(self.key)  # compiling again would take minutes and fail again
                self.release()
        values["seconds"] = round(time.perf_counter() - began, 1)
        self.rows.append(values)
        if int(os.environ.get("RANK", 0)) == 0:
            print(json.dumps(values), flush=True)
            self.write()

    def row_peak(self) -> dict:
        side = 8192 if self.cuda else 256
        left, right = (torch.randn(side, side, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        product = self.timed(lambda: left @ right, 200)  # long enough for the clock to settle
        source = torch.empty(2**30 if self.cuda else 2**20, device=self.device, dtype=torch.int8)
        target = torch.empty_like(source)
        copy = self.timed(lambda: target.copy_(source), 20)
        return {"tflops": 2 * side**3 / product / 1e12, "copy_tb_per_second": 2 * len(source) / copy / 1e12}

    def row_step(self, config: str, batch: str, mode: str) -> dict:
        run = self.prepare(config, int(batch), mode)
        timed = self.time_steps()
        values = self.peak_memory() | self.exchange()
        rate, operations = run.step_size / timed["seconds"], self.count_operations()
        values |= {"pictures_per_second": rate, "spread": timed["spread"], "tflop_per_picture": operations / 1e12}
        return values | {"tflops": rate * operations / run.accelerator.num_processes / 1e12}

    def row_search(self, *words: str) -> dict:
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            return self.row_step(*words)
        finally:
            torch.backends.cudnn.benchmark = before

    def row_loop(self, config: str, batch: str, mode: str) -> dict:
        run = self.prepare(config, int(batch), mode)
        cycle = BLOCK * run.settings.reuse
        self.warm_up()
        making = self.timed(lambda: self.source.make(BLOCK * run.settings.batch, self.source.generator(9)), 1)
        cycles = range(2 * cycle, (2 + CYCLES) * cycle, cycle)
        for index in (cycle, 2 * cycle - 1):  # on a GPU each cycle makes the next one's pairs, none beside the first
            self.step(index)
        totals = [self.timed(lambda first=first: self.steps_from(first, cycle), 1, warmup=0) for first in cycles]
        timed = median(totals)
        values = {
            "pictures_per_second": cycle * run.step_size / timed["seconds"],
            "spread": timed["spread"],
            "pairs_made_per_second": BLOCK * run.step_size / making,
        }
        values |= {"reuse": run.settings.reuse, "state_gib": state_bytes(run) / 2**30}
        if self.cuda:
            values |= busy(self.profile(lambda: self.steps_from(cycles[-1] + cycle, cycle)))
        return values

    def row_kernels(self, config: str, batch: str, mode: str) -> dict:
        self.require_cuda()
        self.prepare(config, int(batch), mode)
        self.warm_up()
        steps = 3
        events = self.profile(lambda: [self.step(index) for index in range(steps)])
        times: dict[str, float] = {}
        for name, start, end in events:
            times[name] = times.get(name, 0.0) + (end - start) / steps / 1e3
        groups: dict[str, float] = {}
        for name, spent in times.items():
            group = next(group for group, pattern in KERNELS.items() if re.search(pattern, name, re.IGNORECASE))
            groups[group] = groups.get(group, 0.0) + spent
        top = sorted(times.items(), key=lambda item: -item[1])[:20]
        return {
            "groups_ms": {name: round(spent, 2) for name, spent in sorted(groups.items(), key=lambda item: -item[1])},
            "top_ms": {name[:110]: round(spent, 2) for name, spent in top},
            "kernels_per_step": len(events) // steps,
        } | busy(events)

    def row_memory(self, config: str, kind: str) -> dict:
        self.require_cuda()
        run = self.prepare(config, min(self.options.memory_batches), "eager", checkpointing=kind == "checkpointing")
        pairs = self.source.batch(0)
        self.source.wait()
        peaks = {size: self.try_batch(run, pairs, size) for size in self.options.memory_batches}
        peaks = {size: peak for size, peak in peaks.items() if peak}
        slope, fixed = np.polyfit(list(peaks), [peak["allocated_gib"] for peak in peaks.values()], 1)
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        limits = {f"{card} GB": 0.96 * card for card in CARDS if card < total} | {f"{total:.0f} GB, this card": total}
        largest = {}
        for card, limit in limits.items():
            torch.cuda.set_per_process_memory_fraction(limit / total)
            try:
                largest[card] = self.largest(run, pairs, max(1, int((0.98 * limit - fixed) / slope)))
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0)
        return {"peaks": peaks, "gib_per_picture": slope, "gib_fixed": fixed, "largest_batch": largest}

    def row_diffusers(self, config: str, batch: str) -> dict:
        if not self.options.baseline:
            raise ImprintError("give --baseline, the path of diffusers' train_text_to_image.py")
        if PRESETS[config].unet.pooled_width:
            raise ImprintError(f"diffusers' train_text_to_image.py does not train SDXL, and {config} has its sizes")
        self.free_cache()
        model, pictures = self.scratch / f"{config}-diffusers", self.scratch / "pictures"
        if not model.exists():
            write_diffusers_model(model, PRESETS[config], self.device)
            self.free_cache()
        if not pictures.exists():
            write_captioned_pictures(pictures, PRESETS[config].resolution, 2048 if self.cuda else 64)
        return time_script(
            self.options, self.scratch, self.cuda, model, pictures, PRESETS[config].resolution, int(batch)
        )

    def row_composite(self, config: str, results: str, mode: str) -> dict:
        self.release()
        return time_composites(self, config, int(results), mode)

    def row_gpus(self, processes: str, *words: str) -> dict:
        """One-process rows of the same words must come before, to be compared with."""
        self.release()
        most = torch.cuda.device_count() if self.cuda else max(2, os.cpu_count() or 1)
        if int(processes) > most:
            raise ImprintError(f"this machine takes {most} processes, not {processes}; give gpus:{most} or fewer")
        folder = self.scratch / f"gpus-{processes}"
        rows = [":".join((kind, *words)) for kind in ("step", "loop")]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
        command += [*SELF, "--output", str(folder), "--steps", str(self.options.steps)]
        command += ["--cpu"] if self.options.cpu else []
        threads = max(1, (os.cpu_count() or 1) // int(processes))  # torchrun would give each process one
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        with started([*command, "--rows", *rows], environment) as process:
            log = process.stdout.read().decode(errors="replace")
            process.wait()
        if process.returncode or not (folder / "benchmark.json").exists():
            raise ImprintError(f"{processes} processes ended with {process.returncode}: {log[-1500:]}")
        values = {}
        for row in json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))["rows"]:
            kind = row["row"].partition(":")[0]
            if "error" in row:
                raise ImprintError(f"{row['row']}: {row['error']}")
            values |= {f"{kind}_{name}": row[name] for name in SEVERAL if name in row}
            alone = found(self.rows, row["row"])
            if alone:
                values[f"{kind}_times_one"] = row["pictures_per_second"] / alone["pictures_per_second"]
        return values

    def write(self) -> None:
        """The JSON and the Markdown of all rows so far."""
        folder = self.options.output
        folder.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine(self.cuda), "rows": self.rows}
        write_text(folder / "benchmark.json", json.dumps(report, indent=1))
        write_text(folder / "benchmark.md", markdown(report))


def state_bytes(run: Run) -> int:
    """The size of a saved state in fp32: all weights and, for trained ones, the average and Adam's two moments."""
    trained = sum(parameter.numel() for parameter in run.trained)
    return 4 * (sum(parameter.numel() for parameter in run.raw.parameters()) + 3 * trained)


def busy(kernels: list[tuple[str, float, float]]) -> dict:
    """The fraction of the time, from first to last kernel, in which one ran, and the longest gap in milliseconds."""
    running, gap, reached = 0.0, 0.0, kernels[0][1]
    for _, start, end in kernels:
        gap = max(gap, start - reached)
        running += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return {"busy": running / (reached - kernels[0][1]), "longest_gap_ms": gap / 1e3}
