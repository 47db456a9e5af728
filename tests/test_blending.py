import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imprint.blending import blend_latents, composite, feather, match_colour
from imprint.errors import ImprintError


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


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


def test_full_and_empty_holes_have_no_edge():
    both = torch.stack([torch.ones(20, 20), torch.zeros(20, 20)])
    assert torch.equal(feather(both, 3, 3), both)


def test_each_mask_of_a_batch_has_its_own_ramp():
    masks = torch.cat([square(60, 5, 15), square(60, 20, 50)])
    together = feather(masks, 2, 3)
    for mask, blend in zip(masks, together):
        assert torch.equal(feather(mask[None], 2, 3)[0], blend)


def test_composite_is_bit_exact_at_both_ends():
    background, generated = noise(2, 3, 60, 60), noise(2, 3, 60, 60, seed=1)
    generated[0, 0, 0, 0] = float("nan")  # even then
    blend = feather(square(), 2, 4).expand(2, -1, -1)
    result = composite(background, generated, blend)
    weight = blend[:, None].expand_as(result)
    assert torch.equal(result[weight == 0], background[weight == 0])
    assert torch.equal(result[weight == 1], generated[weight == 1])
    between = (weight > 0) & (weight < 1)
    mixed = (1 - weight) * background + weight * generated
    assert bool(between.any()) and torch.allclose(result[between], mixed[between], atol=1e-6)


def test_composite_keeps_the_background_s_precision():
    background = noise(1, 3, 60, 60).double()
    result = composite(background, noise(1, 3, 60, 60, seed=1), square())
    assert result.dtype == torch.float64
    assert torch.equal(result[:, :, :20], background[:, :, :20])


def test_colours_are_matched_by_the_ring_alone():
    """What the hole shows, and what lies beyond the ring, has no part in the measure."""
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: feather(square(), -1, 2), "-1 pixels inwards and 2 outwards"),
        (lambda: feather(square(), 0, -3), "-3 outwards"),
        (lambda: match_colour(noise(1, 3, 60, 60), noise(1, 3, 60, 60), square(), ring=0), "ring is from 0 to 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ImprintError, match=message):
        call()


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 2**31), st.integers(0, 8), st.integers(0, 8))
@settings(max_examples=80, deadline=None)
def test_any_blend_mask_stays_within_reach_and_changes_nothing_beyond(height, width, seed, inwards, outwards):
    random = torch.Generator().manual_seed(seed)
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
    result = composite(background, generated, blend)
    same = (blend[:, None] == 0).expand_as(result)
    assert torch.equal(result[same], background[same])
