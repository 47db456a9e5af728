"""SDXL: its UNet's conditions, converting its files to a checkpoint, a picture, and two steps of each stage.

A narrow model has all of its parts; its true shapes are checked without computing anything.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from drawing import DrawingPipeline
from micro import fresh_checkpoint, random_dinov2, sdxl_config
from runs import stats, weights, words
from safetensors.torch import load_file, save_file
from test_training_docs import SMOKE, commands

from imprint.checkpoint import load_checkpoint, save_checkpoint
from imprint.config import PRESETS, dinov2, tokens_adapter
from imprint.errors import ImprintError
from imprint.model import build_modules
from imprint.unet import build_unet, conditions, predict
from training import start, subject, train
from training.loop import validation
from training.loop.model import Model
from training.loop.text import TextEncoder

CPU = torch.device("cpu")
MASK_TOKEN = "encoder.backbone.embeddings.mask_token"  # of DINOv2's own training


@pytest.fixture(scope="module", autouse=True)
def preset():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "micro", sdxl_config())
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory, pretrained) -> Path:
    """sdxl/ in diffusers' format, with two text encoders and TAESD; dinov2/ in transformers' format."""
    root = tmp_path_factory.mktemp("sdxl")
    config = sdxl_config()
    torch.manual_seed(2)
    build_unet(replace(config.unet, out_channels=4)).save_pretrained(root / "sdxl" / "unet")
    shutil.copytree(pretrained / "sd" / "vae", root / "sdxl" / "vae")
    random_dinov2().save_pretrained(root / "dinov2")
    return root


# --- what the UNet is told -------------------------------------------------------------------------------------------


def test_the_preset_is_sdxl():
    """Names and shapes of the true UNet, which diffusers builds from the config.json of SDXL's base model."""
    from diffusers import UNet2DConditionModel

    config = PRESETS["sdxl"]
    assert (config.resolution, config.latent.scale_factor, config.unet.context_width) == (1024, 0.13025, 2048)
    with torch.device("meta"):
        modules = build_modules(config)
        theirs = UNet2DConditionModel(
            in_channels=4,
            out_channels=36,  # 4, and the matte's
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    ours = {name: tensor.shape for name, tensor in modules["unet"].state_dict().items()}
    assert ours == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert round(sum(parameter.numel() for parameter in modules["unet"].parameters()) / 1e6) == 2568


def test_a_forward_and_a_training_step_at_true_shapes():
    """On `meta`: every layer accepts the output of the one before, forward and backward, and nothing is computed."""
    config = PRESETS["sdxl"]
    with torch.device("meta"):
        model = Model(build_modules(config, with_vae=False), config)
        seen, timesteps = torch.empty(1, 4, 128, 128), torch.zeros(1)
        reference = torch.empty(1, 3, 224, 224, dtype=torch.uint8)
        made = model(reference, seen, timesteps, torch.zeros(1, dtype=torch.bool))
        made.sum().backward()
    assert made.shape == (1, 36, 128, 128)
    assert {name for name, each in model.named_parameters() if each.grad is None} == {MASK_TOKEN}


def test_the_unet_is_told_the_picture_s_size_and_no_text():
    seen = torch.zeros(2, 4, 16, 8)
    told = conditions(seen, sdxl_config())
    assert told["time_ids"].tolist() == [[128, 64, 0, 0, 128, 64]] * 2
    assert told["text_embeds"].shape == (2, 16) and not told["text_embeds"].any()
    assert conditions(seen, PRESETS["sd15"]) is None


def test_the_size_counts():
    """The same latents with another size as the condition give another result, so the conditions reach the UNet."""
    config = sdxl_config()
    torch.manual_seed(0)
    unet = build_unet(config.unet).eval()
    seen, context = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 32)
    with torch.no_grad():
        answer = predict(unet, seen, torch.tensor(7), context, config)
        told = conditions(seen, config)
        assert torch.equal(answer, unet(seen, 7, context, added_cond_kwargs=told).sample)
        told["time_ids"] = told["time_ids"] * 4
        assert (unet(seen, 7, context, added_cond_kwargs=told).sample - answer).abs().max() > 1e-3


# --- from its files --------------------------------------------------------------------------------------------------


def made(tmp_path: Path, *words) -> Path:
    start.main([*map(str, words), "--sizes", "micro", str(tmp_path / "start.safetensors")])
    return tmp_path / "start.safetensors"


def test_a_diffusers_folder(files, tmp_path, scene):
    path = made(tmp_path, "--unet", files / "sdxl", "--encoder", files / "dinov2")
    checkpoint = load_checkpoint(path)
    saved = load_file(files / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors")
    for name in ("add_embedding.linear_1.weight", "mid_block.attentions.0.proj_in.weight"):
        assert torch.equal(checkpoint.parts["unet"][name], saved[name])
    assert checkpoint.parts["unet"]["conv_out.weight"].shape[0] == 12 and checkpoint.config.unet.pooled_width == 16
    subject, background, hole = scene
    pipeline = DrawingPipeline.from_checkpoint(path)
    assert pipeline(subject, None, background, hole, 2, 3.0).images[0].size == background.size


def latent_diffusion_name(name: str, layers: int) -> str:
    """A tensor's name in latent diffusion's UNet, derived from its modules.

    Each level's layers are numbered consecutively, including those that halve or double the resolution.
    """
    whole = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    module, _, kind = name.rpartition(".")
    if module in whole:
        return f"{whole[module]}.{kind}"
    part, *rest = name.split(".")
    if part == "mid_block":
        place = f"middle_block.{2 * int(rest[1]) if rest[0] == 'resnets' else 1}"
        inner = rest[2:]
    else:
        level, what, number, *inner = rest
        first = int(level) * (layers + 1)
        if what == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.op.{kind}"
        if what == "upsamplers":
            return f"output_blocks.{first + layers}.{2 if LEVELS_WITH_ATTENTION[::-1][int(level)] else 1}.conv.{kind}"
        place = (
            f"input_blocks.{first + int(number) + 1}"
            if part == "down_blocks"
            else f"output_blocks.{first + int(number)}"
        )
        place += ".1" if what == "attentions" else ".0"
    layer = ".".join(inner)
    for ours, theirs in (
        ("norm1", "in_layers.0"),
        ("conv1", "in_layers.2"),
        ("time_emb_proj", "emb_layers.1"),
        ("norm2", "out_layers.0"),
        ("conv2", "out_layers.3"),
        ("conv_shortcut", "skip_connection"),
    ):
        if "attentions" not in name:
            layer = layer.replace(ours, theirs)
    return f"{place}.{layer}"


LEVELS_WITH_ATTENTION = [layers > 0 for layers in sdxl_config().unet.transformer_layers]


def test_a_single_file_with_latent_diffusion_s_names(files, tmp_path):
    saved = load_file(files / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors")
    named = {f"model.diffusion_model.{latent_diffusion_name(name, 2)}": tensor for name, tensor in saved.items()}
    assert "model.diffusion_model.input_blocks.8.1.transformer_blocks.1.attn2.to_k.weight" in named
    assert len(named) == len(saved)
    save_file(named, tmp_path / "sdxl.safetensors")
    words = "--unet", tmp_path / "sdxl.safetensors", "--vae", files / "sdxl" / "vae", "--encoder", files / "dinov2"
    unet = load_checkpoint(made(tmp_path, *words)).parts["unet"]
    for name, tensor in saved.items():
        assert torch.equal(unet[name][: len(tensor)], tensor), name


def test_other_sizes_are_a_sentence(files, tmp_path, pretrained):
    with pytest.raises(SystemExit, match=r"'add_embedding.linear_1.bias' is missing.*the model that --sizes names"):
        made(tmp_path, "--unet", pretrained / "sd", "--encoder", files / "dinov2")


# --- two steps -------------------------------------------------------------------------------------------------------


def test_the_page_s_commands(data, files, two_encoders, captioned, tmp_path, monkeypatch, scene):
    """The commands of docs/bases.md, as written except for the pictures' sizes: two steps of each stage."""
    config = sdxl_config()
    encoder = dinov2(width=128, layers=2, heads=2, image_size=28)
    adapter = tokens_adapter(encoder, layers=1, heads=2, output_width=56)
    unet = replace(config.unet, context_width=56)
    monkeypatch.setitem(PRESETS, "sdxl", replace(config, encoder=encoder, adapter=adapter, unet=unet))
    monkeypatch.setattr(validation, "SIZE", 4)
    monkeypatch.chdir(tmp_path)
    base = Path("stable-diffusion-xl-base-1.0")
    shutil.copytree(two_encoders, base)
    shutil.copytree(files / "sdxl" / "vae", base / "vae")
    build_unet(replace(unet, out_channels=4)).save_pretrained(base / "unet")
    shutil.copytree(files / "dinov2", "dinov2-large")
    shutil.copytree(captioned, "data/captions")
    for folder in ("cutouts", "photos"):
        shutil.copytree(data / folder, Path("data") / folder)

    smaller = {"1024:.6": "64:.6", "1152x896:.2": "96x64:.2", "896x1152:.2": "64x96:.2"}
    made = []
    for command in commands("docs/bases.md"):
        arguments = [smaller.get(word, word) for word in command[3:]]
        if command[2] == "training.start":
            start.main(arguments)
            continue
        train.main([*arguments, *SMOKE, "--accumulate", "1"])
        made.append(Path(arguments[arguments.index("--output") + 1]))
        assert [line["step"] for line in stats(made[-1])] == [1, 2, 2]
    assert [path.name for path in made] == ["sdxl-warmup", "sdxl-identity", "sdxl-compositing"]
    first, _ = stats(made[0])[:2]
    assert "loss_by_timestep" not in first  # the translation loss, of both encoders' tokens
    before, after = (weights(path / "checkpoint.safetensors") for path in made[1:])
    for name in ("unet.add_embedding.linear_1.weight", "unet.mid_block.attentions.0.proj_in.weight"):
        assert not torch.equal(before[name], after[name])
    subject, background, hole = scene
    pipeline = DrawingPipeline.from_checkpoint(made[-1] / "checkpoint.safetensors")
    output = pipeline(subject, None, background, hole, num_inference_steps=2)
    assert output.images[0].size == background.size and output.alpha is not None


def test_two_steps_in_buckets_in_less_memory(data, tmp_path):
    save_checkpoint(tmp_path / "sdxl.safetensors", fresh_checkpoint(sdxl_config()))
    command = words(data, tmp_path / "run", "compositing", init=tmp_path / "sdxl.safetensors")
    train.main([*command, "--resolutions", "96x64", "64", "--checkpointing"])
    described = json.loads((tmp_path / "run" / "options.json").read_text())
    assert described["model"]["unet"]["pooled_width"] == 16
    assert [line["step"] for line in stats(tmp_path / "run")] == [1, 2, 2]


def test_a_lora_of_two_steps_changes_the_picture(data, tmp_path, scene, few_photos):
    save_checkpoint(tmp_path / "sdxl.safetensors", fresh_checkpoint(sdxl_config()))
    subject.main([str(few_photos), "--output", str(tmp_path / "mug")])
    changes = {"init": tmp_path / "sdxl.safetensors", "cutouts": tmp_path / "mug" / "cutouts"}
    train.main(words(data, tmp_path / "run", "finetune", rank=2, **changes, photos=tmp_path / "mug" / "photos"))
    pipeline = DrawingPipeline.from_checkpoint(tmp_path / "sdxl.safetensors")
    options = {"num_inference_steps": 2, "output_type": "latent"}
    plain = pipeline(scene[0], None, *scene[1:], **options, generator=torch.manual_seed(1)).images
    pipeline.load_lora_weights(tmp_path / "run" / "lora.safetensors")
    tuned = pipeline(scene[0], None, *scene[1:], **options, generator=torch.manual_seed(1)).images
    assert not torch.equal(tuned, plain)


# --- its two text encoders -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_encoders(text_encoder, tmp_path_factory) -> Path:
    """SDXL's layout: the tiny CLIP, and a second one of another width whose tokenizer pads with another token."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    folder = tmp_path_factory.mktemp("encoders")
    shutil.copytree(text_encoder, folder, dirs_exist_ok=True)
    shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
    settings = {"tokenizer_class": "CLIPTokenizer", "pad_token": "a</w>"}
    (folder / "tokenizer_2" / "tokenizer_config.json").write_text(json.dumps(settings))
    sizes = json.loads((text_encoder / "text_encoder" / "config.json").read_text())
    sizes |= {"hidden_size": 24, "num_hidden_layers": 3, "projection_dim": 16}
    torch.manual_seed(1)
    CLIPTextModelWithProjection(CLIPTextConfig(**sizes)).save_pretrained(folder / "text_encoder_2")
    return folder


def test_the_text_is_two_encoders_tokens_before_their_last_layer(two_encoders):
    from transformers import CLIPTextModel

    text = TextEncoder(two_encoders, 56, CPU)
    start, end = 52, 53
    parts = []
    for name, padding in (("text_encoder", end), ("text_encoder_2", 26)):
        ids = torch.tensor([[start, 26 + 1, end, *[padding] * 6]])  # "b</w>"
        model = CLIPTextModel.from_pretrained(two_encoders / name).eval()
        parts.append(model(ids, output_hidden_states=True).hidden_states[-2])
    assert torch.allclose(text(["b"]), torch.cat(parts, 2), atol=1e-6)
    assert text.nothing.shape == (1, 9, 56) and not text.nothing.any()  # as diffusers has it for an empty prompt
    with pytest.raises(ImprintError, match="width 56, but the UNet takes 32"):
        TextEncoder(two_encoders, 32, CPU)
