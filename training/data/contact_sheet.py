"""The picture to look at beside a data set: samples with their objects outlined."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from . import shards

SHEET_SIDE, SHEET_COLUMNS, SHEET_ROWS = 192, 8, 6  # of the contact sheet
COLOURS = ((255, 70, 70), (70, 220, 70), (90, 130, 255), (255, 200, 0), (255, 80, 255), (0, 220, 220))


def contact_sheet(urls: list[str]) -> Image.Image:
    """Samples from all over the shards, their objects outlined; cut-outs on their scene, or on grey."""
    total = SHEET_COLUMNS * SHEET_ROWS
    tiles = []
    chosen = [urls[index * len(urls) // min(len(urls), total)] for index in range(min(len(urls), total))]
    for number, shard in enumerate(chosen):
        wanted = total * (number + 1) // len(chosen) - total * number // len(chosen)
        samples = list(shards.read_parts(shard))
        wanted = min(wanted, len(samples))
        for index in range(wanted):
            sample = shards.decode_sample(samples[index * len(samples) // wanted])
            tiles.append(outlined(sample.picture, sample.mask, sample.scene))
    return sheet_of(tiles)


def sheet_of(tiles: list[Image.Image]) -> Image.Image:
    """Tiles of at most `SHEET_SIDE` pixels in rows of `SHEET_COLUMNS`."""
    rows = max(1, math.ceil(len(tiles) / SHEET_COLUMNS))
    sheet = Image.new("RGB", (SHEET_COLUMNS * SHEET_SIDE, rows * SHEET_SIDE), (40, 40, 40))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, SHEET_COLUMNS)
        sheet.paste(tile, (column * SHEET_SIDE, row * SHEET_SIDE))
    return sheet


def outlined(picture: Image.Image, mask: Image.Image | None, scene: Image.Image | None = None) -> Image.Image:
    """A tile of the sheet, a coloured line around each object. mask: 8-bit, n = the n-th object."""
    ground = Image.new("RGB", picture.size, (128, 128, 128))
    if scene is not None:
        ground.paste(scene.resize(picture.size))
    ground.paste(picture, mask=picture.getchannel("A") if picture.mode == "RGBA" else None)
    ground.thumbnail((SHEET_SIDE - 4, SHEET_SIDE - 4))
    if mask is not None:
        labels = np.asarray(mask.resize(ground.size, Image.NEAREST))
        pixels = np.array(ground)
        edge = np.zeros(labels.shape, bool)
        edge[:-1] |= labels[1:] != labels[:-1]
        edge[:, :-1] |= labels[:, 1:] != labels[:, :-1]
        inner = np.maximum(labels, np.maximum(np.roll(labels, -1, 0), np.roll(labels, -1, 1)))  # the object at the edge
        pixels[edge] = np.array(COLOURS)[(inner[edge] - 1) % len(COLOURS)]
        ground = Image.fromarray(pixels)
    return ground
