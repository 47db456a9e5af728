import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from micro import seeded

from imprint.blending import feather, mixed
from imprint.errors import ImprintError
from imprint.hole import Hole, Placement


def around(mask: torch.Tensor, resolution: int, context: float = 2.0, multiple: int = 8) -> Placement:
    """The square around a hole (H, W), however small the hole is."""
    return Hole.find(mask, resolution, context, multiple, cell=0).placement


def hole(height: int, width: int, top: int, left: int, bottom: int, right: int) -> torch.Tensor:
    mask = torch.zeros(height, width)
    mask[top:bottom, left:right] = 1
    return mask


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(seed))


def test_context_is_the_side_over_the_longer_side_of_the_hole():
    mask = hole(300, 400, 100, 150, 120, 210)  # 20 x 60
    for context, side in ((1, 60), (1.5, 90), (2, 120), (3.5, 210)):
        place = around(mask, 64, context)
        assert place.side == side
        # The hole lies in the middle.
        assert abs((place.top + side / 2) - 110) <= 0.5 and abs((place.left + side / 2) - 180) <= 0.5


@pytest.mark.parametrize(
    ("box", "top", "left"),
    [
        ((0, 0, 40, 40), 0, 0),
        ((0, 360, 40, 400), 0, 320),
        ((260, 0, 300, 40), 220, 0),
        ((260, 360, 300, 400), 220, 320),
        ((130, 0, 170, 40), 110, 0),
    ],
)
def test_at_a_border_the_square_moves_into_the_frame(box, top, left):
    place = around(hole(300, 400, *box), 64, 2.0)
    assert (place.side, place.top, place.left) == (80, top, left)


@pytest.mark.parametrize(("height", "width"), [(300, 100), (100, 300)])
def test_a_frame_narrower_than_the_square_is_centred_in_it(height, width):
    mask = hole(height, width, height // 2 - 40, width // 2 - 40, height // 2 + 40, width // 2 + 40)
    place = around(mask, 64, 2.0)
    assert place.side == 160
    narrow, wide = (place.left, place.top) if width < height else (place.top, place.left)
    assert narrow == -30
    assert wide == 70
    crop = place.extract(torch.ones(1, 3, height, width))
    assert torch.allclose(crop, torch.ones_like(crop), atol=1e-6)  # border pixels are repeated, nothing is black


def test_more_context_than_there_is_gives_the_whole_frame():
    place = around(hole(90, 160, 20, 20, 60, 60), 64, 100.0)
    assert (place.side, place.left, place.top) == (160, 0, -35)


def test_a_frame_smaller_than_the_model_s_crop_is_enlarged():
    place = around(hole(20, 24, 5, 5, 15, 15), 64, 2.0)
    assert place.side == 20
    assert place.extract(noise(1, 3, 20, 24)).shape == (1, 3, 64, 64)


def test_a_full_hole_and_one_pixel():
    full = around(torch.ones(50, 70), 64, 2.0)
    assert full.side == 70 and full.left == 0
    one = around(hole(50, 70, 10, 10, 11, 11), 64, 1.0)
    assert (one.side, one.top, one.left) == (1, 10, 10)


def test_at_the_model_s_own_size_the_crop_is_the_frame_s_pixels():
    frames = noise(2, 3, 200, 300)
    place = around(hole(200, 300, 50, 60, 82, 92), 64, 2.0)
    assert place.side == 64
    crop = place.extract(frames)
    assert torch.equal(crop, frames[:, :, place.top : place.top + 64, place.left : place.left + 64])
    assert torch.equal(place.insert(frames, crop), frames)


def test_several_frames_are_each_frame():
    frames = noise(3, 3, 70, 110)
    place = around(hole(70, 110, 20, 30, 45, 50), 32, 1.5)
    crops = place.extract(frames)
    for frame, crop in zip(frames, crops):
        assert torch.equal(place.extract(frame[None])[0], crop)
    back = place.insert(frames, crops)
    for frame, crop, one in zip(frames, crops, back):
        assert torch.equal(place.insert(frame[None], crop[None])[0], one)


def test_insert_does_not_change_its_input():
    frames = noise(1, 3, 70, 110)
    before = frames.clone()
    around(hole(70, 110, 20, 30, 45, 50), 32).insert(frames, torch.zeros(1, 3, 32, 32))
    assert torch.equal(frames, before)


def test_forth_and_back_keeps_the_picture():
    """Smooth content survives crops that are smaller and larger than the model's resolution."""
    line = torch.linspace(0.1, 0.9, 240)
    frames = (line[:, None] * line)[None, None].repeat(1, 3, 1, 1)
    for size in (20, 60):
        place = around(hole(240, 240, 90, 90, 90 + size, 90 + size), 64, 2.0)
        assert (place.insert(frames, place.extract(frames)) - frames).abs().max() < 2e-3


def test_the_mask_s_crop_touches_whatever_the_hole_touches():
    mask = hole(400, 400, 100, 100, 101, 300)  # a line, one pixel thin, that the crop reduces
    place = around(mask, 64, 1.0)
    crop = place.extract_mask(mask[None])[0]
    assert set(crop.unique().tolist()) == {0.0, 1.0}
    assert bool(crop.any(0).all())


def test_a_hole_at_the_border_ends_with_the_frame_and_is_not_seen_beyond():
    """What is drawn beyond a narrow frame would be cut off; what the hole covers must not be repeated there."""
    mask = hole(40, 200, 0, 50, 20, 146)
    place = around(mask, 96, 1.0)
    assert place.side == 96 and place.top == -28
    crop = place.extract_mask(mask[None])[0]
    assert bool(crop[28:48].all()) and crop.sum() == 20 * 96
    frames = noise(1, 3, 40, 200)
    other = torch.where(mask > 0, noise(1, 3, 40, 200, seed=1), frames)
    seen = [place.extract(each, mask[None])[:, :, crop == 0] for each in (frames, other)]
    assert torch.equal(*seen)
    assert not torch.equal(place.extract(frames)[:, :, crop == 0], place.extract(other)[:, :, crop == 0])


def test_a_hole_from_border_to_border_is_drawn_as_wide_as_the_frame():
    mask = hole(300, 60, 100, 0, 200, 60)
    place = around(mask, 64, 1.5)
    inside = place.extract_mask(mask[None])[0]
    assert place.side > 60
    expected = 64 * 60 / place.side
    assert abs(float(inside.amax(0).sum()) - expected) <= 2


@pytest.mark.parametrize("box", [(100, 150, 120, 210), (0, 0, 40, 40), (260, 360, 300, 400), (0, 100, 300, 260)])
def test_a_part_of_the_frame_is_enough(box):
    """What is outside the square is never read, and the result in the square is the same."""
    mask, frames = hole(300, 400, *box), noise(2, 3, 300, 400)
    place = around(mask, 64, 1.7)
    rows, columns = place.area
    local, part = place.within(place.area), frames[:, :, rows, columns]
    assert torch.equal(local.extract(part), place.extract(frames))
    assert torch.equal(local.extract_mask(mask[None, rows, columns]), place.extract_mask(mask[None]))
    crops = noise(2, 3, 64, 64, seed=4)
    whole = place.insert(frames, crops)
    assert torch.equal(local.insert(part, crops), whole[:, :, rows, columns])
    whole[:, :, rows, columns] = part
    assert torch.equal(whole, frames)


def test_a_hole_of_usual_size_is_as_drawn():
    mask = hole(300, 400, 100, 150, 120, 210) * 0.7
    found = Hole.find(mask, 256, 2.0)
    assert found.placement == around((mask > 0.5).float(), 256, 2.0)
    assert torch.equal(found.mask, (mask[found.placement.area] > 0.5).float())
    assert found.drawn == found.size == (20, 60) and not found.enlarged
    assert Hole.find(mask, 64, 2.0).size == (30, 60)  # two cells of 8 px in a crop of 120 px, seen at 64


@pytest.mark.parametrize("place", [(0, 0), (150, 200), (299, 399), (0, 399)])
@pytest.mark.parametrize("drawn", [(1, 1), (3, 12), (15, 16)])
def test_a_hole_too_small_for_a_few_cells_is_enlarged_around_its_centre(place, drawn):
    top, left = min(place[0], 300 - drawn[0]), min(place[1], 400 - drawn[1])
    mask = hole(300, 400, top, left, top + drawn[0], left + drawn[1])
    found = Hole.find(mask, 256, 1.6)
    assert found.enlarged and found.drawn == drawn and found.size == (16, 16) and found.mask.sum() == 16 * 16
    assert found.placement.side == 26
    rows, columns = (indices + area.start for indices, area in zip(found.mask.nonzero().T, found.placement.area))
    for low, high, start, length, frame in (
        (rows.min(), rows.max(), top, drawn[0], 300),
        (columns.min(), columns.max(), left, drawn[1], 400),
    ):
        assert abs((low + high + 1) / 2 - min(max(start + length / 2, 8), frame - 8)) <= 0.5
        assert low <= start and start + length - 1 <= high


def test_a_thin_hole_is_widened_for_the_crop_that_reduces_it():
    found = Hole.find(hole(2000, 2000, 500, 900, 1500, 910), 256, 1.6)
    assert found.placement.side == 1600 and found.drawn == (1000, 10) and found.size == (1000, 100)
    assert found.mask.sum() == 1000 * 100
    cells = F.max_pool2d(found.placement.within(found.placement.area).extract_mask(found.mask[None]), 8)
    assert cells[0].any(0).sum() >= 2


def test_a_frame_smaller_than_the_least_hole_is_all_hole():
    found = Hole.find(hole(9, 12, 3, 3, 4, 4), 64, 2.0)
    assert found.size == (9, 12) and bool(found.mask.all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Hole.find(torch.zeros(64, 64), 64), "empty.*value is 0"),
        (lambda: Hole.find(torch.full((64, 64), 0.4), 64), "0.4"),
        (lambda: Hole.find(torch.full((64, 64), float("nan")), 64), "nan"),
        (lambda: Hole.find(torch.ones(64, 64), 60), "resolution is 60"),
        (lambda: Hole.find(torch.ones(64, 64), 64, 0.5), "context is 0.5"),
        (lambda: around(torch.ones(64, 64), 60), "resolution is 60.*multiple of 8"),
        (lambda: around(torch.ones(64, 64), 72, multiple=16), "multiple of 16"),
        (lambda: around(torch.ones(64, 64), 0), "resolution is 0"),
        (lambda: around(torch.ones(64, 64), -64), "resolution is -64"),
        (lambda: around(torch.ones(64, 64), 64, 0.9), "context is 0.9"),
        (lambda: around(torch.ones(64, 64), 64, float("nan")), "context is nan"),
        (lambda: around(torch.ones(64, 64), 64, float("inf")), "context is inf"),
        (lambda: around(torch.ones(64, 64), 64).extract(torch.ones(1, 3, 64, 65)), "65x64.*64x64"),
        (lambda: around(torch.ones(64, 64), 64).extract_mask(torch.ones(1, 32, 64)), "64x32"),
        (lambda: around(torch.ones(64, 64), 64).insert(torch.ones(1, 3, 9, 9), torch.ones(1, 3, 64, 64)), "9x9"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ImprintError, match=message):
        call()


@st.composite
def scenes(draw):
    """(mask, resolution, context): a box with a hole in it, anywhere in a frame of any shape."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
    mask = hole(height, width, top, left, bottom, right)
    if draw(st.booleans()) and bottom - top > 2 and right - left > 2:
        mask[top + 1 : bottom - 1, left + 1 : right - 1] = 0
    return mask, draw(st.sampled_from((8, 32, 40))), draw(st.floats(1, 5))


@given(scenes(), st.integers(0, 6), st.integers(0, 6))
@example((torch.ones(1, 1), 8, 1.0), 0, 0)
@example((hole(1, 90, 0, 89, 1, 90), 8, 1.0), 3, 3)
@settings(max_examples=120, deadline=None)
def test_no_pixel_changes_outside_the_blend_mask_and_every_crop_maps_back(scene, inwards, outwards):
    mask, resolution, context = scene
    height, width = mask.shape
    place = around(mask, resolution, context)

    # The square holds the whole hole, is no larger than the frame, and lies in it wherever it fits.
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    assert place.top <= rows[0] and rows[-1] < place.top + place.side
    assert place.left <= columns[0] and columns[-1] < place.left + place.side
    assert place.side <= max(height, width)
    for start, frame in ((place.top, height), (place.left, width)):
        if place.side <= frame:
            assert 0 <= start <= frame - place.side
        else:
            assert start <= 0 and start + place.side >= frame

    frames = noise(1, 3, height, width, seed=height * width)
    crop = place.extract(frames)
    assert crop.shape == (1, 3, resolution, resolution)
    assert bool(crop.isfinite().all()) and 0 <= crop.min() and crop.max() <= 1

    # A crop of another colour goes to the hole and nowhere else.
    blend = feather(mask[None], inwards, outwards)
    result = mixed(frames, place.insert(frames, 1 - crop), blend)
    untouched = (blend[:, None] == 0).expand_as(frames)
    assert torch.equal(result[untouched], frames[untouched])
    painted = mixed(frames, place.insert(frames, torch.ones_like(crop)), blend)
    assert torch.allclose(
        painted, torch.lerp(frames, torch.ones_like(frames), blend[:, None] * inside(place)), atol=1e-5
    )

    # Every pixel of the model's crop that overlaps the hole in the frame is hole there too.
    there = place.extract_mask(mask[None])
    least = -F.adaptive_max_pool2d(-there[:, None], place.side)[0, 0]
    rows, columns = mask.nonzero().T
    assert bool((least[rows - place.top, columns - place.left] == 1).all())

    # The untouched crop of a plain frame gives the plain frame back.
    plain = torch.full((1, 3, height, width), 0.25)
    assert torch.allclose(place.insert(plain, place.extract(plain)), plain, atol=1e-5)


def inside(place: Placement) -> torch.Tensor:
    """(H, W): 1 where the frame is inside the square."""
    square = torch.zeros(place.height, place.width)
    square[max(0, place.top) : place.top + place.side, max(0, place.left) : place.left + place.side] = 1
    return square
