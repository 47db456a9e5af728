"""How true light and shadow are on held-out path-traced groups, for light networks as they are used.

GROUPS are folders of `training.prepare light`. Exposures, white balances and crops are drawn, the same in every run on
a device. As it is used, a network sees each picture and its mirror image, and the shadow is that of its likeliest guess
of the light's direction, made fainter by the network's own `shadow_power`. A second row tells it the true direction,
with the shadow at its full strength. A gain is 1 - error / error of pasting: 0 is pasting, 1 the truth.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from tqdm import tqdm

from imprint.light import predict_maps
from imprint.lightnet import LightMaps, LightNet, load_light

from ..data.shards import SPLITS
from ..light.fit import require_side
from ..light.gains import Errors, fixed_pairs
from ..light.memory import GroupReader
from ..light.pairs import LightBatch, Variety
from ..light.scenes import LIGHTS
from .settings import EvaluateGroups

PLACES_AS_THEY_ARE = Variety(repainted=0, textured=0, tinted=0, mixed=0)


def evaluate_groups(settings: EvaluateGroups) -> dict:
    """The gains of each network, guessing and told the light's direction, and what they were measured on.

    Raises `ImprintError` for groups and networks that cannot be used.
    """
    device = torch.device("cuda" if settings.device == "auto" and torch.cuda.is_available() else "cpu")
    reader = GroupReader(settings.groups, SPLITS[1], device, settings.held_out)
    groups, side = reader.groups, reader.side
    nets = {name: load_light(path).to(device) for name, path in settings.checkpoint}
    for name, net in nets.items():
        require_side(side, net.config.resolution, f"the network {name}", f"give networks for {side} px")
    variety, draws = (None, 1) if settings.plain else (PLACES_AS_THEY_ARE, settings.draws)
    errors = {name: (Errors(), Errors()) for name in nets}
    with tqdm(total=draws * len(groups) * len(nets), unit="pair", leave=False) as bar:
        for batch in fixed_pairs(groups, variety=variety, draws=draws):
            for name, net in nets.items():
                for told, summed in enumerate(errors[name]):
                    summed.add(maps_as_used(net, batch, bool(told)), batch)
                bar.update(len(batch))
    return {
        "pairs": draws * len(groups),
        "groups": len(groups),
        "places": len(groups.places[:, : 1 if settings.plain else LIGHTS].unique()),
        "gains": {name: {"guessed": guessed.gains(), "told": told.gains()} for name, (guessed, told) in errors.items()},
    }


def groups_report(result: dict) -> str:
    """A table of a result."""
    header = f"{result['pairs']} pairs of {result['groups']} groups in {result['places']} places"
    lines = [f"| {header} | light | shadow | contact |", "|---|---|---|---|"]
    for name, rows in result["gains"].items():
        for kind, row in ((name, rows["guessed"]), (f"{name}, told the direction", rows["told"])):
            lines.append(f"| {kind} | {' | '.join(f'{gain:+.3f}' for gain in row.values())} |")
    return "\n".join(lines)


@torch.no_grad()
def maps_as_used(net: LightNet, batch: LightBatch, told: bool) -> LightMaps:
    """What `imprint.light.relight` applies, but for its blurs. told: of the true direction, and at full strength."""
    kind = batch.picture.device.type
    with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
        pictures = [batch.picture, batch.alpha, batch.background]
        maps = predict_maps(net, pictures, batch.direction[:, :3] if told else None)
    power = 1 if told else net.config.shadow_power
    return replace(maps, shadow=1 - (1 - maps.shadow.float()) ** power)
