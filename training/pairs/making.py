"""Pairs (reference view, target) made on the device, in batches, from pictures in its memory.

IMPRINT's two kinds of pair (arXiv 2403.10701, section 3.4), and replacements for its data sets:
- `rendered`: two views of a rendered object; for compositing the second is put into a photo, with a soft shadow,
  or, if lit by a scene, into a photo of it;
- `still`: an annotated object of a photo is the target, its warped and recoloured cut-out the reference;
- `video`: as `still`, but the reference comes from another frame of the clip, as near or far as the sample's `gap`
  says: at most 7 frames away in a video, at least an eighth of all frames for MVImgNet's photos;
- `patch`: as `still`, but the object is a patch of a photo with a random outline, for real textures.

Everything depends only on the generator, so that a resumed run makes the same pairs as an uninterrupted one. Pictures
are BCHW in [0, 1], RGBA not premultiplied, masks BHW. Matrices (B, 3, 3) take
output coordinates in [-1, 1] to source coordinates in [-1, 1], x before y.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import torch

from imprint.config import ImprintConfig
from imprint.preprocess import bounding_boxes, prepare_object

from .account import PATCH_ZOOM, USABLE, enlargement, object_size
from .batches import Pairs
from .draw import Draw
from .framing import BOX, crop_matrix, object_to_frame, photo_crop, scene_view, zoom_on
from .holes import hole_levels, in_scene, on_black
from .pictures import Photos, Views
from .recolouring import apply_jitter, brightness, contact_shadow, hue_turn, jitter, jitter_parameters, recolour
from .warping import blobs, warp


class PairMaker:
    """Draws pairs of one stage; `mix` gives the kinds' shares."""

    def __init__(self, config: ImprintConfig, stage: str, views: Views, photos: Photos, mix: dict[str, float]):
        self.config, self.stage, self.views, self.photos = config, stage, views, photos
        has = {
            "rendered": len(views.first) > 0,
            "still": len(photos.items) > 0,
            "video": bool((photos.partner_count > 0).any()),
            "patch": True,
        }
        self.mix = {kind: share for kind, share in mix.items() if share > 0 and has[kind]}
        self.moving = photos.partner_count.nonzero()[:, 0]

    def usable(self) -> dict[str, Any]:
        """Usable data by kind, why the rest is unusable, how much targets enlarge it, and licences."""
        views, photos = self.views, self.photos
        why = photos.about.objects + photos.about.left_out
        if one := int((views.count == 1).sum()):
            why["objects of one view, which pairs with itself"] = one
        if alone := len(photos.items) - len(self.moving):
            why["objects without another frame, for video"] = alone
        return {
            "views": len(views.rgba),
            "objects of views": len(views.first),
            "squares of photos": len(photos.rgb),
            "annotated objects": photos.annotated,
            "usable objects": photos.about.objects[USABLE],
            "usable in squares (still)": len(photos.items),
            "with another frame (video)": len(self.moving),
            "why not": {reason: count for reason, count in why.items() if count and reason != USABLE},
            "enlargement": self._enlargement(),
            "licences": {
                kind: dict(pictures.about.licences) for kind, pictures in (("cut-outs", views), ("photos", photos))
            },
        }

    def _enlargement(self) -> dict[str, dict[str, float]]:
        """Enlargement by kind of picture, at the middle of the range of sizes; a picture held at less than its stored
        resolution counts as it is held.
        """
        views, photos, side = self.views, self.photos, self.config.resolution
        size = object_size(self.stage) * side
        found = {"cut-outs": enlargement(_extent(views.boxes) * views.scale.clamp(max=1), size)}
        squares = photos.rgb.shape[-1] * photos.scale.clamp(max=1)
        if len(photos.items):
            rows = photos.items[:, 0]
            extent = _extent(photos.boxes) * photos.scale[rows].clamp(max=1)
            # A photo ends at its border: at most all of it is shown.
            found["objects of photos"] = enlargement(
                extent, torch.maximum(extent * side / squares[rows], extent * 0 + size)
            )
        found["photos"] = enlargement(squares, side / PATCH_ZOOM)
        return found

    def shares(self, count: int) -> dict[str, float]:
        """The actual shares of the kinds among `count` pairs."""
        return {kind: number / count for kind, number in self.kinds(count).items()}

    def at(self, side: int) -> PairMaker:
        """The same, for pairs of another resolution. Raises `ImprintError` for one that the model cannot have."""
        other = copy.copy(self)
        other.config = dataclasses.replace(self.config, resolution=side)
        return other

    def kinds(self, count: int, part: tuple[int, int] = (0, 1)) -> dict[str, int]:
        """Number of pairs of each kind among `count`, or in a part, as of `__call__`."""
        index, parts = part
        total = sum(self.mix.values())
        ends = [round(count * sum(list(self.mix.values())[: i + 1]) / total) for i in range(len(self.mix))]
        return {
            kind: len(range(start + (index - start) % parts, end, parts))
            for kind, start, end in zip(self.mix, [0, *ends], ends)
        }

    def __call__(self, count: int, generator: torch.Generator, part: tuple[int, int] = (0, 1)) -> Pairs:
        """`count` pairs of all kinds in random order, or the part (index, parts) of them; the kinds have their shares
        over all parts together, however small each part is.
        """
        draw = Draw(generator)
        made = []
        for kind, number in self.kinds(count, part).items():
            if number:
                made.append(self._rendered(number, draw) if kind == "rendered" else self._photo(kind, number, draw))
        order = draw.permutation(len(range(part[0], count, part[1])))
        return Pairs.joined(made)[order]

    def _rendered(self, count: int, draw: Draw) -> Pairs:
        """Two views of a rendered object; for compositing the second stands in a photo."""
        views, side = self.views, self.config.resolution
        level = hole_levels(self.stage, count, draw)
        index = draw.integers(len(views.first), count)
        first, second = views.pair(index, draw)
        # An outline determines a pose. A box does not: there the object mostly keeps the pose of its photo.
        same = draw.chance(torch.where(level == BOX, 0.7, 0.25), count) & (views.gap[index, 0] == 0)
        second = torch.where(same, first, second)
        twin = views.twin[second]
        lit = draw.chance(0.8, count) & (twin >= 0) & (self.stage == "compositing")

        # One hue shift for both: each identity has many colours. A mirrored pair is another object; a mirrored target
        # alone teaches that the outline decides which way the object looks. Fine-tuning learns one object as it is.
        often = 0.0 if self.stage == "finetune" else 1.0
        coloured = draw.chance(0.6 * often, count) & ~lit  # a light's colour is not rotated
        turn = hue_turn(torch.where(coloured, draw.uniform(count, 0, 2 * math.pi), 0.0))
        mirrored = draw.chance(0.5 * often, count)
        turned = mirrored ^ (draw.chance(0.25 * often, count) & (level != BOX))
        reference, target = (_float(views.rgba[rows]) for rows in (first, second))
        target[lit] = _float(views.relit[twin[lit]])
        reference = torch.where(mirrored[:, None, None, None], reference.flip(3), reference)

        tilted = draw.chance(0.35, count) & (level != BOX)
        to_view = object_to_frame(
            self.stage == "identity", views.boxes[second], views.rgba.shape[-1], turned, draw, tilted
        )
        target = torch.cat([target[:, :3] * target[:, 3:], target[:, 3:]], 1)
        layer = warp(target, to_view, side)
        alpha = layer[:, 3:].clamp(0, 1)
        colour = recolour(layer[:, :3] / alpha.clamp(min=1e-3), turn).clamp(0, 1)
        # Each view was rendered in its own light, which the model cannot know: remove most of its strength.
        strength = (brightness(reference) / brightness(torch.cat([colour, alpha], 1))).clamp(0.4, 2.5) ** 0.7
        colour = torch.where(lit[:, None, None, None], colour, (colour * strength).clamp(0, 1))
        cutout = prepare_object(recolour(reference[:, :3], turn).clamp(0, 1), reference[:, 3], self.config.encoder)[1]
        if self.stage == "identity":
            return on_black(cutout, colour, alpha[:, 0], self.config)

        rows = draw.integers(len(self.photos.rgb), count)
        scene = photo_crop(_float(self.photos.rgb[rows]), side, draw)
        scene[lit] = scene_view(_float(views.scenes[twin[lit]]), turned[lit], side, draw)
        shade = jitter_parameters(draw, count, draw.uniform((count, 1, 1, 1), 0.05, 0.35))
        scene = apply_jitter(scene, shade)
        # The scene's mean brightness is partly its light's. Not its mean colour: a meadow's is that of the grass.
        light = scene.mean((1, 2, 3), keepdim=True) / 0.45
        light = light.clamp(0.2, 1.8) ** draw.uniform((count, 1, 1, 1), 0.1, 0.6)
        colour = torch.where(lit[:, None, None, None], apply_jitter(colour, shade), (colour * light).clamp(0, 1))
        cast = torch.full((count, 3), torch.nan, device=alpha.device)
        cast[lit] = views.shadows[twin[lit]]
        cast[:, 0] = torch.where(turned, -cast[:, 0], cast[:, 0])
        shadow = contact_shadow(alpha, draw, cast) * (lit | draw.chance(0.8, count))[:, None, None, None]
        target = torch.lerp(scene * (1 - shadow), colour, alpha)
        return in_scene(cutout, target, scene, alpha[:, 0], shadow[:, 0], level, draw, self.config)

    def _photo(self, kind: str, count: int, draw: Draw) -> Pairs:
        """An object in a photo is the target; its cut-out, warped or from another frame, is the reference."""
        photos, side = self.photos, self.config.resolution
        photo_side = photos.rgb.shape[-1]
        level = hole_levels(self.stage, count, draw)
        flip = draw.chance(0.0 if self.stage == "finetune" else 0.5, count)
        if kind == "patch":
            rows = draw.integers(len(photos.rgb), count)
            to_photo = crop_matrix(flip, draw, count)
            sizes = (0.5, 0.9) if self.stage == "identity" else (0.3, 0.75)
            outline = blobs(draw.uniform(count, *sizes), side, draw)
            boxes = bounding_boxes(outline)
            within = zoom_on(boxes, side, draw, level)
            zoom = to_photo @ within
        else:
            item = draw.integers(len(photos.items), count)
            if kind == "video":
                item = self.moving[draw.integers(len(self.moving), count)]
            other = item
            if kind == "video":
                pick = (draw.uniform(count) * photos.partner_count[item]).long()
                other = photos.partners[item, pick]
            rows, source_rows = photos.items[item, 0], photos.items[other, 0]
            to_photo = object_to_frame(self.stage == "identity", photos.boxes[item], photo_side, flip, draw)
            mask = (photos.objects[rows] == photos.items[item, 1, None, None])[:, None].float()
            outline = (warp(mask, to_photo, side) > 0.5).float()[:, 0]
            empty = outline.flatten(1).amax(1) == 0
            outline[empty] = blobs(draw.uniform(count, 0.25, 0.65), side, draw)[empty]
            zoom = zoom_on(photos.boxes[other], photo_side, draw, level, flip)
            other_mask = (photos.objects[source_rows] == photos.items[other, 1, None, None])[:, None].float()

        rgb = _float(photos.rgb[rows])
        scene = warp(rgb, to_photo, side, "reflection")
        source = rgb if kind == "patch" else _float(photos.rgb[source_rows])
        reference = warp(source, zoom, side, "reflection")
        seen = warp(outline[:, None], within, side) if kind == "patch" else warp(other_mask, zoom, side)
        lost = seen.flatten(1).amax(1) < 0.5
        seen[lost] = 1.0
        shade = jitter_parameters(draw, count, 0.3)  # shared, of the whole photo; the reference's own is added
        scene = apply_jitter(scene, shade)
        reference = jitter(apply_jitter(reference, shade), draw, 0.2)
        cutout = prepare_object(reference, seen[:, 0], self.config.encoder)[1]
        if self.stage == "identity":
            return on_black(cutout, scene, outline, self.config)
        return in_scene(cutout, scene, scene, outline, None, level, draw, self.config)


def _extent(boxes: torch.Tensor) -> torch.Tensor:
    """(K,) the longer sides of boxes (K, 4)."""
    return (boxes[:, 2:] - boxes[:, :2]).amax(1).float()


def _float(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255
