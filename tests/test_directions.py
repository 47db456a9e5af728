"""The light's direction in words and degrees."""

import math

import pytest

from imprint.directions import CLEAR, DIRECTIONS, light_direction
from imprint.errors import ImprintError


def test_words_are_sides_as_the_camera_sees_them():
    assert light_direction("auto") is None
    x, y, z = light_direction("left")
    assert x < -0.5 and y > 0.4 and abs(z) < 1e-9
    x, y, z = light_direction("Front-Right")
    assert x > 0.3 and y > 0.4 and z > 0.3
    assert light_direction("behind")[2] < -0.5
    assert light_direction("behind_right") == light_direction(" behind  right ") == light_direction("behind right")
    assert light_direction("above") == pytest.approx((0, CLEAR, 0), abs=1e-9)
    for word in DIRECTIONS[1:]:
        assert math.hypot(*light_direction(word)) == pytest.approx(CLEAR)


@pytest.mark.parametrize("same", ("270", 270, 270.0, "270,40", [270, 40], "-90", 630))
def test_degrees_are_the_same_however_they_are_said(same):
    assert light_direction(same) == pytest.approx(light_direction("left"))


@pytest.mark.parametrize(
    "wrong", ("", "up", 10**400, b"90", "nan", "1,2,3", "10,95", "10,-1", None, True, [], [1, True], {"left": 1})
)
def test_what_is_no_direction_gets_a_sentence(wrong):
    with pytest.raises(ImprintError, match="light_from is .* such as 270,30"):
        light_direction(wrong)
