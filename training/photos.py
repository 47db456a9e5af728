"""Photos with annotated objects into shards: python -m training.photos --help

Sources are a folder of pictures, COCO (`instances.json` beside `images/`) and DAVIS (`JPEGImages`, `Annotations`).
Training reads these shards for backgrounds, for still pairs (a photo's own object, augmented) and for video pairs.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from imprint.errors import ImprintError
from imprint.images import open_image

from .shards import Record, held_out, sample, shard_writer

SHARD_SIZE = 500  # pictures

Item = tuple[Record, Path, "Image.Image | None"]


def folder(path: Path, licence: str) -> Iterator[Item]:
    """Plain photos: backgrounds without annotation."""
    for picture in sorted(path.iterdir()):
        if picture.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"):
            yield Record("", picture.stem, 0, path.name, licence), picture, None


def coco(path: Path, licence: str) -> Iterator[Item]:
    """COCO: the polygons of each picture's largest 255 objects; crowds are left out."""
    tables = json.loads((path / "instances.json").read_text())
    polygons = defaultdict(list)
    for annotation in tables["annotations"]:
        if not annotation.get("iscrowd") and isinstance(annotation["segmentation"], list):
            polygons[annotation["image_id"]].append((annotation["area"], annotation["segmentation"]))
    for entry in tables["images"]:
        mask = Image.new("L", (entry["width"], entry["height"]))
        draw = ImageDraw.Draw(mask)
        # The largest is drawn first: smaller things usually lie in front of it.
        for index, (_, shapes) in enumerate(sorted(polygons[entry["id"]], key=lambda pair: -pair[0])[:255]):
            for shape in shapes:
                draw.polygon(shape, fill=index + 1)
        yield (
            Record("", Path(entry["file_name"]).stem, 0, "COCO 2017", licence),
            path / "images" / entry["file_name"],
            mask,
        )


def davis(path: Path, licence: str) -> Iterator[Item]:
    """DAVIS and YouTube-VOS: frames by sequence, one mask a frame whose values are objects."""
    for sequence in sorted((path / "JPEGImages").glob("*/*")):
        for picture in sorted(sequence.glob("*.jpg")):
            annotation = path / "Annotations" / sequence.parent.name / sequence.name / f"{picture.stem}.png"
            values = np.asarray(Image.open(annotation)) if annotation.exists() else None
            mask = None if values is None else Image.fromarray(np.where(values == 255, 1, values).astype(np.uint8))
            yield Record("", sequence.name, int(picture.stem), "DAVIS", licence), picture, mask


SOURCES = {"folder": folder, "coco": coco, "davis": davis}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=SOURCES)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="shards go to OUTPUT/train and OUTPUT/held-out")
    parser.add_argument("--licence", required=True, help="of the pictures, written into every record")
    parser.add_argument("--exclude", type=Path, help="text file that names pictures to leave out")
    parser.add_argument("--longest-side", type=int, default=640, help="larger pictures are reduced to this, in pixels")
    parser.add_argument("--held-out", type=float, default=0.05, help="part of the clips kept for validation")
    args = parser.parse_args(argv)
    try:
        counts = prepare(
            args.source, args.input, args.output, args.licence, args.exclude, args.longest_side, args.held_out
        )
    except ImprintError as error:
        sys.exit(f"error: {error}")
    print(", ".join(f"{count} {what}" for what, count in counts.items()))


def prepare(
    source: str,
    path: Path,
    output: Path,
    licence: str,
    exclude: Path | None = None,
    longest_side: int = 640,
    part: float = 0.05,
) -> Counter:
    """Write the shards; a broken picture is named and counted, never fatal. Returns the counts by outcome."""
    if not path.is_dir():
        raise ImprintError(f"{path}: no such folder; --input is the data set's own folder")
    excluded = set(exclude.read_text().split()) if exclude else set()
    counts: Counter[str] = Counter()
    samples: dict[str, list[dict]] = {"train": [], "held-out": []}
    for record, picture, mask in tqdm(SOURCES[source](path, licence), unit="picture"):
        if picture.name in excluded:
            counts["excluded"] += 1
            continue
        try:
            image = open_image(picture).convert("RGB")
        except ImprintError as error:
            tqdm.write(f"left out: {error}")
            counts["broken"] += 1
            continue
        if mask is not None and mask.size != image.size:
            tqdm.write(f"left out: {picture} is {image.size}, its mask {mask.size}")
            counts["mask of another size"] += 1
            continue
        image.thumbnail((longest_side, longest_side), Image.LANCZOS)
        if mask is not None:
            mask = mask.resize(image.size, Image.NEAREST)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        split = "held-out" if held_out(record.clip, part) else "train"
        key = f"{source}-{record.clip}-{record.frame:05d}".replace(".", "_")
        samples[split].append(sample(key, buffer.getvalue(), "jpg", record, mask))
        counts[split] += 1
    for split, members in samples.items():
        for start in range(0, len(members), SHARD_SIZE):
            name = f"{source}-{path.name}-{start // SHARD_SIZE:06d}.tar"
            with shard_writer(output / split / name) as writer:
                for member in members[start : start + SHARD_SIZE]:
                    writer.write(member)
    return counts


if __name__ == "__main__":
    main()
