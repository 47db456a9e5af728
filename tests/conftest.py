"""Fixtures of the unit tests; nothing here needs a network or a GPU."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib.util import find_spec

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: tests share their cores with other jobs

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from micro import (
    HELD_OUT_PAIRS,
    cutout,
    fresh_checkpoint,
    micro_config,
    micro_light,
    photo,
    random_dinov2,
    rectangle,
    third_party_config,
)
from PIL import Image

from imprint.checkpoint import save_checkpoint
from imprint.config import PRESETS, ImprintConfig

# Without the extra 'train', files that import training are skipped, and the header says so.
WITHOUT = [name for name in ("accelerate", "cv2", "moderngl", "peft", "trimesh", "webdataset") if not find_spec(name)]
NEEDS_TRAINING = re.compile(r"^from (training|runs|preparing|evaluation)\b", re.MULTILINE)
HERE = Path(__file__).parent
collect_ignore = [
    path.name for path in HERE.glob("test_*.py") if WITHOUT and NEEDS_TRAINING.search(path.read_text(encoding="utf-8"))
]


def pytest_report_header() -> str | None:
    return f"left out, for want of {', '.join(WITHOUT)}: {', '.join(collect_ignore)}" if collect_ignore else None


settings.register_profile("default", max_examples=200, deadline=None)
settings.register_profile("nightly", max_examples=10_000, deadline=None)  # pytest --hypothesis-profile nightly
settings.load_profile("default")

torch.set_num_threads(1)  # the tests' models are too small for several threads


@pytest.fixture(scope="module", autouse=True)
def few_held_out_pairs():
    """Validate runs of a few steps on few pairs, if the test file imports training."""
    with pytest.MonkeyPatch.context() as patch:
        if "training" in sys.modules:
            patch.setattr("training.loop.validation.SIZE", HELD_OUT_PAIRS)
        yield


@pytest.fixture(scope="session")
def micro() -> ImprintConfig:
    return micro_config()


@pytest.fixture(scope="session")
def micro_file(tmp_path_factory, micro) -> Path:
    """A complete checkpoint, including its autoencoder."""
    path = tmp_path_factory.mktemp("checkpoint") / "micro.safetensors"
    save_checkpoint(path, fresh_checkpoint(micro))
    return path


@pytest.fixture(scope="session")
def _loaded(micro_file):
    from drawing import DrawingPipeline

    return DrawingPipeline.from_checkpoint(micro_file)


@pytest.fixture
def pipeline(_loaded):
    """The micro model, which also draws into boxes, with its own scheduler; do not change its shared weights."""
    from drawing import DrawingPipeline

    from imprint.noise import make_scheduler

    parts = {name: part for name, part in _loaded.components.items() if name != "scheduler"}
    return DrawingPipeline(**parts, scheduler=make_scheduler(_loaded.model_config.noise))


@pytest.fixture
def scene() -> tuple[Image.Image, Image.Image, Image.Image]:
    """(object with alpha, background, hole)."""
    return cutout(50, 40, seed=1), photo(120, 90, seed=2), rectangle(120, 90, (40, 30, 75, 60))


# --- for the tests of placed objects ---


@pytest.fixture(scope="session")
def _placing(micro_file):
    from imprint.pipeline import ImprintPipeline

    pipeline = ImprintPipeline.from_checkpoint(micro_file)
    pipeline.register_modules(light=micro_light())
    return pipeline


@pytest.fixture
def placing(_placing, monkeypatch):
    """The micro model with a small light network; drawing with it fails the test."""
    monkeypatch.setattr(_placing, "prepare", lambda *_, **__: pytest.fail("the model drew"))
    return _placing


@pytest.fixture
def layer() -> Image.Image:
    """The object in place, in a picture of the frame's size, as an artist would make it."""
    whole = Image.new("RGBA", (120, 90))
    subject = cutout(40, 50, seed=1)
    soft = Image.fromarray(np.asarray(subject.getchannel("A").resize((13, 17)).resize((40, 50), Image.BICUBIC)))
    subject.putalpha(soft)
    whole.paste(subject, (60, 30))
    return whole


@pytest.fixture
def workplace(tmp_path, scene, layer, placing, monkeypatch) -> Path:
    """The working folder with object.png, background.png, box.png and layer.png, and an already loaded model."""
    from imprint import lazy

    for name, picture in zip(("object", "background", "box", "layer"), (*scene, layer)):
        picture.save(tmp_path / f"{name}.png")
    monkeypatch.setattr(lazy, "open_pipeline", lambda options: placing)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- for the tests that train; tests must not change these folders ---


@pytest.fixture(scope="module")
def micro_preset():
    """`--sizes micro`, for the tests that train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "micro", micro_config())
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """cutouts/ and photos/, each with train/ and held-out/; vae.safetensors; a micro checkpoint to start from."""
    from runs import write_coco, write_davis, write_views
    from safetensors.torch import save_file

    from training import prepare

    root = tmp_path_factory.mktemp("data")
    for split, seed in (("train", 1), ("held-out", 2)):
        write_views(root / "cutouts" / split, 3, 4, seed)
    write_davis(root / "davis", range(0, 12, 3))
    write_coco(root / "coco")
    (root / "plain").mkdir()
    for number in range(2):
        photo(150, 100, seed=number).save(root / "plain" / f"{number}.png")
    for source, folder in (("davis", "davis"), ("coco", "coco"), ("folder", "plain")):
        for part in (0.0, 1.0):  # all into train/, then all into held-out/
            words = f"{source} --output {root}/photos --licence CC0 --workers 1 --held-out {part}".split()
            prepare.main([*words, "--name", f"{source}-{part:.0f}", "--input", str(root / folder)])
    checkpoint = fresh_checkpoint(micro_config())
    save_checkpoint(root / "start.safetensors", checkpoint)
    save_checkpoint(root / "third-party.safetensors", fresh_checkpoint(third_party_config()))
    save_file({name: tensor.contiguous() for name, tensor in checkpoint.parts["vae"].items()}, root / "vae.safetensors")
    return root


@pytest.fixture(scope="session")
def captioned(tmp_path_factory) -> Path:
    """Pictures with captions, in train/ and held-out/."""
    from runs import write_captions

    root = tmp_path_factory.mktemp("captions")
    for split in ("train", "held-out"):
        write_captions(root / split)
    return root


@pytest.fixture(scope="session")
def text_encoder(tmp_path_factory) -> Path:
    """A tiny CLIP in Stable Diffusion's layout: text_encoder/ and tokenizer/."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("sd")
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {token: number for number, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    ends = dict(bos_token_id=vocabulary["<|startoftext|>"], eos_token_id=vocabulary["<|endoftext|>"])
    config = CLIPTextConfig(vocab_size=len(vocabulary), max_position_embeddings=9, **sizes, **ends)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="session")
def few_photos(tmp_path_factory) -> Path:
    """Two photos with masks and a cut-out."""
    folder = tmp_path_factory.mktemp("mug")
    for number in range(2):
        photo(160, 120, seed=number).save(folder / f"{number}.jpg")
        rectangle(160, 120, (50, 35, 105, 90)).save(folder / f"{number}.mask.png")
    cutout(60, 50, seed=5).save(folder / "cut.png")
    return folder


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, micro) -> Path:
    """sd/ in diffusers' format of Stable Diffusion, with TAESD; dinov2/ in transformers' format."""
    from imprint.unet import build_unet
    from imprint.vae import build_autoencoder

    root = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(1)
    build_unet(micro.unet).save_pretrained(root / "sd" / "unet")
    build_autoencoder(micro.latent).save_pretrained(root / "sd" / "vae")
    random_dinov2().save_pretrained(root / "dinov2")
    return root


# --- for the tests that evaluate; tests must not change these folders ---


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Path:
    """Subjects, backgrounds, boxes, pairs and a micro model."""
    from evaluation import write_data

    return write_data(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="session")
def backbones(tmp_path_factory) -> Path:
    """The metrics' networks that need no extra, with random weights."""
    from evaluation import write_backbones

    return write_backbones(tmp_path_factory.mktemp("backbones"))
