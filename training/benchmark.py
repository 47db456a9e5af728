"""Measure this machine: python -m training.benchmark --output FOLDER [--baseline train_text_to_image.py] ...

Every row is written to FOLDER/benchmark.json and FOLDER/benchmark.md as soon as it is measured. A row is one of

    peak                              the GPU's bf16 matrix products and copies
    step:SIZES:BATCH:MODE            training steps of stage 2 with pairs ready; MODE is eager or one of torch.compile's
    kernels:SIZES:BATCH:MODE         where a step's time goes, by kernel
    loop:SIZES:BATCH:MODE            the same steps with the making and encoding of their pairs
    search:SIZES:BATCH:MODE          `step` with cuDNN's autotuning of convolutions
    memory:SIZES:eager|checkpointing peak memory by batch size, and the largest batch under a set limit
    diffusers:SIZES:BATCH            diffusers' own example on the same UNet: --baseline, run in a separate process
    composite:SIZES|FILE:RESULTS:MODE|graph|offload
                                     composites that the model draws, RESULTS in one call, with 20 steps and guidance;
                                     FILE is a checkpoint
    gpus:N:SIZES:BATCH:MODE          `step` and `loop` in N processes through torchrun

Weights are random and pictures are noise: neither affects the speed. Steps are `training.loop.run.Run.step`.
"""

from __future__ import annotations

import signal

from imprint.errors import print_anything

from . import arguments
from .measure.settings import Benchmark
from .measure.speed import Bench, OutOfTime


def main(argv: list[str] | None = None) -> None:
    print_anything()
    settings = arguments.parse(Benchmark, argv, __doc__)
    if settings.time_limit:

        def stop(*_signal: object) -> None:
            raise OutOfTime

        signal.signal(signal.SIGALRM, stop)
        signal.alarm(settings.time_limit)
    bench = Bench(settings)
    try:
        for row in settings.rows:
            bench.measure(row)
    except OutOfTime:
        print(f"stopped after {settings.time_limit} s, in row {row}")
    finally:
        signal.alarm(0)
    if (settings.output / "benchmark.md").exists():
        print((settings.output / "benchmark.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
