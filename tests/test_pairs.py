"""Pairs: their kinds, holes, light and shadow, and which of them a step sees."""

import dataclasses
import threading
from pathlib import Path

import pytest
import torch
from micro import cutout, micro_config, photo, seeded
from PIL import Image
from runs import words

from imprint.errors import ImprintError
from imprint.masks import LEVELS, hole_pixels
from training.data.shards import MAX_FRAME_GAP, VIDEO_GAP, Record, Sample
from training.loop import validation
from training.loop.ahead import Ahead
from training.loop.run import Run
from training.loop.source import BatchSource, interleave
from training.loop.validation import Validation
from training.pairs import holes, pair_maker
from training.pairs.about import About
from training.pairs.account import usable
from training.pairs.draw import Draw
from training.pairs.pair_maker import PairMaker
from training.pairs.photos import Photos, _neighbours, offsets_for
from training.pairs.pictures import own_cores
from training.pairs.recolouring import contact_shadow, scene_light
from training.pairs.views import Views
from training.settings import KINDS, STAGES, Train, parse_train

pytestmark = pytest.mark.usefixtures("micro_preset")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded(data) -> tuple[Views, Photos]:
    return Views.load(data / "cutouts" / "train", CPU), Photos.load(data / "photos" / "train", CPU)


def common(data: Path, output: Path, **changes) -> dict:
    """Settings of a run on a CPU, as in `words`."""
    places = {"cutouts": str(data / "cutouts"), "photos": str(data / "photos"), "init": data / "start.safetensors"}
    return places | {"output": output, "batch": 2, "device": "cpu"} | changes


def test_what_a_step_sees_does_not_depend_on_the_steps_before(data, tmp_path, loaded):
    run = Run(parse_train(words(data, tmp_path / "run")))
    maker = PairMaker(run.config, "identity", *loaded, run.stage.mix)
    walked = BatchSource(maker, run.autoencoder, run.settings, 0, CPU)
    seen = [walked.batch(step) for step in range(6)]
    for step in (5, 1):
        fresh = BatchSource(maker, run.autoencoder, run.settings, 0, CPU).batch(step)
        for name, value in vars(fresh).items():
            assert name == "text" or torch.equal(value, getattr(seen[step], name))
    assert not torch.equal(seen[0].target, seen[1].target)
    other = BatchSource(maker, run.autoencoder, run.settings, 1, CPU).batch(0)
    assert not torch.equal(other.target, seen[0].target)  # every process has its own
    # A block of two batches is used twice in another order: the same pairs, all of them.
    for name in ("target", "reference"):
        one, two = (
            torch.cat([getattr(seen[step], name).float() for step in pair]).flatten(1) for pair in ((0, 1), (2, 3))
        )
        assert sorted(row.sum().item() for row in one) == pytest.approx(sorted(row.sum().item() for row in two))


def test_pairs_made_beside_the_steps_are_the_same(data, tmp_path, loaded):
    """In a separate thread, one block ahead; also after a jump to another step."""
    run = Run(parse_train(words(data, tmp_path / "run")))
    maker = PairMaker(run.config, "identity", *loaded, run.stage.mix)
    plain, ahead = (BatchSource(maker, run.autoencoder, run.settings, 0, CPU) for _ in range(2))
    assert plain.ahead is None
    ahead.ahead, threads, made = Ahead(CPU), [], ahead._made
    ahead._made = lambda number: threads.append((number, threading.current_thread().name)) or made(number)
    for step in (0, 3, 4, 5, 13, 2):
        for name, value in vars(plain.batch(step)).items():
            assert name == "text" or torch.equal(value, getattr(ahead.batch(step), name)), step
    ahead.wait()
    here = threading.current_thread().name
    assert threads == [(n, here if n in (0, 3) else "ahead_0") for n in (0, 1, 2, 3, 4)] + [(0, here), (1, "ahead_0")]


def test_nothing_is_made_beside_the_steps_whose_graphs_are_recorded(data, tmp_path, loaded):
    run = Run(parse_train(words(data, tmp_path / "run")))
    settings = dataclasses.replace(run.settings, compile="reduce-overhead")
    source = BatchSource(PairMaker(run.config, "identity", *loaded, run.stage.mix), run.autoencoder, settings, 0, CPU)
    source.ahead, threads, made = Ahead(CPU), [], source._made
    source._made = lambda number: threads.append((number, threading.current_thread().name)) or made(number)
    for step in (0, 3, 4, 8):
        source.batch(step)
    source.ahead.wait()
    here = threading.current_thread().name
    assert threads == [(0, here), (1, here), (2, "ahead_0"), (3, "ahead_0")]


def test_what_fails_beside_the_steps_fails_in_the_step_that_needs_it():
    def make(number: int) -> int:
        if number == 2:
            raise ValueError("a broken picture")
        return number

    ahead = Ahead(CPU)
    assert [ahead.take(number, make) for number in (0, 1)] == [0, 1]
    ahead.wait()
    with pytest.raises(ValueError, match="a broken picture"):
        ahead.take(2, make)
    assert ahead.take(1, make) == 1


def test_sides_take_turns_by_their_shares_with_as_many_pixels_each(data, tmp_path, loaded):
    assert interleave([(64, 1.0)], 3) == [64] * 3
    slots = interleave([(256, 0.5), (384, 0.3), (512, 0.2)], 10)
    assert slots.count(256) == 5 and slots.count(384) == 3 and slots.count(512) == 2
    assert set(slots[:5]) == set(slots[5:]) == {256, 384, 512}

    words_of = [*words(data, tmp_path / "run", batch=9, images=36), "--resolutions", "64:2", "96"]
    run = Run(parse_train(words_of))
    maker = PairMaker(run.config, "identity", *loaded, run.stage.mix)
    walked = BatchSource(maker, run.autoencoder, run.settings, 0, CPU)
    batches = [walked.batch(step) for step in range(4)]
    assert walked.slots == [64, 96]
    assert [tuple(batch.target.shape[::2]) for batch in batches] == [(9, 8), (4, 12), (9, 8), (4, 12)]
    assert [batch.hole.shape[-1] for batch in batches] == [8, 12, 8, 12]
    for one, other in ((0, 2), (1, 3)):  # the same pairs again, in another order
        sums = [sorted(batches[step].target.flatten(1).sum(1).tolist()) for step in (one, other)]
        assert sums[0] == pytest.approx(sums[1], abs=1e-4)
    fresh = BatchSource(maker, run.autoencoder, run.settings, 0, CPU).batch(3)
    assert torch.equal(fresh.target, batches[3].target)


@pytest.mark.parametrize("stage", ["identity", "compositing"])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_of_every_kind(loaded, stage, kind):
    config = micro_config()
    maker = PairMaker(config, stage, *loaded, {kind: 1.0})
    pairs = maker(6, seeded())
    assert pairs.reference.shape == (6, 3, 28, 28)
    assert pairs.target.shape == pairs.background.shape == (6, 3, 64, 64)
    assert pairs.hole.shape == (6, 1, 8, 8) and set(pairs.hole.unique().tolist()) <= {0.0, 1.0}
    for pictures in (pairs.reference, pairs.target, pairs.background):
        assert bool(pictures.isfinite().all()) and pictures.min() >= 0 and pictures.max() <= 1
    assert bool((pairs.reference.flatten(1).std(1) > 0).all()) and bool((pairs.target.flatten(1).std(1) > 0).all())
    hole = hole_pixels(pairs.hole, 8).bool().expand_as(pairs.target)
    assert bool(hole.flatten(1).any(1).all())
    assert bool((pairs.background[hole] == 0.5).all())  # nothing of the target shows in the hole
    if stage == "identity":
        assert bool(hole.all())
    else:
        assert torch.equal(pairs.background[~hole], pairs.target[~hole]) or kind == "rendered"
    again = maker(6, seeded())
    assert all(torch.equal(getattr(pairs, name), getattr(again, name)) for name in ("reference", "target", "hole"))
    other = maker(6, seeded(1))
    assert not torch.equal(other.target, pairs.target)


def test_composited_pairs_differ_from_their_background_only_in_the_hole(loaded):
    """The object and its shadow are inside the hole at every level except the tightest, which cuts the shadow off."""
    maker = PairMaker(micro_config(), "compositing", *loaded, {"rendered": 1.0})
    pairs = maker(40, seeded())
    hole = hole_pixels(pairs.hole, 8).bool()
    outside = ((pairs.target - pairs.background).abs().amax(1, keepdim=True) > 0.15) & ~hole
    assert float(outside.float().mean()) < 0.02


@pytest.mark.parametrize(("level", "least", "most"), [("box", 0.75, 1.0), ("precise", 0.4, 0.75)])
def test_a_box_keeps_the_pose_and_an_outline_asks_for_one(loaded, monkeypatch, level, least, most):
    """Two views of an object, bright on the left and bright at the top: which side of the target is bright?"""
    views = torch.full((2, 4, 48, 48), 255, dtype=torch.uint8)
    views[0, :3, :, 24:], views[1, :3, 24:] = 40, 40
    box, one = torch.tensor([[0, 0, 48, 48]] * 2), torch.tensor([1])
    nothing = dict(relit=views[:0], scenes=views[:0, :3], shadows=torch.zeros(0, 3), twin=torch.tensor([-1, -1]))
    nothing |= dict(scale=torch.ones(2), about=About())
    views = Views(views, box, one * 0, one * 2, torch.tensor([0, 1]), torch.tensor([[0, 1]]), **nothing)
    maker = PairMaker(micro_config(), "compositing", views, loaded[1], {"rendered": 1.0})
    seen = []
    monkeypatch.setattr(pair_maker, "hole_levels", lambda _, count, draw: torch.full((count,), LEVELS.index(level)))
    in_scene = pair_maker.in_scene
    monkeypatch.setattr(pair_maker, "in_scene", lambda *given: seen.append(given) or in_scene(*given))
    maker(400, seeded())
    ((cutout, target, _, alpha, *_),) = seen

    def bright_side(pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        light = pictures.mean(1) * masks
        line = [torch.arange(side) + 0.5 for side in light.shape[1:]]
        moments = [(light.sum(2 - axis) @ line[axis] / light.sum((1, 2))) for axis in (0, 1)]
        middle = [(masks.sum(2 - axis) @ line[axis] / masks.sum((1, 2))) for axis in (0, 1)]
        offset = torch.stack([moment - centre for moment, centre in zip(moments, middle)], 1)
        axis = offset.abs().argmax(1)
        return axis * 2 + (offset.gather(1, axis[:, None])[:, 0] > 0)

    kept = bright_side(target, alpha) == bright_side(cutout, (cutout.amax(1) > 0).float())
    assert least < float(kept.float().mean()) < most


@pytest.mark.parametrize("kind", KINDS)
def test_the_light_of_a_place_falls_on_scene_and_object_but_not_on_the_reference(loaded, monkeypatch, kind):
    """The same pair by lamplight: every channel of its picture is dimmed, including the object."""
    lamp, made = torch.tensor([0.5, 0.4, 0.2])[:, None, None], []
    for light in (torch.ones(3, 1, 1), lamp):
        monkeypatch.setattr(holes, "scene_light", lambda draw, count, light=light: light)
        made.append(PairMaker(micro_config(), "compositing", *loaded, {kind: 1.0})(8, seeded()))
    day, night = made
    assert torch.equal(night.reference, day.reference) and torch.equal(night.hole, day.hole)
    torch.testing.assert_close(night.target, day.target * lamp)
    seen = 1 - hole_pixels(day.hole, 8)
    torch.testing.assert_close(night.background * seen, day.background * lamp * seen)


def test_half_of_the_places_are_as_photographed_and_some_of_the_others_dark_or_warm():
    gains = scene_light(Draw(seeded()), 400)[:, :, 0, 0]
    changed = (gains != 1).any(1)
    assert 0.4 < changed.float().mean() < 0.6
    mean, warmth = gains[changed].mean(1), gains[changed, 0] / gains[changed, 2]
    assert 0.2 < mean.min() < 0.35 and 1.1 < mean.max() < 2  # by night, in glare
    assert warmth.min() < 0.75 and warmth.max() > 1.33  # bluish, reddish


def test_every_contact_shadow_is_dark_where_the_object_stands_and_nowhere_above_or_far_below():
    alpha = torch.zeros(64, 1, 96, 96)
    alpha[:, :, 20:70, 30:66] = 1
    shadow = contact_shadow(alpha, Draw(seeded()))
    assert shadow.min() >= 0 and shadow.max() <= 0.8
    assert shadow[:, 0, 68, 48].min() > 0.2  # the foot
    assert shadow[:, 0, :25].max() < 1e-3 and shadow[:, 0, 85:].max() < 1e-3


def test_shadows_fall_where_the_light_of_their_place_throws_them():
    """To the right, to the left, forwards, and hardly at all; an unknown shadow is drawn at random."""
    alpha = torch.zeros(5, 1, 96, 96)
    alpha[:, :, 40:60, 40:56] = 1
    known = torch.tensor([[1.0, 0.3, 0.6], [-1.0, 0.3, 0.6], [0.0, -0.8, 0.6], [0.0, 0.3, 0.0], [torch.nan] * 3])
    shadow = contact_shadow(alpha, Draw(seeded()), known)[:, 0]
    right, left = shadow[:, 50:58, 62:].amax((1, 2)), shadow[:, 50:58, :34].amax((1, 2))
    below, behind = shadow[:, 66:, 40:56].amax((1, 2)), shadow[:, :57].amax((1, 2))
    assert right[0] > 0.15 and left[0] < 0.05 and below[0] < 0.1
    assert left[1] > 0.15 and right[1] < 0.05
    assert below[2] > 0.2 and max(right[2], left[2]) < 0.05
    assert behind[3] < 0.1 < shadow[3].max()  # where it stands
    assert shadow[4].max() > 0.2


def relit_views(scene_colour: tuple[int, int, int] = (20, 60, 200)) -> Views:
    """Two objects with two views each; the first view of each is repeated, dark, in front of a plain scene."""
    samples = []
    for name in ("a", "b"):
        for frame in range(2):
            record = Record(name, name, frame, "mesh", "CC0", (0, 2))
            samples.append(Sample(record, cutout(48, 48, seed=frame)))
            if frame == 0:
                dark = cutout(48, 48, seed=frame)
                dark = Image.merge(
                    "RGBA", [*(band.point(lambda v: v // 8) for band in dark.split()[:3]), dark.split()[3]]
                )
                lit = dataclasses.replace(record, shadow=(1.0, 0.25, 0.5))
                samples.append(Sample(lit, dark, scene=Image.new("RGB", (36, 36), scene_colour)))
    return Views.of(samples)


def test_a_relit_view_is_its_views_twin_and_no_view_of_its_own():
    views = relit_views()
    assert views.rgba.shape == (4, 4, 48, 48) and views.count.tolist() == [2, 2]
    assert views.twin.tolist() == [0, -1, 1, -1] and views.shadows.tolist() == [[1.0, 0.25, 0.5]] * 2
    assert views.relit.shape == (2, 4, 48, 48) and views.scenes.shape == (2, 3, 36, 36)
    assert torch.equal(views.relit[0, 3], views.rgba[0, 3])
    joined = Views.join([views, views])
    assert joined.twin.tolist() == [0, -1, 1, -1, 2, -1, 3, -1] and joined.first.tolist() == [0, 2, 4, 6]
    assert torch.equal(joined.relit[joined.twin[6]], joined.relit[joined.twin[2]])


def test_a_relit_target_stands_in_its_own_place_and_the_reference_keeps_its_light(loaded, monkeypatch):
    monkeypatch.setattr(holes, "scene_light", lambda draw, count: torch.ones(3, 1, 1))
    made = {}
    for light in (True, False):
        views = relit_views()
        if not light:
            views.twin[:] = -1
        pairs_made = PairMaker(micro_config(), "compositing", views, loaded[1], {"rendered": 1.0})(64, seeded())
        seen = 1 - hole_pixels(pairs_made.hole, 8)
        ground = (pairs_made.background * seen).sum((2, 3)) / seen.sum((2, 3)).clamp(min=1)
        flat = ((pairs_made.background - ground[..., None, None]) * seen).abs().amax((1, 2, 3)) < 0.1
        blue = flat & (seen.sum((1, 2, 3)) > 100) & (ground[:, 2] > ground[:, 0] + 0.15)
        made[light] = blue, pairs_made
    blue, lit = made[True]
    assert blue.float().mean() > 0.2 and not made[False][0].any()  # half of the views have a twin
    inside = hole_pixels(lit.hole, 8)
    brightness = (lit.target * inside).mean((1, 2, 3)) / inside.mean((1, 2, 3))
    assert lit.reference[blue].mean() > 0.8 * made[False][1].reference.mean()
    assert brightness[blue].mean() < 0.75 * brightness[~blue].mean()


@pytest.mark.parametrize("chunk", [1, 5, 16, 256])
def test_the_mix_holds_over_a_block_whatever_the_chunk(data, tmp_path, loaded, chunk, monkeypatch):
    made = dict.fromkeys(KINDS, 0)
    original = PairMaker._of_kind

    def counted(self, kind, count, draw):
        made[kind] += count
        return original(self, kind, count, draw)

    monkeypatch.setattr(PairMaker, "_of_kind", counted)
    run = Run(Train.of("compositing", **common(data, tmp_path, batch=4, block=10, chunk=chunk)))
    maker = PairMaker(run.config, "compositing", *loaded, STAGES["compositing"].mix)
    batch = BatchSource(maker, run.autoencoder, run.settings, 0, CPU).make(40, seeded())
    assert len(batch.target) == 40 and made == {"rendered": 18, "still": 10, "video": 2, "patch": 10}


def test_the_held_out_pairs_are_the_same_for_every_batch_and_chunk(data, tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "SIZE", 24)
    values = []
    for batch, chunk in ((2, 256), (8, 3)):
        run = Run(Train.of("compositing", **common(data, tmp_path, batch=batch, chunk=chunk)))
        held_out = Validation(
            run.maker("held-out"), run.autoencoder, run.settings, run.accelerator, run.held_out_losses
        )
        assert len(held_out.pairs.target) == validation.SIZE
        values.append(held_out.measure(run.ema))
    assert values[0] == values[1]


@pytest.mark.parametrize("precision, kind", [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_the_autoencoder_is_as_precise_as_the_run(data, tmp_path, loaded, precision, kind):
    run = Run(Train.of("compositing", **common(data, tmp_path)))
    maker = PairMaker(run.config, "compositing", *loaded, {"patch": 1.0})
    settings = dataclasses.replace(run.settings, precision=precision)
    seen = []
    run.autoencoder.encoder.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    made = BatchSource(maker, run.autoencoder, settings, 0, CPU).make(2, seeded())
    assert made.target.dtype == kind and seen == [kind]


def test_processes_of_one_machine_share_its_cores(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = own_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert own_cores() == max(1, alone // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert own_cores() == 1


def test_a_kind_without_data_is_left_out(loaded):
    views, pictures = loaded
    empty = dataclasses.replace(pictures, items=pictures.items[:0], partner_count=pictures.partner_count[:0] * 0)
    maker = PairMaker(
        micro_config(), "identity", views, empty, {"rendered": 0.5, "still": 0.3, "video": 0.1, "patch": 0.1}
    )
    assert set(maker.mix) == {"rendered", "patch"}
    assert maker(7, seeded()).target.shape[0] == 7
    with pytest.raises(ImprintError, match="the data have nothing for pairs of still or video; .*--mix"):
        PairMaker(micro_config(), "identity", views, empty, {"still": 0.5, "video": 0.5})


def test_views_are_grouped_by_object(loaded):
    views, _ = loaded
    assert views.rgba.shape == (12, 4, 48, 48) and views.rgba.dtype == torch.uint8
    assert views.first.tolist() == [0, 4, 8] and views.count.tolist() == [4, 4, 4]


def test_wide_frames_have_squares_round_their_objects():
    samples = []
    for frame in range(3):
        picture, mask = photo(320, 100, frame), Image.new("L", (320, 100))
        for number, box in enumerate(((20, 20, 60, 60), (80, 20, 140, 70), (150, 30, 190, 80), (0, 40, 130, 60)), 1):
            mask.paste(number, box)  # the first square ends at 100; the fourth is longer than any square
        samples.append(Sample(Record("clip", "clip", frame, "", ""), picture, mask))
    made = Photos.of(samples, 64)
    assert set(made.items[:, 1].tolist()) == {1, 2, 3} and int(made.annotated) == 12
    assert all(made.partner_count > 0)
    found = usable(Views.of([Sample(Record("", "", 0, "", ""), cutout(32, 32))]), made, "identity", 64)
    assert found["annotated objects"] == 12 and found["usable in squares (still)"] == len(made.items) >= 9


def test_more_squares_are_only_where_an_object_is_whole_in_none():
    assert offsets_for([(10, 50)], [0, 200], 100, 200) == []
    assert offsets_for([(80, 140), (95, 130)], [0, 200], 100, 200) == [60]  # one for both
    assert offsets_for([(50, 145)], [0, 200], 100, 200) == []  # too long for a square
    assert offsets_for([(0, 40)], [100], 100, 200) == []  # cut by the picture's own border


def test_neighbours_are_the_same_object_at_most_seven_frames_away(loaded):
    places = [("clip", 0), ("clip", MAX_FRAME_GAP), ("clip", MAX_FRAME_GAP + 1), ("other", 1)]
    sources = [(clip, frame, VIDEO_GAP) for clip, frame in places]
    table = torch.tensor([[0, 1], [1, 1], [2, 1], [2, 2], [3, 1]])  # photo, number of the object in it
    assert _neighbours(table, sources) == [[1], [0, 2], [1], [], []]
    _, pictures = loaded
    assert int(pictures.partner_count.max()) > 0
