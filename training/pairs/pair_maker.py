"""Pairs (reference view, target) made on the device, in batches, from pictures in its memory.

IMPRINT's two kinds of pair (arXiv 2403.10701, section 3.4), and replacements for its data sets:
- `rendered`: two views of a rendered object; for compositing the second is put into a photo, with a soft shadow,
  or, if lit by a scene, into a photo of it;
- `still`: an annotated object of a photo is the target, its warped and recoloured cut-out the reference;
- `video`: as `still`, but the reference comes from another frame of the clip, as near or far as the sample's `gap`
  says: at most 7 frames away in a video, at least an eighth of all frames for MVImgNet's photos;
- `patch`: as `still`, but the object is a patch of a photo with a random outline, for real textures.

Everything depends only on the generator, so that a resumed run makes the same pairs as an uninterrupted one. Pictures
are BCHW in [0, 1], RGBA not premultiplied, masks BHW. Matrices (B, 3, 3) take output coordinates in [-1, 1] to source
coordinates in [-1, 1], x before y.
"""

from __future__ import annotations

import copy
import dataclasses
import math

import torch

from imprint.config import ImprintConfig
from imprint.errors import ImprintError
from imprint.preprocess import bounding_boxes, prepare_object

from .batches import Pairs
from .draw import Draw
from .framing import BOX, crop_matrix, object_to_frame, photo_crop, scene_view, zoom_on
from .holes import hole_levels, in_scene, on_black
from .photos import Photos
from .recolouring import apply_jitter, brightness, contact_shadow, hue_turn, jitter, jitter_parameters, recolour
from .views import Views
from .warping import blobs, warp


class PairMaker:
    """Draws pairs of one stage; `mix` gives the kinds' shares."""

    def __init__(self, config: ImprintConfig, stage: str, views: Views, photos: Photos, mix: dict[str, float]):
        """Kinds without data are left out. Raises `ImprintError` if none is left."""
        self.config, self.stage, self.views, self.photos = config, stage, views, photos
        has = {
            "rendered": len(views.first) > 0,
            "still": len(photos.items) > 0,
            "video": bool((photos.partner_count > 0).any()),
            "patch": True,
        }
        self.mix = {kind: share for kind, share in mix.items() if share > 0 and has[kind]}
        if not self.mix:
            raise ImprintError(f"the data have nothing for pairs of {' or '.join(mix)}; add other kinds to --mix")
        self.moving = photos.partner_count.nonzero()[:, 0]

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
                made.append(self._of_kind(kind, number, draw))
        order = draw.permutation(len(range(part[0], count, part[1])))
        return Pairs.joined(made)[order]

    def _of_kind(self, kind: str, count: int, draw: Draw) -> Pairs:
        if kind == "rendered":
            return self._rendered(count, draw)
        return self._patch(count, draw) if kind == "patch" else self._annotated(kind, count, draw)

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
        colour, alpha = _layer(target, to_view, turn, side)
        # Each view was rendered in its own light, which the model cannot know: remove most of its strength.
        strength = (brightness(reference) / brightness(torch.cat([colour, alpha], 1))).clamp(0.4, 2.5) ** 0.7
        colour = torch.where(lit[:, None, None, None], colour, (colour * strength).clamp(0, 1))
        cutout = prepare_object(recolour(reference[:, :3], turn).clamp(0, 1), reference[:, 3], self.config.encoder)[1]
        if self.stage == "identity":
            return on_black(cutout, colour, alpha[:, 0], self.config)
        target, scene, shadow = self._stood_in_a_photo(colour, alpha, torch.where(lit, twin, -1), turned, draw)
        return in_scene(cutout, target, scene, alpha[:, 0], shadow[:, 0], level, draw, self.config)

    def _stood_in_a_photo(
        self, colour: torch.Tensor, alpha: torch.Tensor, twin: torch.Tensor, turned: torch.Tensor, draw: Draw
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Target and scene, both (B, 3, R, R), and the shadow (B, 1, R, R), of objects' colour and alpha.

        twin (B,): rows of `views.relit`, for objects that are lit by their own scene; -1: any photo. turned (B,):
        whether the object is mirrored, and so its scene.
        """
        views, side, count, lit = self.views, self.config.resolution, len(alpha), twin >= 0
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
        return torch.lerp(scene * (1 - shadow), colour, alpha), scene, shadow

    def _annotated(self, kind: str, count: int, draw: Draw) -> Pairs:
        """`still` and `video`: an annotated object of a photo is the target, its cut-out, warped or of another frame,
        the reference.
        """
        photos, side = self.photos, self.config.resolution
        photo_side = photos.rgb.shape[-1]
        level, flip = self._level_and_flip(count, draw)
        item = other = draw.integers(len(photos.items), count)
        if kind == "video":
            item = self.moving[draw.integers(len(self.moving), count)]
            pick = (draw.uniform(count) * photos.partner_count[item]).long()
            other = photos.partners[item, pick]
        to_photo = object_to_frame(self.stage == "identity", photos.boxes[item], photo_side, flip, draw)
        photo, mask = self._photos_and_masks(item)
        outline = (warp(mask, to_photo, side) > 0.5).float()[:, 0]
        empty = outline.flatten(1).amax(1) == 0
        outline[empty] = blobs(draw.uniform(count, 0.25, 0.65), side, draw)[empty]
        zoom = zoom_on(photos.boxes[other], photo_side, draw, level, flip)
        source, mask = self._photos_and_masks(other)
        scene, reference = warp(photo, to_photo, side, "reflection"), warp(source, zoom, side, "reflection")
        return self._in_photo(scene, outline, reference, warp(mask, zoom, side), level, draw)

    def _photos_and_masks(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The photos (B, 3, S, S) of annotated objects, and the objects' masks (B, 1, S, S)."""
        rows, numbers = self.photos.items[items].unbind(1)
        masks = (self.photos.objects[rows] == numbers[:, None, None])[:, None].float()
        return _float(self.photos.rgb[rows]), masks

    def _patch(self, count: int, draw: Draw) -> Pairs:
        """A patch of a photo with a random outline is the target, the same patch, warped, the reference."""
        side = self.config.resolution
        level, flip = self._level_and_flip(count, draw)
        photo = _float(self.photos.rgb[draw.integers(len(self.photos.rgb), count)])
        to_photo = crop_matrix(flip, draw, count)
        sizes = (0.5, 0.9) if self.stage == "identity" else (0.3, 0.75)
        outline = blobs(draw.uniform(count, *sizes), side, draw)
        zoom = zoom_on(bounding_boxes(outline), side, draw, level)
        scene, reference = (warp(photo, each, side, "reflection") for each in (to_photo, to_photo @ zoom))
        return self._in_photo(scene, outline, reference, warp(outline[:, None], zoom, side), level, draw)

    def _level_and_flip(self, count: int, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """The holes' levels, and which photos are mirrored, both (B,)."""
        level = hole_levels(self.stage, count, draw)
        return level, draw.chance(0.0 if self.stage == "finetune" else 0.5, count)

    def _in_photo(
        self,
        scene: torch.Tensor,
        outline: torch.Tensor,
        reference: torch.Tensor,
        mask: torch.Tensor,
        level: torch.Tensor,
        draw: Draw,
    ) -> Pairs:
        """Pairs whose object is already in its photo.

        scene (B, 3, R, R) with the object in outline (B, R, R); reference (B, 3, R, R) with it in mask (B, 1, R, R).
        """
        lost = mask.flatten(1).amax(1) < 0.5
        mask[lost] = 1.0
        shade = jitter_parameters(draw, len(scene), 0.3)  # shared, of the whole photo; the reference's own is added
        scene = apply_jitter(scene, shade)
        reference = jitter(apply_jitter(reference, shade), draw, 0.2)
        cutout = prepare_object(reference, mask[:, 0], self.config.encoder)[1]
        if self.stage == "identity":
            return on_black(cutout, scene, outline, self.config)
        return in_scene(cutout, scene, scene, outline, None, level, draw, self.config)


def _layer(
    views: torch.Tensor, to_view: torch.Tensor, turn: torch.Tensor, side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Views (B, 4, S, S), warped and recoloured: plain colour (B, 3, side, side), alpha (B, 1, side, side)."""
    views = torch.cat([views[:, :3] * views[:, 3:], views[:, 3:]], 1)
    layer = warp(views, to_view, side)
    alpha = layer[:, 3:].clamp(0, 1)
    return recolour(layer[:, :3] / alpha.clamp(min=1e-3), turn).clamp(0, 1), alpha


def _float(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255
