"""Views of objects in the device's memory: cut-outs, from which references and rendered targets are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from imprint.errors import ImprintError
from imprint.preprocess import bounding_boxes

from ..data.shards import SCENE_SCALE, Record, Sample
from .about import About
from .draw import Draw
from .handing import Stack
from .pictures import CPU, Pictures, joined


@dataclass
class Views(Pictures):
    """Cut-outs: rgba (N, 4, S, S) uint8; an object's views are rows first ... first + count - 1.

    L of the views exist a second time, in the light of a scene: the same camera, the same outline.
    """

    rgba: torch.Tensor
    boxes: torch.Tensor
    """(N, 4) as of `bounding_boxes`."""
    first: torch.Tensor
    count: torch.Tensor
    frames: torch.Tensor
    """(N,) the views' frame numbers."""
    gap: torch.Tensor
    """(K, 2): each object's smallest and largest distance of frames in a pair."""
    relit: torch.Tensor
    """(L, 4, S, S) uint8."""
    scenes: torch.Tensor
    """(L, 3, S', S') uint8: the scenes."""
    shadows: torch.Tensor
    """(L, 3) float32, as in `Record.shadow`."""
    twin: torch.Tensor
    """(N,): the row of a view's relit version, or -1."""
    scale: torch.Tensor
    """(N,) float32: stored pixels per side S of a view."""
    about: About

    @classmethod
    def of(cls, samples: Iterable[Sample], side: int | None = None, shared: bool = False) -> Views:
        """Views from samples: cut-outs, and objects cut out of photos with masks. S is `side`, by default the first
        sample's; shared: as of `Stack`.

        Raises `ImprintError` for a sample that is neither, and if there is none.
        """
        about, rgba, relit, surroundings = About(), Stack(shared), Stack(shared), Stack(shared)
        views: dict[tuple[str, int], list[tuple[int, int, tuple[int, int], float]]] = {}
        scenes: dict[tuple[str, int], tuple[int, tuple[float, ...]]] = {}
        for record, picture, mask, scene in about.counted(samples):
            for number, cutout in _cutouts(record, picture, mask):
                side = side or cutout.width
                if scene is None:
                    view = rgba.add(_resized(cutout, side)), record.frame, record.gap, cutout.width / side
                    views.setdefault((record.object, number), []).append(view)
                else:
                    surroundings.add(_resized(scene, round(side * SCENE_SCALE)))
                    scenes[record.object, record.frame] = relit.add(_resized(cutout, side)), record.shadow
        if not views:
            raise ImprintError("the shards of views hold no object; look at what training.prepare dropped")
        rows = [row for rows in views.values() for row in rows]
        rgba = rgba.tensor(4, side, side, order=[number for number, *_ in rows])
        boxes = bounding_boxes(rgba[:, 3], threshold=127)
        count = torch.tensor([len(rows) for rows in views.values()])
        frames, scale = torch.tensor([row[1] for row in rows]), torch.tensor([row[3] for row in rows])
        gap = torch.tensor([rows[0][2] for rows in views.values()])
        names = [(name, frame) for (name, _), own in views.items() for _, frame, *_ in own]
        second = _twins(names, scenes, relit, surroundings, side)
        return cls(rgba, boxes, count.cumsum(0) - count, count, frames, gap, *second, scale, about)

    @classmethod
    def join(cls, parts: Sequence[Views], device: torch.device = CPU) -> Views:
        """Concatenate the views of several parts in main memory, on a device."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "about"]
        tensors = (joined([getattr(part, name) for part in parts], device) for name in names)
        whole = cls(*tensors, About.joined([part.about for part in parts]))
        before = torch.tensor([len(part.relit) for part in parts]).cumsum(0).roll(1)
        before[0] = 0
        added = before.repeat_interleave(torch.tensor([len(part.twin) for part in parts]))
        whole.twin = torch.where(whole.twin < 0, -1, whole.twin + added)
        whole.first = whole.count.cumsum(0) - whole.count
        return whole.to(device)

    def pair(self, index: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (B,) of two views of objects (B,), as far apart as the objects' `gap` says, uniformly among those.

        MVImgNet's views are at least an eighth of the frames apart (as in AnyDoor); of renderings any two will do, even
        the same one twice. If no view fits, the farthest is used.
        """
        count = self.count[index]
        reference = self.first[index] + (draw.uniform(len(index)) * count).long()
        positions = torch.arange(int(self.count.max()), device=index.device)
        rows = self.first[index, None] + torch.minimum(positions, count[:, None] - 1)
        distance = (self.frames[rows] - self.frames[reference, None]).abs()
        low, high = self.gap[index].unbind(1)
        fits = (distance >= low[:, None]) & (distance <= high[:, None])
        fits |= (distance == distance.amax(1, keepdim=True)) & ~fits.any(1, keepdim=True)
        fits &= positions < count[:, None]
        pick = torch.multinomial(fits.float(), 1, generator=draw.generator)
        return reference, rows.gather(1, pick)[:, 0]


def _resized(picture: Image.Image, side: int) -> Image.Image:
    return picture if picture.size == (side, side) else picture.resize((side, side), Image.BICUBIC)


def _twins(
    names: list[tuple[str, int]],
    seconds: dict[tuple[str, int], tuple[int, tuple[float, ...]]],
    relit: Stack,
    scenes: Stack,
    side: int,
) -> tuple[torch.Tensor, ...]:
    """`Views.relit`, `scenes`, `shadows` and `twin` for views of these names."""
    found = [name for name in names if name in seconds]
    row = {name: number for number, name in enumerate(found)}
    twin = torch.tensor([row.get(name, -1) for name in names])
    shapes = (4, side, side), (3, *[round(side * SCENE_SCALE)] * 2)
    if not found:
        return *(torch.zeros(0, *shape, dtype=torch.uint8) for shape in shapes), torch.zeros(0, 3), twin
    order, shadows = map(list, zip(*(seconds[name] for name in found)))
    pictures = (stack.tensor(*shape, order=order) for stack, shape in zip((relit, scenes), shapes))
    return *pictures, torch.tensor(shadows), twin


def _cutouts(record: Record, picture: Image.Image, mask: Image.Image | None) -> Iterator[tuple[int, Image.Image]]:
    """A sample's objects by number, each as an RGBA picture that the object fills to about 85 %."""
    if mask is None:
        if picture.mode != "RGBA":
            raise ImprintError(
                f"a view of '{record.object}' is {picture.mode} and has no mask; views are RGBA cut-outs, or photos "
                "with their objects' masks"
            )
        yield 0, picture
        return
    for number in sorted(number for _, number in mask.getcolors() if number):
        alpha = mask.point(lambda value, number=number: 255 * (value == number))
        left, top, right, bottom = alpha.getbbox()
        half = max(right - left, bottom - top) / 1.7
        x, y = (left + right) / 2, (top + bottom) / 2
        cutout = picture.convert("RGB")
        cutout.putalpha(alpha)
        yield (
            number,
            cutout.crop(
                (round(x - half), round(y - half), round(x - half) + round(2 * half), round(y - half) + round(2 * half))
            ),
        )
