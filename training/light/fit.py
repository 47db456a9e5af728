"""The light network's losses, measures and training loop."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from imprint.light import LightMaps, LightNet

from .pairs import LightBatch, draw_photographed, draw_rendered

EXPONENT = 2.2
"""Of a screen: a share of light, as a share of a picture's values."""


def relit(maps: LightMaps, batch: LightBatch) -> torch.Tensor:
    """The object's colours with the maps applied."""
    return (batch.picture * maps.gain.exp() + maps.offset).clamp(0, 1.1)


def darkening(shadow: torch.Tensor) -> torch.Tensor:
    """Share of light lost -> share of a picture's values lost."""
    return 1 - (1 - shadow).clamp(min=0) ** (1 / EXPONENT)


def broad(pictures: torch.Tensor, cells: int = 4) -> torch.Tensor:
    """Broad means of pictures (B, C, H, W), at a `cells`-th of their resolution."""
    return F.avg_pool2d(F.avg_pool2d(pictures, cells), 3, 1, 1, count_include_pad=False)


def losses(maps: LightMaps, batch: LightBatch) -> dict[str, torch.Tensor]:
    """Means over the batch; every object and every shadow counts alike, however large."""
    alpha, made = batch.alpha, relit(maps, batch)
    area = alpha.sum((1, 2, 3)).clamp(min=16)

    def over(error: torch.Tensor) -> torch.Tensor:
        return error.sum((1, 2, 3)) / (error.shape[1] * area)

    fine = over((made - batch.target).abs() * alpha)
    large = 16 * over(broad((made - batch.target) * alpha).abs())

    truth, free = darkening(batch.shadow), (alpha < 0.5).float() * batch.rendered
    # Deep shadow counts more: the median of all shadows that a picture allows would be next to none.
    weight = free * (0.15 + _hole(batch) + 2 * _contact(batch)) * (1 + 3 * truth)
    total = weight.sum((1, 2, 3)).clamp(min=16)
    off = maps.shadow - truth
    shade = (off.abs() * weight).sum((1, 2, 3)) / total
    edges = sum((each * free[..., : each.shape[2], : each.shape[3]]).abs().mean() for each in _slopes(off))
    solid = (alpha > 0.9).float() * batch.rendered
    shading = ((maps.shading - batch.shading).abs() * solid).sum() / (6 * solid.sum()).clamp(min=1)
    smooth = sum(each.abs().mean() for each in (*_slopes(maps.gain), *_slopes(maps.offset)))
    return {
        "fine": fine.mean(),
        "broad": large.mean(),
        "shadow": shade.sum() / batch.rendered.sum().clamp(min=1),
        "edges": edges,
        "shading": shading,
        "smooth": smooth,
    }


WEIGHTS = {"fine": 1.0, "broad": 2.0, "shadow": 1.5, "edges": 1.0, "shading": 0.1, "smooth": 0.02}


@torch.no_grad()
def measure(net: LightNet, batches: list[LightBatch], light: float = 1.0, shadow: float = 1.0) -> dict[str, float]:
    """Gains over pasting: 0 is pasting, 1 the truth. light, shadow: strengths, as in `imprint.light.relight`."""
    errors = {name: [0.0, 0.0] for name in ("light", "shadow", "contact")}
    for batch in batches:
        with torch.autocast(batch.picture.device.type, torch.bfloat16):
            maps = net(batch.picture, batch.alpha, batch.background)
        maps.gain, maps.offset = light * maps.gain, light * maps.offset
        solid = (batch.alpha > 0.95).float()
        truth, count = broad(batch.target * solid), broad(solid).sum((1, 2, 3)).clamp(min=1)
        for index, picture in enumerate((relit(maps, batch), batch.picture)):
            error = (broad(picture * solid) - truth).abs().sum((1, 2, 3)) / (3 * count)
            errors["light"][index] += float(error.sum())
        ground = (batch.alpha < 0.02).float()
        fine = lambda x: F.avg_pool2d(x * ground, 5, 1, 2) / F.avg_pool2d(ground, 5, 1, 2).clamp(min=0.05)
        dark = fine(darkening(batch.shadow))
        off = (fine(1 - (1 - maps.shadow) ** shadow) - dark).abs(), dark
        for name, where in (("shadow", _hole(batch)), ("contact", _contact(batch))):
            where = where * ground
            for index, error in enumerate(off):
                errors[name][index] += float(((error * where).sum((1, 2, 3)) / where.sum((1, 2, 3)).clamp(min=1)).sum())
    return {name: 1 - made / max(pasted, 1e-9) for name, (made, pasted) in errors.items()}


def fit(
    net: LightNet,
    rendered: tuple,
    photos: torch.Tensor | None,
    held_out: list[LightBatch],
    seconds: float,
    batch: int = 96,
    rate: float = 1e-3,
    photo_share: float = 0.25,
    cooldown: float = 0.3,
    weights: dict[str, float] = WEIGHTS,
    ranks: int = 1,
    refresh: Callable[[], tuple] | None = None,
    log=print,
) -> LightNet:
    """Train until the time is up; the mean of the weights over the last steps.

    rendered: groups, places, turns, lights, as `draw_rendered` takes them. The rate rises, stays, and falls to zero over
    the last `cooldown` of the time.
    """
    device = next(net.parameters()).device
    mean = copy.deepcopy(net)
    model = net
    if ranks > 1:
        model = torch.nn.parallel.DistributedDataParallel(net, device_ids=[device.index])
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.03, betas=(0.9, 0.98))
    start, step, sums = time.time(), 0, {}
    few = int(batch * photo_share) if photos is not None else 0
    while True:
        done = torch.tensor((time.time() - start) / seconds, device=device)
        if ranks > 1:
            torch.distributed.broadcast(done, 0)
        done = float(done)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 300) * min(1, (1 - done) / cooldown)
        drawn = draw_rendered(*rendered, torch.randint(len(rendered[0]), (batch - few,), device=device), photos)
        if few:
            drawn = join(drawn, draw_photographed(photos, torch.randint(len(photos), (few,), device=device)))
        with torch.autocast(device.type, torch.bfloat16):
            maps = model(drawn.picture, drawn.alpha, drawn.background)
        parts = losses(maps, drawn)
        loss = sum(weights[name] * value for name, value in parts.items())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            keep = min(0.998, step / (step + 30))
            torch._foreach_lerp_(list(mean.parameters()), list(net.parameters()), 1 - keep)
        for name, value in parts.items():
            sums[name] = sums.get(name, 0) + value.detach()
        if refresh and step % 250 == 0:
            rendered = refresh()
        if step % 500 == 0 or step == 1:
            shown = {name: round(float(value) / (500 if step > 1 else 1), 4) for name, value in sums.items()}
            sums = {}
            gains = {name: round(value, 3) for name, value in measure(mean, held_out).items()}
            log(f"{step} steps, {time.time() - start:.0f} s: {shown}; held out {gains}")
    return mean


def join(first: LightBatch, second: LightBatch) -> LightBatch:
    return LightBatch(*(torch.cat(pair) for pair in zip(vars(first).values(), vars(second).values())))


def _hole(batch: LightBatch) -> torch.Tensor:
    """(B, 1, H, W): 1 in the box of the object and its shadow."""
    inside = ((batch.alpha > 0.5) | (batch.shadow > 0.12)).float()
    rows, columns = inside.amax(3, keepdim=True), inside.amax(2, keepdim=True)
    spread = lambda line, axis: (line.cumsum(axis) > 0) & (line.flip(axis).cumsum(axis).flip(axis) > 0)
    return (spread(rows, 2) & spread(columns, 3)).float()


def _contact(batch: LightBatch) -> torch.Tensor:
    """(B, 1, H, W): 1 close beside the object's lower half."""
    solid = (batch.alpha > 0.5).float()
    count = solid.sum((2, 3), keepdim=True).clamp(min=1)
    rows = torch.arange(solid.shape[2], device=solid.device).view(1, 1, -1, 1).float()
    middle = (solid * rows).sum((2, 3), keepdim=True) / count
    lower = solid * (rows > middle)
    reach = round(0.03 * solid.shape[2])
    return (F.max_pool2d(lower, 2 * reach + 1, 1, reach) > 0).float()


def _slopes(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return maps[..., 1:] - maps[..., :-1], maps[..., 1:, :] - maps[..., :-1, :]
