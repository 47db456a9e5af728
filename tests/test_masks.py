import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from micro import seeded

from imprint.errors import ImprintError
from imprint.masks import (
    LEVELS,
    box,
    coarsen,
    enlarge,
    grow,
    grow_boxes,
    hole_pixels,
    latent_hole,
    mask_levels,
    paint_hole,
)
from imprint.preprocess import bounding_boxes


def disc(height: int, width: int, row: float, column: float, radius: float) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (((y - row) ** 2 + (x - column) ** 2) <= radius**2).float()


def star() -> torch.Tensor:
    """Thin arms, an outline that coarser levels must simplify."""
    mask = disc(96, 120, 50, 60, 6)
    mask[20:80, 59:61] = 1
    mask[49:51, 30:90] = 1
    return mask


def scattered() -> torch.Tensor:
    """Two parts that are far apart."""
    return torch.maximum(disc(96, 120, 10, 10, 5), disc(96, 120, 80, 100, 9))


SHAPES = {
    "disc": disc(96, 120, 50, 60, 20),
    "star": star(),
    "scattered": scattered(),
    "corner": disc(96, 120, 0, 0, 12),
    "full": torch.ones(96, 120),
    "one pixel": disc(96, 120, 33, 44, 0),
    "faint": disc(96, 120, 50, 60, 20) * 0.3,
}


@pytest.mark.parametrize("margin", [0, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_level_contains_the_one_before_it_and_the_object(shape, margin):
    mask = SHAPES[shape]
    levels = mask_levels(mask[None], margin)[0]
    assert levels.shape == (4, 96, 120)
    assert set(levels.unique().tolist()) <= {0.0, 1.0}
    seen = mask > (0.5 if mask.max() > 0.5 else 0)
    assert bool((levels[0] >= seen.float()).all())
    for tighter, coarser in itertools.pairwise(levels):
        assert bool((coarser >= tighter).all())


def test_levels_become_simpler():
    precise, fine, coarse, boxed = mask_levels(star()[None])[0].sum((1, 2)).tolist()
    assert precise == star().sum()
    assert precise < fine < coarse < boxed


def test_the_last_level_is_the_bounding_box_of_the_coarse_one():
    levels = mask_levels(star()[None])[0]
    top, left, bottom, right = bounding_boxes(levels[2:3])[0].tolist()
    assert levels[3].sum() == (bottom - top) * (right - left)
    assert bool(levels[3, top:bottom, left:right].all())


@pytest.mark.parametrize("margin", [1, 7])
def test_the_margin_is_in_pixels_at_every_side(margin):
    mask = torch.zeros(1, 80, 90)
    mask[:, 30:40, 20:50] = 1
    precise = coarsen(mask, "precise", margin=margin)
    assert bounding_boxes(precise)[0].tolist() == [30 - margin, 20 - margin, 40 + margin, 50 + margin]
    for level in LEVELS[1:]:
        top, left, bottom, right = bounding_boxes(coarsen(mask, level, margin=margin))[0].tolist()
        assert top <= 30 - margin and left <= 20 - margin and bottom >= 40 + margin and right >= 50 + margin


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("corner", [(0, 0), (40, 40), (79, 89)])
def test_a_small_mask_reaches_the_minimum_size(level, corner):
    mask = torch.zeros(1, 80, 90)
    mask[0, corner[0], corner[1]] = 1
    top, left, bottom, right = bounding_boxes(coarsen(mask, level, min_size=24))[0].tolist()
    assert bottom - top >= 24 and right - left >= 24
    assert 0 <= top and bottom <= 80 and 0 <= left and right <= 90


@pytest.mark.parametrize("room", [1, 13, 200])
def test_shadow_room_is_further_down_alone(room):
    mask = torch.zeros(1, 80, 90)
    mask[:, 30:40, 20:50] = 1
    precise = coarsen(mask, "precise", margin=3, shadow_room=room)
    assert bounding_boxes(precise)[0].tolist() == [27, 17, min(43 + room, 80), 53]
    for level in LEVELS[1:]:
        roomy, tight = (coarsen(mask, level, margin=3, shadow_room=more) for more in (room, 0))
        assert bool((roomy >= torch.maximum(precise, tight)).all())
        assert bounding_boxes(roomy)[0, 0] >= bounding_boxes(tight)[0, 0] - 2  # a larger blob swells a little more


def test_shadow_room_follows_the_outline():
    low = coarsen(star()[None], "precise", shadow_room=4)[0]
    below = torch.zeros(96, 120)
    for down in range(5):
        below[down:] = torch.maximum(below[down:], star()[: 96 - down])
    assert torch.equal(low, below)


def test_enlarging_keeps_the_centre_and_says_nothing_of_large_masks():
    mask = torch.zeros(2, 80, 90)
    mask[0, 40, 50] = mask[1, 10:70, 20:80] = 1
    larger = enlarge(mask, 9)
    assert bounding_boxes(larger)[0].tolist() == [36, 46, 45, 55] and torch.equal(larger[1], mask[1])
    assert enlarge(larger, 9) is larger


def test_minimum_size_stops_at_the_picture_and_leaves_large_masks_alone():
    mask = torch.zeros(1, 20, 60)
    mask[0, 5:9, 10:50] = 1
    assert bounding_boxes(coarsen(mask, "precise", min_size=50))[0].tolist() == [0, 5, 20, 55]
    assert torch.equal(coarsen(mask, "precise", min_size=3), mask)


def test_a_batch_is_its_members():
    masks = torch.stack([SHAPES[name] for name in ("disc", "star", "corner", "faint")])
    together = mask_levels(masks, margin=2, min_size=30)
    for one, levels in zip(masks, together):
        assert torch.equal(mask_levels(one[None], margin=2, min_size=30)[0], levels)


def test_levels_scale_with_the_object():
    """The same outline at twice the size swells about twice as far."""
    small, large = (bounding_boxes(coarsen(disc(s, s, s / 2, s / 2, s / 8)[None], "coarse"))[0] for s in (128, 256))
    swell_small, swell_large = 128 / 2 - 128 / 8 - small[0], 256 / 2 - 256 / 8 - large[0]
    assert swell_small > 0
    assert abs(swell_large / swell_small - 2) < 0.5


def test_pictures_beyond_the_working_size():
    mask = disc(1500, 2100, 700, 1000, 30)[None]
    levels = mask_levels(mask)[0]
    assert torch.equal(levels[0], mask[0])
    for tighter, coarser in itertools.pairwise(levels):
        assert bool((coarser >= tighter).all())
    assert levels[2].sum() > levels[0].sum()


def test_half_precision_masks_give_the_same_levels():
    assert torch.equal(mask_levels(star()[None].half())[0].float(), mask_levels(star()[None])[0])


def test_latent_hole_has_every_cell_that_the_hole_touches():
    mask = torch.zeros(1, 64, 64)
    mask[0, 7:9, 16] = 1  # across the border of two cells
    cells = latent_hole(mask, 8)
    assert cells.shape == (1, 1, 8, 8)
    assert cells.nonzero()[:, 2:].tolist() == [[0, 2], [1, 2]]


def test_painting_leaves_nothing_of_the_hole_and_all_of_the_rest():
    images = torch.rand(2, 3, 64, 64, generator=seeded())
    cells = torch.zeros(2, 1, 8, 8)
    cells[:, :, 2:5, 3:4] = 1
    painted = paint_hole(images, cells, 0.5)
    assert bool((painted[:, :, 16:40, 24:32] == 0.5).all())
    assert torch.equal(painted[:, :, :16], images[:, :, :16])
    assert torch.equal(painted[:, :, :, 32:], images[:, :, :, 32:])


def test_hole_pixels_are_the_cells_in_full():
    mask = torch.zeros(1, 32, 32)
    mask[0, 9, 20] = 1
    pixels = hole_pixels(latent_hole(mask, 8), 8)
    assert pixels.shape == (1, 1, 32, 32) and pixels.sum() == 64
    assert bounding_boxes(pixels[0])[0].tolist() == [8, 16, 16, 24]


def test_grow_and_box():
    mask = torch.zeros(1, 9, 9)
    mask[0, 4, 4] = 1
    assert grow(mask, 2).sum() == 25
    assert bounding_boxes(grow(mask, 2, below=1))[0].tolist() == [2, 2, 8, 7]
    assert torch.equal(grow(mask, 30, below=30), torch.ones(1, 9, 9))
    assert torch.equal(grow(mask, 0), mask)
    mask[0, 1, 7] = 1
    assert bounding_boxes(box(mask))[0].tolist() == [1, 4, 5, 8]
    assert box(mask).sum() == 16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mask_levels(torch.zeros(1, 64, 64)), "empty.*64x64"),
        (lambda: mask_levels(torch.stack([star(), torch.zeros(96, 120)])), "empty"),
        (lambda: mask_levels(star()[None], margin=-1), "margin is -1"),
        (lambda: mask_levels(star()[None], min_size=-4), "minimum size -4"),
        (lambda: mask_levels(star()[None], shadow_room=-2), "shadow room -2"),
        (lambda: coarsen(star()[None], "rough"), "'rough'.*precise, fine, coarse, box"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ImprintError, match=message):
        call()


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**31),
    st.integers(0, 9),
    st.integers(0, 50),
    st.floats(0.002, 1),
)
@settings(max_examples=60, deadline=None)
def test_any_mask_is_within_its_levels(height, width, seed, margin, min_size, share):
    mask = (torch.rand(1, height, width, generator=seeded(seed)) < share).float()
    mask[0, seed % height, seed % width] = 1
    levels = mask_levels(mask, margin, min_size)[0]
    assert bool((levels[0] >= grow(mask, margin)[0]).all())
    for tighter, coarser in itertools.pairwise(levels):
        assert bool((coarser >= tighter).all())
    top, left, bottom, right = bounding_boxes(levels[:1])[0].tolist()
    assert bottom - top >= min(min_size, height) and right - left >= min(min_size, width)


@pytest.mark.parametrize("box", [(10, 12, 20, 30), (0, 0, 5, 5), (38, 44, 40, 50), (0, 0, 40, 50)])
@pytest.mark.parametrize(("pixels", "below"), [(0, 0), (3, 0), (4, 9)])
def test_grown_boxes_are_the_boxes_of_grown_masks(box, pixels, below):
    mask = torch.zeros(1, 40, 50)
    mask[0, box[0] : box[2], box[1] : box[3]] = 1
    grown = grow_boxes(bounding_boxes(mask), pixels, below, 40, 50)
    assert torch.equal(grown, bounding_boxes(grow(mask, pixels, below)))
