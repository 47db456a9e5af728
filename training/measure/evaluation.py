"""Making, measuring and summarising composites."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from imprint.errors import ImprintError
from imprint.files import require_writable, write_text
from imprint.saving import save_computed, save_image

from ..arguments import require_other
from . import networks as metrics
from .benches import folder_tasks
from .composites import Row, compose, table_rows
from .light import GAINS, LightTask
from .networks import COLUMNS, PADDED
from .report import grid, report
from .settings import Evaluate
from .statistics import CONFIDENCE, RESAMPLES, bootstrap, frechet_distance, jackknife
from .tasks import Photo, Task, pair_tasks, read_boxes, read_subjects, subject_tasks

CROP_SUFFIXES = {"squeezed": "", "padded": PADDED}
PASTED = " pasted"
NETWORKS = {"dreamsim": metrics.DreamSim, "lpips": metrics.LPIPS, "fid": metrics.Inception}


def load_metrics(options: Evaluate, subjects: dict[str, list[Photo]]) -> dict[str, Callable]:
    """The chosen metrics by name, with their networks. Raises `ImprintError` for one that is unavailable."""
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
        elif name not in ("background", "light"):
            loaded[name] = NETWORKS[name](folder, device)
    return loaded


Features = dict[str, dict[str, np.ndarray]]
"""For each column of the Fréchet distance, Inception's features (T, 2048) of every row and, under "", the targets."""


def measure(
    tasks: list[Task], rows: list[Row], loaded: dict[str, Callable], options: Evaluate
) -> tuple[list[dict], Features]:
    """A record for every row and task, and the features for the Fréchet distance."""
    records, features = [], defaultdict(lambda: {name: [] for name in ("", *(row.name for row in rows))})
    for task in tqdm(tasks, desc="measuring", unit="task"):
        scene = task.load()
        pictures = [row.read(task, scene, options.output) for row in rows]
        new = [{"row": row.name, "task": task.name, "subject": task.subject} for row in rows]
        for suffix in (CROP_SUFFIXES[crop] for crop in options.crop):
            seen = scene.padded() if suffix else scene
            crops = [seen.crop(picture) for picture in pictures]
            for name, metric in loaded.items():
                if name == "fid":
                    found = features[name + suffix]
                    for key, vector in zip(found, metric([seen.target, *crops])):
                        found[key].append(vector)
                    continue
                for column, values in metric(seen, crops).items():
                    for record, value in zip(new, values):
                        record[column + suffix] = value
        for record, row, picture in zip(new, rows, pictures):
            if "background" in options.measured:
                record |= background_change(scene.background, picture, row.blend_area(scene))
            if "light" in options.measured:
                record |= light_errors(scene.truth, picture)
        records += new
    return records, {column: {key: np.stack(rows) for key, rows in found.items()} for column, found in features.items()}


def light_errors(task: LightTask, composite: Image.Image) -> dict[str, float | None]:
    """Errors of a composite with known truth and, as `NAME pasted`, of pasting; None if there is nothing to measure."""
    errors = task.errors(composite)
    found = {name + suffix: getattr(each, name) for name in GAINS for each, suffix in zip(errors, ("", PASTED))}
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def background_change(background: Image.Image, composite: Image.Image, blend: np.ndarray) -> dict[str, int]:
    """The number of pixels outside the blend area, (H, W) bool, that differ, and the largest difference of 255."""
    before, after = (np.asarray(picture).astype(int) for picture in (background, composite))
    change = np.abs(after - before).max(2)[~blend]
    return {"changed_pixels": int((change > 0).sum()), "largest_change": int(change.max(initial=0))}


def summarise(rows: list[Row], records: list[dict], features: Features) -> tuple[dict, dict]:
    """Each row's column means with intervals and, except for the first row, the differences from it."""
    summary, differences = {}, {}
    of = {row.name: [record for record in records if record["row"] == row.name] for row in rows}
    given = {row.name for row in rows if row.given}
    first = of[rows[0].name]
    subjects = [record["subject"] for record in first]
    for name, own in of.items():
        columns = [column for column in COLUMNS if any(record.get(column) is not None for record in own)]
        summary[name] = {column: _mean(column, own) for column in columns}
        if own is not first:
            differences[name] = {column: _mean(column, own, first) for column in columns}
        for column, found in features.items():
            made, real = found[name], found[""]
            summary[name][column] = jackknife(lambda i, a=made, b=real: frechet_distance(a[i], b[i]), subjects)
        if "changed_pixels" in own[0]:
            changed = [record for record in own if record["changed_pixels"]]
            largest = max((record["largest_change"] for record in changed), default=0)
            summary[name]["background"] = {
                "exact": not changed,
                "tasks_changed": len(changed),
                "largest_change": largest,
                "failed": bool(changed) and name not in given,  # other methods may change it
            }
    return summary, differences


def _mean(column: str, own: list[dict], first: list[dict] | None = None) -> dict[str, float | None]:
    """A column's mean with its interval, or that of its difference from the first row's.

    A gain is 1 - error / error of pasting, both summed over all tasks where they can be measured.
    """
    pairs = [pair for pair in zip(own, first or own) if pair[0][column] is not None]
    subjects, pasted = [record["subject"] for record, _ in pairs], None
    if column in GAINS:
        pasted = [record[column + PASTED] for record, _ in pairs]
        values = [(b[column] if first else b[column + PASTED]) - a[column] for a, b in pairs]
    else:
        values = [a[column] - b[column] if first else a[column] for a, b in pairs]
    return bootstrap(values, subjects, pasted)


def write_inputs(tasks: list[Task], options: Evaluate) -> Path:
    """Write what other methods need for each task, TASK.object.png, .background.png and .hole.png; returns where."""
    folder = options.output / "inputs"
    for task in tqdm(tasks, desc="inputs", unit="task"):
        scene = task.load()
        parts = {"object": scene.cutout, "background": scene.background, "hole": scene.hole(options.mask_level)}
        for part, picture in parts.items():
            save_image(picture, folder / f"{task.name}.{part}.png")
    return folder


def read_tasks(options: Evaluate) -> tuple[list[Task], dict[str, list[Photo]], Evaluate]:
    """The tasks, their subjects' photos, and the options with the metrics that these do not allow in `without`.

    Raises `ImprintError` for tasks that cannot be read, and for a requested metric that needs other tasks.
    """
    subjects = {}
    if options.pairs:
        tasks = pair_tasks(options.pairs)
    elif options.tasks:
        tasks, subjects = folder_tasks(options.tasks, options.subjects)
    else:
        subjects = read_subjects(options.subjects)
        tasks = subject_tasks(subjects, read_boxes(options.boxes, options.backgrounds))
    known = bool(options.tasks) and not subjects
    without = (*(() if subjects else ("retrieval",)), *(() if known else ("light",)))
    for name in set(options.metrics or ()) & set(without):
        raise ImprintError(f"'{name}' is not for the tasks of {options.tasks}; leave it out of --metrics")
    return tasks[: options.limit], subjects, dataclasses.replace(options, without=without)


def evaluate(options: Evaluate) -> dict:
    """Make the missing composites, measure all, and write the results; returns the contents of results.json."""
    options = dataclasses.replace(options, device=usable_device(options.device))
    tasks, subjects, options = read_tasks(options)
    rows = table_rows(options)
    if "fid" in options.measured and len(tasks) < 2:
        raise ImprintError(
            f"'fid' compares sets of pictures, and there is {len(tasks)} task; give more, or leave it out"
        )
    loaded = load_metrics(options, subjects)  # before the composites, to report missing networks at once
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
