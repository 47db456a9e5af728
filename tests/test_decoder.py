"""Fine-tuning the autoencoder's decoder, and its measurements; a few steps on a CPU."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from leaving import failed
from micro import fresh_checkpoint, micro_config, seeded
from PIL import Image

from imprint.checkpoint import SHIPPED, load_checkpoint, save_checkpoint
from imprint.config import LatentConfig
from imprint.pipeline import ImprintPipeline
from training import decoder
from training.loop.losses import laplacian, reconstruction_loss, structural_similarity


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A checkpoint in fp16, as exported by training."""
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    save_checkpoint(path, fresh_checkpoint(micro_config()), torch.float16)
    return path


def words(data: Path, checkpoint: Path, output: Path, **changes) -> list[str]:
    options = {
        "checkpoint": checkpoint,
        "output": output,
        "cutouts": data / "cutouts",
        "photos": data / "photos",
        "images": 4,
        "batch": 2,
        "held-out": 3,
        "device": "cpu",
    } | changes
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def test_two_steps_change_the_decoder_alone(data, start, tmp_path, capsys):
    output = tmp_path / "made" / "sharp.safetensors"
    decoder.main(words(data, start, output))
    before, after = load_checkpoint(start), load_checkpoint(output)
    assert after.config == before.config and after.parts.keys() == before.parts.keys()
    for part, tensors in before.parts.items():
        assert tensors.keys() == after.parts[part].keys()
        for name, tensor in tensors.items():
            same, learns = torch.equal(tensor, after.parts[part][name]), (part == "vae" and name.startswith("decoder."))
            assert same != learns, f"{part}.{name}"
            assert after.parts[part][name].dtype == tensor.dtype == torch.float16
    ImprintPipeline.from_checkpoint(output)
    with Image.open(output.with_suffix(".png")) as picture:  # target, before, after, of each held-out picture
        assert picture.size == (3 * 64, 3 * 64)
    printed = capsys.readouterr().out.splitlines()
    assert [line.rsplit(maxsplit=2)[0] for line in printed[2:]] == [
        f"{measure}, {place}" for place in ("picture", "object") for measure in ("PSNR", "SSIM", "detail")
    ]
    assert sorted(path.name for path in output.parent.iterdir()) == ["sharp.png", "sharp.safetensors"]


def test_what_is_printed_is_measured_on_the_file_s_own_weights(data, start, tmp_path, capsys):
    """A second run that starts from the result measures before training what the first measured after it."""
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    decoder.main(words(data, start, first, lr=0.01))
    ends = [line.split()[-1] for line in capsys.readouterr().out.splitlines()[2:]]
    decoder.main(words(data, first, second))
    starts = [line.split()[-2] for line in capsys.readouterr().out.splitlines()[2:]]
    assert starts == ends


def test_the_same_command_gives_the_same_decoder_and_another_seed_another(data, start, tmp_path):
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for path, seed in zip(files, (0, 0, 1)):
        decoder.main(words(data, start, path, seed=seed))
    first, again, other = (load_checkpoint(path).parts["vae"] for path in files)
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    assert not all(torch.equal(other[name], tensor) for name, tensor in first.items())


def test_it_repairs_a_damaged_decoder(data, tmp_path, capsys):
    """TAESD with noise on the decoder's weights: a few steps bring the held-out pictures closer to the originals."""
    taesd = load_checkpoint(SHIPPED).parts["vae"]
    generator = seeded()
    damage = {
        name: tensor * (1 + 0.15 * torch.randn(tensor.shape, generator=generator)).half()
        for name, tensor in taesd.items()
        if name.startswith("decoder.")
    }
    checkpoint = fresh_checkpoint(micro_config())
    checkpoint.parts["vae"] = taesd | damage
    save_checkpoint(tmp_path / "damaged.safetensors", checkpoint)
    decoder.main(words(data, tmp_path / "damaged.safetensors", tmp_path / "out.safetensors", images=24))
    (before, after), *_ = (line.split()[-2:] for line in capsys.readouterr().out.splitlines()[2:])
    assert float(after) > float(before) + 0.5  # dB


def test_a_time_limit_stops_it_and_the_file_is_written(data, start, tmp_path):
    output = tmp_path / "out.safetensors"
    decoder.main(words(data, start, output, images=100_000_000, **{"time-limit": 1}))
    assert load_checkpoint(output).parts["vae"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("kl", "autoencoder of kind 'kl'"),
        ("no vae", "has no autoencoder"),
        ("no shards", "holds no .tar shard"),
        ("broken shard", "cannot be read"),
        ("no checkpoint", "no such file"),
        ("folder as output", "is a folder"),
        ("output without a place", "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_leaves_nothing(data, start, tmp_path, wrong, message):
    source, output, changes = tmp_path / "in.safetensors", tmp_path / "out" / "out.safetensors", {}
    if wrong == "kl":
        latent = LatentConfig(autoencoder="kl", channels=4, downscale=8, scale_factor=0.18215)
        save_checkpoint(source, fresh_checkpoint(dataclasses.replace(micro_config(), latent=latent), with_vae=False))
    elif wrong == "no vae":
        save_checkpoint(source, fresh_checkpoint(micro_config(), with_vae=False))
    elif wrong != "no checkpoint":
        shutil.copyfile(start, source)
    if wrong in ("no shards", "broken shard"):
        changes["cutouts"] = tmp_path / "cutouts"
        for split in ("train", "held-out"):
            (tmp_path / "cutouts" / split).mkdir(parents=True)
            if wrong == "broken shard":
                (tmp_path / "cutouts" / split / "views-000000.tar").write_bytes(b"no tar file" * 200)
    if wrong == "folder as output":
        output.mkdir(parents=True)
    if wrong == "output without a place":
        output.parent.write_text("a file where the folder should be")
    assert message in failed(decoder.main, words(data, source, output, **changes))
    assert not output.is_file() and not output.with_suffix(".png").exists()


def test_similarity_is_one_of_equal_pictures_and_falls_with_noise_and_blur():
    generator = seeded()
    picture = torch.rand(2, 3, 32, 32, generator=generator)
    assert torch.allclose(structural_similarity(picture, picture), torch.ones_like(picture))
    noise = torch.randn(picture.shape, generator=generator)
    means = [structural_similarity(picture + spread * noise, picture).mean() for spread in (0.02, 0.1, 0.5)]
    assert 1 > means[0] > means[1] > means[2] > 0
    # of two plain pictures only equation 6, of brightness, is left
    plain = structural_similarity(torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.6))
    assert torch.allclose(plain, torch.full_like(plain, (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)), atol=1e-4)


def test_the_pyramid_holds_the_picture():
    picture = torch.rand(2, 3, 32, 32, generator=seeded())
    *bands, rest = laplacian(picture, 3)
    assert [band.shape[-1] for band in (*bands, rest)] == [32, 16, 8]
    for band in reversed(bands):
        rest = band + torch.nn.functional.interpolate(rest, scale_factor=2, mode="bilinear")
    assert torch.allclose(rest, picture, atol=1e-6)


def test_the_loss_is_the_distance_at_every_scale():
    generator = seeded()
    target = torch.rand(2, 3, 32, 32, generator=generator)
    assert reconstruction_loss(target, target) == 0
    # a shift of brightness is in the picture and in what is left of the pyramid
    assert torch.isclose(reconstruction_loss(target + 0.1, target), torch.tensor(0.2))
    # and the finest stripes in the picture and in the finest level
    stripes = 0.1 * (torch.arange(32) % 2 * 2 - 1)
    assert torch.isclose(reconstruction_loss(target + stripes, target), torch.tensor(0.2))


def test_detail_kept_in_full_leaves_a_good_decoder_s_detail(data, tmp_path, capsys):
    """--keep 1 changes colours and coarse structures, --keep 0 blurs: TAESD on noise, which no latent can represent."""
    checkpoint = fresh_checkpoint(micro_config())
    checkpoint.parts["vae"] = load_checkpoint(SHIPPED).parts["vae"]
    save_checkpoint(tmp_path / "in.safetensors", checkpoint)
    found = {}
    for keep in (0, 1):
        command = words(data, tmp_path / "in.safetensors", tmp_path / "out.safetensors", images=24, keep=keep)
        decoder.main([*command, "--held-out", "6"])
        lines = capsys.readouterr().out.splitlines()
        found[keep] = next(float(line.split()[-1]) for line in lines if line.startswith("detail, picture"))
    assert found[0] < found[1]
