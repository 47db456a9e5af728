"""Measure checkpoints side by side: python -m training.evaluate --checkpoint NAME=FILE ... --output FOLDER ...

Tasks are subjects in boxes on photos (--subjects, --backgrounds, --boxes) or real pairs of video frames (--pairs); the
object copied and pasted is always one of the rows. The folder gets composites/ROW/TASK.png, results.json, results.md
and grid.png. Composites that are there already are kept: the same command again continues.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

from imprint.blending import feather
from imprint.checkpoint import SHIPPED, open_safetensors, read_config
from imprint.errors import ImprintError
from imprint.files import write_text
from imprint.images import mask_to_tensor, open_image, save_image
from imprint.masks import LEVELS
from imprint.pipeline import FEATHER, ImprintPipeline
from imprint.placement import Hole

from . import metrics
from .metrics import COLUMNS, CONFIDENCE, RESAMPLES, bootstrap, frechet_distance, jackknife
from .tasks import Photo, Scene, Task, pair_tasks, read_boxes, read_subjects, subject_tasks

METRICS = ("clip-i", "dino", "dinov2", "dreamsim", "lpips", "fid", "background", "retrieval")
"""Those of the field; `mobilenet`, a small network for machines without a hub, is measured only when asked for."""
ABLATIONS = {"cls-only": "CLS only", "box-mask": "box mask only"}
NETWORKS = {"dreamsim": metrics.DreamSim, "lpips": metrics.LPIPS, "fid": metrics.Inception}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BASELINES = {
    "copy-paste": lambda scene, _seed: scene.paste(scene.cutout),
    "copy-paste, box emptied": lambda scene, _seed: scene.paste(scene.cutout, emptied=True),
}
"""All the identity that there is, and none of the scene's light, pose and shadow. On a video frame the first also leaves
some of the true object around the pasted one, which no model sees: there the second is reported beside it."""
SHOWN = 8  # tasks in the grid
CELL = 192  # pixels of a picture in the grid


@dataclass(frozen=True)
class Row:
    """One way to make composites: a row of the table."""

    name: str
    checkpoint: Path | None
    """None: the cut-out is pasted into the box."""
    level: str
    """Of the holes, one of `imprint.masks.LEVELS`."""
    cls_only: bool = False
    """Whether the adapter gets the encoder's CLS token alone."""

    def folder(self, output: Path) -> Path:
        return output / "composites" / re.sub(r"[^\w.-]+", "-", self.name)

    def composite(self, task: Task, output: Path) -> Path:
        return self.folder(output) / f"{task.name}.png"

    def read(self, task: Task, scene: Scene, output: Path) -> Image.Image:
        """The composite, RGB. Raises `ImprintError` for one that does not belong to the scene."""
        path = self.composite(task, output)
        picture, (width, height) = open_image(path).convert("RGB"), scene.background.size
        if picture.size != (width, height):
            raise ImprintError(
                f"{path} is {picture.width}x{picture.height}, its background {width}x{height}; delete it, and it is "
                "made anew"
            )
        return picture

    def blend_area(self, scene: Scene) -> np.ndarray:
        """(H, W) bool: the hole, enlarged where it is too small, and its soft edge; all else must be background."""
        hole = mask_to_tensor(scene.hole(self.level))
        if self.checkpoint is None:
            return hole[0].numpy() > 0
        config = read_config(self.checkpoint)
        found = Hole.find(hole[0], config.resolution, config.sampling.context, config.multiple, config.latent.downscale)
        place = found.placement
        hole.zero_()[(0, *place.area)] = found.mask
        return feather(hole, outwards=round(FEATHER * place.side / place.resolution))[0].numpy() > 0


def table_rows(options: argparse.Namespace) -> list[Row]:
    """Each checkpoint as it is and with each ablation, then the baselines."""
    rows = []
    for name, path in options.checkpoint:
        rows.append(Row(name, path, options.mask_level))
        if "cls-only" in options.ablation:
            rows.append(Row(f"{name}, {ABLATIONS['cls-only']}", path, options.mask_level, cls_only=True))
        if "box-mask" in options.ablation:
            rows.append(Row(f"{name}, {ABLATIONS['box-mask']}", path, "box"))
    baselines = BASELINES if options.pairs else ["copy-paste"]
    return [*rows, *(Row(name, None, "box") for name in baselines)]


# --- composites ------------------------------------------------------------------------------------------------------


def compose(row: Row, tasks: list[Task], options: argparse.Namespace) -> None:
    """Write the row's composites that are not there yet. Raises `ImprintError` where some have other settings."""
    same_settings(row, options)
    waiting = [task for task in tasks if not row.composite(task, options.output).exists()]
    if not waiting:
        return
    make = BASELINES[row.name] if row.checkpoint is None else sampler(row, options)
    for task in tqdm(waiting, desc=row.name, unit="picture"):
        save_image(make(task.load(), task.seed(options.seed)), row.composite(task, options.output))


def sampler(row: Row, options: argparse.Namespace) -> Callable[[Scene, int], Image.Image]:
    """The row's model as a function of a scene and a seed."""
    pipeline = ImprintPipeline.from_checkpoint(row.checkpoint, torch_dtype=DTYPES[options.dtype]).to(options.device)
    pipeline.set_progress_bar_config(disable=True)
    if row.cls_only:
        keep_cls_only(pipeline, row.checkpoint)

    def sample(scene: Scene, seed: int) -> Image.Image:
        return pipeline(
            scene.cutout,
            scene.cutout.getchannel("A"),
            scene.background,
            scene.hole(row.level),
            options.steps,
            options.guidance,
            torch.Generator().manual_seed(seed),
            detail=options.detail,
        ).images[0]

    return sample


def keep_cls_only(pipeline: ImprintPipeline, path: Path) -> None:
    """Cut the patches' tokens off before the adapter (AnyDoor, arXiv 2307.09481, trains so for an ablation)."""
    if pipeline.model_config.adapter.kind == "conv":
        raise ImprintError(
            f"{path}: its 'conv' adapter mixes a fixed number of tokens and cannot do with CLS alone; leave out "
            "--ablation cls-only"
        )
    pipeline.encoder.config = dataclasses.replace(pipeline.encoder.config, output="cls")


def same_settings(row: Row, options: argparse.Namespace) -> None:
    """Note what the row's composites are made with; raise `ImprintError` if some were made with something else."""
    digest = None
    if row.checkpoint is not None:
        with open_safetensors(row.checkpoint) as file:
            digest = (file.metadata() or {}).get("sha256")
    now = {"checkpoint": digest, "holes": row.level, "cls-only": row.cls_only}
    now |= {name: getattr(options, name) for name in ("steps", "guidance", "detail", "seed", "dtype")}
    now |= {name: str(getattr(options, name)) for name in ("subjects", "backgrounds", "boxes", "pairs")}
    path = row.folder(options.output) / "made-with.json"
    before = json.loads(path.read_text()) if path.exists() else now
    for name, value in now.items():
        if before.get(name) != value:
            raise ImprintError(
                f"{path.parent} holds composites made with {name} = {before.get(name)!r}, not {value!r}; give the same "
                "options to go on, or another --output"
            )
    write_text(path, json.dumps(now, indent=1))


# --- measuring -------------------------------------------------------------------------------------------------------


def load_metrics(options: argparse.Namespace, subjects: dict[str, list[Photo]]) -> dict[str, Callable]:
    """The chosen metrics by name, with their networks. Raises `ImprintError` for one that cannot be had."""
    folder, device, backbones, loaded = options.backbones, torch.device(options.device), {}, {}

    def backbone(name: str) -> metrics.Backbone:
        if name not in backbones:
            backbones[name] = metrics.Backbone(name, folder, device)
        return backbones[name]

    for name in options.metrics:
        if name in metrics.SIMILARITIES:
            loaded[name] = metrics.Similarity(name, backbone(metrics.SIMILARITIES[name]))
        elif name == "retrieval":
            loaded[name] = metrics.Retrieval(backbone(options.retrieval_backbone), subjects)
        elif name != "background":
            loaded[name] = NETWORKS[name](folder, device)
    return loaded


def measure(
    tasks: list[Task], rows: list[Row], loaded: dict[str, Callable], options: argparse.Namespace
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
        if "background" in options.metrics:
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


# --- what is shown ---------------------------------------------------------------------------------------------------


def report(results: dict) -> str:
    """The results as Markdown."""
    summary, differences = results["rows"], results["differences"]
    columns = [column for column in COLUMNS if column in next(iter(summary.values()))]
    titles = [f"{COLUMNS[column].title} {'↑' if COLUMNS[column].better == 'higher' else '↓'}" for column in columns]
    exact = ["background"] if "background" in next(iter(summary.values())) else []
    lines = [f"{results['tasks']} tasks, {results['subjects']} subjects. {results['settings']}", ""]
    lines += _table(["", *titles, *exact])
    for name, row in summary.items():
        cells = [_cell(column, row[column]) for column in columns]
        lines.append(f"| {' | '.join([name, *cells, *(_verdict(row[key], results['tasks']) for key in exact)])} |")
    shared = [column for column in columns if column != "fid"]
    if shared:
        lines += ["", f"Difference from {next(iter(summary))}; bold where the interval leaves out 0:", ""]
        lines += _table(["", *(title for title, column in zip(titles, columns) if column != "fid")])
        for name, row in differences.items():
            lines.append(f"| {' | '.join([name, *(_cell(column, row[column], '+') for column in shared)])} |")
    return "\n".join([*lines, "", results["method"], ""])


def _table(titles: list[str]) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]


def _cell(column: str, found: dict, sign: str = "") -> str:
    digits = f"{sign}.{1 if column == 'fid' else 4}f"
    if found["low"] is None:
        return f"{found['mean']:{digits}}"
    clear = sign and (found["low"] > 0 or found["high"] < 0)
    mean = f"{found['mean']:{digits}}"
    return f"{f'**{mean}**' if clear else mean} [{found['low']:{digits}}, {found['high']:{digits}}]"


def _verdict(found: dict, tasks: int) -> str:
    if found["exact"]:
        return "exact"
    return f"**FAILED**: changed in {found['tasks_changed']} of {tasks}, by up to {found['largest_change']} of 255"


def grid(tasks: list[Task], rows: list[Row], output: Path) -> Image.Image:
    """Some of the tasks, evenly spread: the object, the hole, every row's composite around it, and the target."""
    titles = ["object", "hole", *(row.name for row in rows), "compared with"]
    chosen = [tasks[i] for i in np.unique(np.linspace(0, len(tasks) - 1, min(SHOWN, len(tasks))).round().astype(int))]
    font = ImageFont.load_default(12)
    sheet = Image.new("RGB", (CELL * len(titles), CELL * len(chosen) + 20), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * CELL + 4, 2), title, "black", font)
    for line, task in enumerate(chosen):
        scene = task.load()
        hole = scene.background.copy()
        hole.paste("grey", mask=scene.hole(rows[0].level))
        shown = Image.new("RGB", scene.cutout.size, "white")
        shown.paste(scene.cutout, mask=scene.cutout)
        composites = [row.read(task, scene, output) for row in rows]
        pictures = [shown, *map(scene.around, (hole, *composites)), scene.target]
        for column, picture in enumerate(pictures):
            cell = ImageOps.pad(picture, (CELL - 4, CELL - 4), Image.BICUBIC, "white")
            sheet.paste(cell, (column * CELL + 2, line * CELL + 20))
    return sheet


# --- the command -----------------------------------------------------------------------------------------------------


def evaluate(options: argparse.Namespace) -> dict:
    """Make what is missing, measure all of it, write the results; returns them as results.json holds them."""
    options.device = usable_device(options.device)
    subjects = {}
    if options.pairs:
        tasks = pair_tasks(options.pairs)
    else:
        subjects = read_subjects(options.subjects)
        tasks = subject_tasks(subjects, read_boxes(options.boxes, options.backgrounds))
    tasks, rows = tasks[: options.limit], table_rows(options)
    if "fid" in options.metrics and len(tasks) < 2:
        raise ImprintError(
            f"'fid' compares sets of pictures, and there is {len(tasks)} task; give more, or leave it out"
        )
    loaded = load_metrics(options, subjects)  # before the composites: what is missing is said at once
    for row in rows:
        compose(row, tasks, options)
    records, features = measure(tasks, rows, loaded, options)
    summary, differences = summarise(rows, records, features)
    steps, guidance = ("the checkpoint's own" if x is None else f"{x:g}" for x in (options.steps, options.guidance))
    settings = (
        f"Holes: {options.mask_level}; steps: {steps}; guidance: {guidance}; detail: {options.detail:g}; "
        f"seed {options.seed}; {options.dtype}."
    )
    if "retrieval" in options.metrics:
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
    save_image(grid(tasks, rows, options.output), options.output / "grid.png")
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


def named_checkpoint(text: str) -> tuple[str, Path]:
    """`NAME=FILE`, or `FILE` with its stem as the name."""
    name, equals, path = text.partition("=")
    if not equals or Path(text).is_file():
        return Path(text).stem, Path(text)
    return name, Path(path)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint",
        type=named_checkpoint,
        nargs="+",
        default=[("imprint-tiny", SHIPPED)],
        metavar="NAME=FILE",
        help="checkpoints to compare, the first being what the others' difference is from; by default the shipped one",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results; made, or continued")
    group = parser.add_argument_group("tasks: every subject in every box, or pairs of frames")
    group.add_argument("--subjects", type=Path, help="folder with SUBJECT/NN.jpg and NN.mask.png, or SUBJECT/NN.png")
    group.add_argument("--backgrounds", type=Path, help="folder of the photos that the boxes are on")
    group.add_argument("--boxes", type=Path, help="COCO's instances .json, or JSON lines of background, box, subject")
    group.add_argument("--pairs", type=Path, help="folder of held-out shards of video frames with masks")
    group.add_argument("--limit", type=int, help="only so many tasks, the first of which cover all subjects")
    group = parser.add_argument_group("metrics")
    group.add_argument(
        "--metrics",
        nargs="+",
        choices=(*METRICS, "mobilenet"),
        help="by default all that the tasks allow but mobilenet",
    )
    group.add_argument("--backbones", type=Path, help="folder of networks (see training/metrics.py) instead of the hub")
    group.add_argument(
        "--retrieval-backbone", choices=metrics.Backbone.NAMES, default="dinov2", help="default: %(default)s"
    )
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--ablation", nargs="+", choices=ABLATIONS, default=[], help="more rows of every checkpoint: a part left out"
    )
    group.add_argument(
        "--mask-level", choices=LEVELS, default="box", help="holes: the box, or the object's outline in it, so coarse"
    )
    group.add_argument("--steps", type=int, help="by default the checkpoint's")
    group.add_argument("--guidance", type=float, help="by default the checkpoint's")
    group.add_argument(
        "--detail", type=float, default=1.0, metavar="0..1", help="of the object's own photo; default: %(default)s"
    )
    group.add_argument("--seed", type=int, default=0, help="each task's own seed is made of this and its name")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps; default: %(default)s")
    group.add_argument("--dtype", choices=DTYPES, default="fp32", help="default: %(default)s")
    options = parser.parse_args(argv)

    given = [name for name in ("subjects", "backgrounds", "boxes") if getattr(options, name)]
    if len(given) != (0 if options.pairs else 3):
        parser.error("give --subjects, --backgrounds and --boxes, or --pairs alone")
    if options.metrics is None:
        options.metrics = [name for name in METRICS if not (options.pairs and name == "retrieval")]
    if options.pairs and "retrieval" in options.metrics:
        parser.error("'retrieval' chooses among --subjects; leave it out with --pairs")
    if "box-mask" in options.ablation and options.mask_level == "box":
        parser.error("holes are boxes already: --ablation box-mask compares with --mask-level precise, fine or coarse")
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit is {options.limit}; it must be 1 or more")
    folders = [row.folder(options.output) for row in table_rows(options)]
    if len(set(folders)) < len(folders):
        parser.error("two rows have the same name; tell the checkpoints apart as NAME=FILE")
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    try:
        results = evaluate(options)
    except ImprintError as error:
        sys.exit(f"error: {error}")
    print(report(results))
    failed = [name for name, row in results["rows"].items() if not row.get("background", {"exact": True})["exact"]]
    if failed:
        sys.exit(f"error: the background was changed outside the hole and its soft edge: {', '.join(failed)}")


if __name__ == "__main__":
    main()
