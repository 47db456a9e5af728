"""How true an object's light and shadow are, on tasks whose truth is known, such as path-traced ones.

A folder of tasks holds for each, NN being its name: `NN_obj.png` (RGBA, of the background's size: the object as it is
placed, in the light of its own photo), `NN_bg.png` (the background), `NN_target.png` (the truth), `NN_alpha.png` (the
object's outline there) and `NN_hole.png` (white: object and shadow, where composites may differ from the background).

Errors are means of absolute differences, of values from 0 to 1; a gain is 1 - error / error of pasting: 0 is pasting, 1
the truth, and less than 0 is farther from it than pasting.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from imprint.errors import ImprintError
from imprint.files import write_text
from imprint.images import open_image, tensor_to_image
from imprint.light import relight
from imprint.lightnet import LightNet, load_light
from imprint.place import PlacedObject
from imprint.saving import save_image

from .settings import EvaluateLight

PARTS = ("obj", "bg", "target", "alpha", "hole")
GAINS = ("light", "shadow", "contact")
"""The fields of `LightErrors` that are reported as gains."""
LIGHT_BLUR = 6.0
"""Pixels, standard deviation: light is what remains of colours."""
SHADOW_BLUR = 2.0
"""Pixels, of a shadow's and the outline's."""
OUTSIDE = 0.01
"""Ground has less than this of the blurred outline."""
REACH = 0.04
"""Contact is within this share of the picture's height beside the object's lower half."""
DARKEST = 0.02
"""Added to both sides of a ratio: black ground can lose nothing."""


@dataclass(frozen=True)
class LightTask:
    """A task's pictures: colours (H, W, 3) and maps (H, W), float64 in [0, 1]."""

    name: str
    colours: np.ndarray
    """Of the object, as placed."""
    coverage: np.ndarray
    """The placed object's own alpha."""
    background: np.ndarray
    target: np.ndarray
    alpha: np.ndarray
    """The object's outline in the target."""
    hole: np.ndarray
    """(H, W) bool."""

    @classmethod
    def read(cls, folder: Path, name: str) -> LightTask:
        """Raises `ImprintError` for a picture that is absent, damaged or of another size."""
        pictures = {part: open_image(folder / f"{name}_{part}.png") for part in PARTS}
        sizes = {picture.size for picture in pictures.values()}
        if len(sizes) > 1:
            found = ", ".join(f"{part} {picture.width}x{picture.height}" for part, picture in pictures.items())
            raise ImprintError(
                f"the pictures of task {name} in {folder} differ in size ({found}); one size was expected"
            )
        cutout = _values(pictures["obj"], "RGBA")
        return cls(
            name,
            cutout[..., :3],
            cutout[..., 3],
            _values(pictures["bg"], "RGB"),
            _values(pictures["target"], "RGB"),
            _values(pictures["alpha"], "L"),
            _values(pictures["hole"], "L") > 0.5,
        )

    def pasted(self) -> np.ndarray:
        """(H, W, 3): the object over the background, in its own light, without a shadow."""
        share = self.coverage[..., None]
        return self.colours * share + self.background * (1 - share)

    def errors(self, composite: Image.Image) -> tuple[LightErrors, LightErrors]:
        """Of a composite of the background's size, and of pasting, whose ground has no shadow."""
        made = _values(composite, "RGB")
        return LightErrors.of(self, made, made), LightErrors.of(self, self.pasted(), self.background)


@dataclass(frozen=True)
class LightErrors:
    """Errors of one picture of a task; not a number where a task has no such place."""

    light: float
    """Of the object's broad colours."""
    shadow: float
    """Of how much darker or brighter the ground in the hole is than the background."""
    contact: float
    """The same close beside the object's lower half."""
    psnr: float
    """Peak signal-to-noise ratio inside the outline, in dB."""

    @classmethod
    def of(cls, task: LightTask, made: np.ndarray, ground: np.ndarray) -> LightErrors:
        """made (H, W, 3): the object is measured on it; ground (H, W, 3): shadow and contact are."""
        inside = task.alpha > 0.95
        off = np.abs(_broad(made, inside) - _broad(task.target, inside))[inside]
        lost = np.abs(_kept(task, ground) - _kept(task, task.target))
        outside = task.hole & (gaussian_filter(task.alpha, SHADOW_BLUR) < OUTSIDE)
        power = ((made - task.target)[inside] ** 2).mean()
        psnr = -10 * np.log10(max(float(power), 1e-10))
        return cls(float(off.mean()), _mean(lost, outside), _mean(lost, outside & _beside_foot(task.alpha)), psnr)


def tasks_of(folder: Path) -> list[str]:
    """The names of a folder's tasks, in order. Raises `ImprintError` where there is none."""
    names = sorted(path.name.removesuffix("_target.png") for path in folder.glob("*_target.png"))
    if not names:
        raise ImprintError(f"{folder} holds no *_target.png; a task is {', '.join(f'NN_{part}.png' for part in PARTS)}")
    return names


def compose(net: LightNet, task: LightTask, *strengths: float | str) -> Image.Image:
    """The task's object in the background's light, as `ImprintPipeline` puts a placed object there.

    strengths: as `imprint.light.relight` takes them.
    """
    colours, coverage, frame = (
        torch.from_numpy(each).float() for each in (task.colours, task.coverage, task.background)
    )
    placed = PlacedObject.from_layer(colours.permute(2, 0, 1), coverage)
    made = frame.permute(2, 0, 1)[None].clone()
    lit = relight(net, made, placed, *strengths)
    made[(..., *lit.area)] = lit.composite()
    return tensor_to_image(made[0])


def evaluate_light(settings: EvaluateLight) -> dict:
    """Score each task's picture; writes results.json where there is an output folder, and returns its content.

    Raises `ImprintError` for tasks or results that cannot be used.
    """
    rows = {}
    for task, picture in _pictures(settings):
        if picture.size != task.hole.shape[::-1]:
            raise ImprintError(
                f"the result of task {task.name} is {picture.width}x{picture.height}, its background "
                f"{task.hole.shape[1]}x{task.hole.shape[0]}; give results of the background's size"
            )
        rows[task.name] = task.errors(picture)
    if not rows:
        raise ImprintError(f"{settings.results} holds no NN.png of a task in {settings.tasks}")
    result = summary(rows)
    if settings.output:
        write_text(settings.output / "results.json", json.dumps(result, indent=1))
    return result


def summary(rows: dict[str, tuple[LightErrors, LightErrors]]) -> dict:
    """Gains of the mean errors, and how often a picture is better than pasting. rows: errors of it and of pasting by
    task.
    """
    made, pasted = zip(*rows.values())
    result: dict = {"tasks": len(rows)}
    for name in GAINS:
        ours, theirs = (np.array([getattr(errors, name) for errors in each]) for each in (made, pasted))
        error, plain = (float(each[np.isfinite(each)].mean()) for each in (ours, theirs))
        result[name] = {
            "error": error,
            "pasted": plain,
            "gain": 1 - error / plain,
            "better": int((ours < theirs).sum()),
        }
    result["psnr"] = {
        "made": float(np.mean([errors.psnr for errors in made])),
        "pasted": float(np.mean([errors.psnr for errors in pasted])),
    }
    result["by_task"] = {name: {"made": vars(made), "pasted": vars(pasted)} for name, (made, pasted) in rows.items()}
    return result


def light_report(result: dict) -> str:
    """A table of a result, and the peak signal-to-noise ratio below it."""
    count = result["tasks"]
    lines = [f"| {count} tasks | error | pasted | gain | better than pasting |", "|---|---|---|---|---|"]
    for name in GAINS:
        row = result[name]
        lines.append(
            f"| {name} | {row['error']:.4f} | {row['pasted']:.4f} | {row['gain']:+.3f} | {row['better']} of {count} |"
        )
    psnr = result["psnr"]
    return "\n".join([*lines, f"PSNR inside the outline: {psnr['made']:.1f} dB, pasted {psnr['pasted']:.1f} dB"])


def _pictures(settings: EvaluateLight) -> Iterator[tuple[LightTask, Image.Image]]:
    """Tasks and their composites: read from `--results`, or made by the network and written to the output folder."""
    net = None if settings.results else load_light(settings.checkpoint)
    for name in tasks_of(settings.tasks):
        if net is None:
            path = settings.results / f"{name}.png"
            if path.exists():
                yield LightTask.read(settings.tasks, name), open_image(path)
            continue
        task = LightTask.read(settings.tasks, name)
        picture = compose(net, task, settings.light, settings.shadow, settings.softness, settings.light_from)
        if settings.output:
            save_image(picture, settings.output / f"{name}.png")
        yield task, picture


def _values(picture: Image.Image, mode: str) -> np.ndarray:
    return np.asarray(picture.convert(mode), float) / 255


def _broad(picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """(H, W, 3): means around each pixel of what lies inside."""
    share = gaussian_filter(inside.astype(float), LIGHT_BLUR).clip(1e-3)[..., None]
    return gaussian_filter(picture * inside[..., None], (LIGHT_BLUR, LIGHT_BLUR, 0)) / share


def _kept(task: LightTask, picture: np.ndarray) -> np.ndarray:
    """(H, W): what a picture has of the background's brightness; less than 1 in a shadow."""
    ratio = (picture.mean(-1) + DARKEST) / (task.background.mean(-1) + DARKEST)
    return gaussian_filter(ratio, SHADOW_BLUR)


def _beside_foot(alpha: np.ndarray) -> np.ndarray:
    """(H, W) bool: close to the object's lower half."""
    solid = alpha > 0.5
    rows = np.nonzero(solid)[0]
    lower = solid & (np.arange(len(alpha))[:, None] > (np.median(rows) if len(rows) else 0))
    return gaussian_filter(lower.astype(float), REACH * len(alpha) / 2) > 0.02


def _mean(values: np.ndarray, where: np.ndarray) -> float:
    return float(values[where].mean()) if where.any() else float("nan")
