"""Both stages for a few steps on a CPU, with data made here in the documented layouts."""

import dataclasses
import gzip
import io
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given
from micro import cutout, fresh_checkpoint, micro_config, photo
from mutations import mutated
from PIL import Image

pytest.importorskip("accelerate", reason="the extra 'train' is not installed")
pytest.importorskip("webdataset", reason="the extra 'train' is not installed")

from drawing import DrawingPipeline
from runs import ROOT, stats, webp, weights, words

from imprint.checkpoint import load_checkpoint, read_config, save_checkpoint
from imprint.errors import ImprintError
from imprint.masks import LEVELS
from imprint.model import build_modules, load_modules
from imprint.noise import alphas_cumprod
from training import train
from training.data.shards import (
    MAX_FRAME_GAP,
    VIDEO_GAP,
    Bad,
    Record,
    Sample,
    decode_sample,
    read_shards,
    sample,
    shard_writer,
)
from training.loop import losses, state, validation
from training.loop import run as training_run
from training.loop.log import Log
from training.loop.model import Model
from training.loop.run import Run, learning_rate
from training.loop.source import Source, interleave
from training.loop.validation import Validation
from training.pairs import holes, making
from training.pairs.batches import Batch
from training.pairs.draw import Draw
from training.pairs.making import KINDS, PairMaker
from training.pairs.pictures import Photos, Views, _neighbours, offsets_for, own_cores
from training.pairs.recolouring import contact_shadow, scene_light
from training.pairs.streams import Pool
from training.settings import STAGES, Train, parse_train

pytestmark = pytest.mark.usefixtures("micro_preset")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded(data) -> tuple[Views, Photos]:
    return Views.load(data / "cutouts" / "train", CPU), Photos.load(data / "photos" / "train", CPU)


@pytest.fixture(scope="module")
def first_run(data, tmp_path_factory, micro_preset) -> Path:
    """The folder of stage 1 after two steps, from random weights; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("run") / "views"
    train.main(words(data, folder))
    return folder


# --- two steps of each stage -----------------------------------------------------------------------------------------


def test_two_steps_of_each_stage_write_checkpoints_that_the_pipeline_loads(data, tmp_path, scene, first_run):
    subject, background, hole = scene
    train.main(words(data, tmp_path / "two", "compositing", init=first_run / "checkpoint.safetensors"))
    for folder in (first_run, tmp_path / "two"):
        names = {path.name for path in folder.iterdir()}
        assert names == {
            "options.json",
            "data.json",
            "stats.jsonl",
            "usable.json",
            ".lock",
            "tensorboard",
            "samples-000000004.png",
            "state-000000002",
            "checkpoint.safetensors",
        }
        described = json.loads((folder / "options.json").read_text())
        assert described["steps"] == 2 and described["model"]["resolution"] == 64 and described["mix"]
        assert [line["step"] for line in stats(folder)] == [1, 2, 2]
        assert all(np.isfinite(line["loss"]) for line in stats(folder)[:2]) and np.isfinite(
            stats(folder)[2]["held_out_loss"]
        )
        assert Image.open(folder / "samples-000000004.png").width % 64 == 0
        pipeline = DrawingPipeline.from_checkpoint(folder / "checkpoint.safetensors")
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline(subject, None, background, hole).images[0].size == background.size
        assert {tensor.dtype for tensor in weights(folder / "checkpoint.safetensors").values()} == {torch.float16}


@pytest.mark.parametrize(
    ("stage", "trained", "frozen"),
    [
        (
            "identity",
            ("encoder.", "adapter.", "unet.up_blocks.", "unet.conv_out."),
            ("unet.down_blocks.", "unet.conv_in.", "vae."),
        ),
        ("compositing", ("adapter.", "unet.down_blocks.", "unet.up_blocks."), ("encoder.", "vae.")),
    ],
)
@pytest.mark.parametrize("start", ["start", "relative"])
def test_each_stage_trains_its_own_part(data, tmp_path, start, stage, trained, frozen):
    """Also from a relative's checkpoint: CLIP, nine channels in their order, epsilon."""
    start, made = data / f"{start}.safetensors", tmp_path / "run" / "checkpoint.safetensors"
    train.main(words(data, tmp_path / "run", stage, init=start))
    assert read_config(made) == read_config(start)
    before, after = weights(start), weights(made)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name].half())}
    assert not [name for name in changed if name.startswith(frozen)]
    for prefix in trained:
        assert any(name.startswith(prefix) for name in changed), prefix


def test_from_random_weights_everything_is_trained(data, tmp_path):
    run = Run(parse_train(words(data, tmp_path / "run")))
    names = {name for name, parameter in run.raw.named_parameters() if not parameter.requires_grad}
    assert names and all("mask_token" in name for name in names)


# --- continuing ------------------------------------------------------------------------------------------------------


def test_a_killed_run_continues_with_the_losses_of_an_unbroken_one(data, tmp_path):
    """Killed outright after the fifth of six steps: from the state of the fourth, steps five and six are done again."""
    steps = {"steps": 6}
    train.main(words(data, tmp_path / "unbroken", **steps))
    code = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import torch
torch.set_num_threads(1)
from micro import micro_config
from imprint.config import PRESETS
from training import train
from training.loop import validation
from training.loop.log import Log
validation.SIZE = {validation.SIZE}
PRESETS["micro"] = micro_config()
log = Log.write
def log_then_die(self, step, **values):
    log(self, step, **values)
    if step == 5:
        open(self.state.folder / "stats.jsonl", "a").write('{{"step": 5, "lo')  # in the middle of a line
        os.kill(os.getpid(), signal.SIGKILL)
Log.write = log_then_die
train.main(sys.argv[1:])
"""
    command = words(data, tmp_path / "killed", **steps)
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "killed" / "checkpoint.safetensors").exists()
    (tmp_path / "killed" / "state.tmp").mkdir()  # as if it had been killed while saving
    (tmp_path / "killed" / "state.tmp" / "model.safetensors").write_bytes(b"half")

    train.main(command)
    assert stats(tmp_path / "killed") == stats(tmp_path / "unbroken")
    assert [line["step"] for line in stats(tmp_path / "killed")] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    first, second = (weights(tmp_path / run / "checkpoint.safetensors") for run in ("unbroken", "killed"))
    assert first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    states = sorted(path.name for path in (tmp_path / "killed").glob("state*"))
    assert states == ["state-000000004", "state-000000006"]  # the newest two, and nothing half done


def test_a_run_over_streamed_shards_continues_with_the_losses_of_an_unbroken_one(data, tmp_path, monkeypatch):
    command = {
        name: words(data, tmp_path / name, steps=3, pool=1, block=1, reuse=1) for name in ("unbroken", "stopped")
    }
    turns, at = [], Pool.at
    with monkeypatch.context() as patch:
        patch.setattr(Pool, "at", lambda pool, turn: turns.append((pool.kind, turn)) or at(pool, turn))
        train.main(command["unbroken"])
    assert {(Photos, turn) for turn in range(3)} <= set(turns)
    log = Log.write

    def stop_at_three(self, step, **values):
        log(self, step, **values)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", stop_at_three)
        with pytest.raises(KeyboardInterrupt):
            train.main(command["stopped"])
    train.main(command["stopped"])
    assert stats(tmp_path / "stopped") == stats(tmp_path / "unbroken")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on(data, tmp_path, monkeypatch, capsys, number):
    steps, original, before = [], Run.step, signal.getsignal(number)

    def step(self, source, index, meter):
        original(self, source, index, meter)
        steps.append(index)
        if index == 0 and len(steps) == 1:
            signal.raise_signal(number)

    monkeypatch.setattr(Run, "step", step)
    command = words(data, tmp_path / "run", steps=3, **{"save-every": 100})
    with pytest.raises(SystemExit) as left:
        train.main(command)
    assert left.value.code == 128 + number and "state-000000001 is whole" in capsys.readouterr().err
    train.main(command)
    assert steps == [0, 1, 2] and signal.getsignal(number) == before


def test_two_runs_never_write_into_one_folder(data, tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(SystemExit, match="another run is writing into"):
        train.main(words(data, tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]


@pytest.mark.parametrize("error", [NotImplementedError("no flock here"), OSError(37, "No locks available")])
def test_a_folder_that_cannot_be_locked_is_trained_in(data, tmp_path, monkeypatch, capsys, first_run, error):
    def refuse(_lock, timeout):
        raise error

    monkeypatch.setattr(state.FileLock, "acquire", refuse)
    train.main(words(data, tmp_path))
    assert ".lock cannot be locked" in capsys.readouterr().err and stats(tmp_path) == stats(first_run)


def test_processes_that_torch_leaves_unconnected_are_refused(data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(training_run, "Accelerator", lambda **_: SimpleNamespace(num_processes=1))
    with pytest.raises(SystemExit, match="2 processes were started, but .* unconnected"):
        train.main(words(data, tmp_path))


def bad_shard(folder: Path) -> Path:
    """Four samples, of which one has a mask of another size, and one more pixels than Pillow reads."""
    with shard_writer(folder / "bad-000000.tar") as writer:
        for number in range(4):
            record, mask = (
                Record("thing", str(number), 0, "test", "CC0"),
                Image.new("L", (60, 50 + 10 * (number == 1)), 0),
            )
            writer.write(sample(str(number), webp(photo(60 + (number == 2), 50, number)), "webp", record, mask))
    return folder


def test_bad_samples_are_sentences_and_may_be_left_out(tmp_path, monkeypatch):
    folder = bad_shard(tmp_path)
    with pytest.raises(ImprintError, match="sample '1' is not as .*its mask is 60x60, the picture 60x50"):
        list(read_shards(folder))
    with pytest.raises(ImprintError, match="sample '2' .*; 2 samples are bad, and --skip-bad allows 1"):
        list(read_shards(folder, bad=Bad(1)))
    bad = Bad(3)
    assert [record.clip for record, *_ in read_shards(folder, bad=bad)] == ["0", "3"] and len(bad.found) == 2
    with shard_writer(tmp_path / "none" / "none-000000.tar") as writer:
        writer.write(sample("0", b"no picture", "webp", Record("thing", "0", 0, "test", "CC0")))
    for _ in range(2):  # a sample is counted once, however often it is read
        assert not list(read_shards(tmp_path / "none", bad=bad))
    assert len(bad.found) == 3 and "sample '0' is not as" in list(bad.found)[2] and "0x" not in list(bad.found)[2]
    shutil.copy(folder / "bad-000000.tar", folder / "bad-000001.tar")  # read by processes
    with pytest.raises(ImprintError, match="--skip-bad allows 3"):
        Photos.load(folder, CPU, side=32, bad=Bad(3))
    assert len(Photos.load(folder, CPU, side=32, bad=Bad(4)).rgb) == 4
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImprintError, match="sample '0' is not as .*DecompressionBomb"):
        list(read_shards(folder))


def test_a_finished_run_is_left_as_it_is(data, first_run):
    before, log = weights(first_run / "checkpoint.safetensors"), stats(first_run)
    train.main(words(data, first_run))
    after = weights(first_run / "checkpoint.safetensors")
    assert stats(first_run) == log and all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_continuing_with_other_options_is_refused(data, first_run):
    with pytest.raises(SystemExit, match=r"begun with lr = 0\.01, not 0\.02"):
        train.main(words(data, first_run, lr=0.02))


def test_a_run_killed_before_its_first_state_begins_anew(data, tmp_path, first_run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(state.State, "save", lambda run, step: sys.exit("killed"))
        with pytest.raises(SystemExit, match="killed"):
            train.main(words(data, tmp_path / "run"))
    train.main(words(data, tmp_path / "run"))
    assert stats(tmp_path / "run") == stats(first_run)


def test_the_seed_decides(data, tmp_path, first_run):
    for name, seed in (("again", 0), ("other", 1)):
        train.main(words(data, tmp_path / name, seed=seed))
    assert stats(tmp_path / "again") == stats(first_run)
    assert stats(tmp_path / "other")[0]["loss"] != stats(first_run)[0]["loss"]


@pytest.mark.parametrize("name", ["options.json", "data.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"cutouts/train": 3}', "\xff"])
def test_a_run_whose_description_is_broken_is_said(data, tmp_path, first_run, name, text):
    folder = shutil.copytree(first_run, tmp_path / "run")
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(
        SystemExit, match=rf"{re.escape(str(folder))}.*; mend it|was begun with stage|is absent|and is of"
    ):
        train.main(words(data, folder))


def test_a_state_that_is_not_whole_is_said_and_others_are_left_alone(data, tmp_path, first_run):
    folder = shutil.copytree(first_run, tmp_path / "run")
    (folder / "state-of-the-art").mkdir()
    with (folder / "stats.jsonl").open("a") as log:
        log.write('{"step"\n[]\n{}\n')
    with (folder / "stats.jsonl").open("ab") as log:
        log.write(b"\xff\0\n")
    train.main(words(data, folder, steps=2))
    assert stats(folder) == stats(first_run) and (folder / "state-of-the-art").is_dir()
    (weight,) = folder.glob("state-000000002/model.safetensors")
    weight.write_bytes(weight.read_bytes()[:100])
    with pytest.raises(SystemExit, match=r"state-000000002 cannot be read .*; delete it"):
        train.main(words(data, folder, steps=2))
    shutil.rmtree(weight.parent)
    train.main(words(data, folder, steps=2))
    assert stats(folder) == stats(first_run)


# --- the command line ------------------------------------------------------------------------------------------------


def test_dry_run_prints_the_run_and_makes_nothing(data, tmp_path, capsys):
    train.main([*words(data, tmp_path / "run"), "--dry-run"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == 2 and printed["batch"] == 2 and printed["model"]["encoder"]["width"] == 32
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": None}, "give --vae"),
        ({"vae": "absent.safetensors"}, "absent.safetensors cannot be read"),
        ({"cutouts": "absent"}, "holds no .tar shard"),
        ({"photos": "absent"}, "holds no .tar shard"),
        ({"init": "absent.safetensors"}, "absent.safetensors: no such file"),
    ],
)
def test_bad_input_leaves_with_a_sentence(data, tmp_path, changes, message):
    with pytest.raises(SystemExit) as left:
        train.main(words(data, tmp_path / "run", **changes))
    assert str(left.value.code).startswith("error: ") and message in str(left.value.code)


@pytest.mark.parametrize(
    "changes",
    [{"batch": 0}, {"images": -1}, {"precision": "int8"}, {"sizes": "none"}, {"pool": 0}, {"pool": 1, "limit": 1}],
)
def test_wrong_options_leave_with_two(data, tmp_path, capsys, changes):
    with pytest.raises(SystemExit) as left:
        train.main(words(data, tmp_path / "run", **changes))
    assert left.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cutouts": "nowhere"}, "nowhere/train holds no .tar shard"),
        ({"output": "/proc/x"}, "/proc/x/state cannot be written"),
    ],
)
def test_a_dry_run_tries_what_the_run_needs(data, tmp_path, changes, message):
    given = {"data": data, "output": tmp_path / "run"} | changes
    with pytest.raises(SystemExit, match=message) as left:
        train.main([*words(**given), "--dry-run"])
    assert "make room" not in str(left.value)
    with pytest.raises(SystemExit, match=message) as left:
        train.main(words(**given))
    assert "make room" not in str(left.value)


@pytest.mark.parametrize("number", [{"lr": -1}, {"ema": 1.5}, {"final-lr": "nan"}, {"time-limit": -1}, {"limit": 0}])
def test_numbers_that_cannot_be_are_refused(data, tmp_path, capsys, number):
    ((name, value),) = number.items()
    with pytest.raises(SystemExit) as left:
        parse_train(words(data, tmp_path, **number))
    assert left.value.code == 2 and re.search(
        rf"--{name} is {value}.*; (it must be|finite numbers)", capsys.readouterr().err
    )


def test_a_run_never_writes_over_the_checkpoint_that_it_starts_from(data, tmp_path, capsys):
    (tmp_path / "checkpoint.safetensors").write_bytes((data / "start.safetensors").read_bytes())
    with pytest.raises(SystemExit):
        parse_train(words(data, tmp_path, "compositing", init=tmp_path / "checkpoint.safetensors"))
    assert "would be overwritten; give another --output" in capsys.readouterr().err


def test_the_second_stage_needs_the_first(data, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        train.main(words(data, tmp_path / "run", "compositing"))
    assert left.value.code == 2 and "give --init" in capsys.readouterr().err


def test_the_second_stage_may_start_from_random_weights_to_learn_everything(data, tmp_path):
    """The ablation without stage 1."""
    train.main([*words(data, tmp_path / "run", "compositing"), "--train-all"])
    assert json.loads((tmp_path / "run" / "options.json").read_text())["trained"] == "everything"
    assert [line["step"] for line in stats(tmp_path / "run")] == [1, 2, 2]


# --- the loss and the order of the data ------------------------------------------------------------------------------


def batch_of(count: int) -> Batch:
    random = torch.Generator().manual_seed(0)
    hole = torch.zeros(count, 1, 8, 8)
    hole[:, :, 2:6, 3:5] = 1
    target, background = (torch.randn(count, 4, 8, 8, generator=random) for _ in range(2))
    reference, matte = torch.zeros(count, 3, 28, 28, dtype=torch.uint8), torch.zeros(count, 0, 8, 8)
    return Batch(reference, target, background, hole, matte)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_the_equation_s_and_only_in_the_hole(prediction):
    config = micro_config()
    config = dataclasses.replace(
        config, noise=dataclasses.replace(config.noise, prediction_type=prediction, zero_terminal_snr=False)
    )
    alpha_bar, batch, offset = alphas_cumprod(config.noise).float(), batch_of(4), torch.zeros(1)

    def oracle(reference, seen, timesteps, dropped):
        """The exact prediction in the hole (plus `offset`), and nonsense outside it."""
        share = alpha_bar[timesteps][:, None, None, None]
        noise = (seen - share.sqrt() * batch.target) / (1 - share).sqrt()
        exact = noise if prediction == "epsilon" else share.sqrt() * noise - (1 - share).sqrt() * batch.target
        return torch.where(batch.hole > 0, exact + offset, 1e3)

    def loss() -> torch.Tensor:
        return losses.diffusion_loss(oracle, batch, config, alpha_bar, torch.Generator().manual_seed(1))[0]

    assert loss().shape == (4,) and loss().max() < 1e-6
    offset += 2.0
    assert torch.allclose(loss(), torch.full((4,), 4.0), rtol=1e-3)  # a small and a large hole weigh the same
    batch.hole[0, :, 0] = 1
    assert torch.allclose(loss(), torch.full((4,), 4.0), rtol=1e-3)


def test_the_matte_s_loss_counts_known_values_in_the_hole_by_their_signal():
    batch, logits = batch_of(2), torch.zeros(2, 8, 8, 8)
    batch.matte = torch.full((2, 8, 8, 8), 0.5)
    signal = torch.tensor([1.0, 0.25])
    assert torch.allclose(losses.matte_loss(logits, batch, signal), math.log(2) * signal)
    wrong = torch.where(batch.hole > 0, logits, 1e3)  # outside the hole nothing counts
    assert torch.allclose(losses.matte_loss(wrong, batch, signal), math.log(2) * signal)
    batch.matte[:, 4:] = -1.0  # nor does what nobody knows
    wrong[:, 4:] = -1e3
    assert torch.allclose(losses.matte_loss(wrong, batch, signal), math.log(2) * signal)
    batch.matte[:] = -1.0
    assert torch.equal(losses.matte_loss(wrong, batch, signal), torch.zeros(2))


def test_conditions_are_dropped_at_the_given_rate():
    seen = []

    def model(reference, picture, timesteps, dropped):
        seen.append(dropped)
        return torch.zeros(len(dropped), 4, 8, 8)

    config, random = micro_config(), torch.Generator().manual_seed(0)
    alpha_bar = alphas_cumprod(config.noise).float()
    for rate in (0.0, 0.3, 1.0):
        losses.diffusion_loss(model, batch_of(400), config, alpha_bar, random, dropout=rate)
        assert abs(float(seen[-1].float().mean()) - rate) < 0.07


def test_learning_rate():
    options = Train.of("identity", output=Path("x"), lr=1.0, lr_warmup=100, images=1000, final_lr=0.1)
    rates = [learning_rate(done, options) for done in range(0, 1001, 10)]
    assert rates[0] < 0.02 and max(rates) > 0.95 and rates.index(max(rates)) in range(8, 12)
    assert abs(rates[-1] - 0.1) < 1e-6 and rates[11:] == sorted(rates[11:], reverse=True)


def test_what_a_step_sees_does_not_depend_on_the_steps_before(data, tmp_path, loaded):
    run = Run(parse_train(words(data, tmp_path / "run")))
    maker = PairMaker(run.config, "identity", *loaded, run.stage.mix)
    walked = Source(maker, run.autoencoder, run.settings, 0, CPU)
    seen = [walked.batch(step) for step in range(6)]
    for step in (5, 1):
        fresh = Source(maker, run.autoencoder, run.settings, 0, CPU).batch(step)
        for name, value in vars(fresh).items():
            assert name == "text" or torch.equal(value, getattr(seen[step], name))
    assert not torch.equal(seen[0].target, seen[1].target)
    other = Source(maker, run.autoencoder, run.settings, 1, CPU).batch(0)
    assert not torch.equal(other.target, seen[0].target)  # every process has its own
    # A block of two batches is used twice in another order: the same pairs, all of them.
    for name in ("target", "reference"):
        one, two = (
            torch.cat([getattr(seen[step], name).float() for step in pair]).flatten(1) for pair in ((0, 1), (2, 3))
        )
        assert sorted(row.sum().item() for row in one) == pytest.approx(sorted(row.sum().item() for row in two))


def test_sides_take_turns_by_their_shares_with_as_many_pixels_each(data, tmp_path, loaded):
    assert interleave([(64, 1.0)], 3) == [64] * 3
    slots = interleave([(256, 0.5), (384, 0.3), (512, 0.2)], 10)
    assert slots.count(256) == 5 and slots.count(384) == 3 and slots.count(512) == 2
    assert set(slots[:5]) == set(slots[5:]) == {256, 384, 512}

    words_of = [*words(data, tmp_path / "run", batch=9, images=36), "--resolutions", "64:2", "96"]
    run = Run(parse_train(words_of))
    maker = PairMaker(run.config, "identity", *loaded, run.stage.mix)
    walked = Source(maker, run.autoencoder, run.settings, 0, CPU)
    batches = [walked.batch(step) for step in range(4)]
    assert walked.slots == [64, 96]
    assert [tuple(batch.target.shape[::2]) for batch in batches] == [(9, 8), (4, 12), (9, 8), (4, 12)]
    assert [batch.hole.shape[-1] for batch in batches] == [8, 12, 8, 12]
    for one, other in ((0, 2), (1, 3)):  # the same pairs again, in another order
        sums = [sorted(batches[step].target.flatten(1).sum(1).tolist()) for step in (one, other)]
        assert sums[0] == pytest.approx(sums[1], abs=1e-4)
    fresh = Source(maker, run.autoencoder, run.settings, 0, CPU).batch(3)
    assert torch.equal(fresh.target, batches[3].target)


def test_a_run_with_sides_goes_to_its_end_and_keeps_the_model_s_resolution(data, tmp_path):
    start = data / "start.safetensors"
    train.main(
        [*words(data, tmp_path / "run", "compositing", init=start), "--resolutions", "64", "128", "--view-side", "48"]
    )
    assert read_config(tmp_path / "run" / "checkpoint.safetensors") == read_config(start)
    assert json.loads((tmp_path / "run" / "options.json").read_text())["resolutions"] == [[64, 1.0], [128, 1.0]]
    with pytest.raises(SystemExit) as left:
        train.main([*words(data, tmp_path / "odd", "compositing", init=start), "--resolutions", "100"])
    assert "100 is not a multiple of 16" in str(left.value.code)


# --- guidance as one prediction --------------------------------------------------------------------------------------


def test_the_teacher_s_guided_prediction_is_the_target(data):
    """A student that says what the teacher says with guidance has no loss; without the object, without guidance."""
    modules = build_modules(micro_config(), with_vae=False)
    load_modules(modules, fresh_checkpoint(micro_config()))
    model, alpha_bar = Model(modules).eval(), alphas_cumprod(micro_config().noise).float()
    batch = batch_of(6)
    batch.reference.random_(0, 255, generator=torch.Generator().manual_seed(0))

    def loss(student, scale, dropout):
        return losses.diffusion_loss(
            student,
            batch,
            micro_config(),
            alpha_bar,
            torch.Generator().manual_seed(1),
            dropout,
            teacher=losses.Guided(model, scale),
        )[0]

    with torch.no_grad():
        assert loss(model, 1.0, 0.5).max() < 1e-10  # the teacher itself
        assert loss(model, 3.0, 1.0).max() < 1e-10  # nothing to pull towards
        assert loss(model, 3.0, 0.0).min() > 1e-6
        told = losses.Guided(model, 3.0)
        assert loss(told, 3.0, 0.5).max() < 1e-10
        seen = (batch.reference, batch.target, torch.arange(6) * 100, torch.zeros(6, dtype=torch.bool))
        twice = model(*seen[:3], ~seen[3]) + 3 * (model(*seen) - model(*seen[:3], ~seen[3]))
        torch.testing.assert_close(told(*seen), twice, rtol=1e-3, atol=1e-4)


def test_distilled_guidance_needs_none_when_sampling_and_more_training_does_again(data, tmp_path, capsys):
    start, run = tmp_path / "start.safetensors", tmp_path / "guided"
    own = load_checkpoint(data / "start.safetensors")
    sampling = dataclasses.replace(own.config.sampling, guidance_scale=3.5)
    save_checkpoint(start, dataclasses.replace(own, config=dataclasses.replace(own.config, sampling=sampling)))
    train.main(words(data, run, "compositing", init=start, **{"distill-guidance": 2.0}))
    before, made = read_config(start), read_config(run / "checkpoint.safetensors")
    assert made.sampling.guidance_scale == 1
    assert dataclasses.replace(made, sampling=before.sampling) == before
    train.main(words(data, tmp_path / "on", "compositing", init=run / "checkpoint.safetensors"))
    assert read_config(tmp_path / "on" / "checkpoint.safetensors") == before  # its own former guidance too
    for changes in ({"stage": "identity", "init": start}, {"stage": "compositing"}):
        with pytest.raises(SystemExit) as left:
            train.main([*words(data, tmp_path / "no", **changes), "--train-all", "--distill-guidance", "2"])
        assert left.value.code == 2 and "--distill-guidance needs --init" in capsys.readouterr().err


# --- pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["identity", "compositing"])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_of_every_kind(loaded, stage, kind):
    config = micro_config()
    maker = PairMaker(config, stage, *loaded, {kind: 1.0})
    pairs = maker(6, torch.Generator().manual_seed(0))
    assert pairs.reference.shape == (6, 3, 28, 28)
    assert pairs.target.shape == pairs.background.shape == (6, 3, 64, 64)
    assert pairs.hole.shape == (6, 1, 8, 8) and set(pairs.hole.unique().tolist()) <= {0.0, 1.0}
    for pictures in (pairs.reference, pairs.target, pairs.background):
        assert bool(pictures.isfinite().all()) and pictures.min() >= 0 and pictures.max() <= 1
    assert bool((pairs.reference.flatten(1).std(1) > 0).all()) and bool((pairs.target.flatten(1).std(1) > 0).all())
    hole = pairs.hole.repeat_interleave(8, 2).repeat_interleave(8, 3).bool().expand_as(pairs.target)
    assert bool(hole.flatten(1).any(1).all())
    assert bool((pairs.background[hole] == 0.5).all())  # nothing of the target shows in the hole
    if stage == "identity":
        assert bool(hole.all())
    else:
        assert torch.equal(pairs.background[~hole], pairs.target[~hole]) or kind == "rendered"
    again = maker(6, torch.Generator().manual_seed(0))
    assert all(torch.equal(getattr(pairs, name), getattr(again, name)) for name in ("reference", "target", "hole"))
    other = maker(6, torch.Generator().manual_seed(1))
    assert not torch.equal(other.target, pairs.target)


def test_composited_pairs_differ_from_their_background_only_in_the_hole(loaded):
    """The object and its shadow lie in the hole at every level but the tightest, which cuts the shadow off."""
    maker = PairMaker(micro_config(), "compositing", *loaded, {"rendered": 1.0})
    pairs = maker(40, torch.Generator().manual_seed(0))
    hole = pairs.hole.repeat_interleave(8, 2).repeat_interleave(8, 3).bool()
    outside = ((pairs.target - pairs.background).abs().amax(1, keepdim=True) > 0.15) & ~hole
    assert float(outside.float().mean()) < 0.02


@pytest.mark.parametrize(("level", "least", "most"), [("box", 0.75, 1.0), ("precise", 0.4, 0.75)])
def test_a_box_keeps_the_pose_and_an_outline_asks_for_one(loaded, monkeypatch, level, least, most):
    """Two views of an object: bright on the left, bright at the top. Where is the target's bright side?"""
    views = torch.full((2, 4, 48, 48), 255, dtype=torch.uint8)
    views[0, :3, :, 24:], views[1, :3, 24:] = 40, 40
    box, one = torch.tensor([[0, 0, 48, 48]] * 2), torch.tensor([1])
    nothing = dict(relit=views[:0], scenes=views[:0, :3], shadows=torch.zeros(0, 3), twin=torch.tensor([-1, -1]))
    views = Views(views, box, one * 0, one * 2, torch.tensor([0, 1]), torch.tensor([[0, 1]]), **nothing)
    maker = PairMaker(micro_config(), "compositing", views, loaded[1], {"rendered": 1.0})
    seen = []
    monkeypatch.setattr(making, "hole_levels", lambda _, count, draw: torch.full((count,), LEVELS.index(level)))
    in_scene = making.in_scene
    monkeypatch.setattr(making, "in_scene", lambda *given: seen.append(given) or in_scene(*given))
    maker(400, torch.Generator().manual_seed(0))
    ((cutout, target, _, alpha, *_),) = seen

    def bright_side(pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        light = pictures.mean(1) * masks
        line = [torch.arange(side) + 0.5 for side in light.shape[1:]]
        moments = [(light.sum(2 - axis) @ line[axis] / light.sum((1, 2))) for axis in (0, 1)]
        middle = [(masks.sum(2 - axis) @ line[axis] / masks.sum((1, 2))) for axis in (0, 1)]
        offset = torch.stack([moment - centre for moment, centre in zip(moments, middle)], 1)
        axis = offset.abs().argmax(1)
        return axis * 2 + (offset.gather(1, axis[:, None])[:, 0] > 0)

    kept = bright_side(target, alpha) == bright_side(cutout, (cutout.amax(1) > 0).float())
    assert least < float(kept.float().mean()) < most


@pytest.mark.parametrize("kind", KINDS)
def test_the_light_of_a_place_falls_on_scene_and_object_but_not_on_the_reference(loaded, monkeypatch, kind):
    """By lamp light, the same pair: of its picture every channel is dimmed, also where the object is."""
    lamp, made = torch.tensor([0.5, 0.4, 0.2])[:, None, None], []
    for light in (torch.ones(3, 1, 1), lamp):
        monkeypatch.setattr(holes, "scene_light", lambda draw, count, light=light: light)
        made.append(PairMaker(micro_config(), "compositing", *loaded, {kind: 1.0})(8, torch.Generator().manual_seed(0)))
    day, night = made
    assert torch.equal(night.reference, day.reference) and torch.equal(night.hole, day.hole)
    torch.testing.assert_close(night.target, day.target * lamp)
    seen = 1 - day.hole.repeat_interleave(8, 2).repeat_interleave(8, 3)
    torch.testing.assert_close(night.background * seen, day.background * lamp * seen)


def test_half_of_the_places_are_as_photographed_and_some_of_the_others_dark_or_warm():
    gains = scene_light(Draw(torch.Generator().manual_seed(0)), 400)[:, :, 0, 0]
    changed = (gains != 1).any(1)
    assert 0.4 < changed.float().mean() < 0.6
    mean, warmth = gains[changed].mean(1), gains[changed, 0] / gains[changed, 2]
    assert 0.2 < mean.min() < 0.35 and 1.1 < mean.max() < 2  # by night, in glare
    assert warmth.min() < 0.75 and warmth.max() > 1.33  # bluish, reddish


def test_every_contact_shadow_is_dark_where_the_object_stands_and_nowhere_above_or_far_below():
    alpha = torch.zeros(64, 1, 96, 96)
    alpha[:, :, 20:70, 30:66] = 1
    shadow = contact_shadow(alpha, Draw(torch.Generator().manual_seed(0)))
    assert shadow.min() >= 0 and shadow.max() <= 0.8
    assert shadow[:, 0, 68, 48].min() > 0.2  # the foot
    assert shadow[:, 0, :25].max() < 1e-3 and shadow[:, 0, 85:].max() < 1e-3


def test_shadows_fall_where_the_light_of_their_place_throws_them():
    """To the right, to the left, forwards, and hardly at all; what is not known is drawn."""
    alpha = torch.zeros(5, 1, 96, 96)
    alpha[:, :, 40:60, 40:56] = 1
    known = torch.tensor([[1.0, 0.3, 0.6], [-1.0, 0.3, 0.6], [0.0, -0.8, 0.6], [0.0, 0.3, 0.0], [torch.nan] * 3])
    shadow = contact_shadow(alpha, Draw(torch.Generator().manual_seed(0)), known)[:, 0]
    right, left = shadow[:, 50:58, 62:].amax((1, 2)), shadow[:, 50:58, :34].amax((1, 2))
    below, behind = shadow[:, 66:, 40:56].amax((1, 2)), shadow[:, :57].amax((1, 2))
    assert right[0] > 0.15 and left[0] < 0.05 and below[0] < 0.1
    assert left[1] > 0.15 and right[1] < 0.05
    assert below[2] > 0.2 and max(right[2], left[2]) < 0.05
    assert behind[3] < 0.1 < shadow[3].max()  # where it stands
    assert shadow[4].max() > 0.2


def relit_views(scene_colour: tuple[int, int, int] = (20, 60, 200)) -> Views:
    """Two objects of two views; the first view of each again, dark, before a plain scene."""
    samples = []
    for name in ("a", "b"):
        for frame in range(2):
            record = Record(name, name, frame, "mesh", "CC0", (0, 2))
            samples.append(Sample(record, cutout(48, 48, seed=frame)))
            if frame == 0:
                dark = cutout(48, 48, seed=frame)
                dark = Image.merge(
                    "RGBA", [*(band.point(lambda v: v // 8) for band in dark.split()[:3]), dark.split()[3]]
                )
                lit = dataclasses.replace(record, shadow=(1.0, 0.25, 0.5))
                samples.append(Sample(lit, dark, scene=Image.new("RGB", (36, 36), scene_colour)))
    return Views.of(samples)


def test_a_relit_view_is_its_views_twin_and_no_view_of_its_own():
    views = relit_views()
    assert views.rgba.shape == (4, 4, 48, 48) and views.count.tolist() == [2, 2]
    assert views.twin.tolist() == [0, -1, 1, -1] and views.shadows.tolist() == [[1.0, 0.25, 0.5]] * 2
    assert views.relit.shape == (2, 4, 48, 48) and views.scenes.shape == (2, 3, 36, 36)
    assert torch.equal(views.relit[0, 3], views.rgba[0, 3])
    joined = Views.join([views, views])
    assert joined.twin.tolist() == [0, -1, 1, -1, 2, -1, 3, -1] and joined.first.tolist() == [0, 2, 4, 6]
    assert torch.equal(joined.relit[joined.twin[6]], joined.relit[joined.twin[2]])


def test_a_relit_target_stands_in_its_own_place_and_the_reference_keeps_its_light(loaded, monkeypatch):
    monkeypatch.setattr(holes, "scene_light", lambda draw, count: torch.ones(3, 1, 1))
    made = {}
    for light in (True, False):
        views = relit_views()
        if not light:
            views.twin[:] = -1
        pairs_made = PairMaker(micro_config(), "compositing", views, loaded[1], {"rendered": 1.0})(
            64, torch.Generator().manual_seed(0)
        )
        seen = 1 - pairs_made.hole.repeat_interleave(8, 2).repeat_interleave(8, 3)
        ground = (pairs_made.background * seen).sum((2, 3)) / seen.sum((2, 3)).clamp(min=1)
        flat = ((pairs_made.background - ground[..., None, None]) * seen).abs().amax((1, 2, 3)) < 0.1
        blue = flat & (seen.sum((1, 2, 3)) > 100) & (ground[:, 2] > ground[:, 0] + 0.15)
        made[light] = blue, pairs_made
    blue, lit = made[True]
    assert blue.float().mean() > 0.2 and not made[False][0].any()  # half of the views have a twin
    inside = lit.hole.repeat_interleave(8, 2).repeat_interleave(8, 3)
    brightness = (lit.target * inside).mean((1, 2, 3)) / inside.mean((1, 2, 3))
    assert lit.reference[blue].mean() > 0.8 * made[False][1].reference.mean()
    assert brightness[blue].mean() < 0.75 * brightness[~blue].mean()


@pytest.mark.parametrize("chunk", [1, 5, 16, 256])
def test_the_mix_holds_over_a_block_whatever_the_chunk(data, tmp_path, loaded, chunk, monkeypatch):
    made = dict.fromkeys(KINDS, 0)
    for name in ("_rendered", "_photo"):
        original = getattr(PairMaker, name)

        def counted(self, *args, original=original):
            kind, count = args[:2] if len(args) == 3 else ("rendered", args[0])
            made[kind] += count
            return original(self, *args)

        monkeypatch.setattr(PairMaker, name, counted)
    run = Run(Train.of("compositing", **common(data, tmp_path, batch=4, block=10, chunk=chunk)))
    maker = PairMaker(run.config, "compositing", *loaded, STAGES["compositing"].mix)
    batch = Source(maker, run.autoencoder, run.settings, 0, CPU).make(40, torch.Generator().manual_seed(0))
    assert len(batch.target) == 40 and made == {"rendered": 18, "still": 10, "video": 2, "patch": 10}


def common(data: Path, output: Path, **changes) -> dict:
    """Settings of a run on a CPU, as `words` has them."""
    places = {"cutouts": str(data / "cutouts"), "photos": str(data / "photos"), "init": data / "start.safetensors"}
    return places | {"output": output, "batch": 2, "device": "cpu"} | changes


def test_the_held_out_pairs_are_the_same_for_every_batch_and_chunk(data, tmp_path):
    values = []
    for batch, chunk in ((2, 256), (8, 3)):
        run = Run(Train.of("compositing", **common(data, tmp_path, batch=batch, chunk=chunk)))
        held_out = Validation(run.maker("held-out"), run.autoencoder, run.settings, run.accelerator)
        assert len(held_out.pairs.target) == validation.SIZE
        values.append(held_out.measure(run.ema, run.alpha_bar))
    assert values[0] == values[1]


@pytest.mark.parametrize("precision, kind", [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_the_autoencoder_is_as_precise_as_the_run(data, tmp_path, loaded, precision, kind):
    run = Run(Train.of("compositing", **common(data, tmp_path)))
    maker = PairMaker(run.config, "compositing", *loaded, {"patch": 1.0})
    settings = dataclasses.replace(run.settings, precision=precision)
    seen = []
    run.autoencoder.encoder.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    made = Source(maker, run.autoencoder, settings, 0, CPU).make(2, torch.Generator().manual_seed(0))
    assert made.target.dtype == kind and seen == [kind]


def test_processes_of_one_machine_share_its_cores(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = own_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert own_cores() == max(1, alone // 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert own_cores() == 1


def test_a_kind_without_data_is_left_out(loaded):
    views, pictures = loaded
    empty = dataclasses.replace(pictures, items=pictures.items[:0], partner_count=pictures.partner_count[:0] * 0)
    maker = PairMaker(
        micro_config(), "identity", views, empty, {"rendered": 0.5, "still": 0.3, "video": 0.1, "patch": 0.1}
    )
    assert set(maker.mix) == {"rendered", "patch"}
    assert maker(7, torch.Generator().manual_seed(0)).target.shape[0] == 7


def test_views_are_grouped_by_object(loaded):
    views, _ = loaded
    assert views.rgba.shape == (12, 4, 48, 48) and views.rgba.dtype == torch.uint8
    assert views.first.tolist() == [0, 4, 8] and views.count.tolist() == [4, 4, 4]


def test_wide_frames_have_squares_round_their_objects():
    samples = []
    for frame in range(3):
        picture, mask = photo(320, 100, frame), Image.new("L", (320, 100))
        for number, box in enumerate(((20, 20, 60, 60), (80, 20, 140, 70), (150, 30, 190, 80), (0, 40, 130, 60)), 1):
            mask.paste(number, box)  # the first square ends at 100; the fourth is longer than any square
        samples.append(Sample(Record("clip", "clip", frame, "", ""), picture, mask))
    made = Photos.of(samples, 64)
    assert set(made.items[:, 1].tolist()) == {1, 2, 3} and int(made.annotated) == 12
    assert all(made.partner_count > 0)
    usable = PairMaker(
        micro_config(), "identity", Views.of([Sample(Record("", "", 0, "", ""), cutout(32, 32))]), made, {"still": 1.0}
    ).usable()
    assert usable["annotated objects"] == 12 and usable["usable in squares (still)"] == len(made.items) >= 9


def test_more_squares_are_only_where_an_object_is_whole_in_none():
    assert offsets_for([(10, 50)], [0, 200], 100, 200) == []
    assert offsets_for([(80, 140), (95, 130)], [0, 200], 100, 200) == [60]  # one for both
    assert offsets_for([(50, 145)], [0, 200], 100, 200) == []  # too long for a square
    assert offsets_for([(0, 40)], [100], 100, 200) == []  # cut by the picture's own border


def test_a_run_says_what_is_usable(data, first_run):
    counts = json.loads((first_run / "usable.json").read_text(encoding="utf-8"))
    assert counts.keys() == {"train", "held-out"} and counts["train"]["views"] == 12
    assert counts["train"]["annotated objects"] > 0 and counts["train"]["with another frame (video)"] > 0


def test_neighbours_are_the_same_object_at_most_seven_frames_away(loaded):
    places = [("clip", 0), ("clip", MAX_FRAME_GAP), ("clip", MAX_FRAME_GAP + 1), ("other", 1)]
    sources = [(clip, frame, VIDEO_GAP) for clip, frame in places]
    table = torch.tensor([[0, 1], [1, 1], [2, 1], [2, 2], [3, 1]])  # photo, number of the object in it
    assert _neighbours(table, sources) == [[1], [0, 2], [1], [], []]
    _, pictures = loaded
    assert int(pictures.partner_count.max()) > 0


# --- shards ----------------------------------------------------------------------------------------------------------


def test_shards_round_trip(tmp_path):
    record = Record("thing", "clip", 3, "test", "CC0")
    picture, mask = photo(20, 10), Image.new("L", (20, 10), 2)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    with shard_writer(tmp_path / "a.tar") as writer:
        writer.write(sample("one", buffer.getvalue(), "png", record, mask))
        writer.write(sample("two", webp(cutout(8, 8)), "webp", record))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
    (first, image, objects, _), (_, view, nothing, _) = read_shards(tmp_path)
    assert first == record and np.array_equal(np.asarray(image), np.asarray(picture))
    assert np.asarray(objects).max() == 2 and nothing is None and view.mode == "RGBA"
    assert len(list(read_shards(tmp_path, limit=1))) == 1


def test_a_shard_is_whole_or_absent(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), shard_writer(tmp_path / "a.tar") as writer:
        writer.write(sample("one", webp(photo(8, 8)), "webp", Record("", "", 0, "", "")))
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [100, 512, 600, "member", -1])
def test_a_shard_that_is_cut_off_is_named_wherever_it_ends(tmp_path, left):
    """Also between two members: what is left is a shard too, and only the zeros at its end are missing."""
    with shard_writer(tmp_path / "a.tar") as writer:
        for number in range(3):
            writer.write(sample(f"{number}", webp(cutout(8, 8)), "webp", Record("a", "", number, "", "")))
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data))
    assert len(list(read_shards([str(tmp_path / "a.tar.gz")]))) == len(list(read_shards(tmp_path / "a.tar"))) == 3
    with tarfile.open(tmp_path / "a.tar") as archive:
        ends = [member.offset for member in archive.getmembers()]
    (tmp_path / "a.tar").write_bytes(
        data[: ends[2] if left == "member" else len(data) - 10_240 if left == -1 else left]
    )
    with pytest.raises(ImprintError, match=r"a\.tar cannot be read as a shard"):
        list(read_shards(tmp_path / "a.tar"))


def test_a_frame_that_no_tensor_holds_is_named():
    parts = {"__key__": "sample-7", "__url__": "bad.tar", "webp": webp(photo(8, 8))}
    with pytest.raises(ImprintError, match="whole numbers"):
        decode_sample(parts | {"json": json.dumps(FIELDS | {"frame": 2**70}).encode()})


FIELDS = dataclasses.asdict(Record("a", "b", 3, "c", "d", (1, 2), (0.1, 0.2, 0.3)))


@given(fields=mutated(json.loads(json.dumps(FIELDS))))
def test_broken_fields_of_a_sample_are_named(fields):
    parts = {
        "__key__": "sample-7",
        "__url__": "bad.tar",
        "webp": webp(photo(8, 8)),
        "json": json.dumps(fields).encode(),
    }
    try:
        record = decode_sample(parts).record
    except ImprintError as error:
        assert re.match(r"bad\.tar: sample 'sample-7' is not as", str(error))
        return
    assert all(type(value) is str for value in (record.object, record.clip, record.source, record.licence))
    assert all(type(value) is int for value in (record.frame, *record.gap)) and len(record.gap) == 2
    assert record.shadow is None or (len(record.shadow) == 3 and all(map(math.isfinite, record.shadow)))


@pytest.mark.parametrize("lacking", ["json", "webp", "field", "picture"])
def test_bad_samples_are_named(tmp_path, lacking):
    parts = {"json": json.dumps(dataclasses.asdict(Record("a", "", 0, "", ""))).encode(), "webp": webp(photo(8, 8))}
    if lacking == "field":
        parts["json"] = b'{"object": "a"}'
    elif lacking == "picture":
        parts["webp"] = b"no picture"
    else:
        parts.pop(lacking)
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        for kind, content in parts.items():
            member = tarfile.TarInfo(f"sample-7.{kind}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(ImprintError, match=r"bad\.tar.*sample-7"):
        list(read_shards(tmp_path))
