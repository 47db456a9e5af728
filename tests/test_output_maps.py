"""The alpha and the shadow that the pipeline gives are the ones that its picture was made with."""

import pytest
import torch
from micro import seeded
from PIL import Image

from imprint import phases as module
from imprint.checkpoint import SHIPPED
from imprint.images import image_to_tensor
from imprint.pipeline import ImprintPipeline


@pytest.fixture(scope="module")
def shipped() -> ImprintPipeline:
    pipeline = ImprintPipeline.from_checkpoint(SHIPPED)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("settings", [{}, {"detail": 0.0}, {"detail": 0.0, "shadow": 1.5}], ids=str)
def test_the_maps_are_those_that_were_composited(shipped, monkeypatch, settings):
    """picture = alpha * generated + (1 - alpha) * (1 - shadow) * background, in a square that is not resampled."""
    seen, restore = {}, module.restore_detail

    def watch(picture, alpha, *others):
        seen["predicted"] = alpha
        restored = restore(picture, alpha, *others)
        seen["generated"], seen["alpha"], _ = restored
        return restored

    monkeypatch.setattr(module, "restore_detail", watch)
    subject, background = (Image.open(SHIPPED.parent / "samples" / f"{name}.png") for name in ("object", "background"))
    hole = torch.zeros(1, background.height, background.width)
    side = shipped.model_config.resolution
    hole[:, 100 : 100 + side // 2, 90 : 90 + side // 2] = 1
    made = shipped(
        subject,
        None,
        background,
        hole,
        fit="fill",
        context=2.0,
        num_inference_steps=4,
        feather_pixels=0,
        generator=seeded(2),
        output_type="pt",
        **settings,
    )
    area = made.placement.area
    assert made.placement.side == side
    assert torch.equal(seen["alpha"], seen["predicted"]) == ("detail" in settings)  # the photo's outline changes it
    inside = hole[(0, *area)] > 0
    before, after = (each[(0, slice(None), *area)] for each in (image_to_tensor(background), made.images))
    crop = tuple(slice(1, 1 + side) for _ in area)  # the square within what is composited, a pixel wider all around
    generated = seen["generated"][(0, slice(None), *crop)]
    expected = made.alpha * generated + (1 - made.alpha) * (1 - made.shadow) * before
    assert made.alpha.max() > 0.9 and made.shadow.max() > 0.1
    assert (after - expected)[:, inside].abs().max() < 1e-5
    assert torch.equal(after[:, ~inside], before[:, ~inside])
