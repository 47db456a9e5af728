"""Pretrained parts made into a checkpoint: tiny models, saved by the libraries or under their first authors' names."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import torch
from drawing import DrawingPipeline
from leaving import failed
from micro import matte_config, micro_config, random_dinov2, random_dinov3
from safetensors.torch import load_file, save_file
from third_party_weights import random_weights

from imprint.adapter import ContentAdapter
from imprint.checkpoint import load_checkpoint
from imprint.config import PRESETS, ImprintConfig, LatentConfig, UNetConfig, tokens_adapter
from imprint.encoder import IDEncoder
from imprint.errors import ImprintError
from imprint.unet import build_unet
from training import start


def meta_names(model, registers: int) -> dict[str, torch.Tensor]:
    """A transformers model's tensors under Meta's names, derived from Meta's modules and not from our table."""
    own = IDEncoder(micro_config().encoder)
    own.backbone = model
    hub = own.hub_state_dict()
    named = {
        "cls_token": hub["embeddings.cls_token"],
        "pos_embed": hub["embeddings.position_embeddings"],
        "mask_token": hub["embeddings.mask_token"],
    }
    if registers:
        named["register_tokens"] = hub["embeddings.register_tokens"]
    for kind in ("weight", "bias"):
        named[f"patch_embed.proj.{kind}"] = hub[f"embeddings.patch_embeddings.projection.{kind}"]
        named[f"norm.{kind}"] = hub[f"layernorm.{kind}"]
        for block in range(model.config.num_hidden_layers):
            ours, theirs = f"encoder.layer.{block}", f"blocks.{block}"
            qkv = [hub[f"{ours}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            named[f"{theirs}.attn.qkv.{kind}"] = torch.cat(qkv)
            named[f"{theirs}.attn.proj.{kind}"] = hub[f"{ours}.attention.output.dense.{kind}"]
            for norm in ("norm1", "norm2"):
                named[f"{theirs}.{norm}.{kind}"] = hub[f"{ours}.{norm}.{kind}"]
            pairs = (
                (("w12", "weights_in"), ("w3", "weights_out"))
                if model.config.use_swiglu_ffn
                else (("fc1",) * 2, ("fc2",) * 2)
            )
            for meta, name in pairs:
                named[f"{theirs}.mlp.{meta}.{kind}"] = hub[f"{ours}.mlp.{name}.{kind}"]
            for number in (1, 2):
                named[f"{theirs}.ls{number}.gamma"] = hub[f"{ours}.layer_scale{number}.lambda1"]
    assert len(named) <= len(hub)
    return {name: tensor.clone() for name, tensor in named.items()}


@pytest.fixture(scope="module")
def files(pretrained, tmp_path_factory) -> Path:
    """The pretrained files, and dinov2.pth in Meta's format."""
    root = tmp_path_factory.mktemp("start") / "files"
    shutil.copytree(pretrained, root)
    torch.save(meta_names(random_dinov2(), 0), root / "dinov2.pth")
    return root


@pytest.fixture(autouse=True)
def presets(monkeypatch):
    monkeypatch.setitem(PRESETS, "micro", micro_config())
    monkeypatch.setitem(PRESETS, "micro-kl", kl_config())
    monkeypatch.setitem(PRESETS, "micro-matte", matte_config())


def kl_config() -> ImprintConfig:
    """The sizes of `third_party/small.txt`, a single file's two-level UNet, with SD's own autoencoder."""
    encoder = dataclasses.replace(micro_config().encoder, image_size=28)
    return micro_config(
        encoder=encoder,
        adapter=tokens_adapter(encoder, layers=1, heads=2, output_width=768),
        unet=UNetConfig(9, 4, (32, 64), 1, (1, 1), 1, (8, 8), 768),
        latent=LatentConfig(autoencoder="kl", channels=4, downscale=8, scale_factor=0.18215),
        background="concat",
    )


def made(tmp_path: Path, *words) -> Path:
    start.main([*map(str, words), str(tmp_path / "start.safetensors")])
    return tmp_path / "start.safetensors"


def test_a_diffusers_folder_and_a_hub_folder(files, tmp_path, scene, capsys):
    path = made(tmp_path, "--unet", files / "sd", "--encoder", files / "dinov2", "--config", "micro")
    assert "dinov2 of width 128 with 2 layers" in capsys.readouterr().out
    checkpoint = load_checkpoint(path)
    assert checkpoint.config.encoder.width == 128 and checkpoint.config.encoder.image_size == 28
    for part, folder in (("unet", "unet"), ("vae", "vae")):
        saved = load_file(files / "sd" / folder / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(tensor, saved[name]) for name, tensor in checkpoint.parts[part].items())
    pipeline = DrawingPipeline.from_checkpoint(path)
    subject, background, hole = scene
    assert pipeline(subject, None, background, hole, 1).images[0].size == background.size


def test_new_channels_change_nothing_at_first(files, tmp_path):
    """From four input channels to nine, and a matte: whatever the new channels hold, the UNet's output is unchanged."""
    words = "--unet", files / "sd", "--encoder", files / "dinov2", "--config", "micro-matte", "--background", "concat"
    checkpoint = load_checkpoint(made(tmp_path, *words))
    assert checkpoint.config.background == "concat" and checkpoint.config.unet.in_channels == 9
    wide, narrow = build_unet(checkpoint.config.unet), build_unet(micro_config().unet)
    wide.load_state_dict(checkpoint.parts["unet"])
    narrow.load_state_dict(load_file(files / "sd" / "unet" / "diffusion_pytorch_model.safetensors"))
    seen, context = torch.randn(1, 9, 8, 8), torch.randn(1, 5, 32)
    with torch.no_grad():
        answers = wide(seen, 7, context).sample, narrow(seen[:, :4], 7, context).sample
    assert answers[0].shape[1] == 12 and not answers[0][:, 4:].any()
    assert torch.allclose(answers[0][:, :4], answers[1], atol=1e-5) and float(answers[1].std()) > 0


def test_an_adapter_with_as_many_tokens_as_the_text(files):
    checkpoint = start.start(files / "sd", files / "dinov2", micro_config(), adapter="conv")
    tokens = torch.zeros(1, 1, checkpoint.config.adapter.input_tokens, 128)
    adapter = ContentAdapter(checkpoint.config.adapter)
    adapter.load_state_dict(checkpoint.parts["adapter"])
    assert adapter(tokens).shape == (1, 77, 32)


@pytest.mark.parametrize(("swiglu", "registers"), [(False, 0), (True, 0), (False, 3)])
@pytest.mark.parametrize("layout", ["hub", "meta"])
def test_dinov2_answers_as_in_transformers(files, tmp_path, swiglu, registers, layout):
    """At the configuration's 28 px; transformers interpolates the positions of its 56 px grid at every call."""
    model = random_dinov2(swiglu, registers)
    if layout == "hub":
        model.save_pretrained(tmp_path / "encoder")
        source = tmp_path / "encoder"
    else:
        source = tmp_path / "encoder.pth"
        torch.save(meta_names(model, registers), source)
    path = made(tmp_path, "--unet", files / "sd", "--encoder", source, "--config", "micro")
    checkpoint = load_checkpoint(path)
    config = checkpoint.config.encoder
    assert (config.swiglu, config.register_tokens, config.heads, config.tokens) == (swiglu, registers, 2, 5)
    assert checkpoint.parts["encoder"]["embeddings.position_embeddings"].shape == (1, 5, 128)
    encoder = IDEncoder(config).eval()
    encoder.load_hub_state_dict(checkpoint.parts["encoder"])
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        theirs = model(pixels).last_hidden_state
        ours = encoder(pixels)
    assert torch.allclose(ours, torch.cat([theirs[:, :1], theirs[:, 1 + registers :]], 1), atol=1e-4)
    assert float(ours.std()) > 0.01


@pytest.mark.parametrize("changes", [{}, {"use_gated_mlp": True, "hidden_act": "silu"}])
def test_dinov3_answers_as_in_transformers(files, tmp_path, monkeypatch, changes):
    """At the configuration's 32 px: its positions are computed for any size."""
    config = micro_config()
    encoder = dataclasses.replace(config.encoder, image_size=32, patch_size=16)
    monkeypatch.setitem(PRESETS, "micro", dataclasses.replace(config, encoder=encoder))
    model = random_dinov3(**changes)
    model.save_pretrained(tmp_path / "encoder")
    path = made(tmp_path, "--unet", files / "sd", "--encoder", tmp_path / "encoder", "--sizes", "micro")
    checkpoint = load_checkpoint(path)
    config = checkpoint.config.encoder
    assert (config.kind, config.swiglu, config.register_tokens, config.tokens) == ("dinov3", bool(changes), 3, 5)
    encoder = IDEncoder(config).eval()
    encoder.load_hub_state_dict(checkpoint.parts["encoder"])
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs = model(pixels).last_hidden_state
        ours = encoder(pixels)
    assert torch.equal(ours, torch.cat([theirs[:, :1], theirs[:, 4:]], 1)) and float(ours.std()) > 0.01


def test_a_dinov3_that_cannot_be_taken_is_a_sentence(files, tmp_path):
    random_dinov3(query_bias=False, value_bias=False).save_pretrained(tmp_path / "7b")
    words = "--unet", files / "sd", "--sizes", "micro", "--encoder"
    assert "has query_bias False, where an encoder's is True" in failed(made, tmp_path, *words, tmp_path / "7b")
    torch.save({"storage_tokens": torch.zeros(1)}, tmp_path / "dinov3.pth")
    assert "as Meta released it; give its folder" in failed(made, tmp_path, *words, tmp_path / "dinov3.pth")


def test_a_single_file_with_latent_diffusion_s_names(files, tmp_path):
    """The random weights under released names; `test_third_party.py` compares them with the authors' code."""
    named = {
        name: tensor
        for name, tensor in random_weights("small", "objectstitch").items()
        if name.startswith(("model.diffusion_model.", "first_stage_model."))
    }
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, tmp_path / "sd.safetensors")
    words = "--encoder", files / "dinov2.pth", "--config", "micro-kl", "--background"
    checkpoint = load_checkpoint(made(tmp_path, "--unet", tmp_path / "sd.safetensors", *words, "concat"))
    first = named["model.diffusion_model.input_blocks.0.0.weight"]
    assert torch.equal(checkpoint.parts["unet"]["conv_in.weight"], first)
    assert sum(map(torch.numel, checkpoint.parts["unet"].values())) == sum(
        tensor.numel() for name, tensor in named.items() if name.startswith("model.")
    )
    with pytest.raises(SystemExit, match=r"'conv_in.weight' of shape \(32, 9, 3, 3\).*asks for \(32, 4, 3, 3\)"):
        made(tmp_path, "--unet", tmp_path / "sd.safetensors", *words, "blend")


def break_file(path: Path, name: str, value: torch.Tensor | None) -> None:
    load, save = (torch.load, torch.save) if path.suffix == ".pth" else (load_file, save_file)
    tensors = load(path)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save(tensors, path)


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("file", "name", "value", "message"),
    [
        (f"sd/unet/{WEIGHTS}", "conv_out.bias", None, r"sd/unet: 1 tensors are missing.*'conv_out.bias' is missing"),
        (f"sd/unet/{WEIGHTS}", "conv_out.bias", torch.zeros(7), r"sd/unet .*(conv_out.bias|another shape)"),
        (f"sd/vae/{WEIGHTS}", "encoder.layers.0.weight", None, r"sd/vae: 1 tensors are missing"),
        ("dinov2/model.safetensors", "layernorm.weight", None, r"dinov2: 1 tensors are missing"),
        ("dinov2.pth", "pos_embed", None, r"lacks the tensor 'pos_embed'.*dinov2_vit\*14_pretrain"),
        ("dinov2.pth", "pos_embed", torch.zeros(5), r"lacks the tensor 'pos_embed' of 3 dimensions"),
        ("dinov2.pth", "blocks.1.ls2.gamma", None, r"encoder.layer.1.layer_scale2.lambda1' is missing"),
        ("dinov2.pth", "norm.weight", torch.zeros(64), r"'layernorm.weight' of shape \(64,\)"),
        ("dinov2.pth", "head.weight", torch.zeros(3), r"'head.weight' is not of the model"),
    ],
)
def test_a_tensor_that_is_missing_or_misshapen_is_named(files, tmp_path, file, name, value, message):
    shutil.copytree(files, tmp_path / "copy")
    break_file(tmp_path / "copy" / file, name, value)
    encoder = "dinov2.pth" if file.endswith("pth") else "dinov2"
    unet, encoder = tmp_path / "copy" / "sd", tmp_path / "copy" / encoder
    assert re.search(message, failed(made, tmp_path, "--unet", unet, "--encoder", encoder, "--config", "micro"))
    assert not (tmp_path / "start.safetensors").exists()


@pytest.mark.parametrize(
    ("unet", "encoder", "config", "message"),
    [
        ("absent", "dinov2", "micro", "absent: no such file"),
        ("dinov2", "dinov2", "micro", "holds no config.json; give a model's folder"),
        ("dinov2.pth", "dinov2", "micro", r"holds no tensor 'model\.diffusion_model"),
        ("sd", "sd/unet", "micro", "sd/unet is for UNet2DConditionModel, where AutoModel is needed"),
        ("sd", "dinov2", "micro-kl", "sd/vae is for AutoencoderTiny, where AutoencoderKL is needed"),
    ],
)
def test_files_of_another_kind_leave_with_a_sentence(files, tmp_path, unet, encoder, config, message):
    words = ("--unet", files / unet, "--encoder", files / encoder, "--config", config)
    assert re.search(message, failed(made, tmp_path, *words))


def test_a_pickle_that_holds_code_is_not_opened(files, tmp_path):
    torch.save({"cls_token": Path("code")}, tmp_path / "code.pth")
    with pytest.raises(ImprintError, match="could run any code"):
        start.start(files / "sd", tmp_path / "code.pth", micro_config())
