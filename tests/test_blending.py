import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from micro import seeded

from imprint.blending import blend_latents, blend_pictures, feather, match_colour, mixed, surroundings
from imprint.errors import ImprintError


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(seed))


def square(size: int = 60, start: int = 20, end: int = 40) -> torch.Tensor:
    mask = torch.zeros(1, size, size)
    mask[:, start:end, start:end] = 1
    return mask


def test_latents_are_the_noisy_ones_in_the_hole_and_the_clean_background_outside():
    noisy, background, hole = noise(2, 4, 8, 8) * 4000, noise(2, 4, 8, 8, seed=1), square(8, 2, 5)[:, None]
    seen = blend_latents(noisy, background, hole)
    assert torch.equal(seen[:, :, 2:5, 2:5], noisy[:, :, 2:5, 2:5])
    outside = (hole == 0).expand_as(seen)
    assert torch.equal(seen[outside], background[outside])


def test_without_width_the_blend_mask_is_the_hole():
    assert torch.equal(feather(square()), square())
    assert torch.equal(feather(square() * 0.6 + 0.1), square())


@pytest.mark.parametrize(("inwards", "outwards"), [(0, 4), (4, 0), (3, 5), (1, 1)])
def test_the_ramp_runs_from_one_inside_to_nothing_outside(inwards, outwards):
    blend = feather(square(), inwards, outwards)[0]
    row = blend[30]  # through the middle: columns 20 to 39 are the hole
    assert bool((row[20 + inwards : 40 - inwards] == 1).all())
    assert bool((row[: 20 - outwards] == 0).all()) and bool((row[40 + outwards :] == 0).all())
    ramp = row[20 - outwards : 20 + inwards]
    assert bool((ramp > 0).all()) and bool((ramp < 1).all())
    steps = ramp.diff()
    assert torch.allclose(steps, torch.full_like(steps, 1 / (inwards + outwards)))
    assert torch.equal(row, row.flip(0))


def test_the_ramp_is_as_wide_around_a_corner():
    blend = feather(square(), 0, 5)[0]
    y, x = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
    distance = ((20 - y).clamp(min=0) ** 2 + (20 - x).clamp(min=0) ** 2).sqrt()[:20, :20]
    assert torch.equal(blend[:20, :20] > 0, distance < 5.5)


@pytest.mark.parametrize(("inwards", "outwards"), [(0, 1), (0, 8), (5, 0), (30, 31), (31, 30), (3, 32), (50, 12)])
def test_the_ramp_is_the_euclidean_distance_to_the_last_bit(inwards, outwards):
    from scipy.ndimage import distance_transform_edt

    holes = torch.cat([square(90, 3, 80), (noise(1, 90, 90) > 0.999).float(), (noise(1, 90, 90) > 0.002).float()])
    for hole, blend in zip(holes, feather(holes, inwards, outwards)):
        inside, outside = (torch.from_numpy(distance_transform_edt(each)) for each in (hole > 0, hole == 0))
        depth = inside - outside - torch.where(hole > 0, 0.5, -0.5)
        assert torch.equal(blend, ((depth + outwards) / (inwards + outwards)).clamp(0, 1).float())


def test_full_and_empty_holes_have_no_edge():
    both = torch.stack([torch.ones(20, 20), torch.zeros(20, 20)])
    assert torch.equal(feather(both, 3, 3), both)


def test_each_mask_of_a_batch_has_its_own_ramp():
    masks = torch.cat([square(60, 5, 15), square(60, 20, 50)])
    together = feather(masks, 2, 3)
    for mask, blend in zip(masks, together):
        assert torch.equal(feather(mask[None], 2, 3)[0], blend)


def test_mixed_is_bit_exact_at_both_ends():
    background, generated = noise(2, 3, 60, 60), noise(2, 3, 60, 60, seed=1)
    generated[0, 0, 0, 0] = float("nan")  # even then
    blend = feather(square(), 2, 4).expand(2, -1, -1)
    result = mixed(background, generated, blend)
    weight = blend[:, None].expand_as(result)
    assert torch.equal(result[weight == 0], background[weight == 0])
    assert torch.equal(result[weight == 1], generated[weight == 1])
    between = (weight > 0) & (weight < 1)
    expected = (1 - weight) * background + weight * generated
    assert bool(between.any()) and torch.allclose(result[between], expected[between], atol=1e-6)


def test_mixed_keeps_the_background_s_precision():
    background = noise(1, 3, 60, 60).double()
    result = mixed(background, noise(1, 3, 60, 60, seed=1), square())
    assert result.dtype == torch.float64
    assert torch.equal(result[:, :, :20], background[:, :, :20])


def test_colours_are_matched_by_the_ring_alone():
    """What the hole shows, and what is outside the ring, has no influence."""
    background, mask = noise(1, 3, 60, 60), square()
    generated = (background * 0.8 + 0.1).clone()
    ring = feather(mask, 0, 6)[0]
    band = (ring > 0) & (ring < 1)
    matched = match_colour(generated, background, mask, ring=6)
    assert torch.allclose(matched[0][:, band].mean(1), background[0][:, band].mean(1), atol=0.02)

    other_hole, other_far = generated.clone(), generated.clone()
    other_hole[:, :, 20:40, 20:40] = noise(1, 3, 20, 20, seed=5)
    far = (ring == 0).expand_as(other_far)
    other_far[far] = noise(int(far.sum()), seed=6)
    band = band.expand_as(generated)
    for changed in (other_hole, other_far):
        assert torch.equal(match_colour(changed, background, mask, ring=6)[band], matched[band])
    other_background = background.clone()
    other_background[:, :, 20:40, 20:40] = 0
    other_background[far] = 1
    assert torch.equal(match_colour(generated, other_background, mask, ring=6), matched)


def test_a_shift_of_colour_is_undone():
    background, mask = noise(1, 3, 60, 60) * 0.5 + 0.25, square()
    shifted = (background - 0.5) * 0.9 + 0.5 + torch.tensor([0.05, 0.0, -0.05])[:, None, None]
    matched = match_colour(shifted, background, mask)
    assert (shifted - background).abs().mean() > 0.03
    assert (matched - background).abs().mean() < 1e-3
    half = match_colour(shifted, background, mask, strength=0.5)
    assert torch.allclose(half, (shifted + matched) / 2, atol=1e-6)
    assert torch.equal(match_colour(shifted, background, mask, strength=0), shifted)


def test_contrast_changes_only_a_little_and_flat_colours_not_at_all():
    background, mask = noise(1, 3, 60, 60) * 0.5 + 0.25, square()
    strong = match_colour(0.5 + (background - 0.5) * 0.1, background, mask)
    band = slice(0, 20)
    assert abs(float(strong[:, :, band].std() / ((background[:, :, band] - 0.5) * 0.1).std()) - 1.25) < 0.02
    flat = torch.full_like(background, 0.4)
    assert bool(match_colour(flat, background, mask).isfinite().all())
    assert match_colour(flat, background, mask).std((2, 3)).max() < 1e-6


def test_a_hole_that_fills_the_frame_leaves_the_colours():
    background, generated = noise(2, 3, 20, 20), noise(2, 3, 20, 20, seed=1)
    assert torch.equal(match_colour(generated, background, torch.ones(2, 20, 20)), generated)


def test_the_ring_s_gap_is_not_looked_at():
    background, mask = noise(1, 3, 60, 60) * 0.5 + 0.25, square()
    shifted, near = background + 0.05, feather(square(), 0, 6)[0]
    fringed = shifted.clone()
    fringed[:, :, (near > 0) & (near < 1)] = 0  # what the object's fringe may look like
    outside = (near == 0).expand_as(background)
    matched = match_colour(fringed, background, mask, ring=16, gap=6)
    assert (matched - background)[outside].abs().max() < 5e-3
    assert (match_colour(fringed, background, mask, ring=16) - background)[outside].abs().mean() > 0.02


def test_the_edge_is_worked_out_around_the_hole_alone():
    """The same as over the whole frame, for any hole: full, at a border, of one pixel, empty."""
    from scipy.ndimage import distance_transform_edt

    for hole in (square(50, 20, 30), square(50, 0, 9), square(50, 47, 50), square(50, 7, 8), square(50, 0, 50)):
        inside = hole[0].numpy() > 0
        depth = distance_transform_edt(inside) - distance_transform_edt(~inside)
        depth -= 0.5 * (depth > 0) - 0.5 * (depth < 0)
        expected = torch.from_numpy(((depth + 6) / 9).clip(0, 1)).float()[None]
        if inside.all():
            expected = hole
        assert torch.equal(feather(hole, 3, 6), expected)
    assert surroundings(square(50, 20, 30)[0], 6) == (slice(13, 37), slice(13, 37))
    assert surroundings(square(50, 0, 9)[0], 6) == (slice(0, 16), slice(0, 16))
    assert surroundings(torch.zeros(50, 50), 6) is None


def mixed_bands(*pictures_masks_and_widths) -> torch.Tensor:
    return blend_pictures(*pictures_masks_and_widths, method="multiband")


def test_bands_of_a_narrow_edge_are_the_plain_ramp():
    background, generated = noise(1, 3, 60, 60), noise(1, 3, 60, 60, seed=1)
    for inwards, outwards in ((0, 0), (0, 1), (1, 0)):
        expected = mixed(background, generated, feather(square(), inwards, outwards))
        assert torch.allclose(mixed_bands(background, generated, square(), inwards, outwards), expected, atol=1e-6)


def test_bands_meet_both_pictures_at_the_ends_of_the_ramp():
    background, generated = noise(2, 3, 200, 200), noise(2, 3, 200, 200, seed=1)
    masks = torch.cat([square(200, 60, 140), square(200, 0, 90)])
    result, ramp = (
        mixed_bands(background, generated, masks, 8, 24),
        feather(masks, 8, 24)[:, None].expand(2, 3, -1, -1),
    )
    assert torch.equal(result[ramp == 0], background[ramp == 0])
    assert torch.allclose(result[ramp == 1], generated[ramp == 1], atol=1e-5)


def test_broad_colours_change_over_the_whole_edge_and_detail_in_its_middle():
    """Two flat colours mix as with a plain ramp; two fine patterns are visible together only near the middle."""
    mask = square(256, 64, 192)
    ramp = feather(mask, 16, 16)
    flat = [torch.full((1, 3, 256, 256), value) for value in (0.2, 0.8)]
    assert (mixed_bands(*flat, mask, 16, 16) - mixed(*flat, ramp)).abs().max() < 1e-5

    checks = (torch.arange(256)[:, None] + torch.arange(256)) % 2
    fine = [0.5 + 0.3 * (checks - 0.5).expand(1, 3, -1, -1) * sign for sign in (1, -1)]
    kept = {  # the contrast left along a row, over the pictures' own
        name: ((picture - 0.5).abs() / 0.15)[0, 0, 128]
        for name, picture in (("feather", mixed(*fine, ramp)), ("multiband", mixed_bands(*fine, mask, 16, 16)))
    }
    lost = {name: int((contrast[:128] < 0.9).sum()) for name, contrast in kept.items()}
    assert lost["feather"] > 25 and lost["multiband"] <= 6, lost


def test_a_wide_edge_leaves_no_seam():
    """Between two smooth pictures of different brightness, neighbouring pixels never differ more than a soft edge
    requires.
    """
    line = torch.linspace(0, 1, 256)
    smooth = 0.1 * torch.sin(line * 6)[:, None] * torch.cos(line * 5)
    background, generated = (0.3 + smooth).expand(1, 3, -1, -1), (0.6 - smooth).expand(1, 3, -1, -1)
    mask = square(256, 64, 192)
    soft = mixed_bands(background, generated, mask, 16, 16)
    hard = mixed(background, generated, mask)
    largest = [float(picture.diff(dim=-1).abs().max()) for picture in (hard, soft)]
    assert largest[0] > 0.2 and largest[1] < 0.025, largest


def test_blend_pictures_is_the_chosen_method():
    background, generated = noise(1, 3, 60, 60), noise(1, 3, 60, 60, seed=1)
    plain = mixed(background, generated, feather(square(), 2, 5))
    assert torch.equal(blend_pictures(background, generated, square(), 2, 5), plain)
    bands = mixed_bands(background, generated, square(), 2, 5)
    assert not torch.allclose(bands, plain, atol=1e-3)
    assert torch.equal(blend_pictures(background, generated, torch.zeros(1, 60, 60), 2, 5), background)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: feather(square(), -1, 2), "-1 pixels inwards and 2 outwards"),
        (lambda: feather(square(), 0, -3), "-3 outwards"),
        (lambda: match_colour(noise(1, 3, 60, 60), noise(1, 3, 60, 60), square(), ring=0), "ring is from 0 to 0"),
        (lambda: match_colour(noise(1, 3, 60, 60), noise(1, 3, 60, 60), square(), gap=16), "from 16 to 16"),
        (lambda: match_colour(noise(1, 3, 60, 60), noise(1, 3, 60, 60), square(), gap=-1), "from -1 to 16"),
        (lambda: mixed_bands(noise(1, 3, 60, 60), noise(1, 3, 60, 60), square(), 0, -1), "-1 outwards"),
        (lambda: blend_pictures(noise(1, 3, 60, 60), noise(1, 3, 60, 60), square(), -1), "-1 pixels inwards"),
        (lambda: blend_pictures(noise(1, 3, 9, 9), noise(1, 3, 9, 9), square(9, 2, 4), method="x"), "'x'.*multiband"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ImprintError, match=message):
        call()


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 2**31), st.integers(0, 8), st.integers(0, 8))
@settings(max_examples=80, deadline=None)
def test_any_blend_mask_stays_within_reach_and_changes_nothing_beyond(height, width, seed, inwards, outwards):
    random = seeded(seed)
    hole = (torch.rand(1, height, width, generator=random) < 0.2).float()
    hole[0, seed % height, seed % width] = 1
    blend = feather(hole, inwards, outwards)
    assert bool(((blend >= 0) & (blend <= 1)).all())
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = hole[0].nonzero()
    distance = ((y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2).amin(-1).sqrt()
    if not hole.all():
        assert bool((blend[0][distance > outwards + 0.5] == 0).all())
        assert bool((blend[0][(distance > 0) & (distance < outwards + 0.49)] > 0).all())
    if not inwards:
        assert bool((blend[hole > 0] == 1).all())
    background, generated = (torch.rand(1, 3, height, width, generator=random) for _ in range(2))
    result = mixed(background, generated, blend)
    same = (blend[:, None] == 0).expand_as(result)
    assert torch.equal(result[same], background[same])
