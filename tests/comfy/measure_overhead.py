"""Time of Draw Object over ComfyUI's own nodes on the same crop, encode and decode included.

    COMFYUI_PATH=... python tests/comfy/measure_overhead.py [ROUNDS [STEPS [CFG]]]

Both run in turns in one process, so that a busy machine slows both; the medians' ratio is printed. The bound is 1.03.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent


def measure(rounds: int, steps: int, cfg: float) -> None:
    import comfy_checks
    import torch

    comfy_checks.prepare()
    comfy_checks.STEPS, comfy_checks.CFG = steps, cfg
    with torch.inference_mode():
        scene = comfy_checks.scene()
        paths = {"sampler": lambda: scene.sample(steps=steps, cfg=cfg), "split": lambda: comfy_checks.split_path(scene)}
        seconds: dict[str, list[float]] = {name: [] for name in paths}
        for _ in range(rounds + 1):
            for name, path in paths.items():
                start = time.perf_counter()
                path()
                seconds[name].append(time.perf_counter() - start)
    ours, theirs = (statistics.median(seconds[name][1:]) for name in ("sampler", "split"))  # the first round warms up
    print(
        f"sampler {ours:.3f} s, split path {theirs:.3f} s, ratio {ours / theirs:.4f} ({rounds} x {steps} steps, cfg "
        f"{cfg:g})"
    )


def main() -> None:
    given = [kind(word) for kind, word in zip((int, int, float), sys.argv[1:])]
    arguments = ", ".join(map(str, [*given, *(5, 20, 1.0)[len(given) :]]))
    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder) / "imprint-nodes-test"
        pack.symlink_to(HERE.parents[1], target_is_directory=True)
        code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import measure_overhead as m; m.measure({arguments})"
        command = [sys.executable, "-c", code, os.environ["COMFYUI_PATH"], str(pack), folder]
        raise SystemExit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
