"""The table and the grid of an evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .composites import Row
from .networks import COLUMNS
from .tasks import Task

SHOWN = 8  # tasks in the grid
CELL = 192  # pixels of a picture in the grid


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
    shared = [column for column in columns if not column.startswith("fid")]
    if shared:
        lines += ["", f"Difference from {next(iter(summary))}; bold where the interval leaves out 0:", ""]
        lines += _table(["", *(title for title, column in zip(titles, columns) if column in shared)])
        for name, row in differences.items():
            lines.append(f"| {' | '.join([name, *(_cell(column, row[column], '+') for column in shared)])} |")
    return "\n".join([*lines, "", results["method"], ""])


def _table(titles: list[str]) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]


def _cell(column: str, found: dict, sign: str = "") -> str:
    digits = f"{sign}.{1 if column.startswith('fid') else 4}f"
    if found["low"] is None:
        return f"{found['mean']:{digits}}"
    clear = sign and (found["low"] > 0 or found["high"] < 0)
    mean = f"{found['mean']:{digits}}"
    return f"{f'**{mean}**' if clear else mean} [{found['low']:{digits}}, {found['high']:{digits}}]"


def _verdict(found: dict, tasks: int) -> str:
    if found["exact"]:
        return "exact"
    changed = f"changed in {found['tasks_changed']} of {tasks}, by up to {found['largest_change']} of 255"
    return f"**FAILED**: {changed}" if found["failed"] else changed


def grid(tasks: list[Task], rows: list[Row], output: Path) -> Image.Image:
    """Some of the tasks, evenly spaced: the object, the hole, every row's composite around it, and the target."""
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
