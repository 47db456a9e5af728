"""Make the light network's training pairs from groups of linear radiance and from photos.

Everything happens on the device that holds the groups. Exposures, white balances, contrast and crops are drawn anew for
every batch, as if different cameras had taken the object's photo and the scene's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from imprint.light import HIDDEN
from imprint.sprites import spread

from .radiance import direction, luminance, shading, to_linear, tone
from .scenes import LIGHTS, channels

MIDDLE_GREY = 0.18
"""Linear value to which a scene's geometric mean is exposed."""
BRIGHTEST = 0.9
"""Linear value that nearly all cameras keep the object below."""
CAREFUL = 0.95
"""Fraction of cameras that do."""
OWN_BRIGHTEST = 0.55
"""Linear value of an object's bright parts in its own photo."""
SOURCES = (0.58, 0.9)
"""Cumulative fractions of what the object's own photo shows: it in the air, on other ground, and, the rest, in the
scene's own light."""
ALIKE = 0.6
"""Fraction of those in the scene's own light for which nothing has to change."""
UNTOUCHED = 0.25
"""Fraction of the pairs from photos for which nothing has to change."""
LEVELLED = 0.2
"""Fraction of the pairs from photos whose own photo is exposed for the object alone."""
SWAPPED = 0.25
"""Fraction of the pairs whose red, green and blue are permuted."""
CONTEXT = 2.2
"""Median side of the visible square, relative to the longer side of the object's box; as in
`imprint.lightnet.LightConfig`."""
CONTEXTS = (1.45, 3.6)
"""Its minimum and maximum."""
ALBEDOS = (0.06, 0.5)
"""Smallest and largest mean albedo of a drawn ground."""
FLOOR_EDGE = 0.02
"""Height of the ground's soft edge below the horizon, relative to the picture's height."""


@dataclass(frozen=True)
class Variety:
    """Augmentation beyond what the panoramas show, since a few places are soon memorised."""

    repainted: float
    """Fraction of the pairs whose ground is darker, brighter or tinted, as if it were another material."""
    textured: float
    """Fraction of the pairs whose ground is a photo, laid flat, in the place's light."""
    tinted: float
    """Fraction of the pairs whose light has a strong colour."""
    mixed: float
    """Fraction of the pairs in the light of two places at once."""


@dataclass
class LightGroups:
    """Path-traced groups in a device's memory."""

    radiance: torch.Tensor
    """(N, C, S, S) float16 as in `training.light.scenes.CHANNELS`, after `training.light.radiance.settle_shadows`."""
    places: torch.Tensor
    """(N, `LIGHTS` + 1) panoramas by number; the last lights only the object."""
    turns: torch.Tensor
    """(N, `LIGHTS` + 1) the panoramas' rotations about the vertical, in degrees."""
    horizons: torch.Tensor
    """(N,) as in `training.light.scenes.View`."""
    lights: torch.Tensor
    """(P, 3, h, 2 * h): each panorama's `training.light.radiance.irradiance`."""

    def __len__(self) -> int:
        return len(self.radiance)


@dataclass
class LightBatch:
    """Training pairs. All (B, C, S, S) float32; pictures are in [0, 1]."""

    picture: torch.Tensor
    """The object, in the light and colours of its own photo, over the background."""
    alpha: torch.Tensor
    background: torch.Tensor
    """The scene without the object; behind the object it is a guess."""
    target: torch.Tensor
    """The object as the scene lights it, where alpha is above 0."""
    shadow: torch.Tensor
    """Fraction of light that the ground loses."""
    shading: torch.Tensor
    """As in `imprint.lightnet.LightMaps`."""
    rendered: torch.Tensor
    """(B, 1, 1, 1): 1 where shadow, shading and direction are known, 0 for photos."""
    direction: torch.Tensor
    """(B, 4): where the scene's light comes from, as for `imprint.lightnet.LightNet.forward`."""

    def joined(self, other: LightBatch) -> LightBatch:
        """Concatenate both batches."""
        return LightBatch(*(torch.cat(pair) for pair in zip(vars(self).values(), vars(other).values())))

    def __len__(self) -> int:
        return len(self.picture)


@dataclass
class _Views:
    """Groups in chosen lights, linear and not yet exposed. All (B, C, S, S)."""

    lit: torch.Tensor
    """Object and ground in the scene's light."""
    scene: torch.Tensor
    """The scene without them."""
    own: torch.Tensor
    """The object in its own photo's light."""
    around: torch.Tensor
    """What that photo shows around the object if it stands on a ground there, at a quarter of the resolution."""
    kept: torch.Tensor
    """Fraction of light that the ground keeps."""
    alpha: torch.Tensor
    normal: torch.Tensor
    where: torch.Tensor
    """(B, S, S, 2): each pixel's column and row in the whole picture, from 0 to 1; the views are crops of it."""


class _Camera:
    """Contrast and saturation of `count` random cameras."""

    def __init__(self, count: int, device: torch.device):
        self.power = (0.1 * torch.randn(count, 1, 1, 1, device=device)).exp()
        self.colour = (0.12 * torch.randn(count, 1, 1, 1, device=device)).exp()

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        pictures = pictures.clamp(min=1e-5) ** self.power
        grey = luminance(pictures)
        return (grey + (pictures - grey) * self.colour).clamp(0, 1)


def draw_rendered(
    groups: LightGroups, chosen: torch.Tensor, photos: torch.Tensor | None = None, variety: Variety | None = None
) -> LightBatch:
    """Draw a batch of path-traced pairs from rows `chosen` (B,) of the groups.

    photos: as in `draw_photographed`; their fine detail sharpens half of the scenes, since a crop of a panorama is
    softer than a photo. Without `variety` nothing is random: all cameras are the same, each group is in its first
    light, and the object's own photo shows it in the air.
    """
    count, device, augment = len(chosen), chosen.device, variety is not None
    places, turns = groups.places[chosen], groups.turns[chosen]
    traced, horizons = groups.radiance[chosen], groups.horizons[chosen]
    lights = _draw_lights(traced, variety)
    views = _views(traced, lights, augment)

    def returned(normals: torch.Tensor) -> torch.Tensor:
        """Light that a white surface of these normals (B, 3, H, W) returns in each light: (B, L, 3, H, W)."""
        return torch.stack([shading(groups.lights, *of, normals).exp() for of in zip(places.T, turns.T)], 1)

    every = returned(views.normal)
    shades = [_weighed(every, weights).clamp(min=1e-6).log() for weights in (lights.scene, lights.own)]
    if variety:
        up = torch.tensor([0.0, 1.0, 0.0], device=device).view(1, 3, 1, 1).expand(count, -1, -1, -1)
        floor = ((views.where[..., 1] - horizons.view(-1, 1, 1)) / FLOOR_EDGE).clamp(0, 1)[:, None]
        views.scene = _repainted(views.scene, floor, variety.repainted)
        if photos is not None:
            ground = _draw_ground(photos, views.where, horizons) * _weighed(returned(up), lights.scene)
            views.scene = torch.lerp(views.scene, ground, floor * _drawn(variety.textured, count, device))

    factor, own_factor = _draw_exposures(views, lights, variety)
    alike = lights.alike.view(-1, 1, 1, 1)
    shades = torch.cat([each + by.log() for each, by in zip(shades, (factor, own_factor))], 1)
    target, background, own = tone(views.lit * factor), tone(views.scene * factor), tone(views.own * own_factor)
    if variety:
        scene_camera, own_camera = _Camera(count, device), _Camera(count, device)
        target, background = scene_camera(target), scene_camera(background)
        own = torch.where(alike, target, own_camera(own))
        order = torch.rand(count, 3, device=device).argsort(1)
        order = torch.where(_drawn(SWAPPED, count, device).view(-1, 1) > 0, order, torch.arange(3, device=device))
        target, background, own = (_swapped(each, order) for each in (target, background, own))
        shades = torch.cat([_swapped(half, order) for half in shades.chunk(2, 1)], 1)
        if photos is not None:
            background = _sharpened(background, photos)
    made = (own, views.alpha, background, target, 1 - views.kept, shades)
    mirrored = _drawn(0.5 * augment, count, device) > 0
    own, alpha, background, target, shadow, shades = (torch.where(mirrored, each.flip(3), each) for each in made)
    source = _direction(groups.lights[places], turns, lights.scene)
    source[:, 0] *= 1 - 2 * mirrored.view(-1).float()
    background = _hidden(background, alpha)
    picture = torch.lerp(background, own, alpha)
    rendered = torch.ones(count, 1, 1, 1, device=device)
    return LightBatch(picture, alpha, background, target, shadow, shades, rendered, source)


def draw_photographed(photos: torch.Tensor, chosen: torch.Tensor) -> LightBatch:
    """Draw a batch of pairs from photos: the object is recoloured or relit, and the photo itself is the truth.

    photos: (N, 4, S, S) uint8, each a photo and its object's mask. chosen: (B,) indices of photos.
    """
    part = photos[chosen].float() / 255
    count, device = len(part), part.device
    part = torch.where(_drawn(0.5, count, device) > 0, part.flip(3), part)
    photo, alpha = _sampled(part, _squares(part[:, 3:])).clamp(0, 1).split([3, 1], 1)
    photo = _Camera(count, device)(photo)
    levelled = tone(
        to_linear(photo) * OWN_BRIGHTEST / _quantile(luminance(to_linear(photo)), (alpha > 0.9).float(), 0.9)
    )
    own = torch.where(_drawn(LEVELLED, count, device) > 0, levelled, photo)
    own = (_Camera(count, device)(own) * _draw_relighting(count, photo.shape[2:], device)).clamp(0, 1)
    own = torch.where(_drawn(UNTOUCHED, count, device) > 0, photo, own)
    background = _hidden(photo, alpha)
    picture = torch.lerp(background, own, alpha)
    zero = torch.zeros_like(alpha)
    nowhere = torch.zeros(count, 4, device=device)
    return LightBatch(picture, alpha, background, photo, zero, zero.repeat(1, 6, 1, 1), zero[:, :, :1, :1], nowhere)


@dataclass
class _Lights:
    """The weights of a group's lights in each pair; the last is the light of the object alone.

    Weights are (B, `LIGHTS` + 1).
    """

    scene: torch.Tensor
    own: torch.Tensor
    """Weights in the object's own photo."""
    alike: torch.Tensor
    """(B,) bool: whether both photos are the same."""


def _draw_lights(groups: torch.Tensor, variety: Variety | None) -> _Lights:
    """Draw the lights of groups (B, C, S, S)."""
    count, device = len(groups), groups.device

    def only(light: torch.Tensor | int) -> torch.Tensor:
        return F.one_hot(torch.as_tensor(light, device=device).expand(count), LIGHTS + 1).float()

    if not variety:
        return _Lights(only(0), only(LIGHTS), torch.zeros(count, dtype=torch.bool, device=device))
    light = torch.randint(LIGHTS, (count,), device=device)
    other, third = ((light + step) % LIGHTS for step in (1 + torch.randint(LIGHTS - 1, (2, count), device=device)))
    share = torch.rand(count, 1, device=device) * _drawn(variety.mixed, count, device).view(-1, 1)
    # Places count the same, however strong their light is.
    photos = groups[:, channels("photo"), ::4, ::4].float().unflatten(1, (LIGHTS, -1)).flatten(0, 1)
    scene = (only(light) + share * only(third)) / F.pad(_middle(photos).view(count, LIGHTS), (0, 1), value=1.0)
    kind = torch.rand(count, 1, device=device)
    alone, on_ground = SOURCES
    own = torch.where(kind < alone, only(LIGHTS), torch.where(kind < on_ground, only(other), scene))
    alike = (kind[:, 0] >= on_ground) & (torch.rand(count, device=device) < ALIKE)
    return _Lights(scene, own, alike)


def _weighed(each: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(B, C, S, S): weighted sum of lights (B, L, C, S, S); weights (B, L or more)."""
    return torch.einsum("blchw,bl->bchw", each.float(), weights[:, : each.shape[1]])


def _direction(lights: torch.Tensor, turns: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(B, 4): where the light comes from. lights: (B, L, 3, h, 2 * h). turns, weights: (B, L)."""
    count, kinds = turns.shape
    towards, mean = direction(lights.flatten(0, 1), turns.flatten())
    share = weights * mean.view(count, kinds)
    towards = (share[..., None] * towards.view(count, kinds, 3)).sum(1) / share.sum(1, keepdim=True)
    return F.pad(towards, (0, 1), value=1.0)


def _views(groups: torch.Tensor, lights: _Lights, augment: bool) -> _Views:
    """Crop and light groups (B, C, S, S)."""
    lit, photo, kept = (groups[:, channels(name)].unflatten(1, (LIGHTS, -1)) for name in ("lit", "photo", "bare"))
    every = torch.cat([lit, groups[:, None, channels("alone")]], 1)
    # The shadows of two lights are mixed as light, which is additive.
    there = luminance(lit.flatten(0, 1).float()).unflatten(0, (-1, LIGHTS)) + 1e-4
    kept = _weighed(there, lights.scene) / _weighed(there / kept.float().clamp(min=0.01), lights.scene)
    shown = _weighed(every, lights.scene), _weighed(photo, lights.scene), _weighed(every, lights.own), kept
    where = _squares(groups[:, channels("alpha")], drawn=augment)
    shape = [groups[:, channels(name)].float() for name in ("alpha", "normal")]
    seen = _sampled(torch.cat([*shown, *shape], 1), where)
    lit, scene, own, kept, alpha, normal = seen.split([3, 3, 3, 1, 1, 3], 1)
    around = _weighed(photo[..., ::4, ::4], lights.own)
    views = _Views(lit, scene, own, around, kept, alpha, normal, where)
    views.alpha = views.alpha.clamp(0, 1)
    return views


def _draw_exposures(views: _Views, lights: _Lights, variety: Variety | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors (B, 3, 1, 1) on radiance in the scene's photo and in the object's own.

    The object's own photo is exposed for the object if that is in the air, and otherwise for its surroundings, so that
    white things look white and black things black.
    """
    count, device = len(views.lit), views.lit.device

    def varied(deviation: float, channels: int) -> torch.Tensor:
        return ((variety is not None) * deviation * torch.randn(count, channels, 1, 1, device=device)).exp()

    def exposed(around: torch.Tensor, thing: torch.Tensor) -> torch.Tensor:
        exposure = MIDDLE_GREY / _middle(around) * varied(0.33, 1)
        most = BRIGHTEST / _quantile(luminance(thing), solid, 0.97)
        careful = _drawn(CAREFUL if variety else 1.0, count, device) > 0
        return torch.where(careful, torch.minimum(exposure, most), exposure)

    solid = (views.alpha > 0.9).float()
    factor = exposed(views.scene, views.lit) * varied(0.07, 3)
    if variety:
        factor = factor * torch.where(_drawn(variety.tinted, count, device) > 0, varied(0.22, 3), 1.0)
    in_the_air = OWN_BRIGHTEST / _quantile(luminance(views.own), solid, 0.9) * varied(0.28, 1)
    on_ground = lights.own[:, LIGHTS].view(-1, 1, 1, 1) == 0
    own = torch.where(on_ground, exposed(views.around, views.own), in_the_air) * varied(0.09, 3)
    return factor, torch.where(lights.alike.view(-1, 1, 1, 1), factor, own)


def _hidden(backgrounds: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Replace what is behind the object by a guess, as at inference."""
    return spread(backgrounds, (alpha < HIDDEN).float())


def _draw_relighting(count: int, size: torch.Size, device: torch.device) -> torch.Tensor:
    """(B, 3, H, W): factors for a different exposure and white balance, and for light and tint from one side."""
    rows, columns = (torch.linspace(-1, 1, side, device=device) for side in size)

    def slope(channels: int) -> torch.Tensor:
        down, across = torch.randn(2, count, channels, 1, 1, device=device)
        return down * rows[:, None] + across * columns

    exposure, balance = (torch.randn(count, channels, 1, 1, device=device) for channels in (1, 3))
    return (0.28 * exposure + 0.1 * balance + 0.22 * slope(1) + 0.05 * slope(3)).exp()


def _sharpened(backgrounds: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
    """Add the fine detail of photos to half of the backgrounds, less of it in the dark."""
    count, device = len(backgrounds), backgrounds.device
    chosen = photos[torch.randint(len(photos), (count,), device=device)].flip(3).float() / 255
    fine = _sampled(chosen[:, :3], _squares(chosen[:, 3:]))
    fine = fine - F.avg_pool2d(fine, 9, 1, 4, count_include_pad=False)
    half = _drawn(0.5, count, device)
    brightness = backgrounds.mean((1, 2, 3), keepdim=True).clamp(max=0.5) / 0.5
    strength = 0.8 * torch.rand(count, 1, 1, 1, device=device) * half * brightness
    return (backgrounds + strength * fine).clamp(0, 1)


def _repainted(scenes: torch.Tensor, floor: torch.Tensor, share: float) -> torch.Tensor:
    """Make the ground of a fraction of the scenes darker, brighter or tinted. floor: (B, 1, S, S), 1 on the ground."""
    count, device = len(scenes), scenes.device
    grey, tint = (torch.randn(count, channels, 1, 1, device=device) for channels in (1, 3))
    change = _drawn(share, count, device) * (0.3 * grey + 0.08 * tint) * floor
    return scenes * change.exp()


def _draw_ground(photos: torch.Tensor, where: torch.Tensor, horizons: torch.Tensor) -> torch.Tensor:
    """(B, 3, S, S): the albedo of level grounds, each one of the photos (N, 4, S, S) laid flat, seen in perspective.

    where: (B, S, S, 2), as in `_Views`. horizons: (B,), rows from 0 to 1 where the grounds end.
    """
    count, device = len(where), where.device
    chosen = photos[torch.randint(len(photos), (count,), device=device), :3].float() / 255
    albedo = to_linear(chosen)
    mean = ALBEDOS[0] + (ALBEDOS[1] - ALBEDOS[0]) * torch.rand(count, 1, 1, 1, device=device) ** 1.5
    albedo = (albedo * mean / albedo.mean((1, 2, 3), keepdim=True).clamp(min=1e-3)).clamp(max=0.9)
    # The distance of a row of level ground is the inverse of its distance to the horizon in the picture.
    away = 1 / (where[..., 1] - horizons.view(-1, 1, 1)).clamp(min=0.06)
    size, angle, *start = torch.rand(4, count, 1, 1, device=device).unbind()
    away = (0.15 + 0.35 * size) * away
    across = (where[..., 0] - 0.5) * away
    angle = 2 * torch.pi * angle
    x, y = angle.cos() * across - angle.sin() * away, angle.sin() * across + angle.cos() * away
    grid = torch.stack([x + 2 * start[0], y + 2 * start[1]], -1)
    return F.grid_sample(albedo, grid, padding_mode="reflection", align_corners=False)


def _squares(alpha: torch.Tensor, drawn: bool = True) -> torch.Tensor:
    """(B, S, S, 2): columns and rows, from 0 to 1, of the pixels of a square around each object, inside the picture.

    alpha: (B, 1, S, S). drawn: whether to vary the squares' sizes and positions at random.
    """
    count, device, side = len(alpha), alpha.device, alpha.shape[2]
    thing = alpha[:, 0] > 0.1
    pixels = torch.arange(side, device=device) / side
    lines = torch.stack([thing.any(1), thing.any(2)], 1)  # columns and rows that hold something
    first, last = torch.where(lines, pixels, 1).amin(2), torch.where(lines, pixels + 1 / side, 0).amax(2)
    context, shift = torch.full((count, 1), CONTEXT, device=device), torch.zeros(count, 2, device=device)
    if drawn:
        context = (context * (0.2 * torch.randn(count, 1, device=device)).exp()).clamp(*CONTEXTS)
        shift = 0.08 * torch.randn(count, 2, device=device)
    width = (context * (last - first).amax(1, keepdim=True)).clamp(8 / side, 1)
    start = ((first + last) / 2 + (shift - 0.5) * width).clamp(min=0)
    start = torch.minimum(start, 1 - width)
    steps = (pixels + 0.5 / side).expand(count, 2, side) * width[..., None] + start[..., None]
    columns, rows = steps.unbind(1)
    return torch.stack([columns[:, None].expand(-1, side, -1), rows[:, :, None].expand(-1, -1, side)], -1)


def _sampled(layers: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Sample layers (B, C, S, S) at places (B, S, S, 2) from `_squares`."""
    return F.grid_sample(layers, 2 * where - 1, padding_mode="border", align_corners=False)


def _swapped(pictures: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Permute each picture's colours: pictures (B, 3, H, W), order (B, 3)."""
    return pictures.gather(1, order.view(-1, 3, 1, 1).expand_as(pictures))


def _drawn(share: float, count: int, device: torch.device) -> torch.Tensor:
    """(B, 1, 1, 1): 1 for a random fraction `share` of the batch, 0 for the rest."""
    return (torch.rand(count, 1, 1, 1, device=device) < share).float()


def _middle(pictures: torch.Tensor) -> torch.Tensor:
    """(B, 1, 1, 1): the geometric mean of the pictures' luminance."""
    return luminance(pictures).clamp(min=1e-4).log().mean((1, 2, 3), keepdim=True).exp()


def _quantile(values: torch.Tensor, where: torch.Tensor, share: float) -> torch.Tensor:
    """(B, 1, 1, 1): a quantile of the values (B, 1, H, W) where `where` is 1, from every fourth row and column."""
    values, where = values[:, :, ::4, ::4].flatten(1), where[:, :, ::4, ::4].flatten(1)
    ordered = torch.where(where > 0, values, torch.inf).sort(1).values
    index = ((where.sum(1) - 1).clamp(min=0) * share).long()
    found = ordered.gather(1, index[:, None])[:, 0]
    return torch.where(found.isfinite(), found, 0.5).clamp(min=1e-3).view(-1, 1, 1, 1)
