"""How much of pasting's error the light network removes, on pairs that are the same in every run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from imprint.lightnet import LightMaps

from .losses import broad, contact, darkening, hole, predicted, relit, total
from .pairs import LightBatch, LightGroups, Variety, draw_rendered

PART = 48
"""Groups whose pairs are drawn at once."""


def fixed_pairs(
    groups: LightGroups, most: int | None = None, variety: Variety | None = None, draws: int = 1
) -> Iterator[LightBatch]:
    """Batches of pairs of all groups, or of the first `most`; the same in every run on a device.

    variety: as in `draw_rendered`; without it nothing is random. draws: pairs of each group. Between the batches, the
    global generators are those that draw them.
    """
    device = groups.radiance.device
    parts = torch.arange(min(most or len(groups), len(groups)), device=device).split(PART)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        for _ in range(draws):
            for part in parts:
                yield draw_rendered(groups, part, variety=variety)


class Errors:
    """Summed errors of a network's maps, and of pasting."""

    def __init__(self) -> None:
        self.sums = {name: torch.zeros(2) for name in ("light", "shadow", "contact")}

    def add(self, maps: LightMaps, batch: LightBatch) -> None:
        """The errors of a batch's pairs."""
        self.sums["light"] += _light_errors(relit(maps, batch), batch)
        for name, where in (("shadow", hole(batch)), ("contact", contact(batch))):
            self.sums[name] += _shadow_errors(maps.shadow.float(), batch, where)

    def gains(self) -> dict[str, float]:
        """1 - error / error of pasting: 0 is pasting, 1 the truth."""
        return {name: float(1 - made / pasted.clamp(min=1e-9)) for name, (made, pasted) in self.sums.items()}


@torch.no_grad()
def gains(net: nn.Module, batches: Iterable[LightBatch], told: bool = False) -> dict[str, float]:
    """The gains of a network that runs once. told: whether it is given the light's direction."""
    errors = Errors()
    for batch in batches:
        errors.add(predicted(net, batch, torch.ones_like(batch.direction[:, :1]) if told else None), batch)
    return errors.gains()


def _light_errors(made: torch.Tensor, batch: LightBatch) -> torch.Tensor:
    """(2,): summed errors of the broad colours, relit and pasted."""
    solid = (batch.alpha > 0.95).float()
    truth, count = broad(batch.target * solid), 3 * total(broad(solid)).clamp(min=1)
    errors = [(total((broad(picture * solid) - truth).abs()) / count).sum() for picture in (made, batch.picture)]
    return torch.stack(errors).cpu()


def _shadow_errors(lost: torch.Tensor, batch: LightBatch, where: torch.Tensor) -> torch.Tensor:
    """(2,): summed errors of the ground's darkening where `where` is 1, with the network's shadow and without one."""
    ground = (batch.alpha < 0.02).float()
    near = F.avg_pool2d(ground, 5, 1, 2).clamp(min=0.05)
    truth, made = (F.avg_pool2d(each * ground, 5, 1, 2) / near for each in (darkening(batch.shadow), lost))
    where = where * ground
    count = total(where).clamp(min=1)
    return torch.stack([(total(off.abs() * where) / count).sum() for off in (made - truth, truth)]).cpu()
