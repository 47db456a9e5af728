"""The renderer: the identities that it plans without OpenGL and, if there is OpenGL, what it draws."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import trimesh
from PIL import Image

from imprint.errors import ImprintError
from training.arguments import of
from training.data.items import read_photos
from training.data.settings import Render
from training.render import meshes, renderer, views


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three boxes as meshes, one of them in its own folder, and a photo."""
    root = tmp_path_factory.mktemp("render")
    (root / "meshes" / "more").mkdir(parents=True)
    for name in ("0", "1", "more/2"):
        box = trimesh.creation.box(extents=(1, 1.4, 0.8))
        box.visual.vertex_colors = [20, 200, 90, 255]
        box.export(root / "meshes" / f"{name}.glb")
    (root / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "photos" / "noise.png")
    return root


def test_identities_are_spread_over_the_meshes():
    found = [meshes.Mesh("a"), meshes.Mesh("b", procedural=True), meshes.Mesh("c")]
    identities = meshes.plan_identities(found, 50, seed=0)
    assert [identity.index for identity in identities] == list(range(50))
    assert Counter(identity.mesh.file for identity in identities) == {"a": 20, "b": 10, "c": 20}
    assert sorted(identity.variant for identity in identities if identity.mesh.file == "b") == list(range(10))
    assert identities == meshes.plan_identities(found, 50, seed=0) != meshes.plan_identities(found, 50, seed=1)


def test_meshes_and_textures_are_found_and_others_named(folder, tmp_path):
    assert [mesh.file for mesh in meshes.read_meshes(folder / "meshes")] == ["0.glb", "1.glb", "more/2.glb"]
    assert [photo.name for photo in read_photos([folder / "photos"], set())] == ["noise.png"]
    with pytest.raises(ImprintError, match=r"hold no \.jpg"):
        read_photos([folder / "photos"], {"noise.png"})
    (tmp_path / "index.json").write_text('[{"file": "a.glb"}]')
    with pytest.raises(ImprintError, match="not a list of meshes"):
        meshes.read_meshes(tmp_path)


def pictures(folder, identity, options) -> list[Image.Image]:
    parts = meshes.load_parts(folder / "meshes" / identity.mesh.file)
    return [view.picture for view in views.render_identity(identity, parts, options)]


def test_views_are_cut_outs_in_different_light_and_the_same_each_time(folder):
    options = of(Render, views=4, resolution=48, texture_files=tuple((folder / "photos").iterdir()))
    identity = meshes.Identity(0, meshes.Mesh("0.glb"), 0)
    try:
        views = pictures(folder, identity, options)
    except ImprintError as error:
        pytest.skip(f"no OpenGL through EGL here: {error}")
    for view in views:
        alpha = np.asarray(view)[..., 3]
        assert view.mode == "RGBA" and view.size == (48, 48)
        assert 0.05 < (alpha > 127).mean() < 0.95 and not alpha[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert len({tuple(np.asarray(view)[..., :3].max((0, 1))) for view in views}) == 4
    again = pictures(folder, identity, options)
    assert [view.tobytes() for view in again] == [view.tobytes() for view in views]
    options = dataclasses.replace(options, texture_files=())  # textures need no photos
    for index in range(6):
        other = meshes.Identity(index, meshes.Mesh("0.glb"), 1)
        assert len(pictures(folder, other, options)) == 4


def test_a_machine_without_opengl_is_one_sentence():
    with pytest.raises(ImprintError, match=r"--backend no-such-platform gave .* OpenGL 3\.3 was expected"):
        renderer.Renderer("no-such-platform", 32)
