"""The archive for ComfyUI's registry, made by `comfy node pack`, in a ComfyUI under a name that is not ours.

COMFY_CLI: the program `comfy` of comfy-cli, by default the one that is found in PATH.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from comfy_server import PACK, ROOT, make_base, running
from make_workflows import FIRST, WORKFLOWS, file_of
from ui_workflow import to_prompt

NAME = "some-imprint-copy"
MEGABYTES = 68
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def comfy() -> str:
    program = os.environ.get("COMFY_CLI") or shutil.which("comfy")
    if not program:
        pytest.skip("comfy-cli is not installed: pip install comfy-cli, or set COMFY_CLI")
    return program


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This working tree as a separate repository, since `comfy node pack` writes to the folder and packs what git
    tracks.
    """
    folder = tmp_path_factory.mktemp("copy")
    listed = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    return folder


@pytest.fixture(scope="module")
def archive(comfy: str, copy: Path) -> Path:
    said = call(comfy, copy, "pack")
    assert (copy / "node.zip").is_file(), said
    return copy / "node.zip"


def git(folder: Path, *arguments: str) -> str:
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no git repository: {done.stderr.strip()}")
    return done.stdout


def call(comfy: str, folder: Path, command: str) -> str:
    """Output of `comfy node COMMAND` in that folder. It finds ruff in its own folder."""
    path = os.pathsep.join([str(Path(comfy).resolve().parent), os.environ["PATH"]])
    arguments = [comfy, "--no-json", "--skip-prompt", "node", command]
    done = subprocess.run(
        arguments, cwd=folder, env=os.environ | {"PATH": path}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_validate(comfy: str, copy: Path):
    """`comfy node validate` exits with 0 even if it found something, so its output is checked."""
    said = call(comfy, copy, "validate")
    assert "All validation checks passed" in said, said
    assert "warning" not in said.lower() and "error" not in said.lower(), said


def test_validate_would_notice(comfy: str, copy: Path, tmp_path: Path):
    shutil.copytree(copy, tmp_path / "bad", ignore=shutil.ignore_patterns("*.safetensors", ".git"))
    (tmp_path / "bad" / "nodes" / "bad.py").write_text("exec('1')\n")
    assert "S102" in call(comfy, tmp_path / "bad", "validate")


def test_archive(archive: Path, record_property):
    names = zipfile.ZipFile(archive).namelist()
    size = archive.stat().st_size
    record_property("bytes", size)
    print(f"node.zip: {size / 1e6:.1f} MB, {len(names)} files")
    assert size < MEGABYTES * 1e6
    assert not [name for name in names if name.split("/")[0] in ("tests", "training", ".ci", ".github")]
    lora = "imprint/assets/loras/imprint-tiny-2-steps.safetensors"
    for needed in ("__init__.py", "LICENSE", "NOTICE", "imprint/assets/imprint-tiny.safetensors", lora):
        assert needed in names


def test_the_least_comfyui_that_is_promised_is_tested():
    """One version number: the registry's, the README's, the loader's, and that of a CI job."""
    project, readme, models, jobs = (
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("pyproject.toml", "README.md", "nodes/models.py", ".github/workflows/tests.yml")
    )
    (least,) = re.findall(r'^requires-comfyui = ">=([\d.]+)"$', project, re.MULTILINE)
    major, minor, _ = least.split(".")
    assert f"({major}.{minor} or newer" in readme
    assert f"LEAST_COMFYUI = ({major}, {minor})\n" in models
    assert f"comfyui: v{least}," in jobs


@pytest.mark.parametrize("key", ["Icon", "Banner"])
def test_the_registry_s_pictures_are_files_of_the_repository(key: str):
    found = re.search(
        rf'^{key} = "https://raw\.githubusercontent\.com/([^/]+/[^/]+)/main/(.+)"$', PYPROJECT, re.MULTILINE
    )
    repository, path = found.groups()
    assert f'Repository = "https://github.com/{repository}"' in PYPROJECT
    picture = (ROOT / path).read_text(encoding="utf-8")
    width, height = (int(re.search(rf'<svg [^>]*{side}="(\d+)"', picture)[1]) for side in ("width", "height"))
    assert (width, height) == (400, 400) if key == "Icon" else width * 9 == height * 21


@pytest.mark.comfyui
def test_archive_works(archive: Path, comfyui: Path, python: str, tmp_path: Path):
    base = make_base(tmp_path / "base")
    (base / "custom_nodes" / PACK).unlink()
    zipfile.ZipFile(archive).extractall(base / "custom_nodes" / NAME)
    with running(comfyui, python, base) as server:
        object_info = server.get("/object_info")
        ours = [name for name, info in object_info.items() if info["python_module"] == f"custom_nodes.{NAME}"]
        assert len(ours) == 12
        assert server.get("/workflow_templates")[NAME] == list(WORKFLOWS)
        assert any(
            each["info"]["node_pack"] == f"custom_nodes.{NAME}" for each in server.get("/global_subgraphs").values()
        )
        assert server.request(f"/extensions/{NAME}/docs/{ours[0]}.md").startswith(b"# ")
        workflow = json.loads(file_of(FIRST).read_text(encoding="utf-8"))
        prompt = to_prompt(workflow, object_info)
        assert server.picture(prompt).shape == (1024, 1024, 3)
