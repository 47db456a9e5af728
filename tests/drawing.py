"""A pipeline for tests of the model's drawing: it draws into boxes as well as outlines."""

from __future__ import annotations

import torch
from micro import seeded
from PIL import Image

from imprint.blending import feather
from imprint.config import ImprintConfig
from imprint.crop import FEATHER
from imprint.hole import Hole
from imprint.mask_reading import mask_to_tensor
from imprint.pipeline import ImprintPipeline


class DrawingPipeline(ImprintPipeline):
    """`ImprintPipeline`, silent and with `fit="fill"` by default."""

    _progress_bar_config = {"disable": True}  # diffusers' own

    def __call__(self, *args, fit: str = "fill", **settings):
        return super().__call__(*args, fit=fit, **settings)


def run(pipeline, scene, seed: int = 0, **settings):
    """One call with (object, background, hole), as tensors by default."""
    settings.setdefault("output_type", "pt")
    subject, background, hole = scene
    return pipeline(subject, None, background, hole, generator=seeded(seed), **settings)


def blend_of(hole: Image.Image, config: ImprintConfig, feather_pixels=None, context=None) -> torch.Tensor:
    """(H, W) bool: the area that may change according to the documentation."""
    mask = (mask_to_tensor(hole) > 0.5).float()
    place = Hole.find(mask[0], config.resolution, context or config.sampling.context).placement
    width = round(FEATHER * place.side / place.resolution) if feather_pixels is None else feather_pixels
    return feather(mask, outwards=width)[0] > 0
