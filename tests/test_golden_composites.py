"""One composite of each way to make one, compared with those recorded in tests/golden/composites/.

They cover everything from the object's photo to the finished picture. On one thread, with the recorded torch on a CPU
of the recorded capability, they are equal to the last bit; elsewhere no 8-bit value differs by more than one. After a
change that is meant to affect them, record them again and say why in the commit:

    IMPRINT_RECORD=1 python -m pytest tests/test_golden_composites.py

The nodes' composite is in tests/comfy/test_checks.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from micro import concat_config, cutout, fresh_checkpoint, matte_config, photo, seeded
from PIL import Image, ImageDraw

from imprint import cli
from imprint.checkpoint import SHIPPED, save_checkpoint
from imprint.config import ImprintConfig
from imprint.images import tensor_to_image
from imprint.pipeline import ImprintPipeline

GOLDEN = Path(__file__).parent / "golden" / "composites"
SAMPLES = SHIPPED.parent / "samples"
HERE = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
STEPS = 3


def compare(name: str, *pictures: Image.Image, made_with: dict[str, str] = HERE) -> None:
    """Compare pictures of one height, side by side, with the recorded file. made_with: versions, as in `HERE`."""
    found = np.concatenate([np.asarray(picture.convert("RGB")) for picture in pictures], 1)
    path, versions = GOLDEN / f"{name}.png", GOLDEN / "recorded.json"
    recorded = json.loads(versions.read_text()) if versions.is_file() else {}
    if os.environ.get("IMPRINT_RECORD"):
        GOLDEN.mkdir(parents=True, exist_ok=True)
        Image.fromarray(found).save(path, optimize=True)
        versions.write_text(json.dumps(recorded | {name: made_with}, indent=1, sort_keys=True) + "\n")
        return
    expected = np.asarray(Image.open(path))
    same = recorded[name] == made_with
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= (0 if same else 1), (
        f"{name}: {(difference > 0).any(2).sum()} pixels differ, by {difference.max()} at most "
        f"({'the recorded torch and CPU' if same else 'another torch or CPU than the recorded'})"
    )


def maps(result) -> list[Image.Image]:
    """The matte's alpha and shadow at the crop's height."""
    return [tensor_to_image(each.expand(3, -1, -1)) for each in (result.alpha[0], result.shadow[0])]


def ellipse(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A mask that is not a box, with a slanting stroke out of it."""
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    draw.ellipse(box, fill=255)
    draw.line((box[0], box[3], (box[0] + box[2]) // 2, (box[1] + box[3]) // 2), fill=255, width=5)
    return mask


def street() -> tuple[Image.Image, Image.Image]:
    """A small photo and the hole in it."""
    scene = Image.open(SAMPLES / "street.jpg").convert("RGB").crop((40, 180, 264, 380))
    return scene, ellipse(*scene.size, (60, 60, 150, 170))


def loaded(config: ImprintConfig, folder: Path) -> ImprintPipeline:
    save_checkpoint(folder / "micro.safetensors", fresh_checkpoint(config))
    pipeline = ImprintPipeline.from_checkpoint(folder / "micro.safetensors")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def shipped() -> ImprintPipeline:
    pipeline = ImprintPipeline.from_checkpoint()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def composite(pipeline: ImprintPipeline, *pictures, steps: int = STEPS, **options):
    return pipeline(*pictures, steps, generator=seeded(), **options)


def test_pipeline(shipped):
    """Only the drawing, without detail, and its matte."""
    result = composite(shipped, Image.open(SAMPLES / "duck.webp"), None, *street(), detail=0.0)
    compare("pipeline", *result.images)
    compare("matte", *maps(result))


def test_command_line(tmp_path):
    """From files to a file, with detail, in fp32 on every processor."""
    for name, picture in zip(("background", "mask"), street()):
        picture.save(tmp_path / f"{name}.png")
    words = ["composite", "--object", str(SAMPLES / "duck.webp"), "--out", str(tmp_path / "out.png"), "--device", "cpu"]
    words += ["--background", str(tmp_path / "background.png"), "--mask", str(tmp_path / "mask.png")]
    assert cli.main([*words, "--steps", str(STEPS), "--seed", "0", "--colour-match", "0.5", "--dtype", "fp32"]) == 0
    compare("command-line", Image.open(tmp_path / "out.png"))


def test_several_views(shipped):
    views = [Image.open(SAMPLES / f"sloth_{number}.webp") for number in (1, 2, 3)]
    result = composite(shipped, views, None, *street(), feather_pixels=9, feather_inwards=3, blend_method="multiband")
    compare("several-views", *result.images)


def test_384_pixels(shipped):
    bear, mask = Image.open(SAMPLES / "bear.jpg"), Image.open(SAMPLES / "bear_mask.png")
    compare("384-px", *composite(shipped, bear, mask, *street(), steps=2, resolution=384).images)


def test_concat(tmp_path):
    """The background in separate channels, with a small model of fresh weights; two results of one call."""
    scene = photo(120, 90, seed=2)
    pipeline = loaded(concat_config(), tmp_path)
    result = composite(pipeline, cutout(50, 40, seed=1), None, scene, ellipse(120, 90, (40, 30, 75, 60)), num_results=2)
    compare("concat", *result.images)


def test_hole_at_the_border(tmp_path):
    """A hole that is too small, with a small model that has a matte, blended in with another mask.

    The background is transparent in places.
    """
    scene = cutout(120, 90, seed=2)
    hole, wider = ellipse(120, 90, (112, 80, 124, 95)), ellipse(120, 90, (80, 50, 130, 100))
    result = composite(loaded(matte_config(), tmp_path), cutout(50, 40, seed=1), None, scene, hole, blend_mask=wider)
    compare("border", *result.images)
    compare("border-matte", *maps(result))
