"""Distillation: the mean prediction of several networks in place of the truth."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.distributions import Categorical

from imprint.lightnet import LightMaps, LightNet, folded_guesses, mirrored

from .losses import EXPONENT, relit
from .pairs import LightBatch


@torch.no_grad()
def taught(batch: LightBatch, teachers: list[LightNet], told: torch.Tensor) -> LightBatch:
    """Replace the truth of a batch by the mean of the teachers' maps, for the pictures and for their mirror images.

    A network that is listed more than once has a larger weight, but runs once. told: (B, 1), as in
    `training.light.losses.predicted`. The light's direction is drawn from the teachers' guesses by their probabilities;
    it is what the network is given, or has to guess. The mean errs less than a single network where that errs most,
    and it cannot be learned by memorising places.
    """
    kind, counts = batch.picture.device.type, Counter(teachers)
    pictures = [torch.cat([each, each.flip(3)]) for each in (batch.picture, batch.alpha, batch.background)]
    with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
        features = [net.encode(*pictures) for net in counts]
        guesses = [folded_guesses(*net.guesses(each)) for net, each in zip(counts, features)]
        directions = torch.cat([each for each, _ in guesses], 1)
        chances = [each + math.log(count) for (_, each), count in zip(guesses, counts.values())]
        drawn = Categorical(logits=torch.cat(chances, 1)).sample()
        source = F.pad(directions[torch.arange(len(drawn)), drawn], (0, 1), value=1.0)
        towards = torch.cat([source * told, mirrored(source) * told])
        seen = [vars(net.decode(each, towards).folded()).values() for net, each in zip(counts, features)]
    weighed = (zip(counts.values(), each) for each in zip(*seen))
    maps = LightMaps(*(sum(count * value for count, value in each) / len(teachers) for each in weighed))
    return replace(
        batch,
        target=relit(maps, batch).clamp(max=1),
        shadow=1 - (1 - maps.shadow) ** EXPONENT,
        shading=maps.shading,
        rendered=torch.ones_like(batch.rendered),
        direction=source,
    )
