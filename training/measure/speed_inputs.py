"""Inputs for measuring speed: pictures of noise, and models with random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from imprint.config import PRESETS, ImprintConfig
from imprint.unet import build_unet
from imprint.vae import build_autoencoder

from ..data.shards import Record, encoded, sample, shard_writer


def noise_picture(side: int, random: np.random.Generator) -> Image.Image:
    """Large blotches with grain."""
    blots = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
    return Image.fromarray((np.asarray(blots) * 0.9 + random.integers(0, 25, (side, side, 3))).astype(np.uint8))


def disc(side: int) -> Image.Image:
    """White on black."""
    line = np.linspace(-1, 1, side)
    return Image.fromarray(np.uint8(255 * (line[:, None] ** 2 + line[None] ** 2 < 0.8)))


def write_pictures(folder: Path, seed: int = 0) -> None:
    """Shards of a few views and of one clip of photos, enough for all kinds of pair."""
    random, round_mask = np.random.default_rng(seed), disc(256)
    with shard_writer(folder / "cutouts" / "train" / "0.tar") as writer:
        for index in range(32):
            picture = noise_picture(256, random)
            picture.putalpha(round_mask)
            record = Record(f"object-{index // 2}", "", index % 2, "noise", "none")
            writer.write(sample(f"{index:02d}", encoded(picture, "PNG", compress_level=1), "png", record))
    mask = Image.new("L", (384, 384))
    mask.paste(1, (90, 120), round_mask.resize((200, 160)))
    with shard_writer(folder / "photos" / "train" / "0.tar") as writer:
        for index in range(8):
            picture = encoded(noise_picture(384, random), "PNG", compress_level=1)
            writer.write(sample(f"{index:02d}", picture, "png", Record("", "clip", index, "noise", "none"), mask))


def write_captioned_pictures(folder: Path, side: int, count: int) -> None:
    """A folder for datasets' `imagefolder`: pictures of the right size with a caption each."""
    random = np.random.default_rng(0)
    pictures = [encoded(noise_picture(side, random), "JPEG", quality=90) for _ in range(16)]
    folder.mkdir(parents=True)
    lines = []
    for index in range(count):
        (folder / f"{index:05d}.jpg").write_bytes(pictures[index % len(pictures)])
        lines.append(json.dumps({"file_name": f"{index:05d}.jpg", "text": "a photo of a thing on a table"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def write_diffusers_model(folder: Path, config: ImprintConfig, device: torch.device) -> None:
    """A Stable Diffusion with these sizes and random weights in diffusers' layout, with a CLIP text encoder."""
    from diffusers import DDPMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel

    width, channels = config.unet.context_width, config.latent.channels
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=12,
        num_attention_heads=max(1, width // 64),
        bos_token_id=49406,
        eos_token_id=49407,
    )
    with device:
        parts = {
            "unet": build_unet(replace(config.unet, in_channels=channels, out_channels=channels)),
            "vae": build_autoencoder(PRESETS["sd15"].latent),
            "text_encoder": CLIPTextModel(text),
        }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    DDPMScheduler(
        num_train_timesteps=config.noise.timesteps,
        beta_start=config.noise.beta_start,
        beta_end=config.noise.beta_end,
        beta_schedule="scaled_linear",
    ).save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer")


def write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer with single bytes as words: the caption's content does not affect the speed."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters)]
    numbers = {word: index for index, word in enumerate(words)} | {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(numbers), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
