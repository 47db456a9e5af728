"""Runs that resume with other processes, other batches or more steps, and what they report."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from leaving import failed
from nightly import at_night
from runs import launch, stats, weights, words
from test_warmup import warmup_words

from imprint.errors import ImprintError
from training import train
from training.loop.layout import Layout, Rearranged, make_layout
from training.loop.run import Run
from training.loop.schedule import learning_rate
from training.loop.source import BatchSource
from training.settings import Train, parse_train

pytestmark = pytest.mark.usefixtures("micro_preset")


def back_to_step_two(whole: Path, folder: Path) -> Path:
    """A copy of an uninterrupted run of four steps without the files written at its end."""
    return shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("state-000000004", "checkpoint.safetensors"))


def steps_of(folder: Path) -> list[dict]:
    return [line for line in stats(folder) if "goes_on" not in line]


def said(folder: Path) -> list[str]:
    """The lines of the run's log about how it resumes."""
    return [text for line in stats(folder) for text in line.get("goes_on", [])]


def same(one: Path, two: Path) -> bool:
    first, second = (weights(folder / "checkpoint.safetensors") for folder in (one, two))
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def nearly_same(one: Path, two: Path) -> None:
    """Every loss and gradient within a few roundings of 32-bit floats."""
    first, second = steps_of(one), steps_of(two)
    assert [line["step"] for line in first] == [line["step"] for line in second]
    for here, there in zip(first, second):
        for name in {"loss", "gradient", "held_out_loss"} & here.keys():
            assert here[name] == pytest.approx(there[name], rel=2e-4), name


# --- other processes, other batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("resolutions", [[], ["--resolutions", "64:2", "32:1"]], ids=["one", "several"])
@pytest.mark.parametrize("now", [(1, 2, 4), (4, 1, 2), (1, 4, 2), (2, 2, 2), (8, 1, 1), (1, 1, 8)], ids=str)
def test_a_step_has_the_same_pictures_and_noise_however_it_is_shared_out(data, tmp_path, now, resolutions):
    """The batches of two processes with four pictures each equal what other layouts have together, in order."""
    begun, now = Layout(2, 1, 4), Layout(*now)
    run = Run(parse_train([*words(data, tmp_path / "run", batch=4, block=3), *resolutions]))
    maker = run.maker("train")

    def source(rank: int) -> BatchSource:
        return BatchSource(maker, run.autoencoder, run.settings, rank, run.device)

    if resolutions and now.batch == 8:
        with pytest.raises(ImprintError, match="with --resolutions, batches of 4 can only be divided"):
            Rearranged(source, begun, now, 0)
        return
    before = [source(rank) for rank in range(2)]
    shared = [Rearranged(source, begun, now, process) for process in range(now.processes)]
    for step in range(3):
        whole = [(one.batch(step), one.draw(step), 1 / 2) for one in before]
        parts = [
            (one.batch(index), one.draw(index), one.weight(index) / now.processes / now.accumulate)
            for one in shared
            for index in range(step * now.accumulate, (step + 1) * now.accumulate)
        ]
        seen = []
        for made in (whole, parts):
            drawn = []
            for batch, draw, weight in made:
                count = len(batch.target)
                timesteps, noise = draw.integers(1000, count), draw.normal(tuple(batch.target.shape))
                each = torch.full((count,), weight / count)  # of a picture in the step's loss
                drawn.append((batch.reference, batch.target, timesteps, noise, draw.chance(0.5, count), each))
            seen.append([torch.cat(column) for column in zip(*drawn)])
        assert all(torch.equal(one, two) for one, two in zip(*(made[:-1] for made in seen)))
        assert torch.allclose(seen[0][-1], seen[1][-1])


def test_too_few_pictures_to_share_out_are_a_sentence(data, tmp_path):
    run = Run(parse_train([*words(data, tmp_path / "run"), "--resolutions", "64", "96"]))
    maker = run.maker("train")
    with pytest.raises(ImprintError, match="batches of 2 pictures have too few of the largest of --resolutions"):
        Rearranged(
            lambda rank: BatchSource(maker, run.autoencoder, run.settings, rank, run.device),
            Layout(1, 1, 2),
            Layout(2, 1, 1),
            0,
        )


@at_night
def test_a_run_goes_on_with_other_processes(data, tmp_path):
    """A run of two processes resumes in one, and the other way round.

    With the same batches the result is the same to the last bit, since a sum of two does not depend on the order; with
    other batches, up to rounding.
    """
    one, two, changed = {"batch": 2, "accumulate": 2}, {"batch": 2}, {"batch": 1, "accumulate": 2}
    steps = {"steps": 4, "images": 16}
    unbroken, again, bent = tmp_path / "one", tmp_path / "again", tmp_path / "bent"
    train.main(words(data, unbroken, **steps, **one))
    launch(
        tmp_path,
        ({}, words(data, tmp_path / "two", **steps, **two), None),
        ({}, words(data, again, **steps, **two), [unbroken, again]),
        ({}, words(data, bent, **steps, **changed), [unbroken, bent]),
    )
    assert steps_of(again) == stats(unbroken) and same(again, unbroken)
    (text,) = said(again)
    assert text.startswith("processes x accumulate x batch are 2 x 1 x 2, and were 1 x 2 x 2 at its beginning")
    assert "2 processes make the pairs that 1 made, more than once" in text
    nearly_same(bent, unbroken)

    back = back_to_step_two(tmp_path / "two", tmp_path / "back")
    train.main(words(data, back, **steps, **one))
    assert steps_of(back) == stats(tmp_path / "two") and same(back, tmp_path / "two")
    options = json.loads((back / "options.json").read_text())
    assert options["begun"] == {"processes": 2, "accumulate": 1, "batch": 2, "images": 16}
    assert options["layout"] == {"processes": 1, "accumulate": 2, "batch": 2}


@pytest.mark.parametrize(
    ("stage", "distilled"), [("finetune", {"distill-steps": 2}), ("compositing", {"distill-guidance": 2.0})]
)
def test_a_teacher_is_what_it_was_when_a_run_goes_on(data, tmp_path, stage, distilled):
    unbroken = tmp_path / "one"
    command = words(data, unbroken, stage, steps=4, init=data / "start.safetensors", **distilled)
    train.main(command)
    back = back_to_step_two(unbroken, tmp_path / "back")
    assert [path.name for path in (back / "state-000000002").glob("*.safetensors")] == ["model.safetensors"]
    train.main([str(back) if word == str(unbroken) else word for word in command])
    assert stats(back) == stats(unbroken)


@pytest.mark.parametrize(("begun", "now"), [((4, 1), (2, 2)), ((2, 2), (4, 1)), ((4, 3), (6, 2))], ids=str)
def test_a_run_goes_on_with_other_batches(data, tmp_path, capsys, begun, now):
    def command(folder, batch, accumulate):
        images = 4 * batch * accumulate
        return words(data, folder, "compositing", init=data / "start.safetensors", images=images, batch=batch,
                     accumulate=accumulate)  # fmt: skip

    train.main(command(tmp_path / "whole", *begun))
    folder = back_to_step_two(tmp_path / "whole", tmp_path / "run")
    capsys.readouterr()
    train.main(command(folder, *now))
    nearly_same(folder, tmp_path / "whole")
    (text,) = said(folder)
    assert text in capsys.readouterr().err and f"1 x {now[1]} x {now[0]}, and were 1 x {begun[1]} x {begun[0]}" in text
    # and back again: what it began with still counts
    shutil.rmtree(folder / "state-000000004")
    train.main(command(folder, *begun))
    assert len(said(folder)) == 1  # of the second step, which is the last one's beginning again


@at_night
def test_streamed_shards_are_those_that_the_processes_would_have_had(data, tmp_path):
    """One process holds the pools of two."""
    steps = {"steps": 4, "images": 16, "pool": 1, "block": 1, "reuse": 1}
    for number in range(1, 4):
        for split in ("train", "held-out"):
            folder = tmp_path / "cutouts" / split
            if number == 1:
                shutil.copytree(data / "cutouts" / split, folder)
            shutil.copyfile(folder / "views-000000.tar", folder / f"views-00000{number}.tar")
    changes = steps | {"cutouts": tmp_path / "cutouts"}
    launch(tmp_path, ({}, words(data, tmp_path / "two", **changes, batch=2), None))
    folder = back_to_step_two(tmp_path / "two", tmp_path / "run")
    train.main(words(data, folder, **changes, batch=2, accumulate=2))
    assert steps_of(folder) == stats(tmp_path / "two")
    assert "each process holds the --pool of up to 2" in said(folder)[0]


def test_another_number_of_pictures_per_step_is_refused(data, tmp_path):
    train.main(words(data, tmp_path / "run"))
    message = failed(train.main, words(data, tmp_path / "run", batch=3))
    assert "was begun with 2 pictures per step (processes x accumulate x batch = 1 x 1 x 2), not 3" in message
    assert "give --global-batch 2 with a --batch that fits" in message


def test_an_option_that_a_run_did_not_have_yet_counts_as_its_default(data, tmp_path):
    folder = tmp_path / "run"
    train.main(words(data, folder))
    options = json.loads((folder / "options.json").read_text())
    for name in ("dropout", "clip", "begun", "layout", "split", "from_flags"):
        del options[name]
    (folder / "options.json").write_text(json.dumps(options))
    assert "begun with dropout = 0.1, not 0.3" in failed(train.main, words(data, folder, dropout=0.3))
    train.main(words(data, folder))
    assert said(folder) == []


# --- the global batch ------------------------------------------------------------------------------------------------


def test_a_step_of_so_many_pictures_whatever_the_processes(data, tmp_path):
    assert make_layout(2, 4, 1, None) == Layout(2, 1, 4)
    assert make_layout(2, 4, 1, 32) == Layout(2, 4, 4)
    for wanted in (12, 4):
        with pytest.raises(ImprintError, match=f"--global-batch {wanted} is not a multiple of 8"):
            make_layout(2, 4, 1, wanted)
    train.main(words(data, tmp_path / "run", images=16, **{"global-batch": 8}))
    train.main(words(data, tmp_path / "other", images=16, accumulate=4))
    assert stats(tmp_path / "run") == stats(tmp_path / "other") and same(tmp_path / "run", tmp_path / "other")


# --- longer ----------------------------------------------------------------------------------------------------------


def test_a_run_becomes_longer(data, tmp_path, capsys):
    """The learning rate's warm-up stays as it was, and its decay ends later."""
    folder, without = tmp_path / "run", {"lr-warmup": None, "ema": 0.9}
    train.main(words(data, folder, images=8, **without))
    assert json.loads((folder / "options.json").read_text())["lr_warmup"] == 4  # the first half of a short run
    train.main(words(data, folder, images=16, **without))
    settings = Train.of("identity", output=tmp_path, lr=0.01, lr_warmup=4, images=16)
    rates = {line["step"]: line["lr"] for line in steps_of(folder) if "lr" in line}
    assert [rates[step] for step in range(5, 9)] == [learning_rate(2 * done, settings) for done in range(4, 8)]
    (text,) = said(folder)
    short = learning_rate(8, dataclasses.replace(settings, images=8))
    assert text.startswith("it ends after 16 pictures, not 8: ") and text in capsys.readouterr().err
    assert f"the learning rate is {learning_rate(8, settings):.4g} now instead of {short:.4g}" in text
    assert "begun with lr_warmup = 4, not 8" in failed(
        train.main, words(data, folder, images=32, **without | {"lr-warmup": 8})
    )
    assert [path.name for path in sorted(folder.glob("checkpoint-*"))] == [
        f"checkpoint-{pictures:09d}.safetensors" for pictures in (8, 12, 16)
    ]


def test_with_a_constant_learning_rate_a_longer_run_is_what_it_would_have_been(data, tmp_path):
    constant = {"schedule": "constant"}
    train.main(words(data, tmp_path / "long", images=16, **constant))
    train.main(words(data, tmp_path / "run", images=8, **constant))
    train.main(words(data, tmp_path / "run", images=16, **constant))
    assert steps_of(tmp_path / "run") == stats(tmp_path / "long") and same(tmp_path / "run", tmp_path / "long")
    assert said(tmp_path / "run") == ["it ends after 16 pictures, not 8: the learning rate stays what it was"]


def test_a_longer_warm_up_does_not_translate_again(data, tmp_path, captioned, text_encoder):
    for steps in (4, 8):
        command = warmup_words(data, tmp_path / "run", captioned, text_encoder, steps=steps)
        train.main([*command, "--translation", "0.5"])
    denoised = [line["step"] for line in steps_of(tmp_path / "run") if "loss_by_timestep" in line]
    assert denoised == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"begun": 5}, "None as the run's processes"),
        ({"begun": {"processes": 0, "accumulate": 1, "batch": 2, "images": 8}}, "0 as the run's processes"),
        ({"begun": None, "processes": None}, "None as the run's processes"),
        ({"begun": None, "images": "8"}, "'8' as the run's images"),
        ({"images": True}, "True as the run's images"),
    ],
    ids=str,
)
def test_options_that_no_run_writes_are_said(data, tmp_path, changes, found):
    folder, command = tmp_path / "run", words(data, tmp_path / "run")
    train.main(command)
    path = folder / "options.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert f"options.json holds {found}; expected a number of 1 or more: repair it" in failed(train.main, command)


def test_schedules():
    given = dict(output=Path("x"), lr=1.0, lr_warmup=0, images=1000, final_lr=0.1)
    for schedule, halfway, end in (("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)):
        settings = Train.of("identity", **given, schedule=schedule)
        rates = [learning_rate(done, settings) for done in (0, 250, 500, 1000)]
        assert rates[0] == 1 and rates[2:] == pytest.approx([halfway, end])
        assert rates[1] == pytest.approx({"cosine": 0.1 + 0.9 * 0.8535534, "linear": 0.775, "constant": 1.0}[schedule])
