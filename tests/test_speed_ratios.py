"""Fast code stays fast: ratios of processor time on one thread, which hold on any machine, busy or not; nightly."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from micro import cutout, seeded
from nightly import at_night
from PIL import Image

from imprint.cli import SAMPLES
from imprint.job_settings import JobSettings
from imprint.lazy import open_pipeline
from training.data.shards import Record, sample, shard_writer
from training.measure import speed_inference
from training.measure.speed_trial import Trial
from training.pairs import handing
from training.pairs.views import Views

pytestmark = at_night


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ratio(work: Callable[[], object], standard: Callable[[], object], rounds: int = 3) -> float:
    """Processor time of one relative to another: the median over rounds in which both take turns."""

    def spent(call: Callable[[], object]) -> float:
        began = time.process_time()
        call()
        return time.process_time() - began

    work(), standard()
    return statistics.median(spent(work) / spent(standard) for _ in range(rounds))


def drawing(settings: JobSettings, fit: str = "fill") -> Callable[[], object]:
    """The demo's pictures, as the command makes them."""
    pipeline = open_pipeline(settings).model
    pipeline.set_progress_bar_config(disable=True)
    pictures = [Image.open(SAMPLES / name) for name in ("duck.webp", "room.jpg", "box.png")]
    steps = settings.sampling_steps
    return lambda: pipeline(
        pictures[0], None, *pictures[1:], num_inference_steps=steps, generator=seeded(), fit=fit, light_from="above"
    )


def test_the_command_s_steps():
    """Relative to 20 steps of Euler: measured 0.59 by default, 0.32 with --fast, 0.12 for a placed object.

    A placed object with --fast relative to one without: 0.47.
    """
    standard = drawing(JobSettings(steps=20))
    assert ratio(drawing(JobSettings()), standard) < 0.65
    assert ratio(drawing(JobSettings(fast=True, dtype="fp32")), standard) < 0.37
    placed = drawing(JobSettings(), "contain")
    assert ratio(placed, standard) < 0.2
    assert ratio(drawing(JobSettings(fast=True, dtype="fp32"), "contain"), placed) < 0.65


def test_the_sampling_loop_costs_what_the_model_costs(monkeypatch):
    """Per step, at `tiny`."""
    from training.benchmark import parse

    def spent(work: Callable[[], object], repeats: int, warmup: int) -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    monkeypatch.setattr(speed_inference, "STEPS", 4)
    trial = Trial(parse(["--output", "unused", "--cpu"]))
    monkeypatch.setattr(trial, "timed", spent)
    row = speed_inference.time_composites(trial, "tiny", 1, "eager")
    assert row["ms_per_step"] / row["model_ms_per_step"] < 1.1


def test_what_processes_read_does_not_keep_the_run_busy(tmp_path, monkeypatch):
    """400 views in four shards, handed over in memory or through a pipe."""
    if not hasattr(os, "memfd_create"):
        pytest.skip("there is no memfd_create here")
    from runs import webp

    pictures = [webp(cutout(256, 256, seed=seed)) for seed in range(8)]
    for shard in range(4):
        with shard_writer(tmp_path / f"{shard}.tar") as writer:
            for view in range(100):
                record = Record(f"{shard}-{view // 6}", "", view % 6, "test", "CC0")
                writer.write(sample(f"{view:03d}", pictures[view % 8], "webp", record))

    def load(small: float) -> None:
        monkeypatch.setattr(handing, "SMALL", small)
        Views.load(tmp_path, torch.device("cpu"))

    usual = handing.SMALL
    assert ratio(lambda: load(usual), lambda: load(float("inf"))) < 0.5
