"""Where an object's photo lies in the frame: geometry, edges and error messages."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from micro import seeded

from imprint import place as place_module
from imprint.errors import ImprintError
from imprint.place import (
    ACROSS,
    DOWN,
    Align,
    Place,
    PlacedObject,
    fit_into,
    is_box,
    is_drawn,
    object_height,
    place_object,
)
from imprint.sprites import clean_edge, reduced, resized, spread, turned
from imprint.views import ObjectViews

RED = torch.tensor([1.0, 0.0, 0.0])[:, None, None]


def subject(high: int, wide: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (3, h, w) with a mask (h, w) that is soft everywhere: no edge is cleaned, and every pixel is kept."""
    generator = seeded(seed)
    return torch.rand(3, high, wide, generator=generator), torch.full((high, wide), 0.9)


def views(picture: torch.Tensor, mask: torch.Tensor) -> ObjectViews:
    return ObjectViews((picture[None],), (mask[None],))


def box_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> torch.Tensor:
    """(H, W), 1 in (top, left, bottom, right)."""
    mask = torch.zeros(size)
    mask[box[0] : box[2], box[1] : box[3]] = 1
    return mask


# --- a box -----------------------------------------------------------------------------------------------------------


def test_a_hundred_boxes_keep_the_object_s_proportions():
    """The object's aspect ratio over the box's ranges from 0.2 to 5.

    It is within 5 %, in the box, on its lower edge, and touches its sides.
    """
    random = np.random.default_rng(0)
    for ratio in np.geomspace(0.2, 5, 100):
        own_high, own_wide = random.integers(60, 160, 2)
        wide = int(random.integers(60, 150))
        high = round(wide * ratio * own_high / own_wide)
        top, left = (int(each) for each in random.integers(0, 40, 2))
        frame, box = (top + high + 20, left + wide + 20), (top, left, top + high, left + wide)
        own = torch.zeros(own_high + 30, own_wide + 30)
        own[10 : 10 + own_high, 20 : 20 + own_wide] = 1
        made = place_object(views(torch.rand(3, *own.shape), own), frame, box_mask(frame, box))
        seen_top, seen_left, seen_bottom, seen_right = made.box
        drawn = (seen_right - seen_left) / (seen_bottom - seen_top)
        assert drawn == pytest.approx(own_wide / own_high, rel=0.05), (ratio, own_high, own_wide, box)
        assert seen_bottom == box[2] and seen_top >= box[0] and seen_left >= box[1] and seen_right <= box[3]
        assert max((seen_right - seen_left) / wide, (seen_bottom - seen_top) / high) > 0.95
        assert abs((seen_left + seen_right) - (box[1] + box[3])) <= 1
        assert (made.alpha.amax(1) > 0).all() and (made.alpha.amax(0) > 0).all()  # no empty line: it does stand there


@given(st.tuples(*[st.integers(1, 60)] * 4), st.sampled_from([0.0, 90.0, 33.0, None]), st.booleans())
def test_no_object_leaves_its_box(sides, rotate, flip):
    own_high, own_wide, high, wide = sides
    box = (7, 5, 7 + high, 5 + wide)
    picture, mask = subject(own_high, own_wide)
    made = PlacedObject.put(picture, mask, fit_into(picture, mask, box, rotate, flip), (70, 70))
    assert made.box[2] == box[2] and all(inner >= outer for inner, outer in zip(made.box[:2], box[:2]))
    assert made.box[3] <= box[3]


def test_a_very_wide_object_is_one_pixel_high():
    picture, mask = subject(1, 1000)
    made = PlacedObject.put(picture, mask, fit_into(picture, mask, (0, 0, 10, 10)), (10, 10))
    assert made.box == (9, 0, 10, 10)


@pytest.mark.parametrize(("high", "wide", "expected"), [(20, 80, (80, 20)), (80, 20, (80, 20)), (50, 50, (40, 40))])
def test_auto_turns_what_then_fills_more_of_the_box(high, wide, expected):
    made = place_object(views(*subject(high, wide)), (100, 60), box_mask((100, 60), (10, 10, 90, 50)), rotate="auto")
    assert tuple(made.alpha.shape) == expected
    picture, mask = subject(high, wide)
    assert fit_into(picture, mask, (10, 10, 90, 50), None).rotate == (90 if (high, wide) == (20, 80) else 0)


def test_a_box_turns_and_mirrors_too():
    picture, mask = subject(20, 30)
    made = place_object(views(picture, mask), (60, 60), box_mask((60, 60), (10, 10, 40, 30)), rotate=90, flip=True)
    assert torch.equal(made.colours, torch.rot90(picture.flip(2), -1, (1, 2)))


def test_an_outline_and_fill_are_for_the_model():
    frame = (60, 60)
    box = box_mask(frame, (10, 10, 40, 40))
    outline = box.clone()
    outline[10:20, 10:20] = 0
    given_views = views(*subject(20, 30))
    assert is_box(box) and not is_box(outline)
    assert place_object(given_views, frame, outline) is None
    assert place_object(given_views, frame, box, fit="fill") is None
    assert place_object(given_views, frame, box) is not None


def test_the_model_draws_where_the_photo_is_not_enough():
    box = box_mask((60, 60), (10, 10, 40, 40))
    outline = box.clone()
    outline[10:20, 10:20] = 0
    assert not is_drawn(box) and not is_drawn(None)
    assert is_drawn(outline) and is_drawn(torch.zeros(60, 60))
    for mask in (box, None):
        assert is_drawn(mask, "fill") and is_drawn(mask, "outline") and is_drawn(mask, change="keep")


# --- aligned ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("across", ACROSS)
@pytest.mark.parametrize("down", DOWN)
def test_an_aligned_object_lies_where_it_is_told(across, down):
    """A 20x30 object in a 60x100 frame, with 5 pixels kept free along each side; the same in a box."""
    picture, mask = subject(20, 30)
    lefts, tops = {"left": 5, "center": 35, "right": 65}, {"top": 5, "middle": 20, "bottom": 35}
    align = Align(across, down, inset=5 / 60, height=20)
    made = place_object(views(picture, mask), (60, 100), align=align)
    top, left = tops[down], lefts[across]
    assert made.size == (60, 100) and made.box == (top, left, top + 20, left + 30)
    assert torch.equal(made.colours, picture) and torch.equal(made.alpha, mask)
    in_box = place_object(views(picture, mask), (90, 150), box_mask((90, 150), (11, 17, 71, 117)), align=align)
    assert in_box.box == (top + 11, left + 17, top + 31, left + 47)


def test_without_a_height_it_fills_what_the_inset_leaves():
    given_views = views(*subject(20, 30))
    assert place_object(given_views, (60, 100), align=Align()).box == (0, 5, 60, 95)
    assert place_object(given_views, (60, 100), align=Align("left", inset=0.25)).box == (15, 15, 45, 60)
    turned_so = place_object(given_views, (100, 60), align=Align("right", "top", 0.1), rotate="auto")
    assert turned_so.box == (6, 6, 78, 54)


def test_the_default_alignment_is_where_a_box_has_it():
    """Except for the side to which half a pixel is rounded."""
    for wide in (40, 41, 55):
        mask = box_mask((60, 100), (11, 17, 51, 17 + wide))
        plain = place_object(views(*subject(30, 20)), (60, 100), mask)
        made = place_object(views(*subject(30, 20)), (60, 100), mask, align=Align())
        assert torch.equal(made.colours, plain.colours) and made.corner[0] == plain.corner[0]
        assert abs(made.corner[1] - plain.corner[1]) <= 1


@given(
    st.tuples(*[st.integers(1, 60)] * 4),
    st.sampled_from([0.0, 90.0, 33.0, None]),
    st.sampled_from(list(ACROSS)),
    st.sampled_from(list(DOWN)),
    st.floats(0, 0.5, exclude_max=True),
)
def test_no_aligned_object_leaves_what_the_inset_leaves(sides, rotate, across, down, inset):
    own_high, own_wide, high, wide = sides
    box, align = (7, 5, 7 + high, 5 + wide), Align(across, down, inset)
    top, left, bottom, right = align.within(box)
    assert bottom > top and right > left
    free = {top - 7, left - 5, 7 + high - bottom, 5 + wide - right}
    assert len(free) == 1 and abs(free.pop() - inset * min(high, wide)) <= 1
    made = PlacedObject.aligned(*subject(own_high, own_wide), box, align, (70, 70), rotate)
    assert made.box[0] >= top and made.box[1] >= left and made.box[2] <= bottom and made.box[3] <= right
    touched = {"left": made.box[1] == left, "right": made.box[3] == right}
    assert touched.get(across, True) and {"top": made.box[0] == top, "bottom": made.box[2] == bottom}.get(down, True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"x": "middle"}, "alignment's x is 'middle'; it must be one of center, left, right"),
        ({"y": "center"}, "alignment's y is 'center'; it must be one of bottom, middle, top"),
        ({"x": ["left"]}, r"alignment's x is \['left'\]; it must be one of"),
        ({"inset": 0.5}, "inset is 0.5; it must be less than half of the shorter side"),
        ({"inset": -0.1}, "inset is -0.1"),
        ({"inset": math.nan}, "inset is nan"),
        ({"height": 0.5}, "height is 0.5; it must be a finite number of 1 or more"),
        ({"height": math.inf}, "height is inf"),
        ({"height": math.nan}, "height is nan"),
    ],
)
def test_an_alignment_is_of_known_words_and_numbers(values, message):
    with pytest.raises(ImprintError, match=message):
        Align(**values)


# --- a place ---------------------------------------------------------------------------------------------------------

CORNERS = {  # where the upper left corner goes, as (lower, right), and the same of a mirrored object
    0: ((0, 0), (0, 1)),
    90: ((0, 1), (1, 1)),
    180: ((1, 1), (1, 0)),
    270: ((1, 0), (0, 0)),
    -90: ((1, 0), (0, 0)),
    450: ((0, 1), (1, 1)),
    -360: ((0, 0), (0, 1)),
}


@pytest.mark.parametrize("rotate", CORNERS)
@pytest.mark.parametrize("flip", [False, True])
def test_a_marked_corner_goes_where_it_must_and_quarter_turns_are_exact(rotate, flip):
    picture, mask = subject(20, 30)
    picture[:, 0, 0] = RED[:, 0, 0]
    high, wide = (20, 30) if rotate % 180 == 0 else (30, 20)
    made = PlacedObject.put(picture, mask, Place(40, 50, high, rotate, flip), (60, 80))
    assert made.box == (50 - high, 40 - wide // 2, 50, 40 + wide // 2)
    lower, right = CORNERS[rotate][flip]
    assert torch.equal(made.colours[:, -lower, -right], RED[:, 0, 0])
    expected = np.rot90(picture.flip(2).numpy() if flip else picture.numpy(), -round(rotate / 90), (1, 2))
    assert np.array_equal(made.colours.numpy(), expected)
    assert made.alpha.unique().tolist() == mask.unique().tolist()


@pytest.mark.parametrize("degrees", [1.0, 30.0, 44.0, 46.0, 135.0, -60.0, 300.0])
def test_any_turn_is_clockwise_by_so_many_degrees(degrees):
    side, radius = 121, 60
    y, x = torch.meshgrid(torch.arange(side) - radius, torch.arange(side) - radius, indexing="ij")
    mask = ((x**2 + y**2) <= 58**2).float() * 0.9
    dot = ((x**2 + (y + 40) ** 2) <= 25).float()  # above the middle
    colours, alpha = turned(dot[None].expand(3, -1, -1), mask, degrees, False)
    share = colours[0] * (alpha > 0.5)
    rows, columns = (torch.arange(length).float() - (length - 1) / 2 for length in share.shape)
    found = (share.sum(0) @ columns / share.sum(), share.sum(1) @ rows / share.sum())
    angle = math.radians(degrees)
    assert found == pytest.approx((40 * math.sin(angle), -40 * math.cos(angle)), abs=0.7)
    assert share.sum() == pytest.approx(float(dot.sum()), rel=0.03)


@given(st.tuples(*[st.integers(1, 40)] * 2), st.floats(-60, 100), st.floats(-60, 100), st.floats(1, 90), st.booleans())
def test_what_lies_outside_the_frame_is_cut_off_and_nothing_else(sides, x, y, height, flip):
    """Compared with the same object in a frame that contains all of it."""
    picture, mask = subject(*sides)
    # Every edge here is soft, and whole pixels do not move with the frame.
    x, y = round(x), round(y)
    around = 4000
    whole = PlacedObject.put(picture, mask, Place(x + around, y + around, height, 0, flip), (2 * around, 2 * around))
    top, left, bottom, right = (each - around for each in whole.box)
    assert bottom == y and bottom - top == max(1, round(height)) and abs(left + right - 2 * x) <= 1
    frame = (50, 60)
    if bottom <= 0 or top >= 50 or right <= 0 or left >= 60:
        with pytest.raises(ImprintError, match="would lie outside the 60x50 background"):
            PlacedObject.put(picture, mask, Place(x, y, height, 0, flip), frame)
        return
    made = PlacedObject.put(picture, mask, Place(x, y, height, 0, flip), frame)
    assert made.box == (max(0, top), max(0, left), min(50, bottom), min(60, right))
    rows, columns = slice(made.box[0] - top, made.box[2] - top), slice(made.box[1] - left, made.box[3] - left)
    assert torch.equal(made.colours, whole.colours[:, rows, columns])
    assert torch.equal(made.alpha, whole.alpha[rows, columns])


def test_an_object_may_be_larger_than_the_frame_but_not_by_any_size(monkeypatch):
    picture, mask = subject(30, 30)
    made = PlacedObject.put(picture, mask, Place(5, 300, 600), (10, 10))
    assert made.box == (0, 0, 10, 10)
    asked = []
    monkeypatch.setattr(place_module, "resized", lambda *args: asked.append(args))
    for size in ((10, 10), (8000, 8000)):
        with pytest.raises(ImprintError, match="1000000x1000000 pixels, many times the"):
            PlacedObject.put(picture, mask, Place(5, 300, 1e6), size)
    assert not asked  # refused before anything of that size is made


def test_the_height_is_the_visible_object_s_and_not_its_photo_s():
    """Specks of a matte far from the object neither shrink nor lift it."""
    own = torch.zeros(100, 100)
    own[20:60, 30:50] = 1
    clean = PlacedObject.put(torch.rand(3, 100, 100), own, Place(40, 80, 40), (100, 100))
    own[99, 99] = own[0, 0] = 2 / 255
    dusty = PlacedObject.put(torch.rand(3, 100, 100), own, Place(40, 80, 40), (100, 100))
    assert clean.box == dusty.box == (40, 30, 80, 50)
    assert object_height(torch.rand(1, 3, 100, 100), own[None]) == 40
    assert object_height(torch.rand(1, 3, 100, 100), own[None], 90) == 20


def test_a_single_pixel_is_an_object():
    mask = torch.zeros(9, 9)
    mask[4, 4] = 1
    made = PlacedObject.put(torch.full((3, 9, 9), 0.3), mask, Place(5.5, 6, 1), (10, 10))
    assert made.box == (5, 5, 6, 6) and made.alpha.item() > 0.2 and torch.allclose(made.colours, torch.tensor(0.3))
    grown = PlacedObject.put(torch.full((3, 9, 9), 0.3), mask, Place(5, 10, 10), (10, 10))
    assert torch.allclose(grown.colours, torch.tensor(0.3), atol=1e-5)


@pytest.mark.parametrize("side, told", [(1, True), (7, True), (8, False)])
def test_an_object_too_small_to_see_is_told(side, told, caplog):
    picture, mask = subject(20, 20)
    place_object(views(picture, mask), (40, 40), box_mask((40, 40), (10, 10, 10 + side, 10 + side)))
    assert (f"only {side}x{side} pixels" in caplog.text) == told


# --- a placed picture ------------------------------------------------------------------------------------------------


def test_a_placed_object_stays_where_it_lies_pixel_for_pixel():
    picture = torch.rand(3, 40, 50)
    alpha = torch.zeros(40, 50)
    alpha[10:20, 15:40] = torch.rand(10, 25) * 0.9 + 0.05
    alpha[30, 45] = 1 / 255  # faint, and yet a part of the layer
    made = place_object(views(picture, alpha), (40, 50), placed=True)
    colours, found = made.within((slice(0, 40), slice(0, 50)))
    assert torch.equal(found[0, 0], alpha)
    assert torch.equal(colours[0][:, alpha > 0], picture[:, alpha > 0])
    assert made.box == (10, 15, 31, 46) and made.size == (40, 50)


@pytest.mark.parametrize("way", [{"placed": True}, {"place": Place(20, 30, 10)}])
def test_filling_needs_a_mask(way):
    with pytest.raises(ImprintError, match="fit is fill"):
        place_object(views(torch.rand(3, 40, 50), torch.ones(40, 50)), (40, 50), fit="fill", **way)


# --- edges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grown", [0, 1, 2])
def test_no_fringe_of_a_white_background_is_left(grown):
    """A dark disc, photographed on white, with a binary mask that may be up to two pixels too large."""
    y, x = torch.meshgrid(torch.arange(80) - 39.5, torch.arange(80) - 39.5, indexing="ij")
    distance = (x**2 + y**2).sqrt()
    picture = torch.where(distance < 25, 0.2, 1.0).expand(3, -1, -1)
    mask = (distance < 25 + grown).float()
    colours, alpha = clean_edge(picture, mask)
    over_black = colours * alpha
    assert over_black.max() < 0.25, "a white pixel in the edge"
    assert ((alpha > 0.05) & (alpha < 0.95)).sum() > 100  # anti-aliased: about the disc's circumference
    assert (alpha <= mask).all()
    assert torch.equal(colours[:, distance < 20], picture[:, distance < 20])
    assert torch.equal(alpha[distance < 20], mask[distance < 20])
    plain = (picture * mask).max()
    assert plain == (1 if grown else picture[:, mask > 0].max())


@pytest.mark.parametrize("matte", [0.0, 1.0])
def test_a_soft_edge_mixed_with_what_lay_behind_it_loses_it_where_the_object_is_put(matte):
    y, x = torch.meshgrid(torch.arange(80) - 39.5, torch.arange(80) - 39.5, indexing="ij")
    alpha = (25 - (x**2 + y**2).sqrt()).clamp(0, 1)
    picture = torch.lerp(torch.tensor(matte), torch.tensor(0.6), alpha).expand(3, -1, -1)
    made = PlacedObject.put(picture, alpha, Place(40, 70, 50), (80, 80))
    assert ((alpha > 0.05) & (alpha < 0.95)).sum() > 100
    assert (made.colours[:, made.alpha > 0.05] - 0.6).abs().max() < 0.02
    glass = PlacedObject.put(
        picture, alpha * 0.5, Place(40, 70, 50), (80, 80)
    )  # nothing is solid: nothing is known better
    assert (glass.colours[:, glass.alpha > 0.05] - 0.6).abs().max() > 0.1


@pytest.mark.parametrize("factor", [2, 3, 8])
@pytest.mark.parametrize("soft", [False, True])
def test_a_large_photo_made_small_looks_as_if_cleaned_first(factor, soft):
    """Without a fringe, too."""
    side = 80 * factor
    y, x = torch.meshgrid(torch.arange(side) - side / 2, torch.arange(side) - side / 2, indexing="ij")
    distance = (x**2 + y**2).sqrt()
    picture = torch.where(distance < 25 * factor, 0.2, 1.0).expand(3, -1, -1)
    mask = (25 * factor - 1 - distance).clamp(0, 1) if soft else (distance < 25 * factor + 1).float()
    colours, alpha = reduced(picture, mask, factor, soft)
    assert tuple(alpha.shape) == (80, 80) and (colours * alpha).max() < 0.25
    slow_colours, slow_alpha = resized(*clean_edge(picture, mask), 80, 80)
    assert (alpha - slow_alpha).abs().max() < 0.3 and (alpha - slow_alpha).abs().mean() < 0.01
    assert ((colours - slow_colours) * alpha).abs().max() < 0.02


def test_putting_a_large_photo_somewhere_small_keeps_its_place():
    own = torch.zeros(1200, 1000)
    own[103:1103, 201:902] = 1
    made = PlacedObject.put(torch.full((3, 1200, 1000), 0.3), own, Place(60, 90, 77), (100, 120))
    assert made.box == (13, 33, 90, 87) and torch.allclose(
        made.colours[:, made.alpha > 0.1], torch.tensor(0.3), atol=0.01
    )


def test_a_soft_mask_s_edge_is_left_alone():
    y, x = torch.meshgrid(torch.arange(40) - 19.5, torch.arange(40) - 19.5, indexing="ij")
    alpha = (15 - (x**2 + y**2).sqrt()).clamp(0, 1)
    picture = torch.rand(3, 40, 40)
    colours, found = clean_edge(picture, alpha)
    assert torch.equal(colours, picture) and torch.equal(found, alpha)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (3, 3)])
def test_what_is_too_thin_for_a_core_keeps_its_own_colours(shape):
    picture = torch.rand(3, *shape)
    colours, alpha = clean_edge(picture, torch.ones(shape))
    assert torch.equal(colours, picture) and (alpha > 0).all()


def test_resizing_takes_no_colour_from_behind_the_object():
    picture = torch.ones(3, 64, 64)
    picture[:, 16:48, 16:48] = 0.2
    mask = torch.zeros(64, 64)
    mask[16:48, 16:48] = 1
    for size in ((20, 27), (200, 150)):
        colours, alpha = resized(picture, mask, *size)
        assert tuple(alpha.shape) == size and alpha.min() >= 0 and alpha.max() <= 1
        assert (colours[:, alpha > 0.1] < 0.25).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=50)
def test_spreading_keeps_what_is_known_and_invents_no_colour(high, wide, seed):
    generator = seeded(seed)
    values = torch.rand(1, 3, high, wide, generator=generator)
    known = (torch.rand(1, 1, high, wide, generator=generator) < 0.2).float()
    known[0, 0, seed % high, seed % wide] = 1
    filled, at = spread(values, known), (known > 0).expand_as(values)
    assert torch.equal(filled[at], values[at])
    for channel in range(3):
        inside = values[:, channel][known[:, 0] > 0]
        assert filled[:, channel].min() >= inside.min() - 1e-4 and filled[:, channel].max() <= inside.max() + 1e-4


# --- sentences -------------------------------------------------------------------------------------------------------

FRAME = (60, 60)
BOX = box_mask(FRAME, (10, 10, 40, 40))
OUTLINE = box_mask(FRAME, (10, 10, 40, 40)) - box_mask(FRAME, (10, 10, 25, 25))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "got nothing to say where the object goes; give one of placed"),
        ({"mask": BOX, "placed": True}, "got placed and mask to say"),
        ({"mask": BOX, "place": Place(1, 1, 1)}, "got place and mask to say"),
        ({"placed": True, "place": Place(1, 1, 1)}, "got placed and place to say"),
        ({"mask": BOX, "fit": "cover"}, "fit is 'cover'; it must be one of contain, fill, outline"),
        ({"placed": True, "rotate": 90.0}, "rotate and flip are for an object that is fitted into a box"),
        ({"place": Place(1, 1, 1), "flip": True}, "a place has its own"),
        ({"mask": OUTLINE, "rotate": 90.0}, "the mask's outline, or fit 'fill', says how it lies"),
        ({"mask": BOX, "fit": "fill", "rotate": "auto"}, "rotate, flip and align are for an object that is fitted"),
        ({"mask": OUTLINE, "align": Align()}, "rotate, flip and align are for an object that is fitted"),
        ({"fit": "fill", "align": Align()}, "draw a box and leave fit out"),
        ({"placed": True, "align": Align()}, "got placed and align to say"),
        ({"place": Place(1, 1, 1), "align": Align()}, "got place and align to say"),
        (
            {"align": Align(height=41)},
            "height is 41, but in the 60x60 pixels where it is aligned the object can have 40; give a smaller height",
        ),
        ({"mask": BOX, "align": Align(inset=0.1, height=17)}, "in the 24x24 pixels .* the object can have 16"),
        ({"mask": BOX, "rotate": float("nan")}, "rotate is nan; it must be a finite number"),
        ({"mask": BOX, "rotate": float("inf")}, "rotate is inf; it must be a finite number"),
        ({"mask": BOX, "rotate": "a bit"}, "rotate is 'a bit'; it must be a finite number of degrees, or 'auto'"),
        ({"placed": True}, "the placed object is 30x20, but the background is 60x60"),
        ({"place": Place(500, 30, 20)}, "outside the 60x60 background: 30x20 pixels, standing at 500,30"),
    ],
)
def test_each_mistake_has_its_sentence(settings, message):
    with pytest.raises(ImprintError, match=message) as caught:
        place_object(views(*subject(20, 30)), FRAME, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        (0, 0, 0),
        (0, 0, -3),
        (math.nan, 0, 1),
        (0, math.inf, 1),
        (0, 0, 1, math.nan),
        (0, 0, math.inf),
        (0, 0, "x"),
        (True, 0, 1),
    ],
)
def test_a_place_is_made_of_finite_numbers(values):
    with pytest.raises(ImprintError, match="must be finite numbers and the height more than 0"):
        Place(*values)


def test_a_place_is_mirrored_or_not():
    with pytest.raises(ImprintError, match="flip is 'no'; it must be True or False"):
        Place(1, 2, 3, 0, "no")


def test_nothing_is_no_object():
    nothing = torch.zeros(20, 30)
    with pytest.raises(ImprintError, match="transparent everywhere"):
        PlacedObject.from_layer(torch.rand(3, 20, 30), nothing)
    with pytest.raises(ImprintError, match="object's mask is empty"):
        PlacedObject.put(torch.rand(3, 20, 30), nothing, Place(5, 5, 5), FRAME)
    with pytest.raises(ImprintError, match="object's mask is empty"):
        fit_into(torch.rand(3, 20, 30), nothing, (0, 0, 9, 9))


def test_a_line_that_is_reduced_keeps_its_colour():
    """No pixel is far enough from its edge to be certainly its own; its own colours are used all the same."""
    picture, line = torch.rand(3, 24, 24), torch.zeros(24, 24)
    line[:, 10] = 1
    picture[:, :, 10] = torch.tensor([0.1, 0.7, 0.4])[:, None]
    colours, alpha = reduced(picture, line, 3, False)
    assert torch.allclose(colours[:, alpha > 0], torch.tensor([0.1, 0.7, 0.4])[:, None], atol=1e-5)
    assert alpha[:, 3].eq(1 / 3).all() and alpha.sum() == alpha[:, 3].sum()
