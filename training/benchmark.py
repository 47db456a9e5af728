"""Measure training on this machine: python -m training.benchmark --output FOLDER [--baseline train_text_to_image.py] ...

Every row is written to FOLDER/benchmark.json and FOLDER/benchmark.md as soon as it is measured. A row is one of

    peak                              the card's bf16 matrix products and copies
    step:CONFIG:BATCH:MODE            training steps of stage 2 with pairs ready; MODE is eager or one of torch.compile's
    kernels:CONFIG:BATCH:MODE         where a step's time goes, by kernel
    loop:CONFIG:BATCH:MODE            the same steps with the making and encoding of their pairs
    search:CONFIG:BATCH:MODE          `step` with cuDNN trying its convolutions out
    memory:CONFIG:eager|checkpointing peak memory by batch size, and the largest batch under a set limit
    diffusers:CONFIG:BATCH            diffusers' own example on the same UNet: --baseline, run as a process of its own
    gpus:N:CONFIG:BATCH:MODE          `step` and `loop` in N processes through torchrun

Weights are random and pictures noise: neither changes the speed. Steps are `training.train.Run.step`.
"""

from __future__ import annotations

import argparse
import shutil
import signal
from pathlib import Path

from .measure.speed import ROWS, Bench, OutOfTime


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for benchmark.json and benchmark.md")
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="ROW", help="what to measure, in this order")
    parser.add_argument("--baseline", type=Path, help="diffusers' examples/text_to_image/train_text_to_image.py")
    parser.add_argument("--steps", type=int, default=24, help="steps that are timed in a row")
    parser.add_argument("--memory-batches", type=int, nargs="+", default=[8, 16, 32, 48])
    parser.add_argument("--time-limit", type=int, help="seconds after which to stop and keep what there is")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone: to try the command")
    options = parser.parse_args(argv)
    kinds = [name.removeprefix("row_") for name in vars(Bench) if name.startswith("row_")]
    for row in options.rows:
        if row.partition(":")[0] not in kinds:
            parser.error(f"there is no row '{row}'; rows are {', '.join(kinds)}")
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    if options.time_limit:

        def stop(*_signal) -> None:
            raise OutOfTime

        signal.signal(signal.SIGALRM, stop)
        signal.alarm(options.time_limit)
    bench = Bench(options)
    try:
        for row in options.rows:
            bench.measure(row)
    except OutOfTime:
        print(f"stopped after {options.time_limit} s, in row {row}")
    finally:
        signal.alarm(0)
        shutil.rmtree(bench.scratch, ignore_errors=True)
    if (options.output / "benchmark.md").exists():
        print((options.output / "benchmark.md").read_text())


if __name__ == "__main__":
    main()
