"""The speed of diffusers' own training example, run in a separate process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from imprint.errors import ImprintError

from .settings import Benchmark

BASELINE_WARMUP = 8  # steps
ENDING = 10  # seconds that a process has for ending


@contextmanager
def started(command: list[str], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen]:
    """A process in its own group, with stdout and stderr in one pipe; it is ended on exit, with all that it started."""
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
        # At SIGTERM torchrun ends its processes, which are in other groups.
        for last in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, last)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(ENDING)
        process.wait()
        process.stdout.close()


def time_script(
    options: Benchmark, scratch: Path, cuda: bool, model: Path, pictures: Path, resolution: int, batch: int
) -> dict:
    """Pictures per second from the example's own progress bar, after its first steps."""
    words = {
        "pretrained_model_name_or_path": model,
        "train_data_dir": pictures,
        "resolution": resolution,
        "train_batch_size": batch,
        "max_train_steps": 100_000,
        "checkpointing_steps": 100_000,
        "dataloader_num_workers": min(8, os.cpu_count() or 1) if cuda else 0,
        "output_dir": scratch / "diffusers",
        "mixed_precision": "bf16" if cuda else "no",
        "seed": 0,
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    command += ["--dynamo_backend", "no", "--mixed_precision", words["mixed_precision"]]
    command += [] if cuda else ["--cpu"]
    command += [str(options.baseline), "--random_flip", "--allow_tf32"]
    command += [str(word) for name, value in words.items() for word in (f"--{name}", value)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(scratch / "hub")}
    last = BASELINE_WARMUP + options.steps
    used = memory_in_use(cuda)
    seen: dict[int, float] = {}
    options.output.mkdir(parents=True, exist_ok=True)
    log = options.output / "diffusers.log"
    with started(command, offline) as process, log.open("wb") as file:
        while chunk := os.read(process.stdout.fileno(), 65536):
            now = time.perf_counter()
            file.write(chunk)
            for done in re.findall(rb"(\d+)/100000 \[", chunk):
                seen.setdefault(int(done), now)
            if seen and max(seen) >= last:
                break
        memory = memory_in_use(cuda) - used
    if not seen or max(seen) < last:
        raise ImprintError(f"{options.baseline} ended early; see {log}")
    first, end = min(step for step in seen if step >= BASELINE_WARMUP), max(seen)
    rate = (end - first) * batch / (seen[end] - seen[first])
    return {"pictures_per_second": rate, "steps": end - first, "device_memory_gib": memory}


def memory_in_use(cuda: bool) -> float:
    """GiB of the device used by all processes."""
    free, total = torch.cuda.mem_get_info() if cuda else (0, 0)
    return (total - free) / 2**30
