"""The commands of docs/training.md and its topic pages, and of CONTRIBUTING.md, run as written.

Two steps each, on a CPU, with a micro model for `tiny`, SD 1.5 and the shipped checkpoint.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from micro import fresh_checkpoint, matte_config, micro_config
from preparing import write_mvimgnet, write_youtube_vos, zipped
from runs import ROOT, stats
from safetensors.torch import load_file

from imprint.checkpoint import SHIPPED, load_checkpoint, save_checkpoint
from imprint.config import PRESETS
from training import costs, prepare, settings, train
from training.loop import validation
from training.measure.costs import RATES, Rate

SMOKE = "--images 4 --batch 2 --block 2 --reuse 2 --log-every 1 --save-every 2 --lr-warmup 1 --device cpu".split()
SMALL = {"training.train": SMOKE, "training.decoder": "--images 4 --batch 2 --held-out 2 --device cpu".split()}


PAGES = ("docs/training.md", "docs/data.md", "docs/512px.md", "docs/cluster.md", "docs/evaluation.md", "docs/log.md")


def commands(*pages: str) -> list[list[str]]:
    """Every command in the pages' code blocks, in order; continued lines are joined."""
    text = "\n".join((ROOT / page).read_text() for page in pages or PAGES)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for kind, block in blocks if not kind for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line and not line.startswith("#")]


def test_every_stage_runs_from_the_pages_commands(
    data, captioned, text_encoder, few_photos, pretrained, tmp_path, monkeypatch
):  # fmt: skip
    for name in ("tiny", "sd15"):
        monkeypatch.setitem(PRESETS, name, micro_config())
    monkeypatch.setattr(validation, "SIZE", 4)
    monkeypatch.chdir(tmp_path)
    for folder in ("cutouts", "photos"):
        shutil.copytree(data / folder, Path("data") / folder)
    shutil.copytree(captioned, "data/captions")
    shutil.copytree(few_photos, "photos/mug")
    write_mvimgnet(Path("parts/mvimgnet"), Path("parts/masks/mask"))
    write_youtube_vos(Path("parts/vos"))
    zipped(Path("parts/mvimgnet"), Path("MVIMGNET/MVImgNet_origin/mvi_00.zip"))
    zipped(Path("parts/masks"), Path("MVIMGNET/MVImgNet_mask/masks.zip"))
    zipped(Path("parts/vos"), Path("YOUTUBE-VOS/train.zip"))
    shutil.copyfile(data / "vae.safetensors", "taesd.safetensors")
    shutil.copytree(pretrained / "dinov2", "dinov2-large")
    shutil.copytree(pretrained / "sd", "stable-diffusion-v1-5")
    shutil.copytree(text_encoder, "stable-diffusion-v1-5", dirs_exist_ok=True)

    assets = Path("imprint/assets")
    assets.mkdir(parents=True)
    (assets / "samples").symlink_to(SHIPPED.parent / "samples")
    save_checkpoint(assets / SHIPPED.name, fresh_checkpoint(matte_config()))
    stages = []
    for command in commands():
        if command[0] in ("mkdir", "cp"):
            subprocess.run(command, check=True)
        if command[:3] == ["python", "-m", "training.prepare"] and Path(command[command.index("--input") + 1]).is_dir():
            prepare.main(command[3:])
        program, *arguments = command[2:] if command[:2] == ["python", "-m"] else [""]
        if program not in ("training.start", "training.subject", *SMALL) or "ARGUMENTS" in arguments:
            continue
        module = importlib.import_module(program)
        module.main([*arguments, *SMALL.get(program, [])])
        if program != "training.train":
            continue
        run = Path(arguments[arguments.index("--output") + 1])
        assert [line["step"] for line in stats(run)] == [1, 2, 2]
        stages.append(json.loads((run / "options.json").read_text())["stage"])
        if stages[-1] == "finetune":
            assert load_file(run / "lora.safetensors")
        else:
            load_checkpoint(run / "checkpoint.safetensors")
    assert set(stages) == set(settings.STAGES)
    usable = json.loads(Path("runs/512-compositing/usable.json").read_text(encoding="utf-8"))
    assert usable["train"]["licences"]["photos"].keys() == {"MVImgNet Terms of Use", "YouTube-VOS, research only"}
    assert usable["train"]["mix"]["pairs of 64 px as drawn"].keys() == {"rendered", "still", "video", "patch"}
    load_checkpoint("imprint.safetensors")  # the decoder's
    # The shipped checkpoint itself is large; that it fits is seen before the first step.
    data_of = ["--cutouts", "data/sloth/cutouts", "--photos", "data/sloth/photos"]
    train.main(
        ["finetune", "--init", str(SHIPPED), "--output", "runs/shipped", *data_of, "--device", "cpu", "--dry-run"]
    )


def test_the_launchers_of_the_pages_know_their_options(data, capsys):
    """`training.train` accepts what follows its name, and the launcher what comes before it."""
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


def test_the_commands_of_contributing_name_what_there_is(capsys):
    """Modules are asked for their help; tests and extras are looked up."""
    extras = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    seen = set()
    for command in commands("CONTRIBUTING.md"):
        words = [word for word in command if "=" not in word]
        if words[:3] == ["python", "-m", "pip"]:
            assert words[-1].removeprefix(".[").removesuffix("]") in extras
        elif words[:3] == ["python", "-m", "pytest"]:
            assert all((ROOT / path).is_file() for path in words[3:])
        elif words[-1] == "--help":
            with pytest.raises(SystemExit) as left:
                importlib.import_module(words[2]).main(["--help"])
            assert left.value.code == 0 and capsys.readouterr().out.startswith("usage: ")
        elif words[0] == "python":
            importlib.import_module(f"{words[2]}.__main__")
        else:
            assert words[0] == "ruff" and any("ruff" in name for name in extras["test"])
        seen.add(words[2])
    assert {"pip", "pytest", "imprint", "training.train"} <= seen


@pytest.mark.parametrize(
    "page",
    [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "README.md"],
    ids=lambda path: path.name,
)
def test_links_lead_somewhere_and_pages_are_short(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target
    assert len(text.splitlines()) <= (150 if page.name == "README.md" else 250)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_contents_name_the_sections(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    assert re.findall(r"^- \[(.+)\]\(#[^)]*\)$", text, re.MULTILINE) == re.findall(r"^## (.+)$", text, re.MULTILINE)


def test_the_cost_tables_are_the_command_s_and_its_rates_are_measured(capsys):
    """The pages contain the output of `training.costs`; its rates are from the pages that measured them."""
    costs.main([])
    tables = capsys.readouterr().out.strip().split("\n\n")
    pages = [(ROOT / f"docs/{name}.md").read_text() for name in ("512px", "512px", "data")]
    for table, page in zip(tables, pages, strict=True):
        assert table.strip() in page
    measured, diary = ((ROOT / f"docs/{name}.md").read_text() for name in ("speed", "log"))
    for words in ("`loop:sd15:16:default`, ", "the steps | 90.3 |", "| 30.3 |", "`loop:tiny:512:default`, ", "3,247;"):
        assert words in measured
    assert "5,500" in diary and "3,030" in diary and "2,030" in diary
    assert (RATES["sd15:16"].pictures_per_second, RATES["tiny:512"].pictures_per_second) == (90.3, 3247)
    sdxl = (ROOT / "docs/bases.md").read_text()
    assert "| 0.80: 5.0 pictures/s | 52.4 |" in sdxl and RATES["sdxl:4"] == Rate(5.0, 52.4)
