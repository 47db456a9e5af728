"""Third-party released files: our code computes the same from them as their own code."""

import dataclasses
import json
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import third_party_weights
import torch
from diffusers import DDIMScheduler
from drawing import DrawingPipeline
from micro import Payload
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.torch_version import TorchVersion

from imprint import cli
from imprint.checkpoint import load_checkpoint, read_config
from imprint.config import ImprintConfig
from imprint.errors import ImprintError
from imprint.model import build_modules, load_modules, module_tensors
from imprint.noise import make_scheduler
from imprint.preprocess import prepare_object
from imprint.released import read_tensors
from imprint.third_party import (
    KINDS,
    convert,
    from_tensors,
    kind_of,
    open_checkpoint,
    read_third_party,
    with_diffusers_names,
)
from imprint.unet import predict, with_background
from imprint.vae import decode, encode

POSITION_IDS = "cond_stage_model.transformer.vision_model.embeddings.position_ids"


# --- against their code ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=third_party_weights.KINDS)
def against(request):
    """(our pipeline with the seeded weights, their code's results, the inputs of both); in fp32."""
    checkpoint = with_diffusers_names(from_tensors(third_party_weights.random_weights("small", request.param)))
    assert kind_of(checkpoint.config) == request.param
    modules = build_modules(checkpoint.config)
    load_modules(modules, checkpoint)
    scheduler = make_scheduler(checkpoint.config.noise)
    pipeline = DrawingPipeline(**modules, scheduler=scheduler, model_config=checkpoint.config)
    for module in modules.values():
        module.eval().requires_grad_(False)
    golden = load_file(third_party_weights.FOLDER / f"{request.param}.safetensors")
    return pipeline, golden, third_party_weights.scene("small")


def seen_of_the_object(pipeline, golden, scene):
    """What our encoder and adapter compute from the pixels that theirs received: context, and local tokens or None."""
    config = pipeline.model_config.encoder
    given = scene["pixels"] if config.local_layer else golden["pixels"]
    tokens, local = config.split(pipeline.encoder(given))
    return pipeline.adapter(tokens[None]), local


def test_their_code_s_object_is_ours(against):
    """Cut out and resized within 1.5 steps of 8 bits; Paint-by-Example's own script resizes with Pillow's BICUBIC."""
    pipeline, golden, scene = against
    pixels, _ = prepare_object(scene["object"], scene["mask"], pipeline.model_config.encoder)
    std = 0.26  # of CLIP's colours: the golden pixels are normalised
    step = pixels.shape[-1] // golden["pixels"].shape[-1]  # of ControlCom's, every sixteenth is kept
    assert (pixels[..., ::step, ::step] - golden["pixels"]).abs().max() < 1.5 / 255 / std


def test_their_code_s_tokens_are_ours(against):
    _, golden, _ = against
    context, local = seen_of_the_object(*against)
    assert context.shape == golden["context"].shape and golden["context"].std() > 0.9
    assert (context - golden["context"]).abs().max() < 1e-3
    assert (local is None) == ("local" not in golden)
    if local is not None:
        assert local.shape == (1, 256, 1024) and golden["local"].std() > 0.9
        assert (local[:, ::16, ::64] - golden["local"]).abs().max() < 1e-3


def test_their_code_s_prediction_is_ours(against):
    pipeline, golden, scene = against
    config, (_, local) = pipeline.model_config, seen_of_the_object(*against)
    seen = with_background(scene["noise"], scene["background"], scene["hole"], config, "light")
    prediction = predict(pipeline.unet, seen, 500, golden["context"], config, local)
    assert (prediction - golden["prediction"]).abs().max() < 1e-3
    without = predict(pipeline.unet, seen, 500, torch.zeros_like(golden["context"]), config, local)
    assert (without - golden["prediction"]).abs().max() > 0.1  # the context is heard


def test_their_sampler_s_latents_after_ten_steps_are_ours(against):
    """Their DDIM with ten steps, guidance 5 against the learned vector; ours is built from the pipeline's scheduler."""
    pipeline, golden, scene = against
    theirs = DrawingPipeline(
        **pipeline.components | {"scheduler": DDIMScheduler.from_config(pipeline.scheduler.config)}
    )
    latents, (_, local) = [], seen_of_the_object(*against)

    def keep(_pipeline, _index, _timestep, given):
        latents.append(given["latents"])
        return {}

    given = (golden["context"], scene["background"], scene["hole"], scene["noise"])
    result, _ = theirs.denoise(*given, steps=10, guidance=5.0, callback=keep, local=local)
    assert len(latents) == 10 and golden["latent"].std() > 1
    assert (latents[-1] - golden["latent"]).abs().max() < 1e-3
    assert torch.equal(result, torch.where(scene["hole"] > 0, latents[-1], scene["background"]))
    # The pipeline's own scheduler walks the same way, and ends without the last 3 % of noise that their DDIM leaves.
    ours, _ = pipeline.denoise(*given, steps=10, guidance=5.0, local=local)
    assert (ours - result).abs().max() < 0.3


def test_their_autoencoder_is_ours(against):
    pipeline, golden, scene = against
    if "encoded" not in golden:
        return  # ControlCom's is the other two's, in the same names and sizes
    latent = pipeline.model_config.latent
    assert (encode(pipeline.vae, scene["picture"], latent) - golden["encoded"]).abs().max() < 1e-3
    decoded = decode(pipeline.vae, scene["background"][..., :4, :4], latent)
    assert (decoded - (golden["decoded"] / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-3


def test_one_picture_of_the_object(against):
    pipeline, _, _ = against
    view, mask = torch.rand(1, 3, 20, 20), torch.ones(1, 20, 20)
    assert pipeline.encode_object(view, mask).shape[1] == 1
    with pytest.raises(ImprintError, match="got 2 views.*takes one picture"):
        pipeline.encode_object([view, view], [mask, mask])


def test_a_whole_composite(against):
    pipeline, _, _ = against
    result = pipeline(
        torch.rand(1, 3, 20, 20),
        torch.ones(1, 20, 20),
        torch.rand(1, 3, 60, 80),
        torch.ones(1, 60, 80),
        num_inference_steps=1,
        resolution=64,
        output_type="pt",
    )
    assert result.images.shape == (1, 3, 60, 80) and result.images.isfinite().all()


@pytest.mark.parametrize("kind", third_party_weights.KINDS)
def test_the_golden_numbers_say_where_they_come_from(kind):
    with safe_open(third_party_weights.FOLDER / f"{kind}.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert len(metadata["commit"]) == 40 and "/" in metadata["repository"]


# --- files
# -------------------------------------------------------------------------------------------------------------


def synthetic(size: str, kind: str = "objectstitch") -> dict[str, torch.Tensor]:
    """Every tensor of a released file with its shape, filled with one number: small on disk."""
    tensors = {}
    for index, (name, shape) in enumerate(third_party_weights.shapes(size, kind).items()):
        trained = kind == "objectstitch" and "c_qkv" in name
        tensors[name] = torch.tensor(1.0 if trained else index % 7 / 1000).expand(shape)
    return tensors | {POSITION_IDS: torch.arange(257)[None]}


def write(path: Path, tensors: dict, **beside) -> Path:
    torch.save({"state_dict": tensors, **beside}, path)
    return path


@pytest.mark.parametrize("kind", third_party_weights.KINDS)
def test_the_released_files_key_list(tmp_path, kind):
    """At full size, by its own tensors: the sizes, the kind, and every name of every part."""
    file = write(tmp_path / "released.ckpt", synthetic("full", kind), epoch=39)
    assert file.stat().st_size < 1e6
    checkpoint = with_diffusers_names(read_third_party(file))  # which compares names and shapes with the modules
    config = checkpoint.config
    assert kind_of(config) == kind and ImprintConfig.from_json(config.to_json()) == config
    encoder, unet = config.encoder, config.unet
    assert (encoder.width, encoder.layers, encoder.heads, encoder.image_size) == (1024, 24, 16, 224)
    assert encoder.tokens == (257 if kind == "objectstitch" else 1)
    special = kind == "controlcom"
    assert (config.adapter.layers, config.adapter.heads, config.adapter.output_width) == (5, 8 if special else 1, 768)
    assert unet.widths == (320, 640, 1280, 1280) and unet.transformer_layers == (1, 1, 1, 0)
    assert (unet.in_channels, unet.local_levels, encoder.local_layer) == ((11, 2, 12) if special else (9, 0, 0))
    assert (unet.out_channels, unet.layers_per_block, unet.context_width) == (4, 2, 768)
    count = sum(tensor.numel() for part in checkpoint.parts.values() for tensor in part.values())
    held = 1_366_257_611 if special else 1_310_152_139
    assert count == held - 12 * 1000  # what their code holds, without the schedule's tables
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("kind", third_party_weights.KINDS)
def test_convert(tmp_path, kind, capsys):
    file, out = write(tmp_path / "released.pth", synthetic("small", kind)), tmp_path / "deep" / "ours.safetensors"
    assert cli.main(["convert", str(file), str(out)]) == 0
    shown = capsys.readouterr()
    assert str(out) in shown.out and kind in shown.out and "100%" in shown.err
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    checkpoint, source = load_checkpoint(out), with_diffusers_names(read_third_party(file))
    assert checkpoint.config == source.config and kind_of(checkpoint.config) == kind
    for part, tensors in source.parts.items():
        assert tensors.keys() == checkpoint.parts[part].keys()
        for name, tensor in tensors.items():
            made = checkpoint.parts[part][name]
            assert made.dtype == torch.float16 and torch.equal(made, tensor.half()), f"{part}.{name}"
    with torch.device("meta"):
        expected = module_tensors(build_modules(checkpoint.config))
    assert {part: tensors.keys() for part, tensors in expected.items()} == {
        part: tensors.keys() for part, tensors in checkpoint.parts.items()
    }
    pipeline = DrawingPipeline.from_checkpoint(out, torch_dtype=torch.float16)
    assert pipeline.model_config == checkpoint.config and pipeline.scheduler.config.timestep_spacing == "leading"


def test_the_kind_can_be_said(tmp_path):
    file = write(tmp_path / "released.pth", synthetic("small", "objectstitch"))
    assert kind_of(read_third_party(file, "paint-by-example").config) == "paint-by-example"
    with pytest.raises(ImprintError, match="'mimicbrush'.*objectstitch, paint-by-example, controlcom, anydoor"):
        read_third_party(file, "mimicbrush")


@pytest.mark.parametrize("kind", ["anydoor", "controlcom"])
def test_what_is_not_of_the_kind_that_was_asked_for_is_refused_and_leaves_nothing(tmp_path, capsys, kind):
    tensors = synthetic("small")
    tensors["proj_out.other"] = tensors.pop("proj_out.weight")
    file, out = write(tmp_path / "released.pth", tensors), tmp_path / "new/folder/a.safetensors"
    assert cli.main(["convert", str(file), str(out), "--kind", kind]) == 2
    assert f"which every file of {kind} has" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [file.name]


def test_only_a_checkpoint_is_written(tmp_path, capsys):
    file = write(tmp_path / "released.pth", synthetic("small"))
    for out in ("ours.pth", "ours"):
        assert cli.main(["convert", str(file), str(tmp_path / out)]) == 2
        assert ".safetensors" in capsys.readouterr().err
    (tmp_path / "folder.safetensors").mkdir()
    assert cli.main(["convert", str(file), str(tmp_path / "folder.safetensors")]) == 2
    assert cli.main(["convert", str(file), str(tmp_path / "a.safetensors"), "--kind", "mine"]) == 2
    assert "'mine'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.safetensors", "released.pth"]


def test_old_torch_files_and_safetensors_are_read_too(tmp_path):
    tensors = synthetic("small")
    legacy = tmp_path / "legacy.ckpt"
    torch.save({"state_dict": tensors}, legacy, _use_new_zipfile_serialization=False)
    flat = tmp_path / "flat.pth"
    torch.save(tensors, flat)
    expected = read_third_party(write(tmp_path / "released.pth", tensors))
    assert read_third_party(legacy).config == read_third_party(flat).config == expected.config
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("first_stage_model.")}
    save_file({name: tensor.half().contiguous() for name, tensor in kept.items()}, tmp_path / "released.safetensors")
    found = open_checkpoint(tmp_path / "released.safetensors")
    assert found.config == expected.config and found.parts["unet"].keys() == expected.parts["unet"].keys()
    with pytest.raises(ImprintError, match="part 'vae' has 0 tensors"):
        with_diffusers_names(found)


def test_ours_and_theirs_open_alike(tmp_path, micro, micro_file):
    assert open_checkpoint(micro_file).config == micro
    assert open_checkpoint(write(tmp_path / "released.pth", synthetic("small"))).names == "ldm"
    with pytest.raises(ImprintError, match="no such file"):
        open_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(ImprintError, match="imprint convert"):
        DrawingPipeline.from_checkpoint(tmp_path / "released.pth")


@pytest.mark.parametrize(
    "name",
    [
        "learnable_vector",
        "proj_out.bias",
        "cond_stage_model.final_ln.weight",
        "cond_stage_model.mapper.resblocks.0.attn.c_qkv.weight",
        "cond_stage_model.mapper.resblocks.2.mlp.c_fc.bias",
        "cond_stage_model.transformer.vision_model.embeddings.patch_embedding.weight",
        "cond_stage_model.transformer.vision_model.encoder.layers.1.self_attn.k_proj.bias",
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.input_blocks.2.0.op.bias",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.output_blocks.1.1.proj_in.weight",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.encoder.mid.attn_1.q.weight",
        "first_stage_model.decoder.up.1.upsample.conv.weight",
        "first_stage_model.post_quant_conv.weight",
    ],
)
def test_a_partial_file_says_what_is_missing(tmp_path, name):
    tensors = synthetic("small")
    del tensors[name]
    file, out = write(tmp_path / "partial.pth", tensors), tmp_path / "out.safetensors"
    with pytest.raises(ImprintError) as caught:
        convert(file, out)
    message = str(caught.value)
    assert str(file) in message and ("missing" in message or f"'{name}'" in message), message
    assert "\n" not in message and not out.exists()


def test_a_tensor_of_another_shape_is_named(tmp_path):
    for name, shape in (("proj_out.bias", (767,)), ("proj_out.weight", (768,)), ("learnable_vector", (768,))):
        file = write(tmp_path / "other.pth", synthetic("small") | {name: torch.zeros(shape)})
        with pytest.raises(ImprintError, match=name.split(".")[0].replace("proj_out", "proj")):
            convert(file, tmp_path / "out.safetensors")


@pytest.mark.parametrize("new_format", [True, False])
def test_nothing_but_weights_is_opened(tmp_path, new_format):
    file, target = tmp_path / "hostile.ckpt", tmp_path / "executed"
    content = {"state_dict": {"a": torch.zeros(1)}, "callbacks": Payload(target)}
    torch.save(content, file, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ImprintError, match="not a weight") as caught:
        read_third_party(file)
    assert "\n" not in str(caught.value) and not target.exists()
    torch.load(file, weights_only=False)
    assert target.exists()  # it would have worked


def test_a_page_that_was_saved_as_weights_is_none(tmp_path):
    file = tmp_path / "ObjectStitch.pth"
    file.write_text("<!DOCTYPE html>")
    with pytest.raises(ImprintError, match="not a torch file, perhaps the web page"):
        read_tensors(file)


def test_an_old_torch_opens_no_pickle(tmp_path, monkeypatch):
    """Below 2.6 its safe reader is not safe; safetensors files are read as always."""
    pickled, plain = tmp_path / "weights.pth", tmp_path / "weights.safetensors"
    torch.save({"state_dict": {"a": torch.zeros(1)}}, pickled)
    save_file({"a": torch.zeros(1)}, plain)
    assert read_tensors(pickled).keys() == read_tensors(plain).keys() == {"a"}
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.5.1+cu124"))
    assert read_tensors(plain).keys() == {"a"}
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(ImprintError, match=r"torch 2\.5\.1\+cu124 .* update torch to 2\.6 or newer"):
        read_tensors(pickled)


def test_what_lightning_writes_beside_the_weights_is_passed_over(tmp_path, monkeypatch):
    """Old versions use classes as keys, and numpy's numbers; neither is imported or created."""
    home = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    home.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": home.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", home.__name__):
        monkeypatch.setitem(sys.modules, name, home if name == home.__name__ else types.ModuleType(name))
    callbacks = {home.ModelCheckpoint: {"best_model_score": torch.tensor(1.0), "monitor": "val/loss"}}
    file = write(tmp_path / "a.ckpt", synthetic("small"), callbacks=callbacks, epoch=3, state={"lr": np.float64(1e-5)})
    for name in (home.__name__, "pytorch_lightning.callbacks", "pytorch_lightning"):
        monkeypatch.delitem(sys.modules, name)
    assert read_third_party(file).names == "ldm"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "truncated"),
        (b"PK\x03\x04 and no more", "truncated"),
        (b"a text file, no weights", "not a torch file"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", r"not a torch file.*; give the released checkpoint \(.pth, .ckpt, .safetensors\)"),
        (b"\x80\x02RIFF", r"other.ckpt is truncated or not a torch file; give the released checkpoint"),
        (pickle.dumps({"a": 1}, 2), "other.ckpt"),
    ],
)
def test_other_files_are_refused(tmp_path, content, words):
    file = tmp_path / "other.ckpt"
    file.write_bytes(content)
    with pytest.raises(ImprintError, match=words) as caught:
        read_third_party(file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3)},
        {"state_dict": {"a": torch.zeros(1)}},
        {"state_dict": [torch.zeros(1)]},
        {"state_dict": {}},
        [torch.zeros(1)],
        torch.zeros(1),
    ],
)
def test_other_weights_are_refused(tmp_path, content):
    file = tmp_path / "other.pth"
    torch.save(content, file)
    with pytest.raises(ImprintError, match=r"lacks the tensor|no tensors by name") as caught:
        read_third_party(file)
    assert "\n" not in str(caught.value)


def test_a_truncated_file(tmp_path):
    file = write(tmp_path / "cut.pth", synthetic("small"))
    content = file.read_bytes()
    for length in np.linspace(20, len(content) - 1, 6, dtype=int):
        file.write_bytes(content[:length])
        with pytest.raises(ImprintError) as caught:
            read_third_party(file)
        assert "\n" not in str(caught.value)


def test_shipped_and_older_configurations_mean_what_they_meant(micro):
    """None of the newer fields is in their JSON, and none is written for a model that does not need it."""
    from imprint.checkpoint import SHIPPED

    added = {"concat_order", "concat_mask", "hole_value", "hole_shape", "changes"}
    config = read_config(SHIPPED)
    values = json.loads(config.to_json())
    assert not {"local_levels", "local_region"} & values["unet"].keys() and "local_layer" not in values["encoder"]
    assert not added & values.keys() and "kind" not in values["encoder"] and "timestep_spacing" not in values["noise"]
    assert config.encoder.kind == "dinov2" and config.encoder.several_views and config.hole_value == 0.5
    changed = dataclasses.replace(micro, hole_value=0.25)
    assert json.loads(changed.to_json())["hole_value"] == 0.25
    assert set(KINDS) == {*third_party_weights.KINDS, "anydoor"}
