"""The commands in training/README.md, run as they stand there: two steps each, on a CPU, with a micro model for `tiny` and SD 1.5."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from pathlib import Path

from micro import micro_config
from safetensors.torch import load_file
from test_stages import captioned, few_photos, text_encoder  # noqa: F401
from test_start import files  # noqa: F401
from test_training import ROOT, data, micro_preset, stats  # noqa: F401

from imprint.checkpoint import load_checkpoint
from imprint.config import PRESETS
from training import settings

SMOKE = "--images 4 --batch 2 --block 2 --reuse 2 --log-every 1 --save-every 2 --lr-warmup 1 --device cpu".split()
SMALL = {"training.train": SMOKE, "training.decoder": "--images 4 --batch 2 --held-out 2 --device cpu".split()}


def commands() -> list[list[str]]:
    """Every command of the README's blocks, in order; continued lines are one."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / "training" / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line and not line.startswith("#")]


def test_every_stage_runs_from_the_readme_s_commands(
    data, captioned, text_encoder, few_photos, files, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    for name in ("tiny", "sd15"):
        monkeypatch.setitem(PRESETS, name, micro_config())
    monkeypatch.chdir(tmp_path)
    for folder in ("cutouts", "photos"):
        shutil.copytree(data / folder, Path("data") / folder)
    shutil.copytree(captioned, "data/captions")
    shutil.copytree(few_photos, "photos/mug")
    shutil.copyfile(data / "vae.safetensors", "taesd.safetensors")
    shutil.copytree(files / "dinov2", "dinov2-large")
    shutil.copytree(files / "sd", "stable-diffusion-v1-5")
    shutil.copytree(text_encoder, "stable-diffusion-v1-5", dirs_exist_ok=True)

    stages = []
    for command in commands():
        program, *arguments = command[2:] if command[:2] == ["python", "-m"] else [""]
        if program not in ("training.start", "training.subject", *SMALL) or "ARGUMENTS" in arguments:
            continue
        module = importlib.import_module(program)
        module.main([*arguments, *SMALL.get(program, [])])
        if program != "training.train":
            continue
        stages.append(arguments[0])
        run = Path(arguments[arguments.index("--output") + 1])
        assert [line["step"] for line in stats(run)] == [1, 2, 2]
        if arguments[0] == "finetune":
            assert load_file(run / "lora.safetensors")
        else:
            load_checkpoint(run / "checkpoint.safetensors")
    assert set(stages) == set(settings.STAGES)
    load_checkpoint("imprint.safetensors")  # the decoder's


def test_the_launchers_of_the_readme_know_their_options(data, capsys):  # noqa: F811
    """What follows `-m training.train` is understood by it, and what comes before by the launcher."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    parsers = {"torchrun": get_args_parser(), "accelerate launch": launch_command_parser()}
    given = f"identity --output x --cutouts {data} --photos {data}".split()
    seen = set()
    for command in commands():
        if "ARGUMENTS" not in command:
            continue
        place = command.index("ARGUMENTS")
        settings.parse_train([*given, *command[place + 1 :]])
        for launcher, parser in parsers.items():
            words = launcher.split()
            if command[: len(words)] == words:
                parsed = parser.parse_args(command[len(words) : place])
                assert parsed.module and parsed.training_script == "training.train"
                seen.add(launcher)
    assert seen == set(parsers)
