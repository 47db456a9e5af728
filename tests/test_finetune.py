"""Fine-tuning to one object from a few photos; two steps on a CPU."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import DrawingPipeline
from leaving import failed
from micro import cutout, photo, seeded
from PIL import Image
from runs import words
from safetensors.torch import load_file

from imprint.errors import ImprintError
from training import subject, train
from training.data.shards import read_shards
from training.pairs.photos import Photos
from training.pairs.views import Views

pytestmark = pytest.mark.usefixtures("micro_preset")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tuned(data, few_photos, tmp_path_factory) -> Path:
    """The folder of a run of two steps on these photos."""
    root = tmp_path_factory.mktemp("finetune")
    backgrounds = ["--backgrounds", str(data / "photos" / "train"), "--limit", "2"]
    subject.main([str(few_photos), "--output", str(root / "data"), *backgrounds])
    folders = {"cutouts": root / "data" / "cutouts", "photos": root / "data" / "photos"}
    train.main(words(data, root / "run", "finetune", init=data / "start.safetensors", rank=2, **folders))
    return root


def test_a_few_photos_become_pairs(tuned, few_photos, tmp_path, capsys):
    views = Views.load(tuned / "data" / "cutouts" / "train", CPU)
    photos = Photos.load(tuned / "data" / "photos" / "train", CPU)
    assert views.count.tolist() == [3]
    assert len(photos.items) >= 2 and int(photos.partner_count.max()) > 0  # each photo's reference may be the other
    subject.main([str(few_photos), "--output", str(tmp_path / "again")])
    assert capsys.readouterr().out.strip() == "3 views, 2 photos"
    (tmp_path / "cut").mkdir()
    cutout(60, 50).save(tmp_path / "cut" / "one.png")
    subject.main([str(tmp_path / "cut"), "--output", str(tmp_path / "black")])
    ((_, picture, mask, _),) = read_shards(tmp_path / "black" / "photos" / "train")
    assert mask is None and not np.asarray(picture).any()
    ((_, view, *_),) = read_shards(tmp_path / "black" / "cutouts" / "train")
    alpha = np.asarray(view.getchannel("A"))
    assert alpha[:5].max() == 0 and alpha.max() == 255  # all of it is in the frame, large
    assert np.abs(np.argwhere(alpha > 127).mean(0) - 255.5).max() < 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no picture"),
        ({"a.png": photo(20, 20)}, r"a\.png has no transparency, and there is no a\.mask\.png"),
        ({"a.png": photo(20, 20), "a.mask.png": Image.new("L", (10, 20), 255)}, "make them the same size"),
        ({"a.png": photo(20, 20), "a.mask.png": Image.new("L", (20, 20))}, "is empty"),
    ],
)
def test_photos_without_an_object_leave_with_a_sentence(tmp_path, files, message):
    (tmp_path / "in").mkdir()
    for name, picture in files.items():
        picture.save(tmp_path / "in" / name)
    assert re.search(message, failed(subject.main, [str(tmp_path / "in"), "--output", str(tmp_path / "out")]))
    assert not (tmp_path / "out").exists()


def test_fine_tuning_learns_a_lora_alone(tuned):
    described = json.loads((tuned / "run" / "options.json").read_text())
    tensors = load_file(tuned / "run" / "lora.safetensors")
    assert not (tuned / "run" / "checkpoint.safetensors").exists()
    layers = [tensor for name, tensor in tensors.items() if not name.endswith(".alpha")]
    assert described["trained_parameters"] == sum(map(torch.numel, layers))
    assert {tensor.dtype for tensor in layers} == {torch.float16}
    assert all(float(tensor) == 2 for name, tensor in tensors.items() if name.endswith(".alpha"))  # = rank: scale 1


def answer(unet) -> torch.Tensor:
    random = seeded()
    with torch.no_grad():
        return unet(torch.randn(1, 4, 8, 8, generator=random), 500, torch.randn(1, 5, 32, generator=random)).sample


def merged(unet, tensors: dict[str, torch.Tensor]):
    """W + up @ down * alpha / rank, computed here from the file's own numbers."""
    state, done = unet.state_dict(), 0
    names = {
        "lora_unet_" + name.removesuffix(".weight").replace(".", "_"): name for name in state if name.endswith("weight")
    }
    for key, down in tensors.items():
        if key.endswith(".lora_down.weight"):
            module = key.removesuffix(".lora_down.weight")
            up, alpha = tensors[f"{module}.lora_up.weight"], float(tensors[f"{module}.alpha"])
            state[names[module]] += up.float() @ down.float() * alpha / len(down)
            done += 1
    assert 3 * done == len(tensors)
    unet.load_state_dict(state)
    return unet


def test_the_lora_changes_the_pipeline_as_merged_weights_do(data, tuned, scene, tmp_path):
    pipeline = DrawingPipeline.from_checkpoint(data / "start.safetensors")
    plain, by_hand = (
        answer(pipeline.unet),
        merged(copy.deepcopy(pipeline.unet), load_file(tuned / "run" / "lora.safetensors")),
    )
    pipeline.load_lora_weights(tuned / "run" / "lora.safetensors")
    assert torch.allclose(answer(pipeline.unet), answer(by_hand), atol=1e-5)
    assert float((answer(pipeline.unet) - plain).abs().max()) > 1e-3
    subject_picture, background, hole = scene
    assert pipeline(subject_picture, None, background, hole, 1).images[0].size == background.size

    merged_file = tmp_path / "merged.safetensors"
    with pytest.raises(ImprintError, match="a LoRA is loaded"):
        pipeline.save_checkpoint(merged_file)
    pipeline.fuse_lora()
    with pytest.raises(ImprintError, match="unload_lora_weights"):
        pipeline.save_checkpoint(merged_file)
    assert not merged_file.exists()
    pipeline.unload_lora_weights()
    pipeline.save_checkpoint(merged_file)  # and so it is one file again
    again = DrawingPipeline.from_checkpoint(merged_file)
    assert torch.allclose(answer(again.unet), answer(by_hand), atol=1e-5)
