"""The adapter's warm-up, fine-tuning to one object, the choice of losses, and what makes a run robust; a few steps on a CPU."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import DrawingPipeline
from micro import cutout, micro_config, photo
from PIL import Image
from runs import ROOT, stats, webp, weights, words, write_captions
from safetensors.torch import load_file

from imprint.config import NoiseConfig
from imprint.errors import ImprintError
from imprint.noise import alphas_cumprod
from training import subject, train
from training.data.shards import Bad, Record, read_shards, sample, shard_writer
from training.loop import losses, state
from training.loop import run as training_run
from training.loop.meter import Meter
from training.loop.run import Run
from training.loop.source import Source
from training.loop.text import TextEncoder
from training.pairs.batches import Batch
from training.pairs.captions import Captions
from training.pairs.pictures import Photos, Views
from training.settings import TIMESTEPS, parse_train

pytestmark = pytest.mark.usefixtures("micro_preset")

CPU = torch.device("cpu")
EPSILON = NoiseConfig(1000, 0.00085, 0.012, prediction_type="epsilon", zero_terminal_snr=False)
VELOCITY = micro_config().noise  # zero terminal SNR


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """An unbroken run of four steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train.main(words(data, folder, steps=4))
    return folder


def back_to_step_two(whole: Path, folder: Path) -> Path:
    """A copy of the unbroken run without what it left at its end."""
    return shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("state-000000004", "checkpoint.safetensors"))


def warmup_words(data, output, captioned, text_encoder, **changes) -> list[str]:
    options = {"cutouts": None, "photos": None, "captions": captioned, "text-encoder": text_encoder}
    return words(data, output, "warmup", **(options | {"init": data / "start.safetensors"} | changes))


# --- the adapter's warm-up -------------------------------------------------------------------------------------------


def test_warmup_first_translates_then_denoises_and_trains_the_adapter_alone(data, tmp_path, captioned, text_encoder):
    train.main(warmup_words(data, tmp_path / "run", captioned, text_encoder, steps=2))
    first, second, held_out = stats(tmp_path / "run")
    assert "loss_by_timestep" not in first and "loss_by_timestep" in second
    assert {"held_out_loss", "held_out_translation_loss"} <= held_out.keys()
    before, after = weights(data / "start.safetensors"), weights(tmp_path / "run" / "checkpoint.safetensors")
    changed = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name].half())}
    assert changed == {"adapter"}


def test_translation_pulls_the_adapter_to_the_text(data, tmp_path, captioned, text_encoder):
    options = {"steps": 40, "translation": 1, "save-every": 4, "log-every": 4, "lr": 0.003, "final-lr": 1}
    train.main(warmup_words(data, tmp_path / "run", captioned, text_encoder, **options))
    distances = [line["held_out_translation_loss"] for line in stats(tmp_path / "run") if "held_out_loss" in line]
    assert distances[-1] < 0.8 * distances[0]


@pytest.mark.parametrize(("image_tokens", "text_tokens"), [(9, 9), (257, 77), (5, 9)])
def test_translation_compares_token_by_token(image_tokens, text_tokens):
    """L1 where both have as many tokens; where not, means of neighbours."""
    context, text, nothing = (
        torch.randn(3, image_tokens, 8),
        torch.randn(3, text_tokens, 8),
        torch.zeros(1, text_tokens, 8),
    )
    batch = Batch(*(torch.zeros(3) for _ in range(5)), text=text)

    def model(reference, seen, timesteps, dropped):
        assert seen is None and timesteps is None and not dropped.any()
        return context

    loss = losses.translation_loss(model, batch, nothing, torch.Generator().manual_seed(0), dropout=0.0)
    assert loss.shape == (3,)
    if image_tokens == text_tokens:
        assert torch.allclose(loss, (context - text).abs().mean((1, 2)))
    batch.text = torch.nn.functional.adaptive_avg_pool1d(context.transpose(1, 2), text_tokens).transpose(1, 2)
    if image_tokens >= text_tokens:
        exact = losses.translation_loss(model, batch, nothing, torch.Generator().manual_seed(0), dropout=0.0)
        assert float(exact.max()) < 1e-6


def test_dropped_conditions_translate_to_the_empty_caption():
    nothing, text = torch.full((1, 4, 8), 2.0), torch.randn(2, 4, 8)
    batch = Batch(*(torch.zeros(2) for _ in range(5)), text=text)

    def model(reference, seen, timesteps, dropped):
        assert dropped.all()
        return torch.full((2, 4, 8), 2.5)

    loss = losses.translation_loss(model, batch, nothing, torch.Generator().manual_seed(0), dropout=1.0)
    assert torch.allclose(loss, torch.full((2,), 0.5))


def test_the_text_encoder_is_stable_diffusion_s(text_encoder):
    """The last hidden state after the last LayerNorm, padded with the end's token and without an attention mask."""
    from transformers import CLIPTextModel

    text = TextEncoder(text_encoder, 32, CPU)
    start, end = 52, 53
    ids = torch.tensor([[start, 26 + 1, end, end, end, end, end, end, end]])  # "b</w>"
    expected = CLIPTextModel.from_pretrained(text_encoder / "text_encoder").eval()(ids).last_hidden_state
    assert torch.allclose(text(["b"]), expected, atol=1e-6)
    assert text.nothing.shape == (1, 9, 32) and text(["a very long caption of a thing"]).shape == (1, 9, 32)
    with pytest.raises(ImprintError, match="width 32, but the UNet takes 768"):
        TextEncoder(text_encoder, 768, CPU)
    with pytest.raises(ImprintError, match="holds no config.json"):
        TextEncoder(text_encoder / "tokenizer", 32, CPU)


def test_captioned_pictures_are_drawn_by_the_generator_alone(captioned, text_encoder):
    text = TextEncoder(text_encoder, 32, CPU)
    maker = Captions(captioned / "train", micro_config(), text, CPU)
    one, two = (maker(5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.target, two.target) and torch.equal(one.text, two.text)
    assert one.reference.shape == (5, 3, 28, 28) and one.target.shape == (5, 3, 64, 64) and bool((one.hole == 1).all())
    number = torch.randint(4, (5,), generator=torch.Generator().manual_seed(3))[0].item()
    own = [text([f"{start} {'abcd'[number]}"]) for start in ("a thing", "the other")]
    assert sum(torch.equal(one.text[:1], caption) for caption in own) == 1  # one of the picture's own captions
    middle = photo(90, 70, seed=number).crop((10, 0, 80, 70)).resize((64, 64), Image.BICUBIC)
    assert np.abs(one.target[0].permute(1, 2, 0).numpy() * 255 - np.asarray(middle)).mean() < 2
    assert len(Captions(captioned / "train", micro_config(), text, CPU, limit=2).spans) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"txt": None}, "it needs a txt"),
        ({"webp": None}, "it needs a txt, and a jpg"),
        ({"webp": b"no picture"}, "cannot be read"),
        ({"txt": b"\xff"}, "cannot be read"),
    ],
)
def test_bad_captions_are_named(tmp_path, text_encoder, change, message):
    write_captions(tmp_path, **change)
    text = TextEncoder(text_encoder, 32, CPU)
    with pytest.raises(ImprintError, match=rf"captions-000000\.tar: sample '000'.*{message}|sample '00\d'.*{message}"):
        Captions(tmp_path, micro_config(), text, CPU)(4, torch.Generator().manual_seed(0))


def test_bad_captions_may_be_left_out(tmp_path, captioned, text_encoder, data, capsys):
    """One of them lacks its text, another its picture: the next one stands in, and each is counted once."""
    with shard_writer(tmp_path / "train" / "captions-000000.tar") as writer:
        for number in range(4):
            parts = sample(str(number), webp(photo(90, 70, seed=number)), "webp", Record("", "", 0, "test", "CC0"))
            parts |= {} if number == 1 else {"txt": f"a thing {'abcd'[number]}".encode()}
            writer.write(parts | ({"webp": b"no picture"} if number == 2 else {}))
    text = TextEncoder(text_encoder, 32, CPU)
    maker = Captions(tmp_path / "train", micro_config(), text, CPU, bad=Bad(2, "train"))
    made = maker(40, torch.Generator().manual_seed(3))
    assert torch.equal(made.target, maker(40, torch.Generator().manual_seed(3)).target)
    drawn = torch.randint(3, (40,), generator=torch.Generator().manual_seed(3)).tolist()  # of pictures 0, 2 and 3
    for number in (0, 3):
        (text_of,) = text([f"a thing {'abcd'[number]}"])
        rows = [index for index, row in enumerate(drawn) if (row == 0) == (number == 0)]
        assert rows and all(torch.equal(made.text[row], text_of) for row in rows)
    said = capsys.readouterr().err
    assert len(maker.bad.found) == 2 and said.count("left out") == 2
    assert "left out, 1 of 2 allowed" in said and "sample '1' has" in said and "sample '2' cannot be read" in said
    with pytest.raises(ImprintError, match="sample '2' cannot be read .*2 samples are bad, and --skip-bad allows 1"):
        Captions(tmp_path / "train", micro_config(), text, CPU, bad=Bad(1))(40, torch.Generator().manual_seed(3))

    shutil.copytree(captioned / "held-out", tmp_path / "held-out")
    command = warmup_words(data, tmp_path / "run", tmp_path, text_encoder, steps=1)
    with pytest.raises(SystemExit, match="sample '1' has"):
        train.main(command)
    train.main([*command, "--skip-bad", "2"])
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()


def test_only_bad_captions_are_a_sentence(tmp_path, text_encoder):
    text = TextEncoder(text_encoder, 32, CPU)
    write_captions(tmp_path, webp=b"no picture")
    with pytest.raises(ImprintError, match="all 4 captioned pictures are bad"):
        Captions(tmp_path, micro_config(), text, CPU, bad=Bad(4))(1, torch.Generator().manual_seed(0))
    write_captions(tmp_path, txt=None)
    with pytest.raises(ImprintError, match="holds no picture with captions"):
        Captions(tmp_path, micro_config(), text, CPU, bad=Bad(4))


def test_a_shard_that_is_cut_off_is_named(tmp_path, text_encoder):
    shard = write_captions(tmp_path) / "captions-000000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    text = TextEncoder(text_encoder, 32, CPU)
    with pytest.raises(ImprintError, match=r"captions-000000\.tar"):
        Captions(tmp_path, micro_config(), text, CPU)(8, torch.Generator().manual_seed(0))


# --- fine-tuning to one object ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(data, few_photos, tmp_path_factory) -> Path:
    """The folder of a run of two steps on those."""
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
    with pytest.raises(SystemExit, match=message) as left:
        subject.main([str(tmp_path / "in"), "--output", str(tmp_path / "out")])
    assert str(left.value.code).startswith("error: ") and not (tmp_path / "out").exists()


def test_fine_tuning_learns_a_lora_alone(tuned):
    described = json.loads((tuned / "run" / "options.json").read_text())
    tensors = load_file(tuned / "run" / "lora.safetensors")
    assert not (tuned / "run" / "checkpoint.safetensors").exists()
    layers = [tensor for name, tensor in tensors.items() if not name.endswith(".alpha")]
    assert described["trained_parameters"] == sum(map(torch.numel, layers))
    assert {tensor.dtype for tensor in layers} == {torch.float16}
    assert all(float(tensor) == 2 for name, tensor in tensors.items() if name.endswith(".alpha"))  # = rank: scale 1


def answer(unet) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
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
    pipeline.set_progress_bar_config(disable=True)
    plain, by_hand = (
        answer(pipeline.unet),
        merged(copy.deepcopy(pipeline.unet), load_file(tuned / "run" / "lora.safetensors")),
    )
    pipeline.load_lora_weights(tuned / "run" / "lora.safetensors")
    assert torch.allclose(answer(pipeline.unet), answer(by_hand), atol=1e-5)
    assert float((answer(pipeline.unet) - plain).abs().max()) > 1e-3
    subject_picture, background, hole = scene
    assert pipeline(subject_picture, None, background, hole, 1).images[0].size == background.size

    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    pipeline.save_checkpoint(tmp_path / "merged.safetensors")  # and so it is one file again
    again = DrawingPipeline.from_checkpoint(tmp_path / "merged.safetensors")
    assert torch.allclose(answer(again.unet), answer(by_hand), atol=1e-5)


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [EPSILON, VELOCITY, dataclasses.replace(VELOCITY, zero_terminal_snr=False)],
    ids=["epsilon", "v", "v that ends in a little signal"],
)
def test_min_snr_weighs_the_implied_picture_s_error_by_the_clamped_snr(config):
    """Checked by the definition: a small error of the prediction, turned into the error of z_0 that it implies."""
    alpha_bar = alphas_cumprod(config)[[1, 100, 400, 700, 990]]
    signal, spread = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    clean, noise, wrong = 0.3, -1.2, 0.01
    noisy = signal * clean + spread * noise
    if config.prediction_type == "epsilon":
        implied = (noisy - spread * (noise + wrong)) / signal
    else:
        implied = signal * noisy - spread * (signal * noise - spread * clean + wrong)
    snr = alpha_bar / (1 - alpha_bar)
    expected = (snr + config.zero_terminal_snr).clamp(max=5) * (implied - clean) ** 2
    assert torch.allclose(losses.loss_weights(alpha_bar, config, "min-snr") * wrong**2, expected, rtol=1e-6)
    assert losses.loss_weights(alpha_bar, config, "plain").tolist() == [1.0] * 5


def test_min_snr_keeps_the_last_timesteps_of_a_schedule_that_ends_in_noise():
    alpha_bar = alphas_cumprod(VELOCITY).float()
    weights = losses.loss_weights(alpha_bar, VELOCITY, "min-snr")
    assert bool((weights[-100:] == 1).all()) and bool((weights.diff() >= 0).all())  # and no jump at the last


def test_timesteps():
    random = torch.Generator().manual_seed(0)
    uniform, normal = (losses.draw_timesteps(100_000, EPSILON, kind, random) for kind in TIMESTEPS)
    for drawn in (uniform, normal):
        assert drawn.dtype == torch.int64 and drawn.min() >= 0 and drawn.max() <= 999
    assert abs(float((uniform < 100).float().mean()) - 0.1) < 0.01
    # P(sigmoid(n) < 0.25) = P(n < -1.0986) = 0.136
    assert abs(float((normal < 250).float().mean()) - 0.136) < 0.01 and abs(float(normal.float().mean()) - 499.5) < 5


def test_choices_of_the_loss_reach_the_training(data, tmp_path):
    start = data / "start.safetensors"
    for name, changes in {
        "plain": {},
        "weighed": {"weighting": "min-snr"},
        "normal": {"timesteps": "logit-normal"},
    }.items():
        train.main(words(data, tmp_path / name, "compositing", init=start, steps=1, **changes))
    plain, weighed, normal = (stats(tmp_path / name) for name in ("plain", "weighed", "normal"))
    assert plain[0]["loss"] == weighed[0]["loss"] != normal[0]["loss"]  # what is logged is never weighed
    assert plain[0]["gradient"] != weighed[0]["gradient"]


# --- the loop --------------------------------------------------------------------------------------------------------


def test_accumulated_batches_are_one_step(data, tmp_path):
    """Two batches of two make the step that one batch of four makes, on the same pairs, noise and all."""
    train.main(words(data, tmp_path / "run", steps=2, images=8, accumulate=2))
    described = json.loads((tmp_path / "run" / "options.json").read_text())
    assert described["steps"] == 2 and [line["pictures"] for line in stats(tmp_path / "run")] == [4, 8, 8]
    run = Run(parse_train(words(data, tmp_path / "other", accumulate=2)))
    source = Source(run.maker("train"), run.autoencoder, run.settings, 0, CPU)
    meter = Meter(1000, CPU)
    sum(run.loss(source, index, meter, translate=False) / 2 for index in range(2)).backward()
    norm = torch.nn.utils.clip_grad_norm_(run.trained, 1e9)
    first = stats(tmp_path / "run")[0]
    assert float(norm) == pytest.approx(first["gradient"], rel=1e-4)
    assert meter.read(run.accelerator, 1, 2)["loss"] == pytest.approx(first["loss"], rel=1e-5)


def test_checkpointing_changes_memory_and_not_the_result(data, tmp_path):
    """Fewer activations are kept for the backward pass; the gradients are the same."""
    kept, gradients = [], []
    for words_more in ([], ["--checkpointing"]):
        run = Run(parse_train([*words(data, tmp_path / "run"), *words_more]))
        source = Source(run.maker("train"), run.autoencoder, run.settings, 0, CPU)
        run.model.train()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            loss = run.loss(source, 0, Meter(1000, CPU), translate=False)
        loss.backward()
        kept.append(sum(saved))
        gradients.append([parameter.grad for parameter in run.trained])
    assert kept[1] < 0.7 * kept[0]
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(*gradients))


@pytest.mark.parametrize("stage", ["identity", "compositing", "finetune"])
def test_frozen_parts_have_neither_gradients_nor_averages(data, tmp_path, stage):
    run = Run(parse_train(words(data, tmp_path / "run", stage, init=data / "start.safetensors")))
    source = Source(run.maker("train"), run.autoencoder, run.settings, 0, CPU)
    run.model.train()
    run.loss(source, 0, Meter(1000, CPU), translate=False).backward()
    averaged = dict(run.ema.named_parameters())
    for name, parameter in run.raw.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and averaged[name] is not parameter and name in run.average.state_dict()
        else:
            assert parameter.grad is None and averaged[name] is parameter and name not in run.average.state_dict()
    state = run.optimizer.optimizer.param_groups[0]["params"]
    assert len(state) == len(run.trained) < len(list(run.raw.parameters()))


def test_the_average_is_the_one_of_the_equation(data, tmp_path):
    run = Run(parse_train(words(data, tmp_path / "run")))
    name, live = next((name, p) for name, p in run.raw.named_parameters() if p.requires_grad)
    expected = live.detach().clone()
    for step, decay in ((0, 0.9), (50, 0.9), (500, 0.9)):
        with torch.no_grad():
            live += torch.randn_like(live)
        run.average.update(step, decay)
        weight = min(decay, (1 + step) / (10 + step))
        expected = weight * expected + (1 - weight) * live.detach()
    assert torch.allclose(dict(run.ema.named_parameters())[name], expected, atol=1e-5)


def test_tensorboard_has_losses_by_timestep_speed_and_pictures(data, tmp_path, whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train.main(words(data, back_to_step_two(whole, tmp_path / "run"), steps=4))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "imprint")).Reload()
    scalars = events.Tags()["scalars"]
    assert {"loss", "gradient", "lr", "pictures_per_second", "held_out_loss"} <= set(scalars)
    buckets = [name for name in scalars if name.startswith("loss_by_timestep/")]
    assert buckets and set(buckets) <= {f"loss_by_timestep/{low:03d}-{low + 99:03d}" for low in range(0, 1000, 100)}
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 8]  # nothing twice
    assert events.Tags()["images"] == ["samples"]
    logged = [line["loss"] for line in stats(tmp_path / "run") if "loss" in line]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(logged, rel=1e-6)


def test_weights_and_biases_must_be_there_when_asked_for(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "find_spec", lambda name: None)
    assert "--wandb needs the package wandb" in leaves([*words(data, tmp_path / "run"), "--wandb"])


def test_losses_by_timestep_are_means_of_their_samples(data, tmp_path):
    meter, run = Meter(1000, CPU), Run(parse_train(words(data, tmp_path / "run")))
    error = torch.tensor([1.0, 3.0, 5.0])
    meter.add(error, error, torch.tensor([0, 99, 999]))
    meter.add(error + 1, error, torch.tensor([0, 500, 501]))
    assert meter.read(run.accelerator, 1, 2)["loss_by_timestep"] == {"000-099": 2.0, "500-599": 5.0, "900-999": 5.0}


# --- when something goes wrong ---------------------------------------------------------------------------------------


def leaves(command: list[str]) -> str:
    """The one sentence that a run ends with."""
    with pytest.raises(SystemExit) as left:
        train.main(command)
    assert str(left.value.code).startswith("error: ")
    return str(left.value.code)


def goes_on_as_if_nothing_had_been(folder: Path, command: list[str], whole: Path) -> None:
    train.main(command)
    assert stats(folder) == stats(whole)
    one, two = (weights(path / "checkpoint.safetensors") for path in (folder, whole))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("file", ["optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl"])
def test_a_full_disk_leaves_the_last_state(data, tmp_path, monkeypatch, whole, file):
    """The kernel's own ENOSPC: the file leads to /dev/full when the second state is written."""
    folder, save = back_to_step_two(whole, tmp_path / "run"), state.Accelerator.save_state
    command = words(data, folder, steps=4)

    def save_to_a_full_disk(accelerator, path):
        os.makedirs(path)
        os.symlink("/dev/full", os.path.join(path, file))
        return save(accelerator, path)

    with monkeypatch.context() as patch:
        patch.setattr(state.Accelerator, "save_state", save_to_a_full_disk)
        message = leaves(command)
    assert "the state of step 4 cannot be written" in message and "state-000000002 is whole" in message
    assert {path.name for path in folder.glob("state*")} == {"state-000000002"}
    goes_on_as_if_nothing_had_been(folder, command, whole)


def test_a_full_disk_while_logging_leaves_with_a_sentence(data, tmp_path, monkeypatch):
    def fill_disk(state, step):
        (state.folder / "stats.jsonl").symlink_to("/dev/full")

    monkeypatch.setattr(state.State, "forget_after", fill_disk)
    assert os.strerror(errno.ENOSPC) in leaves(words(data, tmp_path / "run"))


@pytest.mark.parametrize("what", ["lost", "other"])
def test_a_lost_shard_stops_a_run_that_would_go_on_with_other_pairs(data, tmp_path, whole, what):
    shutil.copytree(data / "cutouts", tmp_path / "views")
    folder, shard = back_to_step_two(whole, tmp_path / "run"), tmp_path / "views" / "train" / "views-000000.tar"
    command, content = words(data, folder, steps=4, cutouts=tmp_path / "views"), shard.read_bytes()
    other = shard.with_name("views-000001.tar")
    if what == "lost":
        shard.rename(other)
    else:
        shard.write_bytes(content + bytes(10240))
    message = leaves(command)
    assert "the shard cutouts/train/views-000000.tar was of" in message
    assert ("and is absent" if what == "lost" else f"and is of {len(content) + 10240:,} bytes") in message
    assert {path.name for path in folder.glob("state-*")} == {"state-000000002"}
    other.unlink(missing_ok=True)
    shard.write_bytes(content)
    goes_on_as_if_nothing_had_been(folder, command, whole)


def test_a_run_begun_under_former_names_goes_on(data, tmp_path):
    folder = tmp_path / "run"
    train.main(words(data, folder))
    options, shards = (json.loads((folder / f"{name}.json").read_text()) for name in ("options", "data"))
    former = {"cutouts": "views", "lr_warmup": "warmup", "resolutions": "sides", "sizes": "config", "patch": "piece"}
    options = {former.get(name, name): value for name, value in options.items()}
    options |= {"stage": "views", "mix": {former.get(kind, kind): share for kind, share in options["mix"].items()}}
    (folder / "options.json").write_text(json.dumps(options))
    (folder / "data.json").write_text(
        json.dumps({name.replace("cutouts", "views"): each for name, each in shards.items()})
    )
    train.main(words(data, folder))
    with pytest.raises(SystemExit, match=r"begun with lr_warmup = 1, not 2"):
        train.main(words(data, folder, **{"lr-warmup": 2}))


def test_a_shard_that_is_lost_while_data_stream_stops_the_run(data, tmp_path, monkeypatch):
    shutil.copytree(data / "cutouts", tmp_path / "views")
    shard, save = tmp_path / "views" / "train" / "views-000000.tar", state.State.save
    shards = [shard, *(shard.with_name(f"views-00000{number}.tar") for number in range(1, 6))]
    for copied in shards[1:]:
        shutil.copyfile(shard, copied)

    def save_and_lose(run, step):
        save(run, step)
        for lost in shards:
            lost.unlink()

    monkeypatch.setattr(state.State, "save", save_and_lose)
    options = {"steps": 8, "block": 1, "reuse": 1, "pool": 1, "cutouts": tmp_path / "views"}
    assert "no such shard" in leaves(words(data, tmp_path / "run", **options))
    assert [path.name for path in (tmp_path / "run").glob("state*")] == ["state-000000002"]


@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_loss_that_is_not_a_number_stops_before_it_is_saved(data, tmp_path, monkeypatch, whole, steps_before):
    folder, seen = tmp_path / "run", []
    command = words(data, folder, steps=4, **{"log-every": 2})
    honest = training_run.diffusion_loss

    def broken(*args, **kwargs):
        seen.append(1)
        loss, matte = honest(*args, **kwargs)
        trained = kwargs.get("dropout") is None
        return (loss * float("nan"), matte) if trained and len(seen) > steps_before else (loss, matte)

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "diffusion_loss", broken)
        message = leaves(command)
    assert "the loss or gradient is not finite at step" in message and "lower --lr" in message
    kept = {path.name for path in folder.glob("state*")}
    assert kept == ({"state-000000002"} if steps_before else set())
    assert ("state-000000002 is whole" if steps_before else "holds no state yet") in message
    assert all(np.isfinite(line["loss"]) for line in stats(folder) if "loss" in line) if steps_before else True


# --- several processes -----------------------------------------------------------------------------------------------

WORKER = f"""
import json, os, shutil, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import torch
torch.set_num_threads(1)
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from micro import micro_config
from imprint.config import PRESETS
from training import train
from training.loop import validation
PRESETS["micro"], validation.SIZE = micro_config(), 24
# Processes take longer to start than the runs, which so follow one another in them.
group = PartialState(cpu=True)
PartialState.destroy_process_group = lambda *_: None
for environment, command, begun in json.loads(sys.argv[1]):
    if begun and group.is_main_process:
        shutil.copytree(*begun, ignore=shutil.ignore_patterns("state-000000004", "checkpoint.safetensors"))
    os.environ.update(environment)
    # accelerate splits models on accelerators only; torch does so on CPUs too, where gloo exchanges the parts
    kind = "MULTI_GPU" if "ACCELERATE_USE_FSDP" in environment else "MULTI_CPU"
    group._shared_state["distributed_type"] = DistributedType[kind]
    torch.distributed.barrier()
    train.main(command)
    AcceleratorState._reset_state()
"""


def launch(tmp_path: Path, *runs: tuple[dict[str, str], list[str], list[Path] | None]) -> None:
    """Runs of two processes through the launcher that README.md names.

    Each with its environment, its command line and, where it continues one that was broken off, that one's folder and its own.
    """
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command, settings = [*launcher, json.dumps(runs, default=str)], os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=settings, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def same_losses(one: list[dict], two: list[dict]) -> None:
    assert [line.keys() for line in one] == [line.keys() for line in two]
    for first, second in zip(one, two):
        for name in {"loss", "gradient", "held_out_loss"} & first.keys():
            assert first[name] == pytest.approx(second[name], rel=1e-3), name


def test_two_processes_train_one_model_whole_or_split(data, tmp_path):
    """DDP, and FSDP that splits weights, gradients, the optimizer's state and the average: the same training, and it goes on."""
    settings = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "Dinov2Layer,Block,BasicTransformerBlock,ResnetBlock2D",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }
    whole, split, again = (tmp_path / name for name in ("whole", "split", "again"))
    commands = (words(data, folder, steps=4, images=32, accumulate=2) for folder in (whole, split, again))
    launch(tmp_path, *zip(({}, settings, settings), commands, (None, None, [split, again])))
    described = json.loads((whole / "options.json").read_text())
    assert described["processes"] == 2 and described["steps"] == 4
    assert [line["pictures"] for line in stats(whole)] == [8, 16, 16, 24, 32, 32]
    assert len(list((whole / "state-000000004").glob("model*.safetensors"))) == 1  # the split one's lies in parts
    assert not list((split / "state-000000004").glob("model*.safetensors"))
    same_losses(stats(split), stats(whole))
    one, two = (weights(folder / "checkpoint.safetensors") for folder in (split, whole))
    assert max(float((tensor.float() - two[name].float()).abs().mean()) for name, tensor in one.items()) < 0.01
    same_losses(stats(split), stats(again))
