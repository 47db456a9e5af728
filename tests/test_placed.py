"""Placed objects in the pipeline; the model draws none of them."""

import numpy as np
import pytest
import torch
from micro import cutout, micro_light, photo
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from imprint.errors import ImprintError
from imprint.images import image_to_tensor
from imprint.light import square_around
from imprint.pipeline import ImprintPipeline
from imprint.place import Place, PlacedObject, place_object
from imprint.views import ObjectViews


def place_of(scene, rotate: float = 0, flip: bool = False) -> PlacedObject:
    subject, background, box = scene
    mask = torch.from_numpy(np.array(box)) / 255
    return place_object(ObjectViews.of(subject), background.size[::-1], mask, rotate=rotate, flip=flip)


def test_a_box_takes_the_object_s_photo_and_nothing_beyond_its_square_changes(placing, scene):
    subject, background, box = scene
    made = placing(subject, None, background, box, output_type="pt")
    placed = place_of(scene)
    before = image_to_tensor(background)
    changed = (made.images != before).any(1)[0]
    rows, columns = placed.area
    assert changed[rows, columns].float().mean() > 0.5
    changed[square_around(placing.light, placed).area] = False
    assert not changed.any()
    assert (made.lit.shadow > 0).any() and made.lit.area == square_around(placing.light, placed).area
    assert made.alpha.shape == made.shadow.shape == (1, 64, 64) and made.alpha.max() > 0.9


def test_without_light_and_shadow_it_is_a_paste_bit_for_bit(placing, scene, layer):
    subject, background, box = scene
    off = {"light": 0.0, "shadow": 0.0}
    made = placing(layer, None, background, placed=True, **off).images[0]
    alpha, expected = np.asarray(layer)[..., 3], np.asarray(layer)[..., :3]
    assert np.array_equal(np.asarray(made)[alpha == 255], expected[alpha == 255]) and (alpha == 255).sum() > 200
    assert np.array_equal(np.asarray(made)[alpha == 0], np.asarray(background)[alpha == 0])
    blended = np.asarray(Image.alpha_composite(background.convert("RGBA"), layer).convert("RGB")).astype(int)
    assert np.abs(blended - np.asarray(made)).max() <= 1

    rows, columns = place_of(scene).area
    made = np.asarray(placing(subject, None, background, box, **off).images[0])
    outside = np.ones(made.shape[:2], dtype=bool)
    outside[rows, columns] = False
    assert np.array_equal(made[outside], np.asarray(background)[outside])


def test_light_changes_colours_and_not_where_the_object_is(placing, scene, layer):
    _, background, _ = scene
    plain = placing(layer, None, background, placed=True, light=0, shadow=0, output_type="pt")
    lit = placing(layer, None, background, placed=True, light=1.5, shadow=0, output_type="pt")
    assert torch.equal(plain.lit.alpha, lit.lit.alpha) and torch.equal(plain.alpha, lit.alpha)
    alpha = torch.from_numpy(np.asarray(layer)[..., 3].copy())
    changed = (plain.images != lit.images).any(1)[0]
    assert not changed[alpha == 0].any() and changed[alpha == 255].float().mean() > 0.9


def test_a_place_is_the_box_s_own(placing, scene):
    """`place` and a box that gives the same place give the same picture."""
    subject, background, box = scene
    placed = place_of(scene)
    top, _left, bottom, _right = placed.box
    place = Place((40 + 75) / 2, bottom, bottom - top)
    by_box, by_place = (
        placing(subject, None, background, output_type="pt", **where).images
        for where in ({"mask": box}, {"place": place})
    )
    assert torch.equal(by_box, by_place)


def test_rotate_and_flip_reach_the_box(placing, scene):
    subject, background, box = scene
    made = placing(subject, None, background, box, rotate=90, flip=True, light=0, shadow=0).lit
    placed = place_of(scene, 90, True)
    assert torch.equal(made.alpha[made.alpha > 0], placed.alpha[placed.alpha > 0])
    assert torch.equal(made.colours, placed.within(made.area)[0])


def test_an_outline_and_fill_still_go_through_the_model(_placing, scene):
    subject, background, box = scene
    outline = box.copy()
    outline.paste(0, (40, 30, 55, 45))
    steps = []
    for mask, fit in ((outline, "contain"), (outline, "fill"), (box, "fill")):
        made = _placing(
            subject, None, background, mask, 1, fit=fit, callback_on_step_end=lambda *_: steps.append(1) or {}
        )
        assert made.lit is None
    assert len(steps) == 3


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "I;16"])
def test_backgrounds_of_every_kind_keep_what_is_beyond(placing, layer, mode):
    background = photo(120, 90, seed=2)
    if "A" in mode:
        background.putalpha(photo(120, 90, seed=3).convert("L"))
    background = background.convert("L").convert("I;16") if mode == "I;16" else background.convert(mode)
    made = placing(layer, None, background, placed=True)
    assert made.images[0].size == (120, 90) and made.images[0].mode == ("RGBA" if "A" in mode else "RGB")
    before, after = image_to_tensor(background), image_to_tensor(made.images[0])
    kept = torch.ones(90, 120, dtype=torch.bool)
    kept[made.lit.area] = ((made.lit.alpha == 0) & (made.lit.shadow == 0))[0, 0]
    assert torch.equal(after[0][:, kept], before[0][:, kept])
    if "A" in mode:
        assert np.array_equal(np.asarray(made.images[0])[..., 3], np.asarray(background.convert("RGBA"))[..., 3])


def test_pillow_and_tensors_give_the_same(placing, scene):
    subject, background, box = scene
    as_picture = placing(subject, None, background, box).images[0]
    as_tensor = placing(subject, None, image_to_tensor(background), box, output_type="pt", num_results=2).images
    assert as_tensor.shape == (2, 3, 90, 120) and torch.equal(as_tensor[0], as_tensor[1])
    assert torch.equal((as_tensor[:1] * 255).round() / 255, image_to_tensor(as_picture))


def test_a_blend_mask_limits_what_changes(placing, scene):
    subject, background, box = scene
    blend = torch.zeros(1, 90, 120)
    blend[:, :45] = 1
    made = placing(subject, None, background, box, blend_mask=blend, output_type="pt")
    whole = placing(subject, None, background, box, output_type="pt")
    assert torch.equal(made.images[:, :, 45:], image_to_tensor(background)[:, :, 45:])
    assert torch.equal(made.images[:, :, :35], whole.images[:, :, :35])
    seen, rows = whole.lit.alpha.clone(), 45 - whole.lit.area[0].start
    seen[:, :, rows:] = 0
    assert torch.equal(made.lit.alpha, seen) and seen[:, :, rows - 1].any()
    assert (made.lit.shadow <= whole.lit.shadow).all()  # it fades before the edge
    with pytest.raises(ImprintError, match="120x90, but its blend mask is 12x9"):
        placing(subject, None, background, box, blend_mask=torch.ones(1, 9, 12))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (5, 5)])
def test_tiny_frames(placing, size):
    background = photo(*size, seed=2)
    made = placing(cutout(30, 30, seed=1), None, background, Image.new("L", size, 255))
    assert made.images[0].size == size
    made = placing(cutout(30, 30, seed=1), None, background, place=Place(0.5, 1, 60))
    assert made.images[0].size == size


def test_a_large_frame_is_not_copied_as_numbers(placing):
    """32 megapixels around a small object: no tensor is as large as the frame."""
    background, largest = Image.new("RGB", (8000, 4000), (90, 120, 60)), []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            largest.append(made.numel() if isinstance(made, torch.Tensor) else 0)
            return made

    with Watched():
        made = placing(cutout(50, 40, seed=1), None, background, place=Place(7990, 3990, 40))
    assert 64 * 64 < max(largest) < 1_000_000
    pixels = np.asarray(made.images[0])
    assert (pixels[:3800] == (90, 120, 60)).all() and (pixels[3960:, 7960:] != (90, 120, 60)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(micro_file, scene, dtype):
    """The light network has the pipeline's precision; off is off there too."""
    half = ImprintPipeline.from_checkpoint(micro_file, torch_dtype=dtype)
    assert half.light.dtype == dtype
    subject, background, box = scene
    whole = ImprintPipeline.from_checkpoint(micro_file)
    if dtype == torch.float16:  # a CPU takes half a minute for the shipped network's convolutions in it
        half.register_modules(light=micro_light().to(dtype))
        whole.register_modules(light=micro_light())
    made, expected = (each(subject, None, background, box, output_type="pt").images for each in (half, whole))
    assert made.dtype == torch.float32 and (made - expected).abs().mean() < 0.01
    off, plain = (each(subject, None, background, box, light=0, shadow=0).images[0] for each in (half, whole))
    assert np.array_equal(np.asarray(off), np.asarray(plain))


def test_a_pipeline_without_a_light_network_takes_the_shipped_one(_placing, scene):
    parts = {name: part for name, part in _placing.components.items() if name != "light"}
    pipeline = ImprintPipeline(**parts)
    assert pipeline.light is None
    made = pipeline(scene[0], None, *scene[1:], output_type="pt")
    assert pipeline.light is not None and made.images.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": None}, "got nothing to say where the object goes"),
        ({"placed": True}, "got placed and mask"),
        ({"mask": None, "placed": True}, "the placed object is 50x40, but the background is 120x90"),
        ({"fit": "cover"}, "fit is 'cover'"),
        ({"light": 1.6}, "light is 1.6; it must be a finite number from 0 to 1.5"),
        ({"shadow": -1}, "shadow is -1; it must be a finite number from 0 to 1.5"),
        ({"softness": 2}, "softness is 2"),
        ({"rotate": "left"}, "rotate is 'left'"),
        ({"output_type": "latent"}, "never in the model's latents"),
        ({"mask": Image.new("L", (120, 90))}, "mask of the hole is empty"),
        ({"mask": Image.new("L", (60, 45), 255)}, "background is 120x90.*mask is 60x45"),
        ({"mask": None, "place": Place(-500, 5, 20)}, "outside the 120x90 background"),
    ],
)
def test_bad_input(_placing, scene, changes, message):
    subject, background, box = scene
    given = {"object_image": subject, "object_mask": None, "background": background, "mask": box} | changes
    with pytest.raises(ImprintError, match=message) as caught:
        _placing(**given)
    assert "\n" not in str(caught.value)
