import dataclasses

import numpy as np
import pytest
import torch
from micro import cutout, photo, seeded
from PIL import Image

from imprint.config import dinov2
from imprint.errors import ImprintError
from imprint.images import image_to_tensor
from imprint.mask_reading import alpha_to_tensor
from imprint.preprocess import MEAN_AND_STD, bounding_boxes, normalise, prepare_object, resample

ENCODER = dinov2(width=32, layers=1, heads=2, image_size=56)


def reference(picture: Image.Image, margin: float, size: int) -> np.ndarray:
    """The same cut-out made only with Pillow, from an object with a hard alpha: (size, size, 3) in [0, 1]."""
    pixels = np.asarray(picture.convert("RGBA"))
    rows, columns = np.nonzero(pixels[..., 3] > 127)
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    half = max(bottom - top, right - left) * (0.5 + margin)
    centre = (top + bottom) / 2, (left + right) / 2
    black = Image.fromarray((pixels[..., :3] * (pixels[..., 3:] > 127)).astype(np.uint8))
    pad = 200  # black around, for a square that leaves the picture
    canvas = Image.new("RGB", (picture.width + 2 * pad, picture.height + 2 * pad))
    canvas.paste(black, (pad, pad))
    box = [centre[1] - half + pad, centre[0] - half + pad, centre[1] + half + pad, centre[0] + half + pad]
    return np.asarray(canvas.resize((size, size), Image.BILINEAR, box=box)) / 255


@pytest.mark.parametrize("size", [(300, 220), (90, 200), (41, 37), (20, 20)])
def test_the_cut_out_is_pillow_s(size):
    """Reductions, enlargements, tall, wide and odd sizes differ by one rounding step at most."""
    picture = cutout(*size, seed=4)
    _, seen = prepare_object(image_to_tensor(picture), alpha_to_tensor(picture), ENCODER)
    made = seen[0].permute(1, 2, 0).numpy()
    assert np.abs(made - reference(picture, ENCODER.object_margin, 56)).max() < 1.5 / 255


def test_an_object_at_the_picture_s_corner_gets_a_black_margin():
    picture = photo(60, 50, seed=1)
    mask = torch.zeros(1, 50, 60)
    mask[:, :30, :30] = 1
    _, seen = prepare_object(image_to_tensor(picture), mask, ENCODER)
    rim = int(56 * ENCODER.object_margin / (1 + 2 * ENCODER.object_margin))
    assert rim >= 2
    assert seen[..., : rim - 1, :].max() == 0 and seen[..., :, : rim - 1].max() == 0
    assert seen[..., 28, 28].min() > 0


def test_only_the_object_is_seen():
    mask = torch.zeros(1, 40, 60)
    mask[:, 10:30, 20:50] = 1
    picture = torch.rand(1, 3, 40, 60, generator=seeded())
    other = torch.where(mask[:, None] > 0, picture, 1 - picture)
    assert torch.equal(prepare_object(picture, mask, ENCODER)[0], prepare_object(other, mask, ENCODER)[0])
    brighter = torch.where(mask[:, None] > 0, picture / 2, picture)
    assert not torch.equal(prepare_object(picture, mask, ENCODER)[0], prepare_object(brighter, mask, ENCODER)[0])


def test_the_cut_out_is_tight_square_and_centred():
    mask = torch.zeros(1, 80, 100)
    mask[:, 20:30, 5:65] = 1  # 10 x 60
    _, seen = prepare_object(torch.ones(1, 3, 80, 100), mask, ENCODER)
    top, left, bottom, right = bounding_boxes(seen[:, 0])[0].tolist()
    assert seen.shape == (1, 3, 56, 56)
    assert abs((right - left) - 56 / 1.1) <= 1.5
    assert abs((bottom - top) - 56 / 1.1 / 6) <= 1.5
    assert abs((top + bottom) / 2 - 28) <= 0.5 and abs((left + right) / 2 - 28) <= 0.5


def test_where_the_object_lies_makes_no_difference():
    patch = torch.rand(3, 20, 30, generator=seeded())
    views = []
    for top, left in ((0, 0), (33, 17), (60, 70)):
        image, mask = torch.full((1, 3, 80, 100), 0.7), torch.zeros(1, 80, 100)
        image[0, :, top : top + 20, left : left + 30] = patch
        mask[0, top : top + 20, left : left + 30] = 1
        views.append(prepare_object(image, mask, ENCODER)[1])
    assert torch.allclose(views[0], views[1], atol=1e-5) and torch.allclose(views[0], views[2], atol=1e-5)


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
def test_values_are_of_the_encoder_s_own_colours(kind):
    encoder = dataclasses.replace(ENCODER, kind=kind)
    values, seen = prepare_object(torch.rand(2, 3, 40, 40), torch.ones(2, 40, 40), encoder)
    mean, std = MEAN_AND_STD[kind]
    for channel in range(3):
        expected = (seen[:, channel] - mean[channel]) / std[channel]
        assert torch.allclose(values[:, channel], expected, atol=1e-6)
    assert torch.equal(values, normalise(seen, encoder))


@pytest.mark.parametrize("surroundings", ["black", "kept"])
def test_a_stretched_object_fills_its_square(surroundings):
    """As when Pillow resizes the cropped picture: nothing outside the object's box has any influence."""
    encoder = dataclasses.replace(ENCODER, fit="stretch", object_margin=0.0, surroundings=surroundings)
    picture, mask = photo(60, 50, seed=1), np.zeros((50, 60), np.uint8)
    mask[8:50, 20:45] = 1
    mask[10:20, 25:30] = 0  # a hole in the object
    seen = prepare_object(image_to_tensor(picture), torch.from_numpy(mask)[None].float(), encoder)[1]
    pixels = np.asarray(picture) * (mask[..., None] if surroundings == "black" else 1)
    expected = Image.fromarray(pixels.astype(np.uint8)).crop((20, 8, 45, 50)).resize((56, 56), Image.BILINEAR)
    assert np.abs(seen[0].permute(1, 2, 0).numpy() - np.asarray(expected) / 255).max() < 1.5 / 255


def test_a_stretched_box_ends_at_the_picture_s_border():
    encoder = dataclasses.replace(ENCODER, fit="stretch", object_margin=0.5)
    seen = prepare_object(torch.ones(1, 3, 40, 40), torch.ones(1, 40, 40), encoder)[1]
    assert seen.min() > 0.999


def test_soft_edges_stay_soft_and_a_faint_mask_is_a_mask():
    mask = torch.full((1, 40, 40), 0.25)
    _, seen = prepare_object(torch.ones(1, 3, 40, 40), mask, ENCODER)
    assert torch.allclose(seen[0, 0, 28, 28], torch.tensor(0.25), atol=1e-5)


def test_a_batch_is_its_members():
    images = torch.rand(3, 3, 40, 60, generator=seeded())
    masks = torch.zeros(3, 40, 60)
    for index, mask in enumerate(masks):
        mask[5 * index : 20 + index, 10 : 30 + 9 * index] = 1
    together = prepare_object(images, masks, ENCODER)[0]
    for image, mask, values in zip(images, masks, together):
        assert torch.allclose(prepare_object(image[None], mask[None], ENCODER)[0][0], values, atol=1e-6)


@pytest.mark.parametrize(("fit", "surroundings"), [("pad", "black"), ("stretch", "black"), ("pad", "kept")])
def test_a_small_object_in_a_large_photo_takes_little_memory(fit, surroundings):
    """No tensor has the photo's size."""
    encoder = dataclasses.replace(ENCODER, fit=fit, surroundings=surroundings)
    image, mask = torch.rand(1, 3, 2000, 1500, generator=seeded()), torch.zeros(1, 2000, 1500)
    mask[:, 1700:1800, 40:170] = 1
    with torch.profiler.profile(profile_memory=True) as made:
        prepare_object(image, mask, encoder)
    assert max(event.self_cpu_memory_usage for event in made.events()) < image.nbytes / 20


def test_boxes():
    masks = torch.zeros(3, 20, 30)
    masks[0, 3:7, 5:11] = 1
    masks[1, 19, 29] = 0.2  # nothing above a half: what is above 0
    masks[2] = 1
    assert bounding_boxes(masks).tolist() == [[3, 5, 7, 11], [19, 29, 20, 30], [0, 0, 20, 30]]
    masks[0, 0, 0] = 0.3
    assert bounding_boxes(masks)[0].tolist() == [3, 5, 7, 11]
    assert bounding_boxes(masks, threshold=0)[0].tolist() == [0, 0, 7, 11]


def test_resample_of_a_box_at_its_own_size_is_a_copy():
    image = torch.rand(1, 3, 40, 50, generator=seeded())
    assert torch.allclose(resample(image, torch.tensor([[5, 7, 25, 27]]), 20), image[:, :, 5:25, 7:27], atol=1e-6)


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (torch.ones(1, 3, 20, 20), torch.zeros(1, 20, 20), "object's mask is empty"),
        (torch.ones(1, 3, 20, 20), torch.ones(1, 20, 21), "20x20.*21x20 differ"),
        (torch.ones(2, 3, 20, 20), torch.ones(1, 20, 20), "2 picture.*1 mask"),
        (torch.ones(1, 4, 20, 20), torch.ones(1, 20, 20), r"\(1, 4, 20, 20\)"),
        (torch.ones(3, 20, 20), torch.ones(1, 20, 20), r"expected \(B, 3, H, W\)"),
        (torch.full((1, 3, 20, 20), float("nan")), torch.ones(1, 20, 20), "not finite"),
    ],
)
def test_bad_input(images, masks, message):
    with pytest.raises(ImprintError, match=message):
        prepare_object(images, masks, ENCODER)
