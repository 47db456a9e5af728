"""A few photos of one object into shards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from PIL import Image

from imprint.errors import ImprintError
from imprint.images import image_to_tensor, open_image, tensor_to_image, to_srgb
from imprint.mask_reading import alpha_to_tensor, mask_to_tensor
from imprint.preprocess import bounding_boxes, resample

from .shards import ANY_GAP, SPLITS, Record, encoded, read_shards, sample, shard_writer

VIEW_SIDE = 512  # pixels of a cut-out
PHOTO_SIDE = 768  # pixels of a photo's longer side
LICENCE = "own"


def prepare_subject(folder: Path, output: Path, backgrounds: Path | None = None, limit: int = 200) -> Counter:
    """Write cutouts/ and photos/ under `output`; returns how many of what.

    backgrounds: a folder of shards of photos, of which the first `limit` are taken. Raises `ImprintError` for a folder
    without an object, an empty mask, or a mask of another size.
    """
    if not folder.is_dir():
        raise ImprintError(f"{folder}: no such folder; give one with cut-outs, or with photos and masks")
    views, photos = [], []
    pictures = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")]
    for path in (path for path in pictures if not path.stem.endswith(".mask")):
        picture, alpha, is_photo = _read(path)
        number = len(views)
        record = Record(folder.name, folder.name, number, "subject", LICENCE, ANY_GAP)
        views.append(sample(f"{number:03d}", _encoded(_view(picture, alpha, path)), "webp", record))
        if is_photo:
            photo = picture.copy()
            photo.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.LANCZOS)
            objects = Image.fromarray((alpha[0] > 0.5).byte().numpy()).resize(photo.size, Image.NEAREST)
            photos.append(sample(f"{number:03d}", _encoded(photo), "webp", record, objects))
    if not views:
        raise ImprintError(
            f"{folder} holds no picture; give cut-outs (.png, .webp), or photos with NAME.mask.png beside each"
        )
    counts = Counter({"views": len(views), "photos": len(photos)})
    if backgrounds:
        for record, picture, *_ in read_shards(backgrounds, limit):  # without their masks: theirs are other objects
            key = f"background-{counts['backgrounds']:05d}"
            photos.append(sample(key, _encoded(picture.convert("RGB")), "webp", record))
            counts["backgrounds"] += 1
    if not photos:
        black = Image.new("RGB", (VIEW_SIDE, VIEW_SIDE))
        photos.append(sample("black", _encoded(black), "webp", Record("", "black", 0, "subject", LICENCE)))
    for kind, samples in (("cutouts", views), ("photos", photos)):
        for split in SPLITS:
            with shard_writer(output / kind / split / "subject-000000.tar") as writer:
                for parts in samples:
                    writer.write(parts)
    return counts


def _read(path: Path) -> tuple[Image.Image, torch.Tensor, bool]:
    """A picture, its object's alpha (1, H, W), and whether it is a photo with a mask beside it, not a cut-out."""
    opened, mask = open_image(path), path.with_name(f"{path.stem}.mask.png")
    is_photo = mask.is_file()
    alpha = mask_to_tensor(open_image(mask)) if is_photo else alpha_to_tensor(opened)
    picture = to_srgb(opened)
    if alpha is None:
        raise ImprintError(f"{path} has no transparency, and there is no {mask.name} beside it; give the object's mask")
    if alpha.shape[1:] != (picture.height, picture.width):
        size = f"{alpha.shape[2]}x{alpha.shape[1]}"
        raise ImprintError(
            f"{path} is {picture.width}x{picture.height}, but {mask.name} {size}; make them the same size"
        )
    return picture, alpha, is_photo


def _view(picture: Image.Image, alpha: torch.Tensor, path: Path) -> Image.Image:
    """The cut-out, large in a square with transparency around it."""
    box = bounding_boxes(alpha, what=f"{path}: the object's mask").float()
    centre, half = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]).amax(1, keepdim=True) * 0.55
    layers = torch.cat([image_to_tensor(picture), alpha[None]], 1)
    square = resample(layers, torch.cat([centre - half, centre + half], 1), VIEW_SIDE)[0].clamp(0, 1)
    view = tensor_to_image(square[:3])
    view.putalpha(tensor_to_image(square[3:].expand(3, -1, -1)).convert("L"))
    return view


def _encoded(picture: Image.Image) -> bytes:
    return encoded(picture, "WEBP", quality=95, exact=True)
