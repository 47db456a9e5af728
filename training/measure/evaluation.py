"""Making, measuring and summarising composites."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from imprint.errors import ImprintError
from imprint.files import require_writable, write_text
from imprint.saving import save_computed

from ..arguments import require_other
from . import networks as metrics
from .composites import Row, compose, table_rows
from .networks import COLUMNS
from .report import grid, report
from .settings import Evaluate
from .statistics import CONFIDENCE, RESAMPLES, bootstrap, frechet_distance, jackknife
from .tasks import Photo, Task, pair_tasks, read_boxes, read_subjects, subject_tasks

NETWORKS = {"dreamsim": metrics.DreamSim, "lpips": metrics.LPIPS, "fid": metrics.Inception}


def load_metrics(options: Evaluate, subjects: dict[str, list[Photo]]) -> dict[str, Callable]:
    """The chosen metrics by name, with their networks. Raises `ImprintError` for one that cannot be had."""
    folder, device, backbones, loaded = options.backbones, torch.device(options.device), {}, {}

    def backbone(name: str) -> metrics.Backbone:
        if name not in backbones:
            backbones[name] = metrics.Backbone(name, folder, device)
        return backbones[name]

    for name in options.measured:
        if name in metrics.SIMILARITIES:
            loaded[name] = metrics.Similarity(name, backbone(metrics.SIMILARITIES[name]))
        elif name == "retrieval":
            loaded[name] = metrics.Retrieval(backbone(options.retrieval_backbone), subjects)
        elif name != "background":
            loaded[name] = NETWORKS[name](folder, device)
    return loaded


def measure(
    tasks: list[Task], rows: list[Row], loaded: dict[str, Callable], options: Evaluate
) -> tuple[list[dict], dict[str, np.ndarray]]:
    """A record of every row and task; and Inception's features (T, 2048) of every row and, under "", of the targets."""
    records, features = [], {name: [] for name in ("", *(row.name for row in rows))}
    for task in tqdm(tasks, desc="measuring", unit="task"):
        scene = task.load()
        pictures = [row.read(task, scene, options.output) for row in rows]
        crops = [scene.crop(picture) for picture in pictures]
        new = [{"row": row.name, "task": task.name, "subject": task.subject} for row in rows]
        for name, metric in loaded.items():
            if name == "fid":
                for key, vector in zip(features, metric([scene.target, *crops])):
                    features[key].append(vector)
                continue
            for column, values in metric(scene, crops).items():
                for record, value in zip(new, values):
                    record[column] = value
        if "background" in options.measured:
            for record, row, picture in zip(new, rows, pictures):
                record |= background_change(scene.background, picture, row.blend_area(scene))
        records += new
    return records, {name: np.stack(found) for name, found in features.items() if found}


def background_change(background: Image.Image, composite: Image.Image, blend: np.ndarray) -> dict[str, int]:
    """How many pixels outside the blend area, (H, W) bool, differ, and by how much of 255 at most."""
    before, after = (np.asarray(picture).astype(int) for picture in (background, composite))
    change = np.abs(after - before).max(2)[~blend]
    return {"changed_pixels": int((change > 0).sum()), "largest_change": int(change.max(initial=0))}


def summarise(rows: list[Row], records: list[dict], features: dict[str, np.ndarray]) -> tuple[dict, dict]:
    """Of each row the columns' means with intervals; and of each row but the first, its difference from the first."""
    summary, differences = {}, {}
    of = {row.name: [record for record in records if record["row"] == row.name] for row in rows}
    first = of[rows[0].name]
    subjects = [record["subject"] for record in first]
    for name, own in of.items():
        columns = [column for column in COLUMNS if column in own[0]]
        summary[name] = {column: bootstrap([record[column] for record in own], subjects) for column in columns}
        if own is not first:
            pairs = list(zip(own, first))
            differences[name] = {
                column: bootstrap([a[column] - b[column] for a, b in pairs], subjects) for column in columns
            }
        if features:
            made, real = features[name], features[""]
            summary[name]["fid"] = jackknife(lambda i, a=made, b=real: frechet_distance(a[i], b[i]), subjects)
        if "changed_pixels" in own[0]:
            changed = [record for record in own if record["changed_pixels"]]
            largest = max((record["largest_change"] for record in changed), default=0)
            summary[name]["background"] = {
                "exact": not changed,
                "tasks_changed": len(changed),
                "largest_change": largest,
            }
    return summary, differences


def evaluate(options: Evaluate) -> dict:
    """Make what is missing, measure all of it, write the results; returns them as results.json holds them."""
    options = dataclasses.replace(options, device=usable_device(options.device))
    subjects = {}
    if options.pairs:
        tasks = pair_tasks(options.pairs)
    else:
        subjects = read_subjects(options.subjects)
        tasks = subject_tasks(subjects, read_boxes(options.boxes, options.backgrounds))
    tasks, rows = tasks[: options.limit], table_rows(options)
    if "fid" in options.measured and len(tasks) < 2:
        raise ImprintError(
            f"'fid' compares sets of pictures, and there is {len(tasks)} task; give more, or leave it out"
        )
    loaded = load_metrics(options, subjects)  # before the composites: what is missing is said at once
    require_other(options.output / "grid.png", options.backgrounds and options.backgrounds / "grid.png")
    for name in ("results.json", "results.md", "grid.png"):
        require_writable(options.output / name)
    for row in rows:
        compose(row, tasks, options)
    records, features = measure(tasks, rows, loaded, options)
    summary, differences = summarise(rows, records, features)
    steps, guidance = ("the checkpoint's own" if x is None else f"{x:g}" for x in (options.steps, options.guidance))
    settings = (
        f"Holes: {options.mask_level}; steps: {steps}; guidance: {guidance}; detail: {options.detail:g}; "
        f"seed {options.seed}; {options.dtype}."
    )
    if "retrieval" in options.measured:
        settings += f" Retrieval among {len(subjects)} subjects by {options.retrieval_backbone}."
    method = (
        f"Mean over tasks [{CONFIDENCE:.0%} confidence interval: percentile bootstrap over subjects, {RESAMPLES:,} "
        "resamples; of FID, a jackknife over subjects]."
    )
    results = {
        "tasks": len(tasks),
        "subjects": len({task.subject for task in tasks}),
        "settings": settings,
        "method": method,
        "rows": summary,
        "differences": differences,
        "records": records,
    }
    write_text(options.output / "results.json", json.dumps(results, indent=1))
    write_text(options.output / "results.md", report(results))
    save_computed(grid(tasks, rows, options.output), options.output / "grid.png")
    return results


def usable_device(name: str) -> str:
    """The device, 'auto' resolved. Raises `ImprintError` for one that torch cannot use here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ImprintError(f"torch cannot use the device '{name}' here; give --device auto or cpu") from error
    return name
