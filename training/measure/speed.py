"""How fast training is on this machine."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from imprint.checkpoint import Checkpoint
from imprint.config import PRESETS
from imprint.errors import ImprintError
from imprint.files import write_text
from imprint.pipeline import build_modules, module_tensors

from .. import settings
from ..loop.meter import Meter
from ..loop.run import KEPT_STATES, Run
from ..loop.source import Source
from ..pairs.batches import Batch
from .speed_inputs import write_captioned_pictures, write_diffusers_model, write_pictures

ROWS = (
    "peak step:sd15:16:eager step:sd15:16:default diffusers:sd15:16 kernels:sd15:16:default loop:sd15:16:default "
    "memory:sd15:eager step:tiny:512:default loop:tiny:512:default step:tiny:512:reduce-overhead "
    "loop:tiny:512:reduce-overhead search:sd15:16:default step:sd15:48:default memory:sd15:checkpointing"
).split()
CARDS = (24, 48, 80)  # GiB, less 4 %: a card has a little less than its name says, and keeps some for itself
SCALES = (("300 k steps at batch 16", 300_000 * 16), ("1.8 M pairs x 40 epochs", 1_800_000 * 40))
STATES_ON_DISK = KEPT_STATES + 1  # the kept ones, and one that is being written
SELF = ("-m", "training.benchmark")
BLOCK = 4  # batches of pairs made at once
BASELINE_WARMUP = 8  # steps


class OutOfTime(BaseException):
    """Raised by the alarm of `--time-limit`; no handler of a library may swallow it."""


class RandomRun(Run):
    """A training run from random weights that trains what it would from a checkpoint's."""

    def _start(self) -> Checkpoint:
        config = PRESETS[self.options.config]
        with self.device:
            return Checkpoint(config, module_tensors(build_modules(config)), Path("random"))


class Again:
    """A source that gives one batch at every step."""

    def __init__(self, source: Source, batch: Batch):
        self.generator, self.given = source.generator, batch

    def batch(self, step: int) -> Batch:
        return self.given


class Bench:
    """The machine, the rows measured so far, and the run that the last row used."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.rows = options, []
        self.cuda = torch.cuda.is_available() and not options.cpu
        self.scratch = Path(tempfile.mkdtemp(prefix="benchmark-"))
        self.key, self.run, self.source, self.meter = None, None, None, None
        self.failed: set[tuple] = set()

    def measure(self, row: str) -> None:
        """One row, or the error in its place."""
        kind, *words = row.split(":")
        began = time.perf_counter()
        values = {"row": row}
        try:
            values |= getattr(self, f"row_{kind}")(*words)
        except Exception as error:  # the rows after it still count
            values["error"] = f"{type(error).__name__}: {error}"
            if kind != "diffusers" and not isinstance(error, ImprintError):
                self.failed.add(self.key)  # compiling it again would take minutes to fail again
                self.release()
        values["seconds"] = round(time.perf_counter() - began, 1)
        self.rows.append(values)
        if int(os.environ.get("RANK", 0)) == 0:
            print(json.dumps(values), flush=True)
            self.write()

    # --- rows ---------------------------------------------------------------------------------------------------------

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
        operations = self.count_operations()
        per_step = self.time_steps()
        values = {"pictures_per_second": run.step_size / per_step, "tflop_per_picture": operations / 1e12}
        values["tflops"] = values["pictures_per_second"] * operations / run.accelerator.num_processes / 1e12
        return values | self.peak_memory()

    def row_search(self, *words: str) -> dict:
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True
        try:
            return self.row_step(*words)
        finally:
            torch.backends.cudnn.benchmark = before

    def row_loop(self, config: str, batch: str, mode: str) -> dict:
        run = self.prepare(config, int(batch), mode)
        cycle = BLOCK * run.options.reuse
        self.time_steps(1)
        making = self.timed(lambda: self.source.make(BLOCK * run.options.batch, self.source.generator(9)), 1)
        self.source.block = None
        total = self.timed(lambda: [self.step(index) for index in range(cycle)], 1, warmup=0)
        values = {
            "pictures_per_second": cycle * run.step_size / total,
            "pairs_made_per_second": BLOCK * run.step_size / making,
        }
        values |= {"reuse": run.options.reuse, "state_gib": state_bytes(run) / 2**30}
        if self.cuda:
            self.source.block = None
            values |= busy(self.profile(lambda: [self.step(index) for index in range(2 * BLOCK)]))
        return values

    def row_kernels(self, config: str, batch: str, mode: str) -> dict:
        self.require_cuda()
        self.prepare(config, int(batch), mode)
        self.time_steps(1)
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
        self.free_cache()
        model, pictures = self.scratch / f"{config}-diffusers", self.scratch / "pictures"
        if not model.exists():
            write_diffusers_model(model, PRESETS[config], self.device)
            self.free_cache()
        if not pictures.exists():
            write_captioned_pictures(pictures, PRESETS[config].resolution, 2048 if self.cuda else 64)
        return self.time_script(model, pictures, PRESETS[config].resolution, int(batch))

    def row_gpus(self, processes: str, *words: str) -> dict:
        """One-process rows of the same words must come before, to be compared with."""
        self.release()
        folder = self.scratch / f"gpus-{processes}"
        rows = [":".join((kind, *words)) for kind in ("step", "loop")]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
        command += [*SELF, "--output", str(folder), "--steps", str(self.options.steps)]
        command += ["--cpu"] if self.options.cpu else []
        with started([*command, "--rows", *rows]) as process:
            log = process.stdout.read().decode(errors="replace")
            process.wait()
        if process.returncode or not (folder / "benchmark.json").exists():
            raise ImprintError(f"{processes} processes ended with {process.returncode}: {log[-1500:]}")
        values = {}
        for row in json.loads((folder / "benchmark.json").read_text())["rows"]:
            kind = row["row"].partition(":")[0]
            if "error" in row:
                raise ImprintError(f"{row['row']}: {row['error']}")
            values[f"{kind}_pictures_per_second"] = row["pictures_per_second"]
            alone = self.found(row["row"])
            if alone:
                values[f"{kind}_times_one"] = row["pictures_per_second"] / alone["pictures_per_second"]
        return values

    # --- a run and its steps ------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.cuda else "cpu")

    def require_cuda(self) -> None:
        if not self.cuda:
            raise ImprintError("this row needs a CUDA device")

    def prepare(self, config: str, batch: int, mode: str, checkpointing: bool = False) -> Run:
        """The run of these words, with pairs made; the last one is kept, since compiling takes minutes."""
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
        words = ["compositing", "--init", "random", "--output", str(self.scratch / "run"), "--batch", str(batch)]
        words += [
            "--lr",
            "1e-5",
            "--views",
            str(data / "views"),
            "--photos",
            str(data / "photos"),
            "--block",
            str(BLOCK),
        ]
        words += ["--chunk", str(min(batch, 16 if config.startswith("sd") else 256))]
        words += ["--precision", "bf16"] if self.cuda else ["--device", "cpu"]
        words += [] if mode == "eager" else ["--compile", mode]
        words += ["--checkpointing"] if checkpointing else []
        options = settings.parse(words)
        options.config = config
        self.run = RandomRun(options)
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
        """Seconds a step, with pairs ready: the median of four windows."""
        cycle = BLOCK * self.run.options.reuse
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
        """Floating-point operations a picture of a step, by PyTorch's own counter."""
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

    # --- diffusers' example -------------------------------------------------------------------------------------------

    def time_script(self, model: Path, pictures: Path, resolution: int, batch: int) -> dict:
        """Pictures per second from the example's own progress bar, after its first steps."""
        words = {
            "pretrained_model_name_or_path": model,
            "train_data_dir": pictures,
            "resolution": resolution,
            "train_batch_size": batch,
            "max_train_steps": 100_000,
            "checkpointing_steps": 100_000,
            "dataloader_num_workers": min(8, os.cpu_count() or 1) if self.cuda else 0,
            "output_dir": self.scratch / "diffusers",
            "mixed_precision": "bf16" if self.cuda else "no",
            "seed": 0,
        }
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
        command += ["--dynamo_backend", "no", "--mixed_precision", words["mixed_precision"]]
        command += [] if self.cuda else ["--cpu"]
        command += [str(self.options.baseline), "--random_flip", "--allow_tf32"]
        command += [str(word) for name, value in words.items() for word in (f"--{name}", value)]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(self.scratch / "hub")}
        last = BASELINE_WARMUP + self.options.steps
        used = self.memory_in_use()
        seen: dict[int, float] = {}
        self.options.output.mkdir(parents=True, exist_ok=True)
        log = self.options.output / "diffusers.log"
        with started(command, offline) as process, log.open("wb") as file:
            while chunk := os.read(process.stdout.fileno(), 65536):
                now = time.perf_counter()
                file.write(chunk)
                for done in re.findall(rb"(\d+)/100000 \[", chunk):
                    seen.setdefault(int(done), now)
                if seen and max(seen) >= last:
                    break
            memory = self.memory_in_use() - used
        if not seen or max(seen) < last:
            raise ImprintError(f"{self.options.baseline} ended early; see {log}")
        first, end = min(step for step in seen if step >= BASELINE_WARMUP), max(seen)
        rate = (end - first) * batch / (seen[end] - seen[first])
        return {"pictures_per_second": rate, "steps": end - first, "device_memory_gib": memory}

    def memory_in_use(self) -> float:
        free, total = torch.cuda.mem_get_info() if self.cuda else (0, 0)
        return (total - free) / 2**30

    # --- the report ---------------------------------------------------------------------------------------------------

    def found(self, row: str) -> dict | None:
        return next((each for each in self.rows if each["row"] == row and "error" not in each), None)

    def write(self) -> None:
        """The JSON and the Markdown of all rows so far."""
        self.options.output.mkdir(parents=True, exist_ok=True)
        report = {"machine": self.machine(), "rows": self.rows, "cost": self.cost()}
        write_text(self.options.output / "benchmark.json", json.dumps(report, indent=1))
        write_text(self.options.output / "benchmark.md", self.markdown(report))

    def machine(self) -> dict:
        import diffusers

        return {
            "device": torch.cuda.get_device_name() if self.cuda else platform.processor() or "CPU",
            "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30 if self.cuda else None,
            "torch": torch.__version__,
            "cudnn": torch.backends.cudnn.version(),
            "diffusers": diffusers.__version__,
        }

    def cost(self) -> list[dict]:
        """GPU hours and disk of whole runs of stage 2 at `SCALES`, from the fastest `loop` row of sd15."""
        loops = [row for row in self.rows if row["row"].startswith("loop:sd15:") and "error" not in row]
        if not loops:
            return []
        fastest = max(loops, key=lambda row: row["pictures_per_second"])
        rate, states = fastest["pictures_per_second"], STATES_ON_DISK * fastest["state_gib"]
        return [
            {"scale": scale, "pictures": pictures, "gpu_hours": pictures / rate / 3600, "states_gib": states}
            for scale, pictures in SCALES
        ]

    def markdown(self, report: dict) -> str:
        machine = report["machine"]
        lines = [
            f"{machine['device']}, PyTorch {machine['torch']}, cuDNN {machine['cudnn']}, diffusers {machine['diffusers']}."
        ]
        peak = self.found("peak")
        if peak:
            lines[0] += (
                f" bf16 8192^3 matrix product {peak['tflops']:.0f} TFLOP/s, copy {peak['copy_tb_per_second']:.2f} TB/s."
            )
        speeds = [row for row in self.rows if "pictures_per_second" in row]
        lines += table(
            "row | pictures/s | x diffusers | TFLOP a picture | of the peak | memory, GiB",
            [
                [
                    f"`{row['row']}`",
                    f"{row['pictures_per_second']:,.1f}",
                    ratio(row["pictures_per_second"], self.baseline_of(row)),
                    number(row.get("tflop_per_picture"), ".2f"),
                    f"{row['tflops'] / peak['tflops']:.1%}" if peak and "tflops" in row else "",
                    number(row.get("allocated_gib", row.get("device_memory_gib")), ".1f"),
                ]
                for row in speeds
            ],
        )
        for row in self.rows:
            if row["row"].startswith("loop:") and "busy" in row:
                lines.append(
                    f"`{row['row']}`: pairs are made at {row['pairs_made_per_second']:,.0f}/s, each used {row['reuse']} times; "
                    f"kernels run {row['busy']:.1%} of the time, the longest gap is {row['longest_gap_ms']:.2f} ms."
                )
            elif "groups_ms" in row:
                lines.append(
                    f"`{row['row']}`: {row['kernels_per_step']} kernels a step, {row['busy']:.1%} of the time."
                )
                lines += table("kernels | ms a step", [[name, f"{ms:.2f}"] for name, ms in row["groups_ms"].items()])
                lines += table(
                    "the longest | ms a step", [[f"`{name}`", f"{ms:.2f}"] for name, ms in row["top_ms"].items()]
                )
            elif "peaks" in row:
                lines.append(
                    f"`{row['row']}`: {row['gib_fixed']:.1f} GiB + {row['gib_per_picture']:.2f} GiB a picture."
                )
                lines += table(
                    "batch | allocated, GiB | reserved, GiB",
                    [
                        [size, f"{p['allocated_gib']:.1f}", f"{p['reserved_gib']:.1f}"]
                        for size, p in row["peaks"].items()
                    ],
                )
                lines += table(
                    "card | largest batch that fits | fails at",
                    [
                        [card, found["fits"] or "none", found["fails"] or ""]
                        for card, found in row["largest_batch"].items()
                    ],
                )
            elif row["row"].startswith("gpus:") and "error" not in row:
                lines.append(
                    f"`{row['row']}`: "
                    + ", ".join(f"{n} {v:,.2f}" for n, v in row.items() if n not in ("row", "seconds"))
                )
            elif "error" in row:
                lines.append(f"`{row['row']}`: {row['error'][:300]}")
        if report["cost"]:
            lines += table(
                "scale | pictures | GPU hours | states on disk, GiB",
                [
                    [c["scale"], f"{c['pictures'] / 1e6:.1f} M", f"{c['gpu_hours']:,.0f}", f"{c['states_gib']:.0f}"]
                    for c in report["cost"]
                ],
            )
        return "\n".join(lines) + "\n"

    def baseline_of(self, row: dict) -> float | None:
        _, *words = row["row"].split(":")
        baseline = self.found(":".join(("diffusers", *words[:2])))
        return baseline["pictures_per_second"] if baseline else None


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


def state_bytes(run: Run) -> int:
    """What a saved state takes: all weights, and of the trained ones the average and Adam's two moments, in fp32."""
    trained = sum(parameter.numel() for parameter in run.trained)
    return 4 * (sum(parameter.numel() for parameter in run.raw.parameters()) + 3 * trained)


def busy(kernels: list[tuple[str, float, float]]) -> dict:
    """The share of the time from the first kernel to the last in which one ran, and the longest gap in milliseconds."""
    running, gap, reached = 0.0, 0.0, kernels[0][1]
    for _, start, end in kernels:
        gap = max(gap, start - reached)
        running += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return {"busy": running / (reached - kernels[0][1]), "longest_gap_ms": gap / 1e3}


def table(head: str, rows: list[list]) -> list[str]:
    names = head.split(" | ")
    return ["", *(f"| {' | '.join(map(str, row))} |" for row in (names, ["---"] * len(names), *rows)), ""]


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def ratio(value: float, base: float | None) -> str:
    return f"{value / base:.2f}" if base else ""


@contextmanager
def started(command: list[str], environment: dict[str, str] | None = None):
    """A process in a group of its own, with output and errors in one pipe; on leaving, the whole group is ended."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | (environment or {}),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
