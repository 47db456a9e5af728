"""The renderer: what it plans without OpenGL, and, where there is OpenGL, what it draws."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from training import render
from training.shards import read_shards


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Ten boxes as meshes, and a photo."""
    trimesh = pytest.importorskip("trimesh")
    folder = tmp_path_factory.mktemp("render")
    for name in ("meshes", "photos"):
        (folder / name).mkdir()
    for index in range(10):
        box = trimesh.creation.box(extents=(1, 1 + index / 10, 0.8))
        box.visual.vertex_colors = [20 * index, 200, 90, 255]
        box.export(folder / "meshes" / f"{index}.glb")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photos" / "noise.png")
    return folder


def words(inputs, output, *more):
    places = ["--meshes", str(inputs / "meshes"), "--photos", str(inputs / "photos"), "--output", str(output)]
    sizes = ["--identities", "20", "--views", "2", "--resolution", "32", "--shard-objects", "10", "--workers", "1"]
    return [*places, *sizes, "--held-out", "0.3", *more]


def test_the_plan_splits_by_mesh(inputs, tmp_path):
    options = render.build_parser().parse_args(words(inputs, tmp_path))
    shards, resolved = render.resolve(options)
    assert resolved["mesh_files"] == 10 and resolved["photo_files"] == 1
    meshes = {"train": set(), "held-out": set()}
    for path, identities in shards:
        meshes[path.parent.name] |= {identity.mesh.file for identity in identities}
    assert meshes["train"] and meshes["held-out"] and not meshes["train"] & meshes["held-out"]
    assert sorted(identity.index for _, identities in shards for identity in identities) == list(range(20))


def test_a_dry_run_writes_nothing(inputs, tmp_path, capsys):
    render.main(words(inputs, tmp_path / "out", "--dry-run"))
    assert json.loads(capsys.readouterr().out)["identities"] == 20 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("option", "message"), [("--meshes", "holds no .glb files"), ("--photos", "hold no .jpg")])
def test_an_empty_folder_is_one_sentence(inputs, tmp_path, capsys, option, message):
    command = words(inputs, tmp_path / "out")
    command[command.index(option) + 1] = str(tmp_path)
    with pytest.raises(SystemExit) as left:
        render.main(command)
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_views_are_cut_outs_and_a_second_run_adds_none(inputs, tmp_path, capsys):
    try:
        render.Renderer("egl", 32)
    except Exception as error:  # each platform's loader fails in its own way
        pytest.skip(f"no OpenGL through EGL here: {error}")
    render.main(words(inputs, tmp_path / "out"))
    read = [entry for split in ("train", "held-out") for entry in read_shards(tmp_path / "out" / split)]
    assert len(read) == 40 and len({record.object for record, _, _ in read}) == 20
    for record, picture, _ in read:
        alpha = np.asarray(picture)[..., 3]
        assert picture.mode == "RGBA" and picture.size == (32, 32) and record.frame in (0, 1)
        assert 0.05 < (alpha > 127).mean() < 0.95 and not alpha[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.tar")}
    capsys.readouterr()
    render.main(words(inputs, tmp_path / "out"))
    assert "0 identities rendered" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
