"""The alpha and the shadow that the pipeline returns are the ones that its picture was made with."""

import pytest
import torch
from micro import seeded
from PIL import Image

from imprint import finishing as module
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
    """picture = alpha * generated + (1 - alpha) * (1 - shadow) * background, in a square that is not resampled.

    Outside the hole, only the shadow changes the picture.
    """
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
    ground = ((1 - made.shadow) * before)[:, ~inside]
    assert (after[:, ~inside] - ground).abs().max() < 1e-5 and made.shadow[:, ~inside].max() > 0.05
    free = ~inside & (made.shadow[0] == 0)
    assert free.any() and torch.equal(after[:, free], before[:, free])


def test_a_drawn_object_throws_a_shadow_beyond_its_mask(shipped, monkeypatch):
    thrown, light = [], module.relight
    monkeypatch.setattr(module, "relight", lambda *given: thrown.append((given, light(*given))) or thrown[-1][1])
    subject, background = (Image.open(SHIPPED.parent / "samples" / name) for name in ("sloth.webp", "hall.jpg"))
    hole = torch.zeros(1, background.height, background.width)
    hole[:, 150:300, 110:250] = 1

    def drawn(**options) -> torch.Tensor:
        options |= {"fit": "fill", "num_inference_steps": 4, "generator": seeded(2), "output_type": "pt"}
        return shipped(subject, None, background, hole, **options).images[0]

    before, made = image_to_tensor(background)[0], drawn(light_from="left", softness=0.5, light=0.7)
    (_, _, placed, *strengths), lit = thrown[0]
    assert strengths == [0.0, 1.0, 0.5, "left"]  # its light it has from the drawing
    expected = before.clone()
    expected[(slice(None), *lit.area)] = lit.ground()[0]
    free = torch.ones_like(hole, dtype=torch.bool)
    free[(0, *placed.area)] = placed.alpha == 0
    free[:, 140:310, 100:260] = False  # the hole and its soft edge
    free = free.expand_as(before)
    assert torch.equal(made[free], expected[free]) and (made - before)[free].min() < -0.1
    assert not thrown.clear() and torch.equal(drawn(shadow=0.0)[free], before[free]) and not thrown
    limited = drawn(light_from="left", blend_mask=hole)
    assert torch.equal(limited[free], before[free]) and not torch.equal(limited, drawn(shadow=0.0))
