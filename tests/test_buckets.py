"""Aspect-ratio buckets: rectangles from square pairs, alternating with squares."""

from __future__ import annotations

import argparse

import pytest
import torch
from leaving import refused
from micro import matte_config, seeded
from runs import words

from imprint.config import PRESETS
from imprint.errors import ImprintError
from imprint.preprocess import bounding_boxes
from training import train
from training.loop.run import Run
from training.pairs.batches import Pairs
from training.pairs.buckets import cut, require_bucket
from training.settings import parse_train, resolution_and_share


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("384", (384, 1.0)),
        ("384:.4", (384, 0.4)),
        ("1152x896:2", ((1152, 896), 2.0)),
        ("896x1152", ((896, 1152), 1.0)),
        ("64x64", (64, 1.0)),
    ],
)
def test_a_resolution_is_a_side_or_width_and_height(text, pair):
    assert resolution_and_share(text) == pair


@pytest.mark.parametrize("text", ["0x64", "64x0", "1x2x3", "64x32:0", "-64x32"])
def test_others_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="not a resolution with a share"):
        resolution_and_share(text)


def pairs_with(*boxes: tuple[int, int, int, int]) -> Pairs:
    """Square 64 px pairs whose pixels encode their position, with holes of these cells (top, left, bottom, right)."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    count, hole = len(boxes), torch.zeros(len(boxes), 1, 8, 8)
    for each, (top, left, bottom, right) in zip(hole, boxes):
        each[:, top:bottom, left:right] = 1
    target = torch.stack([torch.stack([rows, columns, torch.full_like(rows, index)]) for index in range(count)])
    matte = target[:, :2, ::8, ::8].repeat(1, 4, 1, 1)
    return Pairs(torch.arange(float(count))[:, None], target, target + 0.5, hole, matte)


def test_the_rectangle_lies_round_the_hole():
    pairs = pairs_with((2, 0, 4, 8), (7, 3, 8, 5), (0, 0, 1, 1))
    made = cut(pairs, (64, 32), matte_config())
    assert made.target.shape == made.background.shape == (3, 3, 32, 64) and made.hole.shape == (3, 1, 4, 8)
    tops = [8, 32, 0]  # in the middle; as near as the square's edge allows
    assert made.target[:, 0, 0, 0].tolist() == tops and not made.target[:, 1, 0, 0].any()
    assert torch.equal(made.background, made.target + 0.5)
    assert torch.equal(made.matte[:, 0], made.target[:, 0, ::8, ::8])
    assert torch.equal(made.hole.sum((1, 2, 3)), pairs.hole.sum((1, 2, 3)))  # all of each hole
    tall = cut(pairs_with((0, 6, 8, 8)), (32, 64), matte_config())
    assert tall.target.shape == (1, 3, 64, 32) and tall.target[0, 1, 0, 0] == 32


def test_no_object_is_cut_off_where_another_pair_can_stand_in():
    made = cut(pairs_with((0, 0, 8, 2), (3, 1, 5, 7), (0, 0, 6, 6), (1, 1, 2, 2)), (64, 32), matte_config())
    assert made.reference[:, 0].tolist() == [1, 3, 1, 3]
    assert made.target[:, 2, 0, 0].tolist() == [1, 3, 1, 3]
    assert made.hole.sum((1, 2, 3)).tolist() == [12, 1, 12, 1]
    lone = cut(pairs_with((0, 0, 8, 2)), (64, 32), matte_config())
    assert lone.target.shape == (1, 3, 32, 64) and bool(lone.hole.any())


def test_a_side_that_the_unet_cannot_have_is_named():
    require_bucket((96, 64), matte_config())
    with pytest.raises(ImprintError, match="cannot take 100x64 pixels; both sides must be multiples of 16"):
        require_bucket((100, 64), matte_config())


def test_buckets_and_squares_take_turns_with_as_many_pixels_each(data, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "micro", matte_config())
    # `compositing` from random weights needs --train-all
    command = [*words(data, tmp_path / "run", "compositing", batch=6, images=24), "--train-all", "--resolutions"]
    run = Run(parse_train([*command, "96x64", "64", "64x128"]))
    run.settings = run.settings.__class__(**(vars(run.settings) | {"block": 3}))
    source = run.source()
    batches = [source.batch(step) for step in range(3)]
    shapes = {tuple(batch.target.shape) for batch in batches}
    assert shapes == {(4, 4, 8, 12), (6, 4, 8, 8), (3, 4, 16, 8)}
    for batch in batches:
        assert batch.matte.shape == (len(batch.target), 8, *batch.target.shape[2:])
        boxes = bounding_boxes(batch.hole[:, 0])
        assert bool((boxes[:, 2:] > boxes[:, :2]).all())
    loss = run.loss(source, 0, _Meter(), translate=False)
    assert bool(loss.isfinite())
    # and what is learned so can be drawn so
    wide = next(batch for batch in batches if batch.target.shape[3] == 12)[:1]
    drawn = _denoised(run, wide)
    assert drawn.shape == (1, 4, 8, 12)
    outside = wide.hole.expand_as(drawn) == 0
    assert torch.allclose(drawn[outside], wide.background[outside])


class _Meter:
    def add(self, *_) -> None:
        """Does nothing."""


def _denoised(run: Run, batch) -> torch.Tensor:
    from imprint.noise import make_scheduler
    from imprint.pipeline import ImprintPipeline

    model = run.ema
    parts = {"vae": run.autoencoder, "encoder": model.encoder, "adapter": model.adapter, "unet": model.unet}
    pipeline = ImprintPipeline(**parts, scheduler=make_scheduler(run.config.noise), model_config=run.config)
    noise = torch.randn(batch.target.shape, generator=seeded())
    with torch.no_grad():
        return pipeline.denoise(model.context(batch.reference), batch.background, batch.hole, noise, steps=2)[0]


def test_what_cannot_be_is_a_sentence(data, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "micro", matte_config())
    said = refused(train.main, [*words(data, tmp_path / "run"), "--resolutions", "96x64"])
    assert "stage 'identity' shows the object alone, in squares" in said
    command = [*words(data, tmp_path / "run", "compositing"), "--train-all", "--resolutions", "100x64"]
    with pytest.raises(SystemExit, match="cannot take 100x64 pixels; both"):
        train.main(command)
