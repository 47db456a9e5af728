"""Light and shadow of a placed object: off is off exactly, the rest of the photo stays, and the layers stack up."""

import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from micro import micro_light
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from imprint.checkpoint import digest
from imprint.cli import SAMPLES
from imprint.directions import light_direction
from imprint.errors import ImprintError
from imprint.images import as_layer, image_to_tensor, open_image, tensor_to_image
from imprint.light import predict_maps, relight
from imprint.lightnet import SHIPPED_LIGHT, likeliest, load_light, save_light
from imprint.place import Place, PlacedObject, place_object
from imprint.views import ObjectViews

NET = micro_light()
SHIPPED = load_light()


def placed_at(size: tuple[int, int], box: tuple[int, int, int, int], seed: int = 0) -> PlacedObject:
    """An ellipse of noise in 8-bit colours, with a soft edge, in (top, left, bottom, right) of a frame of `size`."""
    top, left, bottom, right = box
    high, wide = bottom - top, right - left
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, high + 2)[1:-1], torch.linspace(-1, 1, wide + 2)[1:-1], indexing="ij")
    alpha = ((1.2 - (x**2 + y**2).sqrt()) * 4).clamp(0, 1)
    colours = torch.randint(0, 256, (3, high, wide), generator=generator) / 255
    return PlacedObject(size, (top, left), colours, alpha)


def frame_of(size: tuple[int, int], seed: int = 1) -> torch.Tensor:
    """(1, 3, H, W) of 8-bit noise that is never black or white."""
    return torch.randint(30, 226, (1, 3, *size), generator=torch.Generator().manual_seed(seed)) / 255


SIZE, PLACED = (90, 120), placed_at((90, 120), (40, 50, 70, 75))
FRAME = frame_of(SIZE)


def test_a_mask_s_edge_is_not_seen_in_the_shadow():
    """The shadow fades to nothing there; and half a mask gives half of the object and the shadow."""
    lit = relight(SHIPPED, FRAME, PLACED, 0, 1, light_from="left")
    mask = torch.zeros_like(lit.alpha)
    mask[..., : mask.shape[3] // 2] = 1
    through = lit.through(mask)
    edge = (..., mask.shape[3] // 2 - 1)
    assert through.shadow[edge].max() < 0.25 * lit.shadow[edge].max() and not through.shadow[mask == 0].any()
    assert torch.equal(through.shadow[..., :10], lit.shadow[..., :10]) and torch.equal(through.alpha, lit.alpha * mask)
    half = lit.through(torch.full_like(mask, 0.5))
    assert torch.allclose(half.shadow, lit.shadow / 2) and torch.equal(half.alpha, lit.alpha / 2)


def test_a_shadow_passes_behind_what_is_narrow():
    lit = relight(SHIPPED, FRAME, PLACED, 0, 1, light_from="left")
    for bars in (slice(40, 44), slice(0, None, 4)):
        mask = torch.ones_like(lit.alpha)
        mask[..., bars] = 0
        assert torch.allclose(lit.through(mask).shadow, lit.shadow * mask, atol=1e-6)
        assert (lit.shadow * mask)[..., 38:48].any()


# --- strengths -------------------------------------------------------------------------------------------------------


def test_off_is_off_exactly():
    """No light and no shadow: the object's own pixels over the background's, bit for bit."""
    lit = relight(NET, FRAME, PLACED, 0, 0)
    made, part = lit.composite()[0], FRAME[(0, slice(None), *lit.area)]
    colours, alpha = PLACED.within(lit.area)
    assert torch.equal(made[:, alpha[0, 0] == 1], colours[0][:, alpha[0, 0] == 1])
    assert torch.equal(made[:, alpha[0, 0] == 0], part[:, alpha[0, 0] == 0])
    assert torch.equal(made, torch.where(alpha[0] > 0, torch.lerp(part, colours[0], alpha[0]), part))
    assert (alpha == 1).sum() > 100 and ((alpha > 0) & (alpha < 1)).sum() > 20


def test_each_is_off_by_itself():
    light, shadow = relight(NET, FRAME, PLACED, 1, 0), relight(NET, FRAME, PLACED, 0, 1)
    assert torch.equal(light.shadow, torch.zeros_like(light.shadow))
    assert not torch.equal(light.relit, light.colours)
    assert torch.equal(shadow.relit, shadow.colours) and (shadow.shadow > 0.1).any()
    both = relight(NET, FRAME, PLACED, 1, 1)
    assert torch.equal(both.relit, light.relit) and torch.equal(both.shadow, shadow.shadow)


@pytest.mark.parametrize("strengths", [(1, 1), (1.5, 0.2), (0, 1.5), (0.5, 0, 1.0), (1, 1, 1)])
def test_beyond_object_and_shadow_every_bit_is_the_background_s(strengths):
    net = micro_light()  # one whose shadow is here and there
    net.head[-1].weight.view(13, 4, 8, 3, 3)[6] *= 6
    net.head[-1].bias.view(13, 4)[6] = -2
    lit = relight(net, FRAME, PLACED, *strengths)
    kept = (lit.alpha[0, 0] == 0) & (lit.shadow[0, 0] == 0)
    made, part = lit.composite()[0], FRAME[(0, slice(None), *lit.area)]
    assert torch.equal(made[:, kept], part[:, kept])
    assert kept.sum() > 50 and not torch.equal(made[:, ~kept], part[:, ~kept])


def test_several_pictures_are_seen_as_each_alone():
    torch.manual_seed(0)
    pictures = [torch.rand(3, channels, 64, 64) for channels in (3, 1, 3)]
    towards = torch.tensor([light_direction(each) for each in ("left", "above", "front")])
    for told in (None, towards):
        together = predict_maps(SHIPPED, pictures, told)
        for row in range(3):
            alone = predict_maps(
                SHIPPED, [each[row : row + 1] for each in pictures], told if told is None else told[row : row + 1]
            )
            for name in ("gain", "offset", "shadow"):
                torch.testing.assert_close(
                    getattr(together, name)[row : row + 1], getattr(alone, name), atol=1e-4, rtol=1e-3
                )


@pytest.mark.parametrize("net", [NET, load_light()], ids=["micro", "shipped"])
def test_what_the_object_hides_is_not_seen_on_it(net):
    """Two scenes that differ only where the object is solid."""
    alpha = torch.zeros(96, 96)
    alpha[30:70, 30:66] = 1
    placed = PlacedObject.from_layer(torch.full((3, 96, 96), 0.5), alpha)
    solid = torch.zeros(96, 96)
    solid[36:64, 36:60] = 1
    frame = frame_of((96, 96))
    other = torch.lerp(frame, frame_of((96, 96), 5), solid)
    one, two = (relight(net, each, placed).relit for each in (frame, other))
    assert not torch.equal(frame, other) and (one - two).abs().max() < 1e-5


def test_light_leaves_no_ripples_on_an_even_object():
    alpha = torch.zeros(300, 300)
    alpha[80:240, 60:220] = 1
    placed = PlacedObject.from_layer(torch.full((3, 300, 300), 0.5), alpha)
    room = Image.open(SHIPPED_LIGHT.parent / "samples" / "room.jpg").convert("RGB").resize((300, 300))
    lit = relight(load_light(), image_to_tensor(room), placed, 1, 0)
    row, column = (part.start for part in lit.area)
    even = lit.relit[..., 83 - row : 237 - row, 63 - column : 217 - column]
    assert (even[..., 2:] - 2 * even[..., 1:-1] + even[..., :-2]).abs().max() < 0.003


def test_strengths_are_continuous_and_monotone():
    steps = [step / 20 for step in range(31)]
    shadows = [relight(NET, FRAME, PLACED, 0, step).shadow for step in steps]
    assert all((after >= before).all() for before, after in itertools.pairwise(shadows))
    assert max(float((after - before).max()) for before, after in itertools.pairwise(shadows)) < 0.2
    assert (shadows[-1] > shadows[0] + 0.3).any()
    changes = [(each.relit - each.colours).abs() for each in (relight(NET, FRAME, PLACED, step, 0) for step in steps)]
    means = [float(change.mean()) for change in changes]
    assert means[0] == 0 and all(after > before for before, after in itertools.pairwise(means))
    assert max(float((after - before).abs().max()) for before, after in itertools.pairwise(changes)) < 0.15
    faint = relight(NET, FRAME, PLACED, 1e-4, 1e-4).composite()
    assert (faint - relight(NET, FRAME, PLACED, 0, 0).composite()).abs().max() < 1e-3


def test_a_softer_shadow_is_smoother_and_as_dark_in_all():
    steps = [0, 1e-300, 0.05, 0.3, 1]
    shadows = [relight(NET, FRAME, PLACED, 0, 1, step).shadow for step in steps]
    rough = [float(each.diff(dim=3).abs().mean() + each.diff(dim=2).abs().mean()) for each in shadows]
    assert torch.equal(shadows[0], shadows[1]) and rough[0] == rough[1] and rough[2] > rough[3] > rough[4]
    means = [float(each.mean()) for each in shadows]
    assert means[-1] == pytest.approx(means[0], rel=0.25)


@pytest.mark.parametrize("light_from", ["auto", "left"])
def test_a_softer_shadow_still_grounds_the_object(light_from):
    """A thin shadow, close beside the object, keeps its darkness there."""
    photo, room = (open_image(SAMPLES / name) for name in ("sloth.webp", "hall.jpg"))
    placed = place_object(ObjectViews.of([photo]), room.size[::-1], None, place=Place(200, 368, 120))
    hard, soft = (relight(SHIPPED, room, placed, 0, 1, softness, light_from) for softness in (0, 1))
    hard, soft = (each.shadow * (1 - each.alpha) for each in (hard, soft))
    assert soft.sum() == pytest.approx(float(hard.sum()), rel=0.1) and soft.max() > 0.8 * hard.max()


@pytest.mark.parametrize(
    "values", [(-0.1, 1, 0), (1.6, 1, 0), (1, 1.6, 0), (1, 1, 1.1), (1, 1, -1), (float("nan"), 1, 0)]
)
def test_strengths_beyond_their_range_have_a_sentence(values):
    with pytest.raises(ImprintError, match=r"(light|shadow) is .* from 0 to 1\.5|softness is .* from 0 to 1"):
        relight(NET, FRAME, PLACED, *values)


# --- the square ------------------------------------------------------------------------------------------------------


def test_a_shadow_fades_where_the_square_ends_within_the_frame():
    """A network that predicts black shadow everywhere must not show its square's edge."""
    net = micro_light()
    net.head[-1].weight.zero_()
    net.head[-1].bias.view(13, 4)[6] = 9
    lit = relight(net, FRAME, PLACED, 0, 1)
    lost = lit.shadow[0, 0]
    for line in (lost[0], lost[-1], lost[:, 0], lost[:, -1]):
        assert line.max() < 0.3
    assert lost[:, 0].max() < lost[:, 3].max() and (lost > 0.95).float().mean() > 0.5
    # At the frame's own border the ground goes on beyond the picture, and so does the shadow.
    standing = placed_at((90, 120), (60, 50, 90, 75))
    assert (relight(net, FRAME, standing, 0, 1).shadow[0, 0, -1] > 0.95).float().mean() > 0.5


def test_the_background_must_be_of_the_placed_object_s_size():
    with pytest.raises(ImprintError, match="the background .*60x90.* the placed object .*120x90"):
        relight(NET, FRAME[..., :60], PLACED)


def test_an_object_that_covers_all_throws_no_shadow():
    covering = PlacedObject(SIZE, (0, 0), torch.rand(3, *SIZE), torch.ones(SIZE))
    lit = relight(NET, FRAME, covering, 1, 1)
    assert torch.equal(lit.shadow, torch.zeros_like(lit.shadow)) and lit.composite().isfinite().all()


@given(st.data())
@settings(max_examples=60)
def test_any_size_and_place_gives_a_picture(data):
    """Frames and objects down to one pixel."""
    high, wide = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    bottom, right = data.draw(st.integers(1, high)), data.draw(st.integers(1, wide))
    box = (data.draw(st.integers(0, bottom - 1)), data.draw(st.integers(0, right - 1)), bottom, right)
    strengths = [data.draw(st.sampled_from([0.0, 0.3, 1.0, 1.5])) for _ in range(2)]
    frame, placed = frame_of((high, wide)), placed_at((high, wide), box)
    lit = relight(NET, frame, placed, *strengths, data.draw(st.sampled_from([0.0, 0.5, 1.0])))
    made, part = lit.composite(), frame[(slice(None), slice(None), *lit.area)]
    assert made.shape == part.shape and made.isfinite().all() and made.min() >= 0 and made.max() <= 1
    kept = (lit.alpha[0, 0] == 0) & (lit.shadow[0, 0] == 0)
    assert torch.equal(made[0][:, kept], part[0][:, kept])
    for layer in lit.layers().values():
        assert layer.shape[1] == 4 and layer.min() >= 0 and layer.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_gives_nearly_the_same(dtype):
    half = micro_light().to(dtype)
    whole, made = (relight(net, FRAME, PLACED).composite() for net in (NET, half))
    assert made.dtype == torch.float32 and not torch.equal(made, whole)
    assert (made - whole).abs().mean() < 0.01
    assert torch.equal(relight(half, FRAME, PLACED, 0, 0).composite(), relight(NET, FRAME, PLACED, 0, 0).composite())


def test_maps_that_are_not_finite_are_said():
    for row in (0, 3, 6):
        net = micro_light()
        net.head[-1].bias.view(13, 4)[row] = torch.nan
        with pytest.raises(ImprintError, match="light that the network sees.*not finite"):
            relight(net, FRAME, PLACED)


# --- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strengths", [(1, 1), (0, 0), (1.5, 1.5), (0.3, 0.7, 0.5), (0, 1), (1, 0)])
def test_stacked_layers_are_the_composite(strengths):
    """With 8 bits, by Pillow's own `alpha_composite`."""
    lit = relight(NET, FRAME, PLACED, *strengths)
    rows, columns = lit.area
    whole = FRAME.clone()
    whole[:, :, rows, columns] = lit.composite()
    stacked = tensor_to_image(FRAME[0]).convert("RGBA")
    layers = lit.layers()
    assert list(layers) == ["shadow", "object", "light"]
    for values in layers.values():
        stacked = Image.alpha_composite(stacked, as_layer(tensor_to_image(values[0]), stacked, lit.area))
    expected = np.asarray(tensor_to_image(whole[0])).astype(int)
    off = np.abs(np.asarray(stacked.convert("RGB")) - expected)
    assert off.max() <= 1, np.unique(off, return_counts=True)
    assert np.asarray(stacked)[..., 3].min() == 255


def test_layers_hold_only_their_own():
    lit = relight(NET, FRAME, PLACED, 0, 0)
    layers = lit.layers()
    assert layers["shadow"][:, 3].max() == 0 and layers["light"][:, 3].max() == 0
    assert torch.equal(layers["object"][:, 3:], lit.alpha) and torch.equal(layers["object"][:, :3], lit.colours)
    layers = relight(NET, FRAME, PLACED, 1, 1).layers()
    assert torch.equal(layers["light"][:, 3:][lit.alpha == 0], torch.zeros(int((lit.alpha == 0).sum())))


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_network_comes_back_from_its_file(tmp_path):
    path = tmp_path / "light.safetensors"
    save_light(path, NET, torch.float32)
    again = load_light(path)
    assert again.config == NET.config and not again.training
    assert torch.equal(relight(again, FRAME, PLACED).composite(), relight(NET, FRAME, PLACED).composite())
    assert not any(parameter.requires_grad for parameter in again.parameters())
    save_light(path, NET)
    with safe_open(path, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}
    assert load_light(path).dtype == torch.float32 and [file.name for file in tmp_path.iterdir()] == [path.name]


def rewritten(path, change) -> None:
    """Rewrite the file after `change(tensors, config)`, with a correct checksum."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    config = json.loads(metadata["config"])
    change(tensors, config)
    metadata["config"] = json.dumps(config)
    metadata["sha256"] = digest(metadata["config"], sorted(tensors.items()))
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, _: tensors.pop("stem.weight"), "1 tensors of the light network.*'stem.weight'"),
        (lambda tensors, _: tensors.update({"more": torch.ones(1)}), "1 tensors.*'more'"),
        (lambda tensors, _: tensors.update({"stem.bias": torch.ones(3)}), "1 tensors.*another shape.*'stem.bias'"),
        (lambda _, config: config.update(depth=3), "is described by .*depth"),
        (lambda _, config: config.pop("blocks"), "is described by"),
        (lambda _, config: config.update(widths=3), "widths is 3; it must be a list"),
        (lambda _, config: config.update(widths=[8, 9, 32]), "multiples of 8"),
        (lambda _, config: config.update(widths=[8, 8, 10**6]), "2048 at most"),
        (lambda _, config: config.update(blocks="1"), "blocks is '1'"),
        (lambda _, config: config.update(resolution=0), "resolution is 0"),
        (lambda _, config: config.update(resolution=65), "resolution is 65; it must be a multiple of 32"),
        (lambda _, config: config.update(context=float("nan")), "context is nan"),
    ],
)
def test_a_file_of_other_code_is_refused(tmp_path, change, message):
    path = tmp_path / "light.safetensors"
    save_light(path, NET)
    rewritten(path, change)
    with pytest.raises(ImprintError, match=message):
        load_light(path)


@pytest.mark.parametrize("config", ["{", "[]", "null", "[" * 100_000])
def test_a_file_without_a_whole_description_is_refused(tmp_path, config):
    path, tensors = tmp_path / "light.safetensors", {"a": torch.ones(1)}
    metadata = {"format": "imprint-light", "config": config, "sha256": digest(config, tensors.items())}
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(ImprintError, match=r"light\.safetensors: .*train it again"):
        load_light(path)


def test_a_light_network_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ImprintError, match="cannot be written"):
        save_light(tmp_path / "file" / "light.safetensors", NET)


def test_what_is_no_light_network_is_refused(tmp_path, micro_file):
    path = tmp_path / "light.safetensors"
    with pytest.raises(ImprintError, match="no such file"):
        load_light(path)
    with pytest.raises(ImprintError, match="is a folder; give the path of a light network"):
        load_light(tmp_path)
    with pytest.raises(ImprintError, match="holds no light network"):
        load_light(micro_file)
    save_file({"a": torch.ones(1)}, path, metadata={"format": "imprint-light"})
    with pytest.raises(ImprintError, match="holds no light network"):
        load_light(path)
    torch.save(NET.state_dict(), path)
    with pytest.raises(ImprintError, match="is a pickle"):
        load_light(path)
    save_light(path, NET)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ImprintError, match="does not match its checksum"):
        load_light(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImprintError, match="light.safetensors"):
        load_light(path)


def test_the_shipped_network_darkens_the_ground_and_keeps_the_rest():
    """As for any good network: on plain ground in plain light an object casts some shadow, and the photo is kept."""
    frame = torch.full((1, 3, 300, 400), 0.6)
    frame[:, :, :120] = 0.8
    placed = placed_at((300, 400), (120, 160, 240, 240))
    lit = relight(SHIPPED, frame, placed)
    assert (lit.shadow > 0.05).any() and (lit.shadow == 0).float().mean() > 0.2
    assert image_to_tensor(tensor_to_image(lit.composite()[0])).isfinite().all()


def shadow_lies(where: str | float) -> tuple[float, float]:
    """How far to the right of and below the object the shipped network's shadow has its centre, on plain ground."""
    frame = torch.full((1, 3, 300, 400), 0.6)
    frame[:, :, :120] = 0.8
    placed = placed_at((300, 400), (120, 160, 240, 240))
    lit = relight(SHIPPED, frame, placed, light_from=where)
    area = lit.area
    shadow = lit.shadow[0, 0] * (lit.alpha[0, 0] == 0)
    rows, columns = (torch.arange(side).float() for side in shadow.shape)
    right = float((shadow.sum(0) * columns).sum() / shadow.sum()) + area[1].start - 200
    return right, float((shadow.sum(1) * rows).sum() / shadow.sum()) + area[0].start - 240


def test_a_shadow_falls_away_from_where_the_light_comes_from():
    left, right = shadow_lies("left"), shadow_lies("right")
    assert left[0] > 5 and right[0] < -5 and left[0] == pytest.approx(-right[0], rel=0.1)
    assert shadow_lies("behind")[1] > shadow_lies("front")[1] + 5
    assert shadow_lies(270) == left
    assert abs(shadow_lies("auto")[0]) < left[0]


def test_a_shadow_is_as_deep_at_the_outline_as_beside_it():
    """A bright rim there would be conspicuous."""
    photo, background = open_image(SAMPLES / "bear.webp"), open_image(SAMPLES / "salon.jpg")
    place = Place(background.width / 2, 0.85 * background.height, 0.35 * background.height)
    placed = place_object(ObjectViews.of(photo, None), background.size[::-1], None, place=place)
    lit = relight(SHIPPED, background, placed, light_from="left")
    pixel = lit.alpha.shape[2] // SHIPPED.config.resolution
    thing = (lit.alpha > 0.02).float()
    near, far = (F.max_pool2d(thing, 2 * reach + 1, 1, reach) for reach in (pixel, 3 * pixel))
    foot = torch.arange(lit.alpha.shape[2]).view(-1, 1) > lit.alpha.shape[2] // 2
    at, beside = ((lit.shadow[ring > 0]).mean() for ring in ((near - thing) * foot, (far - near) * foot))
    assert at > 0.95 * beside > 0.05


@pytest.mark.parametrize("share", (0.1, 0.4, 0.6, 0.9))
def test_the_likeliest_guess_is_the_one_that_most_agree_on(share):
    """A guess apart from all others is not chosen while several similar ones together are likelier."""
    directions = torch.tensor([[[0.6, 0.4, 0.0], [0.62, 0.41, 0.02], [-0.5, 0.3, 0.3]]])
    chances = torch.tensor([[(1 - share) / 2, (1 - share) / 2, share]]).log()
    assert bool(likeliest(directions, chances)[0, 0] < 0) == (share > 0.5)


@pytest.mark.parametrize("light_from", ["left", "auto"])
@pytest.mark.parametrize("light", [0, 1])
def test_without_the_mirror_image_the_network_looks_once(monkeypatch, light, light_from):
    net, looks = micro_light(), []
    encode = net.encode
    monkeypatch.setattr(net, "encode", lambda *pictures: looks.append(len(pictures[0])) or encode(*pictures))
    twice, net.mirrors = relight(net, FRAME, PLACED, light, light_from=light_from), False
    once = relight(net, FRAME, PLACED, light, light_from=light_from)
    assert looks == [2, 1] and not torch.equal(once.shadow, twice.shadow)
    assert (once.composite() - twice.composite()).abs().mean() < 0.1


def test_pictures_and_their_mirror_images_agree():
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.rand(1, channels, 64, 64, generator=generator) for channels in (3, 1, 3)]
    both = NET(*(torch.cat([each, each.flip(3)]) for each in pictures)).folded()
    back = NET(*(torch.cat([each.flip(3), each]) for each in pictures)).folded()
    for name in ("gain", "offset", "shadow", "shading"):
        torch.testing.assert_close(getattr(both, name), getattr(back, name).flip(3))
    assert both.chances.exp().sum() == pytest.approx(1, abs=1e-5)
    mirrored = torch.cat(back.directions.chunk(2, 1)[::-1], 1) * torch.tensor([-1.0, 1.0, 1.0])
    torch.testing.assert_close(both.directions, mirrored)
