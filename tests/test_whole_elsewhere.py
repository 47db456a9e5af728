"""Every road from pictures to a composite, on a device that refuses what lies on the CPU: see `elsewhere.py`."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from drawing import DrawingPipeline
from elsewhere import DEVICE, elsewhere, put
from micro import (
    cutout,
    fresh_checkpoint,
    matte_config,
    micro_light,
    photo,
    sdxl_config,
    seeded,
    sketched_config,
    third_party_config,
    told_config,
)
from PIL import Image, ImageDraw
from torch import nn

from imprint.checkpoint import save_checkpoint
from imprint.images import as_picture
from imprint.mask_reading import as_mask
from imprint.pipeline import ImprintPipeline
from imprint.views import ObjectViews

WIDE, HIGH = 112, 96


def mask(draw: str, *box: int, size: tuple[int, int] = (WIDE, HIGH)) -> Image.Image:
    """draw: rectangle or ellipse."""
    picture = Image.new("L", size)
    getattr(ImageDraw.Draw(picture), draw)(box, fill=255)
    return picture


OBJECT, BACKGROUND = cutout(60, 50, seed=1), photo(WIDE, HIGH, seed=2)
BOX, ROUND = mask("rectangle", 30, 30, 79, 69), mask("ellipse", 30, 30, 79, 69)
NARROW = photo(40, HIGH, seed=2), mask("rectangle", 5, 10, 34, 90, size=(40, HIGH))  # its square reaches beyond it
PLACED = Image.new("RGBA", BACKGROUND.size)
PLACED.paste(OBJECT, (30, 30))
DRAWN = {"scene": (OBJECT, BACKGROUND, BOX)}
SHAPED = {"scene": (OBJECT, BACKGROUND, ROUND)}

ROADS = {
    "a box": (matte_config, DRAWN | {"fit": "contain"}),
    "a box, light and shadow off": (matte_config, DRAWN | {"fit": "contain", "light": 0.0, "shadow": 0.0}),
    "a box, in a blend mask": (matte_config, DRAWN | {"fit": "contain", "blend_mask": ROUND, "num_results": 4}),
    "placed": (matte_config, {"scene": (PLACED, BACKGROUND, None), "placed": True, "fit": "contain"}),
    "drawn": (matte_config, SHAPED | {"num_results": 4, "colour_match": 0.5, "softness": 0.5}),
    "drawn, shadow and detail off": (matte_config, SHAPED | {"shadow": 0.0, "detail": 0.0, "matte": False}),
    "drawn, light told": (matte_config, SHAPED | {"light_from": "left", "blend_method": "multiband"}),
    "drawn, in a blend mask": (matte_config, DRAWN | {"blend_mask": ROUND, "feather_inwards": 3}),
    "drawn, wide edge": (matte_config, DRAWN | {"feather_pixels": 40, "feather_inwards": 2}),
    "drawn, several views": (matte_config, {"scene": ([OBJECT, OBJECT.rotate(90)], BACKGROUND, ROUND)}),
    "drawn, beyond the frame": (matte_config, {"scene": (OBJECT, *NARROW)}),
    "drawn, in a tiny hole": (matte_config, {"scene": (OBJECT, BACKGROUND, mask("rectangle", 50, 50, 52, 51))}),
    "drawn in its outline": (matte_config, DRAWN | {"fit": "outline"}),
    "drawn with the command's scheduler": (matte_config, SHAPED | {"scheduler": DPMSolverMultistepScheduler}),
    "without a matte": (third_party_config, SHAPED | {"colour_match": 0.5}),
    "AnyDoor's": (sketched_config, DRAWN),
    "AnyDoor's, in its outline": (sketched_config, DRAWN | {"fit": "outline"}),
    "ControlCom's": (told_config, DRAWN | {"change": "pose"}),
    "ControlCom's, in place": (told_config, DRAWN | {"change": "light", "fit": "contain"}),
    "SDXL's": (sdxl_config, SHAPED),
}


def moved(module: nn.Module) -> nn.Module:
    """A copy with its tensors on the fake device."""
    module = copy.deepcopy(module)
    for each in module.modules():
        for name, own in each._parameters.items():
            each._parameters[name] = None if own is None else nn.Parameter(put(own.data), requires_grad=False)
        for name, own in each._buffers.items():
            each._buffers[name] = None if own is None else put(own)
    return module


class _Pictures(DrawingPipeline):
    """Works on pictures elsewhere, and computes with its networks on the CPU."""

    _pixels_device = DEVICE


class _Everything(_Pictures):
    _execution_device = DEVICE


def pipelines(config, folder, dtype: torch.dtype = torch.float32) -> tuple[DrawingPipeline, dict[str, DrawingPipeline]]:
    """One on the CPU, and the same with parts of it elsewhere."""
    save_checkpoint(folder / "micro.safetensors", fresh_checkpoint(config))
    here = DrawingPipeline.from_checkpoint(folder / "micro.safetensors", torch_dtype=dtype)
    here.register_modules(light=micro_light().to(dtype))
    parts = here.components
    there = {name: moved(part) if isinstance(part, nn.Module) else part for name, part in parts.items()}
    offloaded = there | {"light": parts["light"]}  # what runs between the other networks stays on the CPU
    return here, {
        "pictures": _Pictures(**parts),
        "everything": _Everything(**there),
        "all but the light": _Everything(**offloaded),
    }


def run(pipeline: DrawingPipeline, scene: tuple, scheduler: type | None = None, **options):
    if scheduler is not None:
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    subject, background, hole = scene
    return pipeline(subject, None, background, hole, 2, generator=seeded(0), **options)


def same(made, expected, tolerance: float) -> bool:
    """Whether pictures and maps lie on the CPU and are the same: pictures of 255, maps and tensors of 1."""
    pairs = [(made.alpha, expected.alpha), (made.shadow, expected.shadow)]
    if isinstance(made.images, torch.Tensor):
        pairs.append((made.images, expected.images))
    else:
        for one, other in zip(made.images, expected.images, strict=True):
            apart = np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max()
            if apart > (tolerance > 0):
                return False
    for one, other in pairs:
        if (one is None) != (other is None):
            return False
        if one is not None and (one.device.type != "cpu" or float((one - other).abs().max()) > tolerance):
            return False
    return True


@pytest.mark.parametrize("road", ROADS)
def test_a_road_of_its_pictures_and_networks(road: str, tmp_path):
    config, options = ROADS[road]
    here, elsewheres = pipelines(config(), tmp_path)
    expected = run(here, **options)
    background = np.asarray(options["scene"][1])
    assert any(np.abs(np.asarray(each).astype(int) - background).max() > 8 for each in expected.images)
    with elsewhere():
        for where, there in elsewheres.items():
            if where == "all but the light" and road not in ("a box", "drawn", "drawn, in a blend mask"):
                continue
            made = run(there, **options)
            # Networks are computed by other operators there, and round differently.
            assert same(made, expected, 0.0 if where == "pictures" else 1e-4), where


@pytest.mark.parametrize("road", ["a box", "drawn in its outline", "AnyDoor's"])
def test_networks_in_half_precision(road: str, tmp_path):
    config, options = ROADS[road]
    here, elsewheres = pipelines(config(), tmp_path, torch.bfloat16)
    expected = run(here, **options)
    with elsewhere():
        assert same(run(elsewheres["pictures"], **options), expected, 0.0)
        made = run(elsewheres["everything"], **options)
    for one, other in zip(made.images, expected.images, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).mean() < 2


@pytest.mark.parametrize("road", ["drawn, in a blend mask", "AnyDoor's, in its outline"])
@pytest.mark.parametrize("large", ["crop", "phases"])
def test_a_large_crop_or_a_large_photo_stays_on_the_cpu(road: str, large: str, tmp_path, monkeypatch):
    """Each without the other."""
    config, options = ROADS[road]
    here, elsewheres = pipelines(config(), tmp_path)
    expected = run(here, **options)
    monkeypatch.setattr(f"imprint.{large}.MOST_PIXELS", 64)
    with elsewhere():
        scene = elsewheres["pictures"].prepare(OBJECT, None, BACKGROUND, BOX)
        there = scene.crop.frame.device == DEVICE, scene.views.pictures[0].device == DEVICE
        assert there == (large != "crop", large != "phases")
        for where in ("pictures", "everything"):
            assert same(run(elsewheres[where], **options), expected, 0.0 if where == "pictures" else 1e-4), where


@pytest.mark.parametrize("output_type", ["pil", "pt"])
def test_tensors_that_lie_there_already(output_type: str, tmp_path):
    here, elsewheres = pipelines(matte_config(), tmp_path)
    views = ObjectViews.of(OBJECT)
    given = views.pictures[0], views.masks[0], as_picture(BACKGROUND), as_mask(ROUND)
    options = {"generator": None, "latents": torch.randn(1, 4, 8, 8, generator=seeded(1)), "output_type": output_type}
    expected = here(*given, 2, **options)
    with elsewhere():
        for where, there in elsewheres.items():
            made = there(*map(put, given), 2, **options | {"latents": put(options["latents"])})
            assert same(made, expected, 0.0 if where == "pictures" else 1e-4), where


@pytest.mark.parametrize(("device", "pictures"), [("cuda:1", "cuda:1"), ("mps", "cpu"), ("cpu", "cpu")])
def test_where_pictures_are_worked_on(device: str, pictures: str, tmp_path):
    here, _ = pipelines(matte_config(), tmp_path)
    there = type("There", (ImprintPipeline,), {"_execution_device": torch.device(device)})(**here.components)
    assert there._pixels_device == torch.device(pictures)
