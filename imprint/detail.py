"""Restore detail that the model draws too softly, from the object's own photo.

The model decides where the object is, how it is turned and how it is lit. Its drawing is limited by its resolution and
its autoencoder: it loses the words on a can, a face, the weave of a cloth, and in a large hole everything is soft.
Where the drawing shows a side of the object that the photo shows too, the photo is warped to the drawing's shape and
laid over it, in the drawing's light: brightness from broad means, tint from broader ones.

    result = light * photo,    light = low(drawing) / low(photo), of brightness and of each colour, within bounds

The warp is found by registration after Lucas and Kanade (IJCAI 1981): Gauss-Newton on the difference of the two
pictures, here in alpha and in locally normalised colours, so that light does not matter. It is affine first, from many
starts (rotated and mirrored too, since a hole may require that), then free-form. Where the two still disagree, the
drawing stays. IMPRINT has no such step. That the low frequencies of a picture are its light, and the high ones are not,
is Land and McCann's retinex (Journal of the Optical Society of America 61(1), 1971).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .errors import require_number
from .preprocess import bounding_boxes, resample
from .views import ObjectViews

LIGHT, TINT = 0.1, 0.3
"""Changes of brightness broader than the first count as light, and so do changes of colour broader than the second:
standard deviations, relative to the object's size (the square root of its area)."""
MARGIN = 1.25
"""Side of the square that is compared, relative to the longer side of the object's box; nothing outside it changes."""

_SIDES = (40, 80, 128)  # sides of that square in pixels during registration, coarse to fine
_LEAST = 12  # pixels: a smaller square has no detail worth restoring
_TURNS = 24  # starting rotations around the circle, and as many mirrored
_TURNED, _MIRRORED = 1.1, 1.25  # factors on the costs of such starts: mirrored words are worse than none
_SQUEEZED = 2.5  # starts that change the object's aspect ratio by more than this are dropped
_FOLLOWED = 3  # starts that are refined
_HANDLES = (4, 7)  # of the free-form warp, per side
_ROUNDS = 10  # of Gauss-Newton at most
_STIFFNESS = 0.3  # cost of moving a handle by half the square
_NEIGHBOURHOOD = 0.1  # standard deviation, relative to the square's side
_WEIGHTS = torch.tensor([1.0, 1.0, 1.0, 2.0], device="cpu").view(4, 1, 1)  # brightness, two colours, alpha
_OVERLAP = (0.75, 0.9)  # intersection over union of the outlines: from no trust in the registration to full trust
_DISAGREEMENT = (0.8, 0.5)  # 0 = same structure, 1 = unrelated: from no trust in a place to full trust
# Fraction of the object where the structures agree: from no trust in the registration to full trust.
_BELIEVED = (0.4, 0.6)
_FLAT = 0.02  # weaker structure counts as none; colours are in [0, 1]
# Difference of alpha around a place: where the outlines differ, the pose does, and the drawing stays.
_SLIPPED = (0.5, 0.3)
_GAINS, _TINTS = (0.3, 2.2), (0.8, 1.25)  # bounds of light's factors on brightness and, in addition, on each colour
_BLACK = 0.03  # added to both pictures: black tells nothing about the light
_INNER = (0.2, 0.9)  # of the photo's alpha: its edge pixels show what was behind the object


class Restored(NamedTuple):
    """The result of `restore_detail`."""

    pictures: torch.Tensor
    """(B, 3, H, W) with the object's own detail."""
    alpha: torch.Tensor
    """(B, H, W) with the object's own outline."""
    laid: tuple[float, ...]
    """For each picture, the fraction of the drawn object that the photo covers at any strength; 0 if no view fits."""


def restore_detail(generated: torch.Tensor, alpha: torch.Tensor, views: ObjectViews, strength: float = 1.0) -> Restored:
    """Give generated pictures the object's own detail, and their alpha its outline.

    generated: (B, 3, H, W) in [0, 1], of any size. alpha: (B, H, W) in [0, 1], where the object was generated. views:
    of the object; the best fit is used. strength: from 0 (nothing changes, bit for bit) to 1. Nothing changes if no
    view fits, nor outside `MARGIN`. The tensors may be on different devices: the results are on those of `generated`
    and `alpha`. Raises `ImprintError` for a view with an empty mask, and for a strength outside [0, 1].
    """
    require_number("detail", strength, 0, 1)
    pictures, outlines = generated.clone(), alpha.clone()
    laid = [0.0] * len(pictures)
    if strength:
        photos = [_Part.of(image, mask, multiplied=True) for (image,), mask in zip(views.pictures, views.masks)]
        for index, (picture, outline) in enumerate(zip(pictures, outlines)):
            if bool((outline > 0.5).any()):
                laid[index] = _restore(picture, outline, photos, strength)
    return Restored(pictures, outlines, tuple(laid))


@dataclass(frozen=True)
class _Part:
    """The part of a picture that holds the object, and the square around the object in which the two are compared."""

    planes: torch.Tensor
    """(4, h, w): colours (in views: times alpha) and alpha."""
    rows: slice
    columns: slice
    """In the picture."""
    top: float
    left: float
    side: int
    """The square, in the part's pixels; it can be much larger than the part, as for a pencil."""

    @classmethod
    def of(cls, colours: torch.Tensor, alpha: torch.Tensor, multiplied: bool = False) -> _Part:
        """Cut it out of colours (3, H, W) and alpha (1, H, W), above 0.5 = object.

        Raises `ImprintError` if the alpha is empty.
        """
        top, left, bottom, right = bounding_boxes(alpha, what="the object's mask")[0].tolist()
        longer = max(bottom - top, right - left)
        reach, side = math.ceil(longer * (MARGIN - 1) / 2), math.ceil(longer * MARGIN)
        rows, columns = (
            slice(max(0, low - reach), min(length, high + reach))
            for low, high, length in zip((top, left), (bottom, right), alpha.shape[1:])
        )
        corner = ((top + bottom - side) / 2 - rows.start, (left + right - side) / 2 - columns.start)
        colours, alpha = (planes[:, rows, columns].to(colours.device, torch.float32) for planes in (colours, alpha))
        return cls(torch.cat([colours * alpha if multiplied else colours, alpha]), rows, columns, *corner, side)

    @cached_property
    def small(self) -> list[torch.Tensor]:
        """The square at each of `_SIDES`, (4, n, n), on the CPU; 0 outside the picture."""
        square = torch.tensor([[self.top, self.left, self.top + self.side, self.left + self.side]])
        return [resample(self.planes[None], square, side)[0].cpu() for side in _SIDES]

    def enlarged(self, planes: torch.Tensor) -> torch.Tensor:
        """Resample planes (C, n, n) of the square to the part's pixels (C, h, w)."""
        y, x = (
            (torch.arange(length, device=self.planes.device) + 0.5 - start) / self.side * 2 - 1
            for length, start in zip(self.planes.shape[1:], (self.top, self.left))
        )
        places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
        return F.grid_sample(planes[None].to(places), places, "bicubic", "border", align_corners=False)[0]

    def sampled(self, grid: torch.Tensor, pixel: float) -> torch.Tensor:
        """Sample colours and alpha (4, h, w) at places (2, h, w) in the square, x and y in [-1, 1]; 0 outside the part.

        pixel: size of a pixel of the result, relative to the square's side; the part is first reduced to it.
        """
        height, width = self.planes.shape[1:]
        scale = min(1.0, 1 / (pixel * self.side))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        planes = F.interpolate(self.planes[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
        start, length = grid.new_tensor([self.left, self.top]), grid.new_tensor([width, height])
        places = (((grid.movedim(0, 2) + 1) / 2 * self.side + start) / length) * 2 - 1
        return _straight(_sampled(planes.to(places), places))


def _restore(picture: torch.Tensor, alpha: torch.Tensor, views: list[_Part], strength: float) -> float:
    """Restore one picture (3, H, W) and its alpha (H, W), in place; return the fraction that `Restored.laid` holds."""
    drawing = _Part.of(picture, alpha[None])
    if drawing.side < _LEAST:
        return 0.0
    seen = drawing.small
    photos = [[_straight(each) for each in view.small] for view in views]
    # Low frequencies are computed on the small pictures. They are on the CPU: the registration takes many small steps,
    # and each needs the result of the one before.
    if (registered := _register(seen, photos)) is None:
        return 0.0
    index, grid = registered
    seen, photo = seen[-1], _sampled(photos[index][-1], grid)
    both = seen[3:] * photo[3:]
    trust = strength * _trust(seen, photo, both)
    if not bool(trust.any()):
        return 0.0
    size = float(seen[3].sum().sqrt())
    gain = _ratio(seen, photo, both, LIGHT * size).mean(0, True).clamp(*_GAINS)
    tint = _ratio(seen, photo, both, TINT * size)
    light = gain * (tint / tint.mean(0, True)).clamp(*_TINTS)

    light, trust, grid = drawing.enlarged(torch.cat([light, trust, grid.movedim(2, 0)])).split((3, 1, 2))
    trust = trust.clamp(0, strength)
    photo = views[index].sampled(grid, 1 / drawing.side).to(drawing.planes)
    restored = (light * photo[:3]).clamp(0, 1)
    here = (slice(None), drawing.rows, drawing.columns)
    opacity = trust * _ramp(photo[3:], *_INNER)
    picture[here] = drawing.planes[:3].lerp(restored, opacity).to(picture)
    alpha[here[1:]] = drawing.planes[3].lerp(photo[3], trust[0]).clamp(0, 1).to(alpha)
    return float((opacity * drawing.planes[3:]).sum() / drawing.planes[3].sum()) / strength


def _register(seen: list[torch.Tensor], photos: list[list[torch.Tensor]]) -> tuple[int, torch.Tensor] | None:
    """Find the photo that fits, and where in it each pixel of the drawing is, (n, n, 2) as for `grid_sample`.

    None if every photo would have to be squeezed out of shape. seen, and each of photos: colours and alpha (4, n, n)
    for each of `_SIDES`.
    """
    coarse, middle, fine = (_features(each) for each in seen)
    targets, found = [_features(photo[0]) for photo in photos], []
    starts = [(index, *start) for index, each in enumerate(targets) for start in _starts(coarse, each)]
    if not starts:
        return None
    for index, _, odd, theta in sorted(starts, key=lambda start: start[1] * start[2])[:_FOLLOWED]:
        theta, cost = _fitted(coarse, targets[index], 0, _coordinates(_SIDES[0]), theta)
        found.append((cost * odd, index, theta))
    _, index, theta = min(found, key=itemgetter(0))
    theta, _ = _fitted(middle, _features(photos[index][1]), 0, _coordinates(_SIDES[1]), theta)
    grid, target = _field(theta, _coordinates(_SIDES[2])), _features(photos[index][2])
    for handles in _HANDLES:
        tents = _tents(_SIDES[2], handles)
        theta, _ = _fitted(fine, target, grid, tents, torch.zeros(2, handles**2), _STIFFNESS)
        grid = grid + _field(theta, tents)
    return index, grid.movedim(0, 2)


def _starts(drawing: torch.Tensor, photo: torch.Tensor) -> list[tuple[float, float, torch.Tensor]]:
    """Costs, factors on them, and affine maps (2, 3): the photo rotated, some mirrored, with box on box."""
    lines, pixel = _coordinates(drawing.shape[1]), 2 / drawing.shape[1]
    mine, its = (lines[1, (each[3] > 0.5).nonzero().T.flip(0)] for each in (drawing, photo))  # x and y
    if not (mine.numel() and its.numel()):
        return []
    low = mine.amin(1)
    extent = (mine.amax(1) - low).clamp(min=pixel)  # an outline can be one column or row of pixels
    angles = torch.arange(_TURNS) * (2 * math.pi / _TURNS)
    cosines, sines = angles.cos(), angles.sin()
    turns = torch.cat([torch.stack([mirror * cosines, -sines, mirror * sines, cosines], 1) for mirror in (1, -1)])
    turns = turns.view(-1, 2, 2)
    turned = turns @ its
    first = turned.amin(2)
    scales = (turned.amax(2) - first).clamp(min=pixel) / extent
    maps = turns.mT @ torch.cat([(first - low * scales)[..., None], scales.diag_embed()], 2)  # rotated back
    odds = torch.tensor([1.0] + [_TURNED] * (_TURNS - 1) + [_MIRRORED] * _TURNS)
    fits = scales.amax(1) <= _SQUEEZED * scales.amin(1)
    maps, odds = maps[fits], odds[fits]
    if not len(maps):
        return []
    grids = _field(maps, lines).movedim(1, 3)
    found = F.grid_sample(photo.expand(len(maps), -1, -1, -1), grids, align_corners=False)
    costs = ((found - drawing).square() * _WEIGHTS).sum(1).mean((1, 2))
    return list(zip(costs.tolist(), odds.tolist(), maps))


def _fitted(
    drawing: torch.Tensor,
    photo: torch.Tensor,
    base: torch.Tensor | int,
    lines: torch.Tensor,
    theta: torch.Tensor,
    stiffness: float = 0.0,
) -> tuple[torch.Tensor, float]:
    """Find the theta (2, K) for which the photo at base + _field(theta, lines) is most like the drawing, and its cost.

    drawing, photo: (4, n, n). base: (2, n, n) or 0. lines: (m, n). Gauss-Newton with Levenberg's damping.
    """
    count, many, pixels = theta.shape[1], len(lines), drawing[0].numel()
    pairs = (lines[:, None] * lines).flatten(0, 1)
    photo = torch.cat([photo, *torch.gradient(photo * (photo.shape[1] / 2), dim=(2, 1))])

    def look(theta: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor]:
        found = _sampled(photo, (base + _field(theta, lines)).movedim(0, 2))
        rest, slope = found[:4] - drawing, found[4:].unflatten(0, (2, 4))
        cost = (rest.square() * _WEIGHTS).sum(0).mean() + stiffness * theta.square().sum()
        return float(cost), rest, slope

    cost, rest, slope = look(theta)
    damping = 1e-3
    for _ in range(_ROUNDS):
        weighted = slope * _WEIGHTS
        push = (lines @ (weighted * rest).sum(1) @ lines.T).flatten(1)[:, :count] / pixels + stiffness * theta
        # The basis functions are separable, so the sums run over x and y in turn: a fiftieth of the work.
        steep = torch.stack([(weighted[i] * slope[j]).sum(0) for i, j in ((0, 0), (0, 1), (1, 1))])
        steep = (pairs @ (steep @ pairs.T)).view(3, many, many, many, many).transpose(2, 3).flatten(3).flatten(1, 2)
        xx, xy, yy = steep[:, :count, :count] / pixels
        matrix = torch.cat([torch.cat([xx, xy], 1), torch.cat([xy, yy], 1)])
        matrix = matrix + stiffness * torch.eye(2 * count)
        before = cost
        for _ in range(4):
            damped = matrix + torch.diag(damping * matrix.diagonal() + 1e-8)
            step = torch.linalg.solve(damped, push.flatten()).view(2, count)
            found = look(theta - step)
            if found[0] < cost:
                theta, damping, (cost, rest, slope) = theta - step, max(damping / 5, 1e-5), found
                break
            damping *= 8
        if before - cost < 1e-3 * before:
            break
    return theta, cost


def _ratio(drawing: torch.Tensor, photo: torch.Tensor, both: torch.Tensor, spread: float) -> torch.Tensor:
    """(3, n, n): the ratio of the drawing's light to the photo's, in Gaussian means."""
    mine, its = (_low(picture[:3], both, spread) + _BLACK for picture in (drawing, photo))
    return mine / its


def _trust(drawing: torch.Tensor, photo: torch.Tensor, both: torch.Tensor) -> torch.Tensor:
    """(1, n, n) from 0 to 1: how certain it is that the warped photo shows what was drawn.

    drawing, photo: (4, n, n).
    """
    side = both.shape[1]
    fine, broad = 0.012 * side, 0.06 * side  # only the photo has finer structure, and broader structure is light
    structures = []
    for picture in (drawing, photo):
        colours = _low(_opponent(picture[:3]), both, fine)
        structures.append(colours - _low(colours, both, broad))
    mine, its = structures
    difference, power = (
        _low(each.sum(0, True), both, broad) for each in ((mine - its).square(), mine.square() + its.square())
    )
    there = _ramp(difference / (power + 2 * _FLAT**2), *_DISAGREEMENT)
    everywhere = torch.ones_like(both)
    slipped = _low((drawing[3:] - photo[3:]).abs(), everywhere, 0.02 * side)
    overlap = torch.minimum(drawing[3], photo[3]).sum() / torch.maximum(drawing[3], photo[3]).sum().clamp(min=1e-6)
    there = there * _ramp(slipped, *_SLIPPED)
    believed = (there * both).sum() / both.sum().clamp(min=1e-6)
    return there * _ramp(believed, *_BELIEVED) * _ramp(overlap, *_OVERLAP)


def _features(picture: torch.Tensor) -> torch.Tensor:
    """Colours and alpha (4, n, n) -> locally normalised brightness and two opponent colours, and alpha."""
    alpha, colours = picture[3:], _opponent(picture[:3])
    spread = _NEIGHBOURHOOD * picture.shape[1]
    colours = colours - _low(colours, alpha, spread)
    contrast = _low(colours.square().sum(0, True), alpha, spread).clamp(min=0).sqrt()
    return torch.cat([colours / (contrast + 0.05) * alpha, alpha])


def _opponent(colours: torch.Tensor) -> torch.Tensor:
    """Red, green, blue (3, h, w) -> brightness, red minus blue, magenta minus green."""
    red, green, blue = colours
    return torch.stack([(red + green + blue) / 3, (red - blue) / 2**0.5, (red - 2 * green + blue) / 6**0.5])


def _low(planes: torch.Tensor, weight: torch.Tensor, spread: float) -> torch.Tensor:
    """Weighted Gaussian means (C, n, n), with weights (1, n, n); spread: the standard deviation in pixels."""
    band = _band(planes.shape[1], spread)
    # Products with a banded matrix of kernels take a fifth of a convolution's time.
    both = F.pad(torch.cat([planes * weight, weight]), ((band.shape[1] - band.shape[0]) // 2,) * 4, mode="replicate")
    both = band @ (both @ band.T)
    return both[:-1] / (both[-1:] + 1e-4)


@lru_cache(16)
def _band(side: int, spread: float) -> torch.Tensor:
    """(side, side + 2 * reach): a Gaussian kernel in each row, moved by a pixel from one row to the next."""
    reach = min(max(1, math.ceil(2.5 * spread)), side - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device="cpu") / spread) ** 2)
    band = torch.zeros(side, side + 2 * reach, device="cpu")
    band.as_strided((side, len(kernel)), (band.shape[1] + 1, 1))[:] = kernel / kernel.sum()
    return band


def _field(theta: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
    """(..., K) -> (..., n, n): the sum, weighted by theta, of the first K products of two lines (m, n), in y and x."""
    many = len(lines)
    theta = F.pad(theta, (0, many * many - theta.shape[-1])).unflatten(-1, (many, many))
    return lines.T @ theta @ lines


@lru_cache(8)
def _coordinates(side: int) -> torch.Tensor:
    """(2, side): ones, and the pixels' centres from -1 to 1; the first three of their products are 1, x and y."""
    places = (torch.arange(side, device="cpu") + 0.5) / side * 2 - 1
    return torch.stack([torch.ones_like(places), places])


@lru_cache(8)
def _tents(side: int, count: int) -> torch.Tensor:
    """(count, side): a tent function around each handle."""
    positions = (torch.arange(side, device="cpu") + 0.5) / side * (count - 1)
    return (1 - (positions - torch.arange(count, device="cpu")[:, None]).abs()).clamp(min=0)


def _straight(planes: torch.Tensor) -> torch.Tensor:
    """Divide the premultiplied colours of (4, n, n) by their alpha."""
    return torch.cat([planes[:3] / planes[3:].clamp(min=1e-3), planes[3:]])


def _sampled(planes: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Sample planes (C, h, w) at the places of a grid (n, n, 2) -> (C, n, n); 0 outside the planes."""
    return F.grid_sample(planes[None], grid[None], align_corners=False)[0]


def _ramp(values: torch.Tensor, start: float, end: float) -> torch.Tensor:
    """0 at start, 1 at end, smooth in between."""
    part = ((values - start) / (end - start)).clamp(0, 1)
    return part * part * (3 - 2 * part)
