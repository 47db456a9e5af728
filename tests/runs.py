"""Training runs of a few steps: data in the documented layouts, command lines, and reading a run's output."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from micro import cutout, photo
from PIL import Image, ImageDraw

from imprint.checkpoint import load_checkpoint
from training.data.shards import Record, sample, shard_writer

ROOT = Path(__file__).parents[1]


def webp(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def write_views(folder: Path, objects: int, views: int, seed: int) -> None:
    with shard_writer(folder / "views-000000.tar") as writer:
        for number in range(objects):
            for view in range(views):
                record = Record(f"thing-{seed}-{number}", "", view, "test", "CC0")
                picture = cutout(48, 48, seed=100 * seed + 10 * number + view)
                writer.write(sample(f"{number:03d}-{view:02d}", webp(picture), "webp", record))


def write_captions(folder: Path, count: int = 4, **changes) -> Path:
    """Write a shard like that of `training.prepare captions`; a change to None omits a member."""
    with shard_writer(folder / "captions-000000.tar") as writer:
        for number in range(count):
            record = Record("", f"picture-{number}", 0, "test", "CC0")
            parts = sample(f"{number:03d}", webp(photo(90, 70, seed=number)), "webp", record)
            parts = parts | {"txt": f"a thing {'abcd'[number % 4]}\nthe other {'abcd'[number % 4]}".encode()} | changes
            writer.write({name: part for name, part in parts.items() if part is not None})
    return folder


def write_davis(folder: Path, frames: range) -> None:
    """Write a clip in DAVIS's own layout: one object that moves to the right."""
    for kind in ("JPEGImages", "Annotations"):
        (folder / kind / "360p" / "clip").mkdir(parents=True)
    for frame in frames:
        picture, mask = photo(160, 120, seed=frame), Image.new("L", (160, 120))
        box = (30 + frame, 30, 80 + frame, 80)
        ImageDraw.Draw(picture).ellipse(box, fill=(200, 40, 40))
        ImageDraw.Draw(mask).ellipse(box, fill=255)
        picture.save(folder / "JPEGImages" / "360p" / "clip" / f"{frame:05d}.jpg")
        mask.save(folder / "Annotations" / "360p" / "clip" / f"{frame:05d}.png")


def write_coco(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    photo(120, 120, seed=7).save(folder / "images" / "one.jpg")
    outline = [20, 20, 90, 25, 85, 95, 25, 80]
    small = [30, 30, 40, 30, 40, 40, 30, 40]
    annotations = [
        {"image_id": 1, "area": 100, "segmentation": [small]},
        {"image_id": 1, "area": 4000, "segmentation": [outline]},
        {"image_id": 1, "area": 14400, "segmentation": {"counts": []}, "iscrowd": 1},
    ]
    images = [{"id": 1, "file_name": "one.jpg", "width": 120, "height": 120}]
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))


def words(data: Path, output: Path, stage: str = "identity", steps: int = 2, **changes) -> list[str]:
    """A command line for `steps` steps of two pictures; a change to None omits an option."""
    options = {
        "output": output,
        "cutouts": data / "cutouts",
        "photos": data / "photos",
        "images": 2 * steps,
        "batch": 2,
        "block": 2,
        "reuse": 2,
        "lr-warmup": 1,
        "lr": 0.01,
        "ema": 0.5,
        "log-every": 1,
        "save-every": 2,
        "device": "cpu",
    }
    options |= {"sizes": "micro", "vae": data / "vae.safetensors"} if "init" not in changes else {}
    options |= changes
    return [
        stage,
        *(str(word) for name, value in options.items() if value is not None for word in (f"--{name}", value)),
    ]


def stats(folder: Path) -> list[dict]:
    """The log without its times."""
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "pictures_per_second"} for line in lines]


def weights(path: Path) -> dict[str, torch.Tensor]:
    parts = load_checkpoint(path).parts
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


# --- several processes -----------------------------------------------------------------------------------------------

WORKER = f"""
import gc, json, os, shutil, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import torch
torch.set_num_threads(1)
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from micro import HELD_OUT_PAIRS, micro_config
from imprint.config import PRESETS
from training import train
from training.loop import validation
PRESETS["micro"], validation.SIZE = micro_config(), HELD_OUT_PAIRS
# Processes take longer to start than the runs, so several runs share them.
on_cpu = all("cpu" in command for _, command, _ in json.loads(sys.argv[1]))
group = PartialState(cpu=on_cpu)
PartialState.destroy_process_group = lambda *_: None
for environment, command, begun in json.loads(sys.argv[1]):
    if begun and group.is_main_process:
        shutil.copytree(*begun, ignore=shutil.ignore_patterns("state-000000004", "checkpoint.safetensors"))
    os.environ.update(environment)
    # accelerate shards models only on accelerators; torch also does on CPUs, with gloo
    kind = "MULTI_CPU" if on_cpu and "ACCELERATE_USE_FSDP" not in environment else "MULTI_GPU"
    group._shared_state["distributed_type"] = DistributedType[kind]
    if not on_cpu:  # without the previous run's time
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.distributed.barrier()
    train.main(command)
    AcceleratorState._reset_state()
"""


def launch(tmp_path: Path, *runs: tuple[dict[str, str], list[str], list[Path] | None]) -> None:
    """Run several runs of two processes through the documented launcher.

    Each is given by its environment, its command line and, if it resumes an interrupted run, that run's folder and its
    own.
    """
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command, settings = [*launcher, json.dumps(runs, default=str)], os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=settings, check=False)
    assert done.returncode == 0, done.stderr[-12000:]
