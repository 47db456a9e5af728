"""Every step from mask to picture works on any device, and gives the same result there: see `elsewhere.py`."""

import elsewhere as device
import pytest
import torch
from elsewhere import DEVICE, elsewhere, put
from micro import cutout, matte_config, seeded

import imprint.crop
from imprint.blending import BLENDS, blend_pictures, feather, match_colour
from imprint.crop import Crop
from imprint.detail import restore_detail
from imprint.hole import Hole
from imprint.images import image_to_tensor
from imprint.mask_reading import alpha_to_tensor
from imprint.masks import LEVELS, coarsen
from imprint.matte import matte_pixels
from imprint.preprocess import prepare_object
from imprint.views import ObjectViews

SIDE = 96
CONFIG = matte_config()


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(len(shape)))


PICTURE, OTHER = random(1, 3, SIDE, SIDE), random(1, 3, SIDE, SIDE).flip(1)
MASK = torch.zeros(1, SIDE, SIDE)
MASK[:, 30:70, 20:75] = 1
OBJECT, OUTLINE = (make(cutout(60, 50, seed=1)) for make in (image_to_tensor, alpha_to_tensor))
DRAWN, ALPHA = torch.full((1, 3, SIDE, SIDE), 0.5), torch.zeros(1, SIDE, SIDE)
DRAWN[..., 20:70, 10:70], ALPHA[:, 20:70, 10:70] = 0.8 * OBJECT, OUTLINE

STEPS = {
    "detail": lambda drawn, alpha, image, mask: restore_detail(drawn, alpha, ObjectViews((image,), (mask,)))[:2],
    "object": lambda image, mask: prepare_object(image, mask, CONFIG.encoder),
    "colours": lambda made, base, mask: (match_colour(made, base, mask),),
    "matte": lambda logits, hole: matte_pixels(logits, hole, CONFIG),
    "feather": lambda mask: (feather(mask, 3, 5),),
    "hole": lambda mask: (Hole.find(mask[0], 64).mask,),
    **{f"mask {level}": lambda mask, level=level: (coarsen(mask, level, 2, 60, 5),) for level in LEVELS},
    **{
        f"blend {method}": lambda base, made, mask, *matte, method=method: (
            blend_pictures(base, made, mask, 3, 8, method, matte),
        )
        for method in BLENDS
    },
}
INPUTS = {
    "detail": (DRAWN, ALPHA, OBJECT, OUTLINE),
    "object": (OBJECT, OUTLINE),
    "colours": (PICTURE, OTHER, MASK),
    "matte": (random(1, 8, 8, 8), (random(1, 1, 8, 8) > 0.3).float()),
    "blend": (PICTURE, OTHER, MASK, random(1, SIDE, SIDE), random(1, SIDE, SIDE)),
}


def test_the_device_takes_lists_for_indices():
    """torch converts them to tensors on the device, where they would have no value."""
    values = torch.arange(12.0).view(3, 4)
    with elsewhere():
        there = put(values)
        for index in ([2], [0, 2], (slice(None), [3, 1]), ([1], 2)):
            assert torch.equal(there[index].cpu(), values[index]), index
        there[[1]] = 7.0
        assert there.cpu()[1].tolist() == [7.0] * 4 and there.cpu()[0].tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("name", STEPS)
def test_a_step_works_where_its_tensors_lie(name: str):
    step, inputs = STEPS[name], INPUTS.get(name.split()[0], (MASK,))
    here = step(*inputs)
    assert not any(torch.equal(made, given) for made in here for given in inputs)  # it does something
    with elsewhere():
        there = step(*map(put, inputs))
        assert all(made.device == DEVICE for made in there)
        assert all(torch.equal(made.cpu(), expected) for made, expected in zip(there, here))


@pytest.mark.parametrize("name", ["detail", "object", "colours", "blend feather", "blend multiband"])
def test_its_tensors_may_lie_apart(name: str):
    """As with ComfyUI's --gpu-only, where one node returns GPU tensors and another CPU tensors."""
    step, inputs = STEPS[name], INPUTS[name.split()[0]]
    here = step(*inputs)
    for index in range(len(inputs)):
        with elsewhere():
            apart = step(*(put(each) if place == index else each for place, each in enumerate(inputs)))
            assert all(torch.equal(made.cpu(), expected) for made, expected in zip(apart, here)), index


def test_a_crop_of_what_lies_elsewhere():
    here = Crop.of(PICTURE, MASK, CONFIG)
    with elsewhere():
        crop = Crop.of(put(PICTURE), put(MASK), CONFIG)
        whole, square = put(PICTURE), put(random(1, 3, CONFIG.resolution, CONFIG.resolution))
        crop.write(whole, square)
        assert torch.equal(crop.painted.cpu(), here.painted)
        assert torch.equal(crop.changed_area().cpu(), here.changed_area())
        expected = PICTURE.clone()
        here.write(expected, square.cpu())
        assert torch.equal(whole.cpu(), expected) and not torch.equal(expected, PICTURE)


def test_a_crop_moves_nothing_but_itself(monkeypatch):
    """Of a large photo on a GPU, only the square and one pixel around it are moved to the CPU."""
    wide, call, moved = torch.zeros(1, 4 * SIDE, 4 * SIDE), device._call, []
    wide[:, 30:60, 20:60] = 1
    picture = random(1, 3, 4 * SIDE, 4 * SIDE)

    def watch(function, arguments, options):
        result = call(function, arguments, options)
        if (
            function is torch.ops.aten._to_copy.default
            and result.device.type == "cpu"
            and arguments[0].device == DEVICE
        ):
            moved.append(result.numel())
        return result

    monkeypatch.setattr(device, "_call", watch)
    here = Crop.of(picture, wide, CONFIG)
    with elsewhere():
        crop = Crop.of(put(picture), put(wide), CONFIG)
        blend = crop.blend_part(put(wide))
    for found, expected in ((crop.frame, here.frame), (crop.painted, here.painted), (blend, here.blend_part(wide))):
        assert found.device.type == "cpu" and torch.equal(found, expected)
    assert crop.frame.numel() == max(moved) < picture.numel() / 8


def test_a_very_large_crop_stays_on_the_cpu(monkeypatch):
    with elsewhere():
        assert Crop.of(PICTURE, MASK, CONFIG, device=DEVICE).picture.device == DEVICE
        monkeypatch.setattr(imprint.crop, "MOST_PIXELS", 64)
        assert Crop.of(PICTURE, MASK, CONFIG, device=DEVICE).picture.device.type == "cpu"
