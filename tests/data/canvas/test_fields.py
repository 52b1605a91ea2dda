"""Signed distance fields against the outline's points, measured one by one."""

from __future__ import annotations

import numpy as np
import pytest

from mu.data.canvas.fields import Array, X, Y, box, circle, ellipse, polygon, union

TRIANGLE = [(12.0, 10.0), (55.0, 24.0), (20.0, 52.0)]
CORNERS = [(14.0, 21.0), (50.0, 21.0), (50.0, 39.0), (14.0, 39.0)]
ROUND = np.linspace(0, 2 * np.pi, 20_000)
COARSE = slice(None, None, 4)


def along(corners: list[tuple[float, float]]) -> Array:
    """Points (n, 2) on the closed line through ``corners``, closely spaced."""
    share = np.linspace(0, 1, 4000)[:, None]
    return np.concatenate([np.array(p) * (1 - share) + np.array(q) * share for p, q in sides(corners)])


def left_of_all(corners: list[tuple[float, float]]) -> Array:
    """Which pixels stand on the inner side of each side: those inside a convex polygon."""
    return np.all([(qx - px) * (Y - py) > (qy - py) * (X - px) for (px, py), (qx, qy) in sides(corners)], axis=0)


def sides(corners: list[tuple[float, float]]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    return list(zip(corners, [*corners[1:], corners[0]], strict=True))


@pytest.mark.parametrize(
    ("field", "outline", "inside"),
    [
        (
            circle(X, Y, 30, 33, 18),
            np.stack([30 + 18 * np.cos(ROUND), 33 + 18 * np.sin(ROUND)], axis=1),
            np.hypot(X - 30, Y - 33) < 18,
        ),
        (box(X, Y, 32, 30, 18, 9), along(CORNERS), left_of_all(CORNERS)),
        (polygon(X, Y, TRIANGLE), along(TRIANGLE), left_of_all(TRIANGLE)),
        (polygon(X, Y, TRIANGLE[::-1]), along(TRIANGLE), left_of_all(TRIANGLE)),
    ],
    ids=["circle", "box", "polygon", "the other way round"],
)
def test_a_field_is_the_distance_to_its_outline_and_negative_inside(
    field: Array, outline: Array, inside: Array
) -> None:
    field, inside, x, y = (each[COARSE, COARSE].ravel() for each in (field, inside, X, Y))
    nearest = np.hypot(x[:, None] - outline[:, 0], y[:, None] - outline[:, 1]).min(axis=1)
    assert np.allclose(field, np.where(inside, -nearest, nearest), atol=0.02)
    assert 0.05 < inside.mean() < 0.5  # control: both sides are there


def test_an_ellipse_has_the_right_outline_and_unit_slope_there() -> None:
    cx, cy, a, b = 32, 31, 20, 11
    x, y = cx + a * np.cos(ROUND), cy + b * np.sin(ROUND)
    normal = np.stack([np.cos(ROUND) / a, np.sin(ROUND) / b])
    step = 0.05 * normal / np.hypot(*normal)
    for sign in (-1, 1):
        assert np.allclose(ellipse(x + sign * step[0], y + sign * step[1], cx, cy, a, b), sign * 0.05, atol=1e-3)
    assert np.allclose(ellipse(X, Y, cx, cy, a, a), circle(X, Y, cx, cy, a), atol=1e-2)


def test_a_union_is_inside_where_any_part_is() -> None:
    parts = [circle(X, Y, 20, 30, 12), box(X, Y, 40, 30, 6, 14), polygon(X, Y, TRIANGLE)]
    assert np.array_equal(union(*parts) < 0, np.any([part < 0 for part in parts], axis=0))
