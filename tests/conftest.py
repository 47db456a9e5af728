"""Fixtures of the unit tests; nothing here needs a network or a GPU."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: tests share their cores with other work

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from micro import cutout, fresh_checkpoint, micro_config, photo, rectangle
from PIL import Image

from imprint.checkpoint import save_checkpoint
from imprint.config import ImprintConfig

settings.register_profile("default", max_examples=200, deadline=None)
settings.register_profile("nightly", max_examples=10_000, deadline=None)  # pytest --hypothesis-profile nightly
settings.load_profile("default")

torch.set_num_threads(1)  # the tests' models are too small to share


@pytest.fixture(scope="module", autouse=True)
def few_held_out_pairs():
    """Runs of a few steps measure themselves on few pairs; only where the test file imports training."""
    validation = sys.modules.get("training.loop.validation")
    with pytest.MonkeyPatch.context() as patch:
        if validation:
            patch.setattr(validation, "SIZE", 24)
        yield


@pytest.fixture(scope="session")
def micro() -> ImprintConfig:
    return micro_config()


@pytest.fixture(scope="session")
def micro_file(tmp_path_factory, micro) -> Path:
    """A whole checkpoint, with its autoencoder."""
    path = tmp_path_factory.mktemp("checkpoint") / "micro.safetensors"
    save_checkpoint(path, fresh_checkpoint(micro))
    return path


@pytest.fixture(scope="session")
def _loaded(micro_file):
    from drawing import DrawingPipeline

    return DrawingPipeline.from_checkpoint(micro_file)


@pytest.fixture
def pipeline(_loaded):
    """The micro model, drawing into boxes too, with a scheduler of its own; the weights are shared and must be left as they are."""
    from drawing import DrawingPipeline

    from imprint.noise import make_scheduler

    parts = {name: part for name, part in _loaded.components.items() if name != "scheduler"}
    made = DrawingPipeline(**parts, scheduler=make_scheduler(_loaded.model_config.noise))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def scene() -> tuple[Image.Image, Image.Image, Image.Image]:
    """(object with alpha, background, hole)."""
    return cutout(50, 40, seed=1), photo(120, 90, seed=2), rectangle(120, 90, (40, 30, 75, 60))
