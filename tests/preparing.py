"""Shared helpers of the data sets' tests: pictures and masks of one object, the command, and reading its output."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from micro import cutout, micro_config, photo, seeded
from PIL import Image, ImageDraw

from imprint.errors import ImprintError
from training import prepare as command
from training.data.shards import Record, Sample, read_shards
from training.pairs.pair_maker import PairMaker
from training.pairs.photos import Photos
from training.pairs.views import Views
from training.settings import KINDS

CPU = torch.device("cpu")

WIDTH, HEIGHT = 120, 90
DISC = (30, 20, 80, 70)
SMALL = (40, 40, 46, 46)  # 0.3 % of the picture
CUT = (70, 40, 130, 80)  # by the right border


def disc(
    box: tuple[int, int, int, int] = DISC, value: int = 255, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse(box, fill=value)
    return mask


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def save_photo(path: Path, seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    return save(photo(*size, seed=seed), path)


def save_palette(path: Path, *objects: tuple[tuple[int, int, int, int], int]) -> None:
    """Save a palette PNG of (box, number) for each object."""
    mask = Image.new("P", (WIDTH, HEIGHT))
    mask.putpalette([channel for value in range(256) for channel in (value * 37 % 256, value * 91 % 256, value)])
    for box, number in objects:
        ImageDraw.Draw(mask).ellipse(box, fill=number)
    save(mask, path)


def write_broken(path: Path, text: str = "broken") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_mvimgnet(root: Path, masks: Path) -> None:
    """Write CLASS/OBJECT/images and sparse, and masks in the layout of their separate download."""
    for category, thing in (("1", "0100012d"), ("7", "070005ca")):
        for frame in range(1, 9):
            save_photo(root / category / thing / "images" / f"{frame:03d}.jpg", frame)
            save(disc(), masks / category / thing / f"{frame:03d}.jpg.png")
        write_broken(root / category / thing / "sparse/0/cameras.bin")


def write_youtube_vos(root: Path) -> None:
    objects = {"1": {"category": "bear", "frames": ["00000"]}}
    for video in ("003234408d", "0043f083b5"):
        for frame in (0, 5, 10):
            save_photo(root / "train/JPEGImages" / video / f"{frame:05d}.jpg", frame)
            save_palette(root / "train/Annotations" / video / f"{frame:05d}.png", (DISC, 1))
    meta = {"videos": {video: {"objects": objects} for video in ("003234408d", "0043f083b5")}}
    (root / "train/meta.json").write_text(json.dumps(meta))


def zipped(root: Path, archive: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Zip all files of a folder."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", method) as file:
        for path in sorted(root.rglob("*")):
            file.write(path, path.relative_to(root))
    return archive


def prepare(source: str, root: Path, output: Path | str, **changes) -> dict:
    """Run the command; a change to None omits an option. Returns the report."""
    values = {"input": root, "output": output, "licence": "CC0", "workers": 1, "held-out": 0, "name": "data"} | changes
    words = [str(word) for name, value in values.items() if value is not None for word in (f"--{name}", value)]
    return command.run(command.parse([source, *words]))


def render(*source: Any, **changes: Any) -> dict:
    """Like `prepare`; skips the test if rendering is impossible."""
    try:
        return prepare(*source, **changes)
    except ImprintError as error:
        if "OpenGL 3.3 was expected" not in str(error):
            raise
        pytest.skip(str(error))


def read(output: Path, split: str = "train") -> dict:
    """Samples by clip and frame."""
    return {(sample.record.clip, sample.record.frame): sample for sample in read_shards(output / split)}


def names(output: Path) -> set[tuple[str, str]]:
    """(reason, last part of the name) of everything that was dropped."""
    lines = (output / "data.dropped.tsv").read_text().splitlines()
    return {(reason, what.rsplit("/", 1)[-1]) for reason, what, _ in (line.split("\t") for line in lines)}


def assert_both_stages_train_on(output: Path, *kinds: str, views: Path | None = None) -> None:
    """Assert that the shards give pairs of exactly these kinds in both stages."""
    scene, mask = photo(WIDTH, HEIGHT, 1), Image.new("L", (WIDTH, HEIGHT))
    plain = [Sample(Record("", "", 0, "", "", (0, 0)), scene, mask)]
    thing = [Sample(Record("", "", view, "", "", (0, 2)), cutout(32, 32, view)) for view in range(2)]
    loaded = Views.load(views, CPU, side=32) if views else Views.of(thing)
    photos = Photos.load(output, CPU, side=64) if kinds else Photos.of(plain, 64)
    for stage in ("identity", "compositing"):
        maker = PairMaker(micro_config(), stage, loaded, photos, dict.fromkeys(KINDS, 1.0))
        assert set(maker.mix) == {"patch", "rendered", *kinds}
        pairs = maker(8, seeded())
        assert pairs.target.shape == (8, 3, 64, 64) and all(
            torch.isfinite(part).all() for part in (pairs.reference, pairs.target)
        )
