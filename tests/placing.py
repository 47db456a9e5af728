"""Command lines of `imprint composite`, lines of jobs files and their output, for `conftest.workplace`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imprint import cli

LAYERS = ("shadow", "object", "light")


def composite(*words: str, subject: str = "object.png") -> list[str]:
    return ["composite", "--object", subject, "--background", "background.png", "--out", "out.png", *words]


def job(out: str, **keys) -> dict:
    """A line of a jobs file."""
    return {"object": "object.png", "background": "background.png", "out": out} | keys


def batch(*lines: dict, options: str = "") -> int:
    """Run `imprint batch` with these lines in the working folder; returns its exit code."""
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return cli.main(["batch", "jobs.jsonl", *options.split()])


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def stacked(folder: Path, names: Sequence[str]) -> np.ndarray:
    """Stack the layers with these names over background.png, as an image editor does."""
    picture = Image.open("background.png").convert("RGBA")
    for name in names:
        picture = Image.alpha_composite(picture, Image.open(folder / name))
    return np.asarray(picture.convert("RGB")).astype(int)
