"""Ten losses of each stage, and of the decoder's fine-tuning, compared with those recorded in tests/golden/losses/.

They cover everything from shards to gradients: the pairs drawn, the model's inputs, the losses, the optimizer. On one
thread, with the recorded torch on a CPU of the recorded capability, they are equal to the last bit; elsewhere within
1e-4. The held-out losses are those of 24 pairs, one and a half parts. After a change that is meant to affect them,
record them again and say why in the commit:

    IMPRINT_RECORD=1 python -m pytest tests/test_golden_losses.py
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from micro import cutout, fresh_checkpoint, matte_config, photo
from PIL import Image, ImageDraw
from runs import stats, webp, words, write_captions

from imprint.checkpoint import save_checkpoint
from training import decoder, train
from training.data.shards import Record, sample, shard_writer
from training.loop import decoder as decoding
from training.loop import validation

GOLDEN = Path(__file__).parent / "golden" / "losses"
STEPS = 10
HERE = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
TOLERANCE = 1e-4  # relative, where torch or the CPU is another


@pytest.fixture(autouse=True)
def more_than_a_part(monkeypatch):
    monkeypatch.setattr(validation, "SIZE", 24)


@pytest.fixture(scope="module")
def golden_data(tmp_path_factory) -> Path:
    """cutouts/, photos/ and captions/ with lossless pictures, and start.safetensors: identical to the last bit
    everywhere.
    """
    root = tmp_path_factory.mktemp("golden")
    for split, seed in (("train", 1), ("held-out", 2)):
        for shard in range(2):
            with shard_writer(root / "cutouts" / split / f"views-{shard:06d}.tar") as writer:
                for number in range(6):
                    record = Record(f"thing-{shard}-{number // 3}", "", number % 3, "test", "CC0", (0, 9))
                    picture = webp(cutout(48, 48, seed=100 * seed + 10 * shard + number))
                    writer.write(sample(f"{number:03d}", picture, "webp", record))
                    if number % 3 == 0:  # this view once more, in the light of a scene
                        picture = webp(cutout(48, 48, seed=300 * seed + 10 * shard + number))
                        scene = webp(photo(48, 48, seed=400 * seed + 10 * shard + number))
                        lit = dataclasses.replace(record, shadow=(0.4, 0.3, 0.5))
                        writer.write(sample(f"{number:03d}-lit", picture, "webp", lit, scene=scene))
            with shard_writer(root / "photos" / split / f"photos-{shard:06d}.tar") as writer:
                for frame in range(4):
                    picture, mask = photo(160, 120, seed=200 * seed + 10 * shard + frame), Image.new("L", (160, 120))
                    box = (30 + 3 * frame, 30, 90 + 3 * frame, 85)
                    ImageDraw.Draw(picture).rectangle(box, fill=(200, 40, 40))
                    ImageDraw.Draw(mask).rectangle(box, fill=1)
                    record = Record(f"clip-{shard}", f"clip-{shard}", frame, "test", "CC0")
                    writer.write(sample(f"{frame:03d}", webp(picture), "webp", record, mask))
        write_captions(root / "captions" / split)
    save_checkpoint(root / "start.safetensors", fresh_checkpoint(matte_config()))
    return root


def train_losses(data: Path, folder: Path, stage: str, *more: str, **changes) -> dict[str, list[float]]:
    """The losses that the log gives for a run's steps and for its held-out pairs."""
    options = {"init": data / "start.safetensors", "batch": 4, "images": 4 * STEPS, "save-every": STEPS, "lr": 0.001}
    train.main([*words(data, folder, stage, **options | changes), *more])
    lines = stats(folder)
    names = [name for name, value in lines[0].items() if isinstance(value, float)]
    traces = {name: [line[name] for line in lines if name in line] for name in names}
    return traces | {name: [value] for name, value in lines[-1].items() if name.startswith("held_out")}


def decoder_losses(data: Path, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    losses, original = [], decoding.reconstruction_loss

    def recorded(picture: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = original(picture, target)
        losses.append(loss.item())
        return loss

    patch.setattr(decoding, "reconstruction_loss", recorded)
    options = {"checkpoint": data / "start.safetensors", "output": folder / "tuned.safetensors", "device": "cpu"}
    options |= {"cutouts": data / "cutouts", "photos": data / "photos", "images": 4 * STEPS, "batch": 4, "held-out": 4}
    decoder.main([word for name, value in options.items() for word in (f"--{name}", str(value))])
    return {"loss": losses}


RUNS = {
    "warmup": (["warmup"], {"cutouts": None, "photos": None}),
    "identity": (["identity"], {}),
    "compositing": (["compositing"], {}),
    "choices": (
        ["compositing", "--resolutions", "64", "32:0.5"],
        {
            "accumulate": 2,
            "images": 8 * STEPS,
            "block": 4,
            "chunk": 3,
            "pool": 1,
            "final-lr": 1,
            "timesteps": "logit-normal",
            "weighting": "min-snr",
        },
    ),
    "finetune": (["finetune"], {"rank": 2}),
    "distillation": (["compositing"], {"distill-guidance": 2.5}),
    "few-steps": (["finetune"], {"distill-steps": 2, "lora-layers": "all", "rank": 2}),
}


@pytest.mark.parametrize("name", [*RUNS, "decoder"])
def test_losses_are_the_recorded_ones(name, golden_data, text_encoder, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if name == "decoder":
            found = decoder_losses(golden_data, tmp_path, monkeypatch)
        else:
            stage, changes = RUNS[name]
            if name == "warmup":
                changes = changes | {"captions": golden_data / "captions", "text-encoder": text_encoder}
            found = train_losses(golden_data, tmp_path / "run", *stage, **changes)
    finally:
        torch.set_num_threads(threads)
    assert len(found["loss"]) == STEPS
    path = GOLDEN / f"{name}.json"
    if os.environ.get("IMPRINT_RECORD"):
        path.write_text(json.dumps(HERE | found, indent=1) + "\n")
        pytest.skip(f"recorded {path}")
    recorded = json.loads(path.read_text())
    there = {key: recorded.pop(key) for key in HERE}
    assert found.keys() == recorded.keys()
    for key, values in recorded.items():
        assert found[key] == (values if there == HERE else pytest.approx(values, rel=TOLERANCE)), key
