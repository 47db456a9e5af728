"""Shared helpers of the evaluation's tests: small data, networks with random weights, and command lines."""

import json
import shlex
from pathlib import Path

import pytest
import torch
import transformers
from micro import cutout, fresh_checkpoint, micro_config, photo, rectangle
from PIL import Image, ImageDraw

from imprint.checkpoint import save_checkpoint
from training import evaluate
from training.data.shards import Record, sample, shard_writer
from training.measure import evaluation, networks, tasks

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
LIGHT = ("clip-i", "dino", "dinov2", "background")  # metrics that need only the package; retrieval is for subjects
NEEDS = {  # each metric's files in the folder of networks
    "clip-i": "clip-vit-base-patch32",
    "dino": "dino-vits16",
    "dinov2": "dinov2-base",
    "dreamsim": "dreamsim",
    "lpips": "checkpoints/alexnet-owt-7be5be79.pth",
    "fid": "checkpoints/weights-inception-2015-12-05-6726825d.pth",
    "retrieval": "dinov2-base",
    "mobilenet": "mobilenet_v1_0.75_224.safetensors",
}


def write_backbones(folder: Path) -> Path:
    """Write transformers' networks except MobileNet: small, with random weights, under the hub's names."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    clip = transformers.CLIPVisionConfig(intermediate_size=64, projection_dim=16, **sizes)
    vit = transformers.ViTConfig(intermediate_size=64, **sizes)
    dinov2 = transformers.Dinov2Config(**sizes)
    transformers.CLIPVisionModelWithProjection(clip).save_pretrained(folder / NEEDS["clip-i"])
    transformers.ViTModel(vit).save_pretrained(folder / NEEDS["dino"])
    transformers.Dinov2Model(dinov2).save_pretrained(folder / NEEDS["dinov2"])
    return folder


def write_data(root: Path) -> Path:
    """Write subjects/ in three layouts, backgrounds/, boxes.jsonl, instances.json, pairs/ and model.safetensors."""
    for name in ("bear", "cup", "unmasked"):
        (root / "subjects" / name).mkdir(parents=True)
    for number in range(2):
        cutout(60, 50, seed=number).save(root / "subjects" / "cup" / f"{number:02d}.png")
    picture = photo(80, 80, seed=7)
    picture.save(root / "subjects" / "bear" / "00.jpg")
    rectangle(80, 80, (20, 10, 60, 70)).save(root / "subjects" / "bear" / "00.mask.png")
    picture.save(root / "subjects" / "bear" / "01.jpg")
    picture.save(root / "subjects" / "unmasked" / "00.jpg")

    (root / "backgrounds").mkdir()
    for name, seed in (("one", 3), ("two", 4)):
        photo(120, 90, seed=seed).save(root / "backgrounds" / f"{name}.png")
    boxes = [("one.png", [40, 30, 75, 60]), ("two.png", [10, 20, 60, 70])]
    lines = "".join(json.dumps({"background": n, "box": b}) + "\n" for n, b in boxes)
    (root / "boxes.jsonl").write_text(lines, encoding="utf-8-sig")  # as Notepad does
    images = [
        {"id": i, "file_name": f"{name}.png", "width": 120, "height": 90} for i, name in enumerate(("one", "two"))
    ]
    found = [
        (0, [5, 5, 10, 10]),
        (0, [40, 30, 35, 30.4]),
        (0, [0, 0, 119, 89]),
        (1, [10, 20, 50, 50]),
        (1, [10, 20, 20, 20]),
    ]
    annotations = [{"image_id": image, "bbox": box, "iscrowd": 0} for image, box in found]
    (root / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))

    with shard_writer(root / "pairs" / "video.tar") as writer:
        for clip, frames in (("swan", (0, 2, 6, 8, 40)), ("bus", (0, 5)), ("still", (3,))):
            for frame in frames:
                picture, mask = photo(96, 80, seed=frame), Image.new("L", (96, 80))
                box = (10 + frame, 20, 50 + frame, 60)
                ImageDraw.Draw(picture).ellipse(box, fill=(200, 40, 40))
                ImageDraw.Draw(mask).ellipse(box, fill=2)
                ImageDraw.Draw(mask).rectangle((0, 0, 3, 3), fill=1)  # an object that is too small
                path = root / "frame.png"
                picture.save(path)
                record = Record("", clip, frame, "test", "CC0")
                writer.write(sample(f"{clip}-{frame:05d}", path.read_bytes(), "png", record, mask))
    save_checkpoint(root / "model.safetensors", fresh_checkpoint(micro_config()))
    return root


def words(data: Path, output: Path, *more: str, **changes) -> list[str]:
    """A command line; a change to None omits an option."""
    options = {
        "checkpoint": f"micro={data / 'model.safetensors'}",
        "subjects": data / "subjects",
        "backgrounds": data / "backgrounds",
        "boxes": data / "boxes.jsonl",
        "output": output,
        "metrics": "background",
        "device": "cpu",
    } | changes
    given = (word for name, value in options.items() if value is not None for word in (f"--{name}", str(value)))
    return [*given, *more]


def pairs(data: Path, output: Path, *more: str, **changes) -> list[str]:
    return words(
        data, output, *more, **{"subjects": None, "backgrounds": None, "boxes": None, "pairs": data / "pairs"} | changes
    )


def subject_tasks(data: Path) -> list[tasks.Task]:
    """Every subject of `write_data` in every box."""
    boxes = tasks.read_boxes(data / "boxes.jsonl", data / "backgrounds")
    return tasks.subject_tasks(tasks.read_subjects(data / "subjects"), boxes)


def pixels(path: Path) -> bytes:
    return Image.open(path).tobytes()


def results(output: Path) -> dict:
    return json.loads((output / "results.json").read_text())


def scene_of(target: Image.Image) -> tasks.Scene:
    return tasks.Scene("cup", cutout(20, 20), photo(64, 64), (10, 10, 42, 42), target)


def check_that_the_target_is_best(name: str, same: float, data: Path, backbones: Path) -> None:
    """Assert that a metric gives `same` for the target itself and a worse value for another picture."""
    metric = evaluation.load_metrics(evaluate.parse(words(data, data, metrics=name, backbones=backbones)), {})[name]
    target, other = photo(50, 40, seed=1), photo(50, 40, seed=2)
    (scores,) = metric(scene_of(target), [target, other, target]).values()
    assert scores[0] == pytest.approx(same, abs=1e-6) and scores[2] == pytest.approx(scores[0], abs=1e-6)
    assert abs(scores[1] - same) > 1e-4
    assert (scores[1] < same) == (networks.COLUMNS[name].better == "higher")
    (alone,) = metric(scene_of(target), [other]).values()  # the other crops do not affect a crop's score
    assert alone == pytest.approx(scores[1:2], abs=1e-5)


def readme_commands() -> list[list[str]]:
    text = "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("evaluation", "log")).replace("\\\n", " ")
    return [
        shlex.split(line) for line in text.splitlines() if line.startswith("python -m training.evaluate --checkpoint")
    ]


def check_readme_command(command: list[str], data: Path, backbones: Path, output: Path, *more: str) -> None:
    """Run the command for two tasks, with its folders and files replaced by small ones."""
    ours = {
        "DREAMBOOTH": data / "subjects",
        "COCO/val2017": data / "backgrounds",
        "COCO/annotations/instances_val2017.json": data / "instances.json",
        "training/boxes.jsonl": data / "boxes.jsonl",
        "data/photos/held-out": data / "pairs",
        command[command.index("--output") + 1]: output,
    }
    end = next((i for i, word in enumerate(command) if i > 4 and word.startswith("--")), len(command))
    assert command[3] == "--checkpoint"
    checkpoints = [f"{word.partition('=')[0]}={data / 'model.safetensors'}" for word in command[4:end]]
    rest = [str(ours.get(word, word)) for word in command[end:]]
    small = shlex.split(
        f"--limit 2 --steps 2 --device cpu --dtype fp32 --retrieval-backbone dinov2 --backbones '{backbones}'"
    )
    evaluate.main(["--checkpoint", *checkpoints, *rest, *small, *more])
    assert results(output)["tasks"] == 2 and len(results(output)["rows"]) > len(checkpoints)
