"""Fine-tuning to one object from a few photos; two steps on a CPU. Merging LoRA files without peft."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import DrawingPipeline
from leaving import failed
from micro import cutout, photo, seeded
from PIL import Image
from runs import words
from safetensors.torch import load_file, save_file

from imprint.errors import ImprintError
from imprint.lora import merge_lora, read_lora
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


def test_a_matte_that_the_lora_could_not_hold_is_refused(data, tuned, tmp_path):
    folders = {"cutouts": tuned / "data" / "cutouts", "photos": tuned / "data" / "photos"}
    command = words(data, tmp_path / "run", "finetune", init=data / "start.safetensors", matte=2, **folders)
    assert "--matte is 2, and --init has 0: a LoRA's file holds no matte; leave it out" in failed(train.main, command)
    assert not (tmp_path / "run").exists()


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


def with_random_ups(source: Path, path: Path) -> Path:
    """A copy of a LoRA, whose `up` after two steps is still near its start, which is zero."""
    tensors, random = load_file(source), seeded()
    for name, tensor in tensors.items():
        if name.endswith(".lora_up.weight"):
            tensors[name] = (torch.randn(tensor.shape, generator=random) * 0.1).half()
        if name.endswith(".alpha"):
            tensors[name] = torch.tensor(3.0)  # not the rank, so that the scale is 1.5
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def wide(data, tuned, tmp_path_factory) -> Path:
    """A LoRA of all kinds of layers, convolutions too."""
    root = tmp_path_factory.mktemp("wide")
    folders = {"cutouts": tuned / "data" / "cutouts", "photos": tuned / "data" / "photos"}
    options = {"init": data / "start.safetensors", "rank": 2, "lora-layers": "all"}
    train.main(words(data, root / "run", "finetune", steps=1, **options, **folders))
    return root / "run" / "lora.safetensors"


@pytest.mark.parametrize("layers", ["attention", "all"])
def test_merging_is_what_diffusers_does(data, tuned, wide, tmp_path, layers):
    source = wide if layers == "all" else tuned / "run" / "lora.safetensors"
    path = with_random_ups(source, tmp_path / "lora.safetensors")
    read = read_lora(path)
    kinds = {layer.down.ndim for layer in read.values()} | {tuple(layer.down.shape[2:]) for layer in read.values()}
    assert (3, 3) in kinds if layers == "all" else kinds <= {2, 4, (), (1, 1)}
    pipeline, ours = (DrawingPipeline.from_checkpoint(data / "start.safetensors") for _ in range(2))
    before = copy.deepcopy(ours.unet.state_dict())
    merge_lora(ours.unet, path)
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    theirs, made = pipeline.unet.state_dict(), ours.unet.state_dict()
    assert theirs.keys() == made.keys() and len(read) > 5
    changed = {name for name in made if not torch.equal(made[name], before[name])}
    assert {name.removesuffix(".weight").replace(".", "_") for name in changed} == read.keys()
    for name, tensor in made.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-6), name
    assert torch.allclose(answer(ours.unet), answer(pipeline.unet), atol=1e-5)


def test_merging_rounds_weights_of_half_precision_once(data, wide, tmp_path):
    path = with_random_ups(wide, tmp_path / "lora.safetensors")
    exact, half = (
        DrawingPipeline.from_checkpoint(data / "start.safetensors", dtype).unet
        for dtype in (torch.float32, torch.bfloat16)
    )
    exact.load_state_dict(half.state_dict())
    torch.nn.Module.to(half, memory_format=torch.channels_last)
    for unet in (exact, half):
        merge_lora(unet, path)
    for name, tensor in exact.state_dict().items():
        assert torch.equal(tensor.bfloat16(), half.state_dict()[name]), name


def parts(ending: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict], None]:
    """Changes the tensors whose names end so."""
    return lambda tensors: tensors.update(
        {name: change(tensor) for name, tensor in tensors.items() if name.endswith(ending)}
    )


def another_layer(name: str) -> dict[str, torch.Tensor]:
    tensors = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(8, 2), "alpha": torch.tensor(2.0)}
    return {f"lora_unet_{name}.{part}": tensor for part, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (parts(".lora_up.weight", lambda up: up * torch.nan), ".lora_up.weight' holds values that are not finite"),
        (parts(".alpha", lambda alpha: alpha * torch.inf), ".alpha' holds values that are not finite"),
        (lambda tensors: tensors.popitem(), "to_v.*(alpha|down|up) is missing; export or download"),
        (lambda tensors: tensors.clear(), "holds nothing; export or download"),
        (lambda tensors: tensors.update({"unet.conv_in.bias": torch.zeros(2)}), "since it holds 'unet.conv_in.bias'; "),
        (parts(".lora_down.weight", lambda down: down[:, :-1]), "LoRA of another model: .* changes a weight of shape"),
        (parts(".lora_up.weight", lambda up: up.T), "alpha .*, up .* do not belong together; export"),
        (parts(".lora_down.weight", lambda down: down[0]), "alpha .*, up .* do not belong together; export"),
        (parts(".alpha", lambda alpha: alpha.repeat(2)), "alpha .*, up .* do not belong together; export"),
        (
            lambda tensors: tensors.update(another_layer("mid_block_other")),
            "'mid_block_other' does not fit .*has no such layer.*; give",
        ),
        (lambda tensors: tensors.update(another_layer("conv_act")), "'conv_act' does not fit .*has no such layer"),
        (None, "not a safetensors file .*; give a LoRA"),
    ],
)
def test_a_file_that_does_not_fit_is_said_and_changes_nothing(data, tuned, tmp_path, change, message):
    tensors, path = load_file(tuned / "run" / "lora.safetensors"), tmp_path / "other.safetensors"
    if change:
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    else:
        path.write_bytes(b"something else")
    unet = DrawingPipeline.from_checkpoint(data / "start.safetensors").unet
    before = copy.deepcopy(unet.state_dict())
    with pytest.raises(ImprintError, match=re.escape(str(path)) + f".*{message}"):
        merge_lora(unet, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


def test_a_checkpoint_or_no_file_in_place_of_a_lora_is_said(data, tmp_path):
    unet = torch.nn.Linear(2, 2)
    with pytest.raises(ImprintError, match="is no LoRA of a UNet under kohya's names, since it holds"):
        merge_lora(unet, data / "start.safetensors")
    with pytest.raises(ImprintError, match="no such file"):
        merge_lora(unet, tmp_path / "absent.safetensors")
