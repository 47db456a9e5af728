"""Contact sheets for what no metric measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain, cycle
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from imprint.errors import ImprintError
from imprint.images import open_image, to_srgb
from imprint.pipeline import ImprintPipeline

from .tasks import PICTURES, Scene, read_subjects

POSES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "turned": lambda cutout: cutout.rotate(30, Image.BICUBIC, expand=True),
    "mirrored": ImageOps.mirror,
    "squashed": lambda cutout: cutout.resize((max(1, round(cutout.width * 0.6)), cutout.height), Image.BICUBIC),
}
POSED, LIT, BOXED = 10, 4, 20  # objects for poses, photos of each light, composites to find the box in
TILE = 320  # side in pixels of a tile of boxes.jpg
HEIGHT, GAP = 200, 4  # height in pixels of a row of the other two
TINT = (255, 64, 26)  # side in pixels of a hole


class Sheets:
    """A checkpoint and a queue of objects; each sheet takes the next ones."""

    def __init__(self, pipeline: ImprintPipeline, subjects: Path, backgrounds: Path):
        """Raises `ImprintError` if a folder has no usable picture."""
        self.pipeline = pipeline
        self.subjects = cycle(sorted(read_subjects(subjects).items()))
        if not backgrounds.is_dir():
            raise ImprintError(f"{backgrounds}: no such folder; --backgrounds is a folder of photos")
        self.backgrounds = sorted(path for path in backgrounds.iterdir() if path.suffix.lower() in PICTURES)
        if not self.backgrounds:
            raise ImprintError(f"{backgrounds} holds no photo; give --backgrounds a folder of {', '.join(PICTURES)}")

    def scene(self, path: Path, across: float = 0.5) -> Scene:
        """The next object in a box near a photo's lower edge; across: its position from left (0) to right (1)."""
        name, (photo, *_) = next(self.subjects)
        cutout, view = photo.load()
        background = to_srgb(open_image(path))
        side = min(background.size) // 2
        scale = side / max(cutout.size)
        width, height = (max(8, round(length * scale)) for length in cutout.size)
        left, bottom = round((background.width - width) * across), round(background.height * 0.92)
        return Scene(name, cutout, background, (left, bottom - height, left + width, bottom), view)

    def composite(self, scene: Scene, hole: Image.Image) -> Image.Image:
        generator = torch.Generator().manual_seed(0)
        photo, mask = scene.cutout.convert("RGB"), scene.cutout.getchannel("A")
        return self.pipeline(photo, mask, scene.background, hole, generator=generator, fit="fill").images[0]

    def pose(self) -> Image.Image:
        rows = []
        for path in tqdm(self._photos(POSED), desc="pose"):
            scene = self.scene(path)
            row = [_on_white(scene.cutout)]
            for change in POSES.values():
                hole = replace(scene, cutout=change(scene.cutout)).hole("fine")
                row += map(scene.around, (_over(scene.background, hole), self.composite(scene, hole)))
            rows.append(row)
        return sheet(rows)

    def light(self) -> Image.Image:
        colours = {
            path: np.asarray(to_srgb(open_image(path)).resize((32, 32))).mean((0, 1)) for path in self.backgrounds
        }
        measures = (  # of the mean colour, least first
            lambda path: colours[path].mean(),
            lambda path: (colours[path][2] - colours[path][0]) / colours[path].mean().clip(1),
            lambda path: -colours[path].mean(),
        )
        rows = []
        chosen = chain.from_iterable(sorted(self.backgrounds, key=measure)[:LIT] for measure in measures)
        for path in tqdm(list(chosen), desc="light"):
            scene = self.scene(path)
            result = self.composite(scene, scene.hole("box"))
            rows.append([_on_white(scene.cutout), *map(scene.around, (scene.paste(scene.cutout), result))])
        half = -(-len(rows) // 2)
        return sheet([left + right for left, right in zip(rows[:half], rows[half:])])

    def boxes(self) -> tuple[Image.Image, list[dict]]:
        """The sheet, and for each tile the object and its box in the tile's pixels: left, top, right, bottom."""
        tiles, truth = [], []
        for index, path in enumerate(tqdm(self._photos(BOXED), desc="boxes")):
            scene = self.scene(path, across=(index % 5) / 4)
            result = self.composite(scene, scene.hole("box"))
            left, top, right, bottom = scene.box
            # The box may lie anywhere in its tile, not only in the middle, and entirely inside if it fits.
            corner = [
                max(0, min(size - TILE, (low + high - TILE) // 2 + (index * step % 7 - 3) * (TILE - high + low) // 7))
                for size, low, high, step in zip(result.size, (left, top), (right, bottom), (3, 5))
            ]
            tiles.append(result.crop((*corner, corner[0] + TILE, corner[1] + TILE)))
            x, y = corner
            truth.append({"object": scene.subject, "box": [left - x, top - y, right - x, bottom - y]})
        return sheet([tiles[start : start + 5] for start in range(0, len(tiles), 5)], TILE), truth

    def _photos(self, count: int) -> list[Path]:
        """This many photos, evenly spaced among all."""
        return [self.backgrounds[index * len(self.backgrounds) // count] for index in range(count)]


def _on_white(cutout: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", cutout.size, "white"), cutout).convert("RGB")


def _over(background: Image.Image, hole: Image.Image) -> Image.Image:
    return Image.composite(Image.blend(background, Image.new("RGB", background.size, TINT), 0.5), background, hole)


def sheet(rows: Iterable[list[Image.Image]], height: int = HEIGHT, gap: int = GAP) -> Image.Image:
    """Pictures of one height in rows from left to right, with this many white pixels between them."""
    rows = [
        [tile.resize((max(1, round(tile.width * height / tile.height)), height), Image.LANCZOS) for tile in row]
        for row in rows
    ]
    width = max(sum(tile.width + gap for tile in row) for row in rows) - gap
    made = Image.new("RGB", (width, len(rows) * (height + gap) - gap), "white")
    for index, row in enumerate(rows):
        left = 0
        for tile in row:
            made.paste(tile, (left, index * (height + gap)))
            left += tile.width + gap
    return made
