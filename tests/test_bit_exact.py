"""Outside the blend mask every pixel is the background's, bit for bit.

python -m pytest tests/test_bit_exact.py --hypothesis-profile nightly    # 10,000 random cases of each
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from micro import cutout, photo, seeded
from PIL import Image

from imprint.blending import BLENDS, blend_pictures, feather, match_colour
from imprint.hole import Hole
from imprint.masks import LEVELS, coarsen

MODES = ("RGB", "RGBA", "L", "LA", "P", "1")


@st.composite
def scenes(draw) -> tuple[int, int, torch.Tensor, dict]:
    """Height, width, a mask (1, H, W) of speckles, boxes or anything in between, and a blend's widths and method."""
    height, width = draw(st.integers(1, 97)), draw(st.integers(1, 97))
    random = seeded(draw(st.integers(0, 2**31)))
    mask = torch.rand(1, height, width, generator=random)
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
    share = draw(st.sampled_from((0.01, 0.5, 1.0)))  # of the box that is hole
    inside = torch.zeros_like(mask, dtype=torch.bool)
    inside[:, top:bottom, left:right] = True
    mask = torch.where(inside & (mask < share), 1 - 0.49 * mask, 0.5 * mask)
    mask[0, top, left] = 1
    blend = {
        "inwards": draw(st.integers(0, 12)),
        "outwards": draw(st.integers(0, 40)),
        "method": draw(st.sampled_from(BLENDS)),
    }
    return height, width, mask, blend


@given(scenes(), st.integers(0, 2**31), st.booleans())
def test_blended_tensors(scene, seed: int, matched: bool):
    """Even if the generated picture has other colours everywhere, and the background is outside [0, 1]."""
    height, width, mask, blend = scene
    random = seeded(seed)
    background = torch.rand(2, 3, height, width, generator=random) * 1.4 - 0.2
    generated = torch.rand(2, 3, height, width, generator=random)
    masks = mask.expand(2, -1, -1)
    if matched:
        generated = match_colour(generated, background, masks)
    before = background.clone()
    result = blend_pictures(background, generated, masks, **blend)
    reach = feather(masks, blend["inwards"], blend["outwards"])[:, None].expand_as(result)
    assert torch.equal(result[reach == 0], background[reach == 0])
    assert torch.equal(background, before)
    assert bool(result[reach > 0].isfinite().all())
    if blend["method"] == "feather":
        assert torch.equal(result[reach == 1], generated[reach == 1])
    else:
        assert bool((result[reach > 0] >= 0).all()) and bool((result[reach > 0] <= 1).all())


@given(scenes(), st.sampled_from(LEVELS), st.floats(1, 4), st.booleans())
def test_generated_squares(scene, level: str, context: float, separate: bool):
    """The square that the model generates goes through the crop, its enlargement and the blend."""
    height, width, mask, blend = scene
    hole = Hole.find(coarsen(mask, level)[0], 64, context)
    rows, columns = hole.placement.area
    background = torch.rand(1, 3, height, width, generator=seeded(height))
    place = hole.placement.within(hole.placement.area)
    generated = background.clone()
    generated[:, :, rows, columns] = place.insert(generated[:, :, rows, columns], torch.rand(1, 3, 64, 64))
    outside = torch.ones(height, width, dtype=torch.bool)
    outside[rows, columns] = False
    assert torch.equal(generated[:, :, outside], background[:, :, outside])
    blend_mask = mask
    if not separate:
        blend_mask = torch.zeros_like(mask)
        blend_mask[0, rows, columns] = hole.mask
    result = blend_pictures(background, generated, blend_mask, **blend)
    untouched = feather(blend_mask, blend["inwards"], blend["outwards"])[0] == 0
    if blend["method"] == "feather":  # broad colours may reach past the square, but not past the blend mask
        untouched |= outside
    assert torch.equal(result[:, :, untouched], background[:, :, untouched])


@settings(max_examples=settings.default.max_examples // 4)  # each draws a picture
@given(scenes(), st.sampled_from(MODES), st.booleans(), st.floats(1, 3))
def test_the_whole_pipeline(pipeline_once, scene, mode: str, separate: bool, context: float):
    height, width, mask, blend = scene
    background = photo(width, height, seed=height).convert(mode if mode != "LA" else "RGBA").convert(mode)
    if mode == "RGBA":
        background.putalpha(photo(width, height, seed=1).convert("L"))
    hole = Image.fromarray((coarsen(mask, "fine")[0].numpy() * 255).astype(np.uint8))
    drawn = Image.fromarray((mask[0].numpy() > 0.5).astype(np.uint8) * 255)
    result = pipeline_once(
        cutout(20, 20),
        None,
        background,
        hole,
        num_inference_steps=1,
        guidance_scale=1,
        context=context,
        feather_pixels=blend["outwards"],
        feather_inwards=blend["inwards"],
        blend_method=blend["method"],
        blend_mask=drawn if separate else None,
    )
    given_hole = Hole.find(coarsen(mask, "fine")[0], 64, context)
    area = torch.zeros(1, height, width)
    area[(0, *given_hole.placement.area)] = given_hole.mask
    reach = feather(mask if separate else area, blend["inwards"], blend["outwards"])[0].numpy()
    check(background, result.images[0], reach)


def check(background: Image.Image, result: Image.Image, reach: np.ndarray) -> None:
    """Assert that the result is the background, with its own transparency, where the blend mask is 0."""
    transparent = background.has_transparency_data
    assert result.size == background.size and result.mode == ("RGBA" if transparent else "RGB")
    before, after = (np.asarray(picture.convert("RGB")) for picture in (background, result))
    assert np.array_equal(after[reach == 0], before[reach == 0])
    if transparent:
        assert np.array_equal(np.asarray(result)[..., 3], np.asarray(background.convert("RGBA"))[..., 3])


@pytest.fixture(scope="module")
def pipeline_once(micro_file):
    """Like `pipeline`, for a whole property: hypothesis would otherwise share the scheduler between examples."""
    from drawing import DrawingPipeline

    return DrawingPipeline.from_checkpoint(micro_file)


@pytest.mark.parametrize(("mode", "method"), [("RGBA", "feather"), ("L", "multiband")])
def test_eight_thousand_pixels(pipeline_once, mode: str, method: str):
    """An odd 8K frame with its hole in the far corner."""
    width, height = 7681, 4321
    background = photo(width, height, seed=3).convert(mode)
    if mode == "RGBA":
        background.putalpha(background.getchannel("G"))
    hole = Image.new("L", (width, height))
    hole.paste(255, (width - 900, height - 701, width - 100, height))
    result = pipeline_once(
        cutout(20, 20), None, background, hole, num_inference_steps=1, feather_pixels=33, blend_method=method
    ).images[0]
    mask = torch.from_numpy(np.asarray(hole)[None] / np.float32(255))
    reach = feather(mask, 0, 33)[0].numpy()
    check(background, result, reach)
    assert (np.asarray(result.convert("RGB"))[reach == 1] != np.asarray(background.convert("RGB"))[reach == 1]).any()
