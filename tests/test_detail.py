"""Detail: the object's photo is warped to the drawing, lit as the drawing is, and only where both show the same."""

import math

import pytest
import torch
import torch.nn.functional as F
from micro import seeded

from imprint import detail
from imprint.detail import MARGIN, restore_detail
from imprint.errors import ImprintError
from imprint.views import ObjectViews


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(seed))


def texture(side: int = 160, seed: int = 0) -> torch.Tensor:
    """(1, 3, side, side): coarse, middle and fine patches of colour."""
    layers = [F.interpolate(noise(1, 3, n, n, seed=seed + n), (side, side), mode="bicubic") for n in (4, 16, 64)]
    return (0.4 * layers[0] + 0.35 * layers[1] + 0.25 * layers[2]).clamp(0, 1)


def egg(side: int = 160) -> torch.Tensor:
    """(1, side, side): an outline that no rotation or reflection maps onto itself."""
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side * 2 - 1] * 2, indexing="ij")
    distance = ((x - 0.15 * y) / (0.45 + 0.12 * y)) ** 2 + (y / 0.8) ** 2
    return ((1 - distance) * side / 6).clamp(0, 1)[None]


def placed(planes: torch.Tensor, angle: float = 0.0, scale: float = 1.0, mirrored: bool = False, side: int = 240):
    """(C, h, w) -> (C, side, side): rotated about the centre by an angle in degrees, and scaled."""
    turn = math.radians(angle)
    matrix = torch.tensor([[math.cos(turn), math.sin(turn), 0], [-math.sin(turn), math.cos(turn), 0]]) * 1.5 / scale
    if mirrored:
        matrix[0] *= -1
    grid = F.affine_grid(matrix[None], [1, 1, side, side], align_corners=False)
    return F.grid_sample(planes[None], grid, align_corners=False)[0]


def blurred(picture: torch.Tensor, factor: int = 8) -> torch.Tensor:
    small = F.avg_pool2d(picture, factor)
    return F.interpolate(small, picture.shape[2:], mode="bilinear")


def scene(seed: int = 0, **where):
    """An object's photo and mask, a drawing that a model might make of it, its alpha, and the ideal result."""
    photo, mask = texture(seed=seed), egg()
    moved = placed(torch.cat([photo[0] * mask, mask]), **where)
    alpha, true = moved[3:], (moved[:3] / moved[3:].clamp(min=1e-3))[None].clamp(0, 1)
    background = noise(1, 3, *alpha.shape[1:], seed=99) * 0.2
    drawn = torch.lerp(background, blurred(torch.lerp(true.new_full((), 0.3), true, alpha)), alpha)
    return photo, mask, drawn, alpha, true


def error(picture: torch.Tensor, true: torch.Tensor, alpha: torch.Tensor) -> float:
    inner = (alpha > 0.99).expand_as(true[0])[None]
    return float((picture - true)[inner].square().mean().sqrt())


@pytest.mark.parametrize(
    "where",
    [
        {},
        {"angle": 30},
        {"angle": -100},
        {"mirrored": True},
        {"angle": 20, "scale": 0.7},
        {"scale": 1.4, "mirrored": True},
    ],
    ids=str,
)
def test_what_was_drawn_softly_gets_the_photo_s_detail(where):
    photo, mask, drawn, alpha, true = scene(**where)
    made, outline, _ = restore_detail(drawn, alpha, ObjectViews.of([photo], [mask]))
    assert made.shape == drawn.shape and outline.shape == alpha.shape
    assert error(made, true, alpha) < 0.6 * error(drawn, true, alpha)
    assert (outline - alpha).abs().mean() < 0.01


def test_light_stays_the_drawing_s():
    """Shade that grows from left to right, and half the brightness: the fine detail is the photo's, in the drawing's
    light.
    """
    photo, mask, drawn, alpha, true = scene(angle=15)
    light = torch.linspace(0.25, 0.75, drawn.shape[3])
    made, _, _ = restore_detail(drawn * light, alpha, ObjectViews.of([photo], [mask]))
    assert error(made, true * light, alpha) < 0.5 * error(drawn * light, true * light, alpha)


def test_an_outline_that_was_drawn_softly_gets_the_photo_s():
    photo, mask, drawn, alpha, _ = scene()
    soft = blurred(alpha[None], 6)[0]
    _, outline, _ = restore_detail(drawn, soft, ObjectViews.of([photo], [mask]))
    assert (outline - alpha).abs().mean() < 0.3 * (soft - alpha).abs().mean()


def test_another_object_changes_nothing():
    _, _, drawn, alpha, _ = scene()
    bar = torch.zeros(1, 160, 160)
    bar[:, 70:90, 5:155] = 1
    bar[:, 5:90, 70:75] = 1
    made, outline, _ = restore_detail(drawn, alpha, ObjectViews.of([texture(seed=7)], [bar]))
    assert torch.equal(made, drawn) and torch.equal(outline, alpha)


def test_of_an_object_with_other_colours_little_is_taken():
    """The same outline does not make it the same object."""
    _, mask, drawn, alpha, _ = scene()
    made, _, _ = restore_detail(drawn, alpha, ObjectViews.of([texture(seed=7)], [mask]))
    whole, _, _ = restore_detail(drawn, alpha, ObjectViews.of([texture(seed=0)], [mask]))
    assert (made - drawn).abs().mean() < 0.25 * (whole - drawn).abs().mean()


def test_a_part_that_stands_out_elsewhere_stays_drawn():
    """An outline in another pose is not straightened to match the photo's."""
    photo, mask, drawn, alpha, _ = scene()
    alpha = alpha.clone()
    alpha[:, 20:60, 110:130] = 1  # a horn
    drawn = torch.where(alpha > 0, drawn, drawn).clone()
    drawn[:, :, 20:40, 110:130] = 0.8
    _, outline, _ = restore_detail(drawn, alpha, ObjectViews.of([photo], [mask]))
    assert float(outline[0, 22:36, 112:128].mean()) > 0.9


def test_the_view_that_fits_is_taken():
    photo, mask, drawn, alpha, _ = scene(angle=10)
    other, upside = texture(seed=5), mask.flip(1)
    both, _, _ = restore_detail(drawn, alpha, ObjectViews.of([other, photo], [upside, mask]))
    alone, _, _ = restore_detail(drawn, alpha, ObjectViews.of([photo], [mask]))
    assert torch.allclose(both, alone, atol=1e-5)


def test_views_and_pictures_may_have_any_size():
    photo, mask, drawn, alpha, true = scene(angle=10)
    large = F.interpolate(photo, (480, 400), mode="bilinear"), F.interpolate(mask[None], (480, 400), mode="bilinear")[0]
    frame = F.pad(drawn, (300, 40, 10, 500)), F.pad(alpha, (300, 40, 10, 500))
    made, _, _ = restore_detail(*frame, ObjectViews.of([large[0]], [large[1]]))
    assert error(made[:, :, 10:250, 300:540], true, alpha) < 0.5 * error(drawn, true, alpha)


def test_beyond_the_margin_not_a_bit_changes():
    photo, mask, drawn, alpha, _ = scene(scale=0.5)
    made, outline, _ = restore_detail(drawn, alpha, ObjectViews.of([photo], [mask]))
    rows, columns = (alpha[0] > 0.5).any(1).nonzero().flatten(), (alpha[0] > 0.5).any(0).nonzero().flatten()
    reach = math.ceil(max(len(rows), len(columns)) * MARGIN / 2) + 1
    far = torch.ones_like(alpha, dtype=torch.bool)
    middle = int(rows[0] + rows[-1]) // 2, int(columns[0] + columns[-1]) // 2
    far[:, middle[0] - reach : middle[0] + reach, middle[1] - reach : middle[1] + reach] = False
    assert not torch.equal(made, drawn)
    assert torch.equal(made[far.expand_as(made[0])[None]], drawn[far.expand_as(made[0])[None]])
    assert torch.equal(outline[far], alpha[far])


def test_strength_goes_from_nothing_to_all():
    photo, mask, drawn, alpha, _ = scene()
    given = drawn.clone(), alpha.clone()
    none, half, all_ = (
        restore_detail(drawn, alpha, ObjectViews.of([photo], [mask]), strength) for strength in (0.0, 0.5, 1.0)
    )
    assert torch.equal(none[0], drawn) and torch.equal(none[1], alpha)
    assert none.laid == (0.0,) and half.laid == pytest.approx(all_.laid, abs=1e-3)
    assert torch.allclose(half[0], (none[0] + all_[0]) / 2, atol=1e-4)
    assert torch.equal(drawn, given[0]) and torch.equal(alpha, given[1]), "the arguments were written to"


def test_what_was_laid_over_is_said():
    """The fraction of the object's own pixels that was replaced; if half of it shows something else, that half is
    excluded.
    """
    photo, mask, drawn, alpha, _ = scene()
    other = drawn.clone()
    half = other.shape[3] // 2
    other[..., half:] = noise(1, 3, other.shape[2], other.shape[3] - half, seed=3)
    bar = torch.zeros_like(mask)
    bar[:, 2:5] = 1
    views = ObjectViews.of([photo], [mask])
    whole, part = (restore_detail(each, alpha, views).laid[0] for each in (drawn, other))
    assert 0.7 < whole <= 1 and part < 0.7 * whole
    changed = (restore_detail(drawn, alpha, views).pictures != drawn).any(1) & (alpha > 0.5)
    assert whole <= float(changed.sum() / (alpha > 0.5).sum()) + 0.02
    assert restore_detail(drawn, alpha, ObjectViews.of([photo], [bar])).laid == (0.0,)


def test_each_of_a_batch_is_its_own():
    photo, mask, drawn, alpha, _ = scene()
    _, _, turned, turned_alpha, _ = scene(angle=60)
    empty = torch.zeros_like(alpha)
    pictures, alphas = torch.cat([drawn, turned, drawn]), torch.cat([alpha, turned_alpha, empty])
    made, outlines, _ = restore_detail(pictures, alphas, ObjectViews.of([photo], [mask]))
    for index in range(3):
        one, outline, _ = restore_detail(pictures[index][None], alphas[index][None], ObjectViews.of([photo], [mask]))
        assert torch.equal(made[index], one[0]) and torch.equal(outlines[index], outline[0])
    assert torch.equal(made[2], drawn[0]) and torch.equal(outlines[2], empty[0])


def test_the_photo_is_reduced_once_for_all_pictures(monkeypatch):
    photo, mask, drawn, alpha, _ = scene()
    reduce, calls = detail.resample, []
    monkeypatch.setattr(detail, "resample", lambda *given: calls.append(1) or reduce(*given))
    restore_detail(drawn.expand(4, -1, -1, -1), alpha.expand(4, -1, -1), ObjectViews.of([photo], [mask]))
    assert len(calls) == 3 + 4 * 3  # each to three sizes


@pytest.mark.parametrize("shift", [(-150, 0), (0, 150), (150, -150)])
def test_an_object_that_the_frame_cuts(shift):
    photo, mask, drawn, alpha, true = scene(scale=1.3)
    drawn, alpha, true = (each.roll(shift, (-2, -1)) for each in (drawn, alpha, true))
    for axis, length in zip((-2, -1), shift):
        gone = slice(None, length) if length > 0 else slice(length, None)
        if length:
            alpha.movedim(axis, 0)[gone] = 0
    made, outline, _ = restore_detail(drawn, alpha, ObjectViews.of([photo], [mask]))
    assert bool(made.isfinite().all()) and float(outline.amin()) >= 0 and float(outline.amax()) <= 1
    assert error(made, true, alpha) < 1.1 * error(drawn, true, alpha)


@pytest.mark.parametrize("size", [1, 3, 8, 20])
def test_small_objects(size):
    photo, mask, *_ = scene()
    alpha = torch.zeros(1, 64, 64)
    alpha[:, 30 : 30 + size, 30 : 30 + size] = 1
    made, outline, _ = restore_detail(noise(1, 3, 64, 64), alpha, ObjectViews.of([photo], [mask]))
    assert bool(made.isfinite().all()) and bool(outline.isfinite().all())


@pytest.mark.parametrize(("flat", "lit"), [(0.0, 0.0), (0.5, 0.4), (1.0, 0.4)])
def test_objects_of_one_colour(flat, lit):
    """Grey and white take the drawing's light; black has no light to take."""
    _, mask, drawn, alpha, _ = scene()
    photo = torch.full((1, 3, 160, 160), flat)
    made, _, _ = restore_detail(torch.full_like(drawn, 0.4), alpha, ObjectViews.of([photo], [mask]))
    assert bool(made.isfinite().all())
    inner = (alpha > 0.99).expand_as(made[0])[None]
    assert float((made - lit)[inner].abs().max()) < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": 1.5}, "detail is 1.5"),
        ({"strength": math.nan}, "detail is nan"),
        ({"images": []}, "0 view"),
        ({"masks": [egg(), egg()]}, "2 mask"),
        ({"masks": [egg(80)]}, "80x80"),
        ({"masks": [torch.zeros(1, 160, 160)]}, "empty"),
    ],
)
def test_errors(change, message):
    photo, mask, drawn, alpha, _ = scene()
    arguments = {"images": [photo], "masks": [mask], "strength": 1.0} | change
    with pytest.raises(ImprintError, match=message):
        restore_detail(drawn, alpha, ObjectViews.of(arguments["images"], arguments["masks"]), arguments["strength"])


def test_a_thin_object_on_a_large_photo_takes_little_memory():
    """A 20,000-pixel pencil in its own square would take gigabytes."""
    photo, mask = noise(1, 3, 12, 20000), torch.ones(1, 12, 20000)
    alpha = torch.zeros(1, 40, 9000)
    alpha[:, 15:20, 300:8700] = 1
    made, outline, _ = restore_detail(noise(1, 3, 40, 9000, seed=1), alpha, ObjectViews.of([photo], [mask]))
    assert bool(made.isfinite().all()) and bool(outline.isfinite().all())


def test_of_a_symmetric_object_words_are_not_mirrored():
    """A can: its outline is the same when mirrored, and the drawn words say little."""
    words = (noise(1, 1, 160, 160, seed=3) > 0.5).float().expand(1, 3, -1, -1)
    photo, can = 0.4 + 0.2 * F.avg_pool2d(words, 3, 1, 1), torch.zeros(1, 160, 160)
    can[:, 10:150, 40:120] = 1
    drawn = F.pad(blurred(photo, 16) * 0.5, (40,) * 4, mode="replicate")
    alpha = F.pad(can, (40,) * 4)
    made, _, _ = restore_detail(drawn, alpha, ObjectViews.of([photo], [can]))
    fine = made - F.avg_pool2d(made, 9, 1, 4)
    inner = (..., slice(60, 180), slice(90, 150))
    true = F.pad(photo - F.avg_pool2d(photo, 9, 1, 4), (40,) * 4)

    def alike(first: torch.Tensor, second: torch.Tensor) -> float:
        return float(F.cosine_similarity(first[inner].flatten(), second[inner].flatten(), dim=0))

    assert alike(fine, true) > alike(fine, true.flip(3)) + 0.5
