"""What makes a run robust: its steps, full disks, lost shards, NaN, several processes; a few steps on a CPU."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from leaving import failed
from nightly import at_night
from runs import launch, stats, weights, words

from imprint.errors import ImprintError
from training import train
from training.loop import run as training_run
from training.loop import state
from training.loop.meter import Meter
from training.loop.model import make_optimizer
from training.loop.run import Run
from training.loop.source import BatchSource
from training.settings import STAGES, parse_train

pytestmark = pytest.mark.usefixtures("micro_preset")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """An uninterrupted run of four steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train.main(words(data, folder, steps=4))
    return folder


def back_to_step_two(whole: Path, folder: Path) -> Path:
    """A copy of the uninterrupted run without the files written at its end."""
    return shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("state-000000004", "checkpoint.safetensors"))


# --- the loop --------------------------------------------------------------------------------------------------------


def test_accumulated_batches_are_one_step(data, tmp_path):
    """Two batches of two make the same step as one batch of four, with the same pairs and noise."""
    train.main(words(data, tmp_path / "run", steps=2, images=8, accumulate=2))
    described = json.loads((tmp_path / "run" / "options.json").read_text())
    assert described["steps"] == 2 and [line["pictures"] for line in stats(tmp_path / "run")] == [4, 8, 8]
    run = Run(parse_train(words(data, tmp_path / "other", accumulate=2)))
    source = BatchSource(run.maker("train"), run.autoencoder, run.settings, 0, CPU)
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
        source = BatchSource(run.maker("train"), run.autoencoder, run.settings, 0, CPU)
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
    source = BatchSource(run.maker("train"), run.autoencoder, run.settings, 0, CPU)
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
    for step, decay, steps in ((0, 0.9, 1), (50, 0.9, 1), (500, 0.9, 0), (504, 0.9, 8)):
        with torch.no_grad():
            live += torch.randn_like(live)
        run.average.update(step, decay)
        weight = min(decay, (1 + step) / (10 + step)) ** steps
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
    assert "--wandb needs the package wandb" in failed(train.main, [*words(data, tmp_path / "run"), "--wandb"])


def test_losses_by_timestep_are_means_of_their_samples(data, tmp_path):
    meter, run = Meter(1000, CPU), Run(parse_train(words(data, tmp_path / "run")))
    error = torch.tensor([1.0, 3.0, 5.0])
    meter.add(error, error, torch.tensor([0, 99, 999]))
    meter.add(error + 1, error, torch.tensor([0, 500, 501]))
    assert meter.read(run.accelerator, 1, 2)["loss_by_timestep"] == {"000-099": 2.0, "500-599": 5.0, "900-999": 5.0}


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


def test_numbers_of_the_recipe_reach_the_training(data, tmp_path):
    from training.loop.losses import diffusion_loss

    start, seen = data / "start.safetensors", {}
    for name, changes in {
        "plain": {},
        "matte": {"matte-weight": 2.0},
        "clip": {"clip": 1e-6},
        "free": {"clip": 0},
        "decay": {"weight-decay": 30},
    }.items():
        train.main(words(data, tmp_path / name, "compositing", init=start, matte=2, steps=1, ema=0, **changes))
        (line, *_), made = stats(tmp_path / name), weights(tmp_path / name / "checkpoint.safetensors")
        seen[name] = line | {"weights": torch.cat([tensor.flatten().float() for tensor in made.values()])}
    plain = seen.pop("plain")
    assert all(each["loss"] == plain["loss"] and each["matte_loss"] == plain["matte_loss"] for each in seen.values())
    assert seen["matte"]["gradient"] > 1.001 * plain["gradient"]
    assert all(seen[name]["gradient"] == plain["gradient"] for name in ("clip", "free", "decay"))  # before it is cut
    change = {name: float((each["weights"] - plain["weights"]).abs().mean()) for name, each in seen.items()}
    assert change["clip"] > 1e-4 and change["decay"] > 1e-4  # Adam's first step tells no gradient's length

    run = Run(parse_train([*words(data, tmp_path / "run"), "--mix", "patch:2", "still:1", "--dropout", "0.7"]))
    assert run.maker("train").mix == {"patch": 2.0, "still": 1.0} and run.described()["mix"] == {"patch": 2, "still": 1}
    assert run.maker("held-out").mix == STAGES["identity"].mix  # losses of a stage's runs can be compared
    given = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "diffusion_loss", lambda *args: given.append(args[5]) or diffusion_loss(*args))
        run.loss(run.source(), 0, Meter(1000, CPU), translate=False)
    assert given == [0.7]


def test_eight_bits_need_a_gpu_and_the_package(data, tmp_path, monkeypatch):
    command = words(data, tmp_path / "run", optimizer="adamw8bit")
    assert "--optimizer adamw8bit needs an unsharded model on a GPU, and this one is on the CPU" in failed(
        train.main, command
    )
    settings, parameter = parse_train(command), types.SimpleNamespace(requires_grad=True, is_cuda=True)
    model = types.SimpleNamespace(parameters=lambda: [parameter])
    with pytest.raises(ImprintError, match="this one is split by FSDP"):
        make_optimizer(model, settings, split=True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        ImprintError, match=r'--optimizer adamw8bit needs the package bitsandbytes .*"\.\[bitsandbytes\]"'
    ):
        make_optimizer(model, settings, split=False)
    optim = types.SimpleNamespace(AdamW8bit=lambda parameters, **how: (parameters, how))
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.SimpleNamespace(optim=optim))
    how = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.01}
    assert make_optimizer(model, settings, split=False) == ([parameter], how)


class LaysOut(torch.optim.AdamW):
    """Makes parameters contiguous before it updates them, as bitsandbytes does."""

    def step(self, closure=None):
        for parameter in (each for group in self.param_groups for each in group["params"] if each.grad is not None):
            parameter.data, parameter.grad = parameter.data.contiguous(), parameter.grad.contiguous()
        return super().step(closure)


@pytest.mark.parametrize("package", [None, "bitsandbytes"])
def test_a_run_in_eight_bits_goes_on_exactly(data, tmp_path, monkeypatch, package):
    """Weights have the same memory layout before the first step as after it, since rounding depends on it.

    The moments are in the state.
    """
    kind = pytest.importorskip(package, minversion="0.50").optim.AdamW8bit if package else LaysOut  # 0.50 knows CPUs

    def optimizer(model, settings, split):
        assert model.unet.conv_in.weight.is_contiguous() and settings.optimizer == "adamw8bit"
        return kind([each for each in model.parameters() if each.requires_grad], lr=settings.lr)

    monkeypatch.setattr(training_run, "make_optimizer", optimizer)
    whole, again = tmp_path / "whole", tmp_path / "again"
    train.main(words(data, whole, steps=4, optimizer="adamw8bit"))
    train.main(words(data, back_to_step_two(whole, again), steps=4, optimizer="adamw8bit"))
    one, two = (weights(folder / "checkpoint.safetensors") for folder in (whole, again))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_a_file_s_options_and_the_flags_over_them_are_in_the_run_s_options(data, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("batch: 4\nsizes: micro\n")
    found = Run(parse_train([*words(data, tmp_path / "run"), "--config", str(file)])).described()
    assert found["config_file"] == str(file) and found["from_config"] == {"batch": 4, "sizes": "micro"}
    assert found["from_flags"]["batch"] == 2 == found["batch"]
    (tmp_path / "options.json").write_text(json.dumps(found))  # and they are read again
    again = parse_train(["--config", str(tmp_path / "options.json"), "--device", "cpu"])
    assert again == parse_train([*words(data, tmp_path / "run"), "--config", str(file)])


# --- when something goes wrong ---------------------------------------------------------------------------------------


def goes_on_as_if_nothing_had_been(folder: Path, command: list[str], whole: Path) -> None:
    train.main(command)
    assert stats(folder) == stats(whole)
    one, two = (weights(path / "checkpoint.safetensors") for path in (folder, whole))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("file", ["optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl"])
def test_a_full_disk_leaves_the_last_state(data, tmp_path, monkeypatch, whole, file):
    """The kernel's own ENOSPC: the file points to /dev/full when the second state is written."""
    folder, save = back_to_step_two(whole, tmp_path / "run"), state.Accelerator.save_state
    command = words(data, folder, steps=4)

    def save_to_a_full_disk(accelerator, path):
        os.makedirs(path)
        os.symlink("/dev/full", os.path.join(path, file))
        return save(accelerator, path)

    with monkeypatch.context() as patch:
        patch.setattr(state.Accelerator, "save_state", save_to_a_full_disk)
        message = failed(train.main, command)
    assert (
        "the state of step 4 cannot be written" in message and "state-000000002 is the last complete state" in message
    )
    assert {path.name for path in folder.glob("state*")} == {"state-000000002"}
    goes_on_as_if_nothing_had_been(folder, command, whole)


def test_a_full_disk_while_logging_leaves_with_a_sentence(data, tmp_path, monkeypatch):
    def fill_disk(state, step):
        (state.folder / "stats.jsonl").symlink_to("/dev/full")

    monkeypatch.setattr(state.State, "forget_after", fill_disk)
    assert os.strerror(errno.ENOSPC) in failed(train.main, words(data, tmp_path / "run"))


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
    message = failed(train.main, command)
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
    assert "no such shard" in failed(train.main, words(data, tmp_path / "run", **options))
    assert [path.name for path in (tmp_path / "run").glob("state*")] == ["state-000000002"]


@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_loss_that_is_not_a_number_stops_before_it_is_saved(data, tmp_path, monkeypatch, whole, steps_before):
    folder, seen = tmp_path / "run", []
    command = words(data, folder, steps=4, **{"log-every": 2})
    honest = training_run.diffusion_loss

    def broken(*args, **kwargs):
        seen.append(1)
        loss, matte = honest(*args, **kwargs)
        trained = len(args) > 5
        return (loss * float("nan"), matte) if trained and len(seen) > steps_before else (loss, matte)

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "diffusion_loss", broken)
        message = failed(train.main, command)
    assert "the loss or gradient is not finite at step" in message and "lower --lr" in message
    kept = {path.name for path in folder.glob("state*")}
    assert kept == ({"state-000000002"} if steps_before else set())
    assert ("state-000000002 is the last complete state" if steps_before else "holds no state yet") in message
    assert all(np.isfinite(line["loss"]) for line in stats(folder) if "loss" in line) if steps_before else True


# --- several processes -----------------------------------------------------------------------------------------------


def same_losses(one: list[dict], two: list[dict]) -> None:
    assert [line.keys() for line in one] == [line.keys() for line in two]
    for first, second in zip(one, two):
        for name in {"loss", "gradient", "held_out_loss"} & first.keys():
            assert first[name] == pytest.approx(second[name], rel=1e-3), name


FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Dinov2Layer,Block,BasicTransformerBlock,ResnetBlock2D",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@at_night
@pytest.mark.parametrize("device", ["cpu", pytest.param("auto", marks=TWO_GPUS, id="gpus")])
def test_two_processes_train_one_model_whole_or_split(data, tmp_path, device, monkeypatch):
    """DDP, and FSDP, which shards weights, gradients, the optimizer's state and the average, train the same.

    Both can be resumed.
    """
    whole, split, again = (tmp_path / name for name in ("whole", "split", "again"))
    changes = {"images": 32, "accumulate": 2, "device": device}
    if device != "cpu":  # 126 M weights, in small steps, exactly rounded
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
        changes |= {"sizes": tmp_path / "sizes.yaml", "lr": 1e-4}
        changes["sizes"].write_text("preset: tiny\nunet: {widths: [192, 384, 768]}\n")
    commands = (words(data, folder, steps=4, **changes) for folder in (whole, split, again))
    launch(tmp_path, *zip(({}, FSDP, FSDP), commands, (None, None, [split, again])))
    described = json.loads((whole / "options.json").read_text())
    assert described["processes"] == 2 and described["steps"] == 4 and not described["split"]
    assert [line["pictures"] for line in stats(whole)] == [8, 16, 16, 24, 32, 32]
    assert len(list((whole / "state-000000004").glob("model*.safetensors"))) == 1  # the split one's lies in parts
    assert not list((split / "state-000000004").glob("model*.safetensors"))
    same_losses(stats(split), stats(whole))
    one, two = (weights(folder / "checkpoint.safetensors") for folder in (split, whole))
    assert max(float((tensor.float() - two[name].float()).abs().mean()) for name, tensor in one.items()) < 0.01
    same_losses(stats(split), stats(again))
    # A split state is not for a model that is not split.
    message = failed(train.main, words(data, split, steps=4, **changes | {"accumulate": 4, "device": "cpu"}))
    assert "was begun with split = True, not False" in message
