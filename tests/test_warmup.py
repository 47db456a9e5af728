"""The adapter's warm-up on captioned pictures; a few steps on a CPU."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from micro import micro_config, photo, seeded
from PIL import Image
from runs import stats, webp, weights, words, write_captions

from imprint.errors import ImprintError
from training import train
from training.data.shards import Bad, Record, sample, shard_writer
from training.loop.text import TextEncoder
from training.pairs.captions import Captions

pytestmark = pytest.mark.usefixtures("micro_preset")

CPU = torch.device("cpu")


def warmup_words(data, output, captioned, text_encoder, **changes) -> list[str]:
    options = {"cutouts": None, "photos": None, "captions": captioned, "text-encoder": text_encoder}
    return words(data, output, "warmup", **(options | {"init": data / "start.safetensors"} | changes))


def test_warmup_first_translates_then_denoises_and_trains_the_adapter_alone(data, tmp_path, captioned, text_encoder):
    train.main(warmup_words(data, tmp_path / "run", captioned, text_encoder, steps=2))
    first, second, held_out = stats(tmp_path / "run")
    assert "loss_by_timestep" not in first and "loss_by_timestep" in second
    assert {"held_out_loss", "held_out_translation_loss"} <= held_out.keys()
    before, after = weights(data / "start.safetensors"), weights(tmp_path / "run" / "checkpoint.safetensors")
    changed = {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name].half())}
    assert changed == {"adapter"}


def test_a_run_says_what_its_captioned_pictures_are(data, tmp_path, captioned, text_encoder, capfd):
    """Squares of 70 px in targets of 64 px; and of 20 px, without a record and beside a broken one: too small."""
    shutil.copytree(captioned / "held-out", tmp_path / "held-out")
    with shard_writer(tmp_path / "train" / "captions-000000.tar") as writer:
        for number in range(3):
            picture = webp(photo(30, 20, seed=number)) if number else b"no picture"
            writer.write({"__key__": str(number), "webp": picture, "txt": b"a thing"})
    command = warmup_words(data, tmp_path / "run", tmp_path, text_encoder, steps=1)
    train.main([*command, "--skip-bad", "1"])
    said = capfd.readouterr().err
    found = json.loads((tmp_path / "run" / "usable.json").read_text(encoding="utf-8"))
    assert found["held-out"]["licences"] == {"captioned pictures": {"CC0": 4}}
    assert found["held-out"]["enlargement"] == {"captioned pictures": {"median": 0.91, "share above 1.5": 0.0}}
    assert found["train"]["enlargement"] == {"captioned pictures": {"median": 3.2, "share above 1.5": 1.0}}
    assert "train: 3 captioned pictures\n" in said and "train: licences of captioned pictures: unknown 100%" in said
    assert said.count("warning: captioned pictures are smaller than targets of 64 px need") == 1


def test_translation_pulls_the_adapter_to_the_text(data, tmp_path, captioned, text_encoder):
    options = {"steps": 20, "translation": 1, "save-every": 5, "log-every": 5, "lr": 0.003, "final-lr": 1}
    train.main(warmup_words(data, tmp_path / "run", captioned, text_encoder, **options))
    distances = [line["held_out_translation_loss"] for line in stats(tmp_path / "run") if "held_out_loss" in line]
    assert distances[-1] < 0.8 * distances[0]


def test_the_text_encoder_is_stable_diffusion_s(text_encoder):
    """The last hidden state after the final LayerNorm, padded with the end token and without an attention mask."""
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
    one, two = (maker(5, seeded(3)) for _ in range(2))
    assert torch.equal(one.target, two.target) and torch.equal(one.text, two.text)
    assert one.reference.shape == (5, 3, 28, 28) and one.target.shape == (5, 3, 64, 64) and bool((one.hole == 1).all())
    number = torch.randint(4, (5,), generator=seeded(3))[0].item()
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
        Captions(tmp_path, micro_config(), text, CPU)(4, seeded())


def test_bad_captions_may_be_left_out(tmp_path, captioned, text_encoder, data, capsys):
    """One lacks its text, another its picture: the next one takes its place, and each is counted once."""
    with shard_writer(tmp_path / "train" / "captions-000000.tar") as writer:
        for number in range(4):
            parts = sample(str(number), webp(photo(90, 70, seed=number)), "webp", Record("", "", 0, "test", "CC0"))
            parts |= {} if number == 1 else {"txt": f"a thing {'abcd'[number]}".encode()}
            writer.write(parts | ({"webp": b"no picture"} if number == 2 else {}))
    text = TextEncoder(text_encoder, 32, CPU)
    maker = Captions(tmp_path / "train", micro_config(), text, CPU, bad=Bad(2, "train"))
    made = maker(40, seeded(3))
    assert torch.equal(made.target, maker(40, seeded(3)).target)
    drawn = torch.randint(3, (40,), generator=seeded(3)).tolist()  # of pictures 0, 2 and 3
    for number in (0, 3):
        (text_of,) = text([f"a thing {'abcd'[number]}"])
        rows = [index for index, row in enumerate(drawn) if (row == 0) == (number == 0)]
        assert rows and all(torch.equal(made.text[row], text_of) for row in rows)
    said = capsys.readouterr().err
    assert len(maker.bad.found) == 2 and said.count("left out") == 2
    assert "left out, 1 of 2 allowed" in said and "sample '1' has" in said and "sample '2' cannot be read" in said
    with pytest.raises(ImprintError, match="sample '2' cannot be read .*2 samples are bad, and --skip-bad allows 1"):
        Captions(tmp_path / "train", micro_config(), text, CPU, bad=Bad(1))(40, seeded(3))

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
        Captions(tmp_path, micro_config(), text, CPU, bad=Bad(4))(1, seeded())
    write_captions(tmp_path, txt=None)
    with pytest.raises(ImprintError, match="holds no picture with captions"):
        Captions(tmp_path, micro_config(), text, CPU, bad=Bad(4))


def test_a_shard_that_is_cut_off_is_named(tmp_path, text_encoder):
    shard = write_captions(tmp_path) / "captions-000000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    text = TextEncoder(text_encoder, 32, CPU)
    with pytest.raises(ImprintError, match=r"captions-000000\.tar"):
        Captions(tmp_path, micro_config(), text, CPU)(8, seeded())
