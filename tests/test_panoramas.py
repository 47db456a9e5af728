"""The light of panoramas: which light counts as the strongest, where a camera sees it, and its effect on an object."""

from __future__ import annotations

import dataclasses
import math
import sys

import numpy as np
import pytest

from imprint.errors import ImprintError
from training.arguments import of
from training.data.settings import Render
from training.render import cameras, light, meshes, panoramas, views

LAMP = 4  # pixels across


def room(azimuth: float, elevation: float, strength: float = 400.0, walls: float = 0.2) -> np.ndarray:
    """(64, 128, 3): grey walls, and a square orange lamp in a direction given in degrees."""
    radiance = np.full((64, 128, 3), walls, np.float32)
    row, column = round((0.5 - elevation / 180) * 64), round((azimuth / 360 + 0.5) * 128)
    radiance[row - LAMP // 2 : row + LAMP // 2, column - LAMP // 2 : column + LAMP // 2] = strength * np.array(
        [1, 0.6, 0.3]
    )
    return radiance


def write(path, radiance):
    import cv2

    cv2.imwrite(str(path), radiance[..., ::-1])
    return path


def test_no_more_than_a_few_panoramas_stay_in_the_memory(tmp_path):
    for number in range(panoramas.PANORAMAS_KEPT + 2):
        panoramas.read_panorama(write(tmp_path / f"{number}.hdr", room(0, 30)))
    assert panoramas.read_panorama.cache_info().currsize == panoramas.PANORAMAS_KEPT


def test_the_strongest_light_is_found_and_no_light_is_lost():
    panorama = panoramas.take_apart(room(60, 30))
    assert np.degrees(np.arccos(panorama.key_direction @ cameras.direction(math.radians(60), math.radians(30)))) < 3
    assert panorama.key_light[1] / panorama.key_light[0] == pytest.approx(0.6, rel=0.05)
    solid = panoramas.solid_angles((64, 128))
    assert solid.sum() == pytest.approx(4 * math.pi)
    # What a matt surface that faces the lamp returns: the whole panorama's light by Lambert's law.
    facing = (panoramas.directions((64, 128)) @ panorama.key_direction).clip(0)
    whole = (panorama.radiance * (solid * facing)[..., None]).sum((0, 1)) / math.pi
    matt = panorama.levels[-1]
    nearest = (panoramas.directions(matt.shape[:2]) @ panorama.key_direction).argmax()
    np.testing.assert_allclose(panorama.key_light + matt.reshape(-1, 3)[nearest], whole, rtol=0.1)


def test_under_an_even_sky_there_is_hardly_a_strongest_light():
    panorama = panoramas.take_apart(np.full((64, 128, 3), 0.5, np.float32))
    assert panorama.key_light.max() == 0
    for level in panorama.levels:
        np.testing.assert_allclose(level, 0.5, rtol=1e-5)


@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_a_camera_sees_the_lamp_where_its_light_comes_from(tmp_path, turn):
    path = write(tmp_path / "room.hdr", room(60, 30))
    panorama = panoramas.read_panorama(path)
    np.testing.assert_allclose(panorama.radiance, room(60, 30), rtol=0.02)  # the file keeps eight bits
    key = light.turned(panorama.key_direction, turn)
    picture = panoramas.look(panorama, cameras.look_at(-key), turn, math.radians(60), 65) @ panoramas.LUMINANCE
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert abs(row - 32) <= 4 and abs(column - 32) <= 4
    behind = panoramas.look(panorama, cameras.look_at(key), turn, math.radians(60), 65)
    assert behind.max() < 0.3


@pytest.mark.parametrize(
    ("azimuth", "elevation", "lean", "rise"),
    [(90, 45, -1, 0), (-90, 45, 1, 0), (0, 45, 0, 1), (180, 45, 0, -1), (0, 88, 0, 0)],
)
def test_shadows_fall_away_from_the_light(azimuth, elevation, lean, rise):
    """The camera is in front of the object, 30 degrees up; light is from the right, left, front, back and above."""
    rotation = cameras.look_at(cameras.direction(0, math.radians(30)))
    direction = cameras.direction(math.radians(azimuth), math.radians(elevation))
    found = panoramas.cast_shadow(direction, np.ones(3), np.ones(3) * 0.2, rotation)
    assert found[0] == pytest.approx(lean / math.cos(math.radians(30)), abs=0.07)
    assert np.sign(round(found[1] - math.copysign(0.06, found[1]), 2)) == rise
    assert 0.3 < found[2] <= 0.8
    assert panoramas.cast_shadow(direction, np.zeros(3), np.ones(3), rotation)[2] == pytest.approx(0.12)


def test_an_object_is_lit_from_where_the_lamp_is(tmp_path):
    """A white ball in rooms with a lamp: its bright side faces the lamp, and its outline is the original view's."""
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=3)
    ball.visual.vertex_colors = [230, 230, 230, 255]
    ball.export(tmp_path / "ball.glb")
    parts = meshes.load_parts(tmp_path / "ball.glb")
    for part in parts:
        part.vertices[:, 8:] = [0.9, 0.85, 0.2]  # not grey, so that its own colour is kept
    files = [write(tmp_path / f"{azimuth}.hdr", room(azimuth, 20)) for azimuth in (0, 90, 200)]
    options = of(Render, views=3, relit=3, resolution=64, panorama_files=tuple(files))
    checked = 0
    for index in range(6):
        identity = meshes.Identity(index, meshes.Mesh("ball.glb"), 0)
        try:
            made = views.render_identity(identity, parts, options)
        except ImprintError as error:
            pytest.skip(f"no OpenGL through EGL here: {error}")
        assert [view.number for view in made] == [0, 0, 1, 1, 2, 2]
        for own, lit in zip(made[::2], made[1::2]):
            assert own.scene is None and own.shadow is None and lit.scene.size == (48, 48)
            one, other = (np.asarray(view.picture, float) / 255 for view in (own, lit))
            np.testing.assert_array_equal(one[..., 3], other[..., 3])
            # The terminator's side, compared with where the shadow does not fall: light from the right throws it left.
            bright = other[..., :3].mean(-1) * (other[..., 3] > 0.9)
            x = np.arange(64) - np.average(np.arange(64), weights=(other[..., 3] > 0.9).sum(0))
            side = (bright.sum(0) * x).sum() / bright.sum()
            if abs(lit.shadow[0]) > 0.8:
                assert np.sign(side) == -np.sign(lit.shadow[0])
                checked += 1
    assert checked >= 4
    again = views.render_identity(meshes.Identity(5, meshes.Mesh("ball.glb"), 0), parts, options)
    assert [view.picture.tobytes() for view in again] == [view.picture.tobytes() for view in made]
    options = dataclasses.replace(options, relit=0)
    plain = views.render_identity(meshes.Identity(5, meshes.Mesh("ball.glb"), 0), parts, options)
    assert [view.picture.tobytes() for view in plain] == [view.picture.tobytes() for view in made[::2]]


def test_openexr_is_read_as_radiance_is(tmp_path):
    mitsuba = pytest.importorskip("mitsuba")
    if mitsuba.variant() is None:
        mitsuba.set_variant("scalar_rgb")
    radiance = room(90, 20)
    mitsuba.Bitmap(radiance).write(str(tmp_path / "a.exr"))
    found = panoramas.read_radiance(tmp_path / "a.exr")
    assert found.dtype == np.float32 and found.max() > 2
    np.testing.assert_allclose(found, radiance, rtol=2e-3, atol=1e-3)  # half floats
    (tmp_path / "b.exr").write_text("no picture")
    with pytest.raises(ImprintError, match=r"b\.exr is no picture; a panorama is"):
        panoramas.read_radiance(tmp_path / "b.exr")


def test_openexr_without_its_reader_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mitsuba", None)
    with pytest.raises(
        ImprintError, match=r"a\.exr, unless you convert it to \.hdr, needs the package mitsuba .*\[light\]"
    ):
        panoramas.read_panorama(tmp_path / "a.exr")


@pytest.mark.parametrize("kind", ["text", "png", "square"])
def test_what_is_no_panorama_is_one_sentence(tmp_path, kind):
    path = tmp_path / "a.hdr"
    if kind == "text":
        path.write_text("no picture")
    elif kind == "png":
        write(tmp_path / "a.png", np.zeros((32, 64, 3), np.uint8)).rename(path)
    else:
        write(path, np.zeros((64, 64, 3), np.float32))
    with pytest.raises(
        ImprintError, match=r"a\.hdr is .*; a panorama is a \.hdr picture of true intensities, twice as wide"
    ):
        panoramas.read_panorama(path)
