"""The rows of an evaluation, and making their composites."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from imprint.checkpoint import open_safetensors, read_config
from imprint.crop import Crop
from imprint.errors import ImprintError
from imprint.files import read_json, write_text
from imprint.images import open_image
from imprint.pipeline import ImprintPipeline
from imprint.saving import save_computed

from .settings import ABLATIONS, Evaluate
from .tasks import PICTURES, Scene, Task

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BASELINES = {
    "copy-paste": lambda scene, _seed: scene.paste(scene.cutout),
    "copy-paste, box emptied": lambda scene, _seed: scene.paste(scene.cutout, emptied=True),
}
"""Baselines with full identity and none of the scene's light, pose and shadow. On a video frame the first also leaves
parts of the true object, which no model sees, around the pasted one; so the second is reported as well."""


@dataclass(frozen=True)
class Row:
    """A row of the table: one way to make composites."""

    name: str
    checkpoint: Path | None
    """None: the cut-out is pasted into the box, or the pictures are given."""
    level: str
    """The level of the holes, one of `imprint.masks.LEVELS`."""
    cls_only: bool = False
    """Whether the adapter gets only the encoder's CLS token."""
    given: Path | None = None
    """Folder of another method's composites."""

    def folder(self, output: Path) -> Path:
        return output / "composites" / re.sub(r"[^\w.-]+", "-", self.name)

    def file(self, task: Task, output: Path) -> Path:
        if self.given is None:
            return self.folder(output) / f"{task.name}.png"
        files = [self.given / f"{task.name}{ending}" for ending in PICTURES]
        return next((file for file in files if file.is_file()), self.given / f"{task.name}.png")

    def read(self, task: Task, scene: Scene, output: Path) -> Image.Image:
        """Open the composite, RGB. Raises `ImprintError` for one that does not fit the scene."""
        path = self.file(task, output)
        picture, (width, height) = open_image(path).convert("RGB"), scene.background.size
        if picture.size != (width, height):
            cure = "delete it, and it is made anew" if self.given is None else "give results of the background's size"
            raise ImprintError(f"{path} is {picture.width}x{picture.height}, its background {width}x{height}; {cure}")
        return picture

    def blend_area(self, scene: Scene) -> np.ndarray:
        """(H, W) bool: the hole, enlarged if too small, and its soft edge; everything else must be background."""
        mask = scene.hole(self.level)
        if self.checkpoint is None:
            return np.asarray(mask) > 127
        return Crop.of(scene.background, mask, read_config(self.checkpoint)).changed_area().numpy()


def table_rows(options: Evaluate) -> list[Row]:
    """Each checkpoint, unchanged and with each ablation, then the baselines."""
    rows = []
    for name, path in options.checkpoint:
        rows.append(Row(name, path, options.mask_level))
        if "cls-only" in options.ablation:
            rows.append(Row(f"{name}, {ABLATIONS['cls-only']}", path, options.mask_level, cls_only=True))
        if "box-mask" in options.ablation:
            rows.append(Row(f"{name}, {ABLATIONS['box-mask']}", path, "box"))
    baselines = BASELINES if options.pairs else ["copy-paste"]
    others = [Row(name, None, options.mask_level, given=folder) for name, folder in options.results]
    return [*rows, *others, *(Row(name, None, "box") for name in baselines)]


def compose(row: Row, tasks: list[Task], options: Evaluate) -> None:
    """Write the row's missing composites.

    Raises `ImprintError` if existing ones have other settings, and if another method's picture is missing.
    """
    waiting = [task for task in tasks if not row.file(task, options.output).exists()]
    if row.given is not None:
        if waiting:
            raise ImprintError(
                f"{row.given} lacks {len(waiting)} of {len(tasks)} tasks' pictures, such as {waiting[0].name}.png; a "
                "row needs all of them (--inputs writes what they are made from, --limit takes fewer tasks)"
            )
        return
    same_settings(row, options)
    if not waiting:
        return
    make = BASELINES[row.name] if row.checkpoint is None else sampler(row, options)
    for task in tqdm(waiting, desc=row.name, unit="picture"):
        save_computed(make(task.load(), task.seed(options.seed)), row.file(task, options.output))


def sampler(row: Row, options: Evaluate) -> Callable[[Scene, int], Image.Image]:
    """The row's model, as a function of a scene and a seed."""
    pipeline = ImprintPipeline.from_checkpoint(row.checkpoint, torch_dtype=TORCH_DTYPES[options.dtype]).to(
        options.device
    )
    pipeline.set_progress_bar_config(disable=True)
    if row.cls_only:
        keep_cls_only(pipeline, row.checkpoint)

    def sample(scene: Scene, seed: int) -> Image.Image:
        hole = scene.hole(row.level)
        return pipeline(
            scene.cutout,
            scene.cutout.getchannel("A"),
            scene.background,
            hole,
            options.steps,
            options.guidance,
            torch.Generator().manual_seed(seed),
            fit="fill",  # the model's own drawing is measured
            blend_mask=hole,  # everything outside it is compared with the background
            detail=options.detail,
        ).images[0]

    return sample


def keep_cls_only(pipeline: ImprintPipeline, path: Path) -> None:
    """Drop the patch tokens before the adapter (AnyDoor, arXiv 2307.09481, trains this way for an ablation)."""
    if pipeline.model_config.adapter.kind == "conv":
        raise ImprintError(
            f"{path}: its 'conv' adapter mixes a fixed number of tokens and cannot do with CLS alone; leave out "
            "--ablation cls-only"
        )
    pipeline.encoder.config = dataclasses.replace(pipeline.encoder.config, output="cls")


def same_settings(row: Row, options: Evaluate) -> None:
    """Record the row's settings; raise `ImprintError` if existing composites were made with others."""
    now: dict[str, Any] = {"holes": row.level}
    if row.checkpoint is not None:  # pasting has no steps
        with open_safetensors(row.checkpoint) as file:
            now |= {"checkpoint": (file.metadata() or {}).get("sha256"), "cls-only": row.cls_only}
        now |= {name: getattr(options, name) for name in ("steps", "guidance", "detail", "seed", "dtype")}
    now |= {name: str(getattr(options, name)) for name in ("subjects", "backgrounds", "boxes", "pairs")}
    if options.tasks:
        now["tasks"] = str(options.tasks)
    path = row.folder(options.output) / "made-with.json"
    before = read_json(path, "delete the composites beside it, or give another --output") if path.exists() else now
    for name, value in now.items():
        if before.get(name) != value:
            raise ImprintError(
                f"{path.parent} holds composites made with {name} = {before.get(name)!r}, not {value!r}; give the same "
                "options to go on, or another --output"
            )
    write_text(path, json.dumps(now, indent=1))
