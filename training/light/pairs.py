"""From groups of linear radiance, and from photos, to what the light network is trained with.

Everything happens on the device that holds the groups: exposures, white balances, contrast and crops are drawn anew for
every batch, as different cameras would have taken the object's photo and the scene's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .radiance import luminance, shading, tone
from .scenes import LIGHTS, channels

MIDDLE_GREY = 0.18
"""Linear: what a scene's geometric mean is exposed to."""
BRIGHTEST = 0.9
"""Linear: nine cameras of ten expose so that the object in the scene is not brighter."""
OWN_BRIGHTEST = 0.55
"""Linear: what the bright parts of an object are in its own photo."""
SOURCES = (0.5, 0.88)
"""Shares, added up: the object's own photo shows it in the air, on other ground, and the rest in the scene's own light."""
ALIKE = 0.6
"""Of those in the scene's own light: where nothing has to change."""
UNTOUCHED = 0.25
"""Of pairs from photos, likewise."""
SWAPPED = 0.15
"""Of batches: red, green and blue change their places."""
SMALLEST_CROP = 0.72
"""Side of a crop, of the whole."""


@dataclass
class LightGroups:
    """Path-traced groups in a device's memory."""

    radiance: torch.Tensor
    """(N, C, S, S) float16 as `training.light.scenes.CHANNELS` says, after `training.light.radiance.settle_shadows`."""
    places: torch.Tensor
    """(N, `LIGHTS` + 1) panoramas; the last lights the object alone."""
    turns: torch.Tensor
    """(N, `LIGHTS` + 1) degrees about the vertical."""
    lights: torch.Tensor
    """(P, 3, h, 2 * h): `training.light.radiance.irradiance` of each panorama."""

    def __len__(self) -> int:
        return len(self.radiance)


@dataclass
class LightBatch:
    """All (B, C, S, S) float32; pictures in [0, 1]."""

    picture: torch.Tensor
    """The object, in the light and colours of its own photo, over the background."""
    alpha: torch.Tensor
    background: torch.Tensor
    """Without the object; behind it, it may be guessed."""
    target: torch.Tensor
    """The object as the scene lights it, where alpha is above 0."""
    shadow: torch.Tensor
    """Share of light that the ground loses."""
    shading: torch.Tensor
    """As in `imprint.light.LightMaps`."""
    rendered: torch.Tensor
    """(B, 1, 1, 1): 1 where shadow and shading are known, 0 for photos."""

    def joined(self, other: LightBatch) -> LightBatch:
        """Both as one."""
        return LightBatch(*(torch.cat(pair) for pair in zip(vars(self).values(), vars(other).values())))

    def __len__(self) -> int:
        return len(self.picture)


@dataclass
class _Views:
    """Of a group, in one of its lights, linear: what a pair is exposed from. All (B, C, S, S)."""

    lit: torch.Tensor
    """Object and ground in the scene's light."""
    scene: torch.Tensor
    """What a photo shows of the scene without them."""
    own: torch.Tensor
    """The object as its own photo has it."""
    kept: torch.Tensor
    """Share of light that the ground keeps."""
    alpha: torch.Tensor
    normal: torch.Tensor


class _Camera:
    """Contrast and saturation of so many cameras."""

    def __init__(self, count: int, device: torch.device):
        self.power = (0.1 * torch.randn(count, 1, 1, 1, device=device)).exp()
        self.colour = (0.12 * torch.randn(count, 1, 1, 1, device=device)).exp()

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        pictures = pictures.clamp(min=1e-5) ** self.power
        grey = luminance(pictures)
        return (grey + (pictures - grey) * self.colour).clamp(0, 1)


def draw_rendered(
    groups: LightGroups, chosen: torch.Tensor, photos: torch.Tensor | None = None, augment: bool = True
) -> LightBatch:
    """A batch of path-traced pairs: rows `chosen` (B,) of the groups.

    photos as in `draw_photographed`: their fine detail sharpens half of the scenes, since a view cut out of a panorama is
    softer than a photo. Without `augment`, cameras are all alike and each group is seen in its first light.
    """
    count, device = len(chosen), chosen.device
    light, source = _draw_lights(count, device, augment)
    views = _views(groups.radiance[chosen], light, source, augment)
    places, turns, rows = groups.places[chosen], groups.turns[chosen], torch.arange(count, device=device)
    shades = [shading(groups.lights, places[rows, of], turns[rows, of], views.normal) for of in (light, source)]

    factor, own_factor, alike = _draw_exposures(views, source == light, augment)
    shade = torch.cat([each + by.log() for each, by in zip(shades, (factor, own_factor))], 1)
    target, background, own = tone(views.lit * factor), tone(views.scene * factor), tone(views.own * own_factor)
    if augment:
        scene_camera, own_camera = _Camera(count, device), _Camera(count, device)
        target, background = scene_camera(target), scene_camera(background)
        own = torch.where(alike, target, own_camera(own))
        if torch.rand(()) < SWAPPED:
            order = torch.randperm(3, device=device)
            target, background, own = target[:, order], background[:, order], own[:, order]
            shade = torch.cat([half[:, order] for half in shade.chunk(2, 1)], 1)
        if photos is not None:
            background = _sharpened(background, photos)
        mirrored = torch.rand(count, 1, 1, 1, device=device) < 0.5
    else:
        mirrored = torch.zeros(count, 1, 1, 1, dtype=torch.bool, device=device)
    made = (own, views.alpha, background, target, 1 - views.kept, shade)
    own, alpha, background, target, shadow, shade = (torch.where(mirrored, each.flip(3), each) for each in made)
    guessed = torch.rand(count, 1, 1, 1, device=device) < 0.5
    background = torch.where(guessed, fill_in(background, alpha), background)
    picture = torch.lerp(background, own, alpha)
    return LightBatch(picture, alpha, background, target, shadow, shade, torch.ones(count, 1, 1, 1, device=device))


def draw_photographed(photos: torch.Tensor, chosen: torch.Tensor) -> LightBatch:
    """A batch of pairs from photos: the object recoloured or relit, the photo itself the truth.

    photos (N, 4, S, S) uint8: a photo and its object's mask; chosen (B,): of the N.
    """
    part = photos[chosen].float() / 255
    count, device = len(part), part.device
    part = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.5, part.flip(3), part)
    photo, alpha = _cropped(part).clamp(0, 1).split([3, 1], 1)
    photo = _Camera(count, device)(photo)
    own = (_Camera(count, device)(photo) * _draw_relighting(count, photo.shape[2:], device)).clamp(0, 1)
    own = torch.where(torch.rand(count, 1, 1, 1, device=device) < UNTOUCHED, photo, own)
    background = fill_in(photo, alpha)
    picture = torch.lerp(background, own, alpha)
    zero = torch.zeros_like(alpha)
    return LightBatch(picture, alpha, background, photo, zero, zero.repeat(1, 6, 1, 1), zero[:, :, :1, :1])


def fill_in(pictures: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Guess what lies behind an object from what lies around it: means over ever larger surroundings.

    pictures (B, 3, S, S) in [0, 1], alpha (B, 1, S, S); the same where alpha is 0. This is pull-push (Gortler et al., The
    Lumigraph, SIGGRAPH 1996, section 3.4.2).
    """
    known = (alpha < 0.05).float()
    levels = [(pictures * known, known)]
    while levels[-1][0].shape[-1] > 2:
        levels.append(tuple(F.avg_pool2d(each, 2) for each in levels[-1]))
    guess = levels[-1][0] / levels[-1][1].clamp(min=1e-4)
    for colours, share in reversed(levels[:-1]):
        guess = F.interpolate(guess, colours.shape[2:], mode="bilinear", align_corners=False)
        guess = colours + guess * (1 - share.clamp(max=1))
    return torch.lerp(pictures, guess, (alpha * 20).clamp(0, 1)).clamp(0, 1)


def _draw_lights(count: int, device: torch.device, augment: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) each: in which of a group's lights the scene is, and the object's own photo; `LIGHTS` is the object alone."""
    if not augment:
        return torch.zeros(count, dtype=torch.long, device=device), torch.full((count,), LIGHTS, device=device)
    light = torch.randint(LIGHTS, (count,), device=device)
    other = (light + 1 + torch.randint(LIGHTS - 1, (count,), device=device)) % LIGHTS
    kind = torch.rand(count, device=device)
    alone, on_ground = SOURCES
    return light, torch.where(kind < alone, LIGHTS, torch.where(kind < on_ground, other, light))


def _views(groups: torch.Tensor, light: torch.Tensor, source: torch.Tensor, augment: bool) -> _Views:
    """groups (B, C, S, S), light and source (B,) as `_draw_lights` gives them."""
    rows = torch.arange(len(groups), device=groups.device)
    lit, scene, kept = (
        groups[:, channels(name)].unflatten(1, (LIGHTS, -1))[rows, light] for name in ("lit", "photo", "bare")
    )
    every = torch.cat([groups[:, channels("lit")], groups[:, channels("alone")]], 1).unflatten(1, (LIGHTS + 1, 3))
    shown = lit, scene, every[rows, source], kept, groups[:, channels("alpha")], groups[:, channels("normal")]
    layers = torch.cat(shown, 1).float()
    views = _Views(*(_cropped(layers) if augment else layers).split([3, 3, 3, 1, 1, 3], 1))
    views.alpha = views.alpha.clamp(0, 1)
    return views


def _draw_exposures(
    views: _Views, same: torch.Tensor, augment: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What radiance is multiplied with, (B, 3, 1, 1), in the scene's photo and in the object's own; and where both are one.

    same: (B,), where the light is.
    """
    count, device = len(same), same.device

    def drawn(deviation: float, channels: int) -> torch.Tensor:
        return (augment * deviation * torch.randn(count, channels, 1, 1, device=device)).exp()

    solid = (views.alpha > 0.9).float()
    middle = luminance(views.scene).clamp(min=1e-4).log().mean((1, 2, 3), keepdim=True).exp()
    exposure = MIDDLE_GREY / middle * drawn(0.35, 1)
    most = BRIGHTEST / _quantile(luminance(views.lit), solid, 0.97)
    careful = torch.rand(count, 1, 1, 1, device=device) < (0.9 if augment else 1)
    factor = torch.where(careful, torch.minimum(exposure, most), exposure) * drawn(0.07, 3)
    own = OWN_BRIGHTEST / _quantile(luminance(views.own), solid, 0.9) * drawn(0.28, 1) * drawn(0.09, 3)
    alike = same.view(-1, 1, 1, 1) & (torch.rand(count, 1, 1, 1, device=device) < ALIKE)
    return factor, torch.where(alike, factor, own), alike


def _draw_relighting(count: int, size: torch.Size, device: torch.device) -> torch.Tensor:
    """(B, 3, H, W): factors of another exposure and white balance, and of light and tint that come from one side."""
    rows, columns = (torch.linspace(-1, 1, side, device=device) for side in size)

    def slope(channels: int) -> torch.Tensor:
        down, across = torch.randn(2, count, channels, 1, 1, device=device)
        return down * rows[:, None] + across * columns

    exposure, balance = (torch.randn(count, channels, 1, 1, device=device) for channels in (1, 3))
    return (0.28 * exposure + 0.1 * balance + 0.22 * slope(1) + 0.05 * slope(3)).exp()


def _sharpened(backgrounds: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
    """Half of them with the fine detail of photos, less of it in the dark."""
    count, device = len(backgrounds), backgrounds.device
    fine = _cropped(photos[torch.randint(len(photos), (count,), device=device), :3].flip(3).float() / 255)
    fine = fine - F.avg_pool2d(fine, 9, 1, 4, count_include_pad=False)
    half = torch.rand(count, 1, 1, 1, device=device) < 0.5
    brightness = backgrounds.mean((1, 2, 3), keepdim=True).clamp(max=0.5) / 0.5
    strength = 1.2 * torch.rand(count, 1, 1, 1, device=device) * half * brightness
    return (backgrounds + strength * fine).clamp(0, 1)


def _cropped(layers: torch.Tensor) -> torch.Tensor:
    """A random square of each, of `SMALLEST_CROP` to 1 of its side, brought to the full size."""
    count, device = len(layers), layers.device
    scale = SMALLEST_CROP + (1 - SMALLEST_CROP) * torch.rand(count, device=device)
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = (2 * torch.rand(count, 2, device=device) - 1) * (1 - scale)[:, None]
    grid = F.affine_grid(theta, [count, 1, *layers.shape[2:]], align_corners=False)
    return F.grid_sample(layers, grid, padding_mode="border", align_corners=False)


def _quantile(values: torch.Tensor, where: torch.Tensor, share: float) -> torch.Tensor:
    """(B, 1, 1, 1): the quantile of values (B, 1, H, W) where `where` is 1, from every fourth of them each way."""
    values, where = values[:, :, ::4, ::4].flatten(1), where[:, :, ::4, ::4].flatten(1)
    ordered = torch.where(where > 0, values, torch.inf).sort(1).values
    index = ((where.sum(1) - 1).clamp(min=0) * share).long()
    found = ordered.gather(1, index[:, None])[:, 0]
    return torch.where(found.isfinite(), found, 0.5).clamp(min=1e-3).view(-1, 1, 1, 1)
