"""The objects, which differ only in silhouette."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mu.data.canvas.fields import Array, Layers, box, circle, ellipse, polygon, union

Shape = Callable[[Array, Array], Layers]
SHAPES: dict[str, Shape] = {}
"""By object name: maps pixels x and y (64, 64) to layers, in a frame the object spans from about -20 to 20."""


def _shape(draw: Shape) -> Shape:
    SHAPES[draw.__name__.strip("_")] = draw
    return draw


@_shape
def _star(x: Array, y: Array) -> Layers:
    angle = np.pi * np.arange(10) / 5
    radius = np.where(np.arange(10) % 2 == 0, 20.0, 8.0)
    return [(polygon(x, y, list(zip(radius * np.sin(angle), -radius * np.cos(angle), strict=True))), "main")]


@_shape
def _heart(x: Array, y: Array) -> Layers:
    turned_x, turned_y = (x + y) * 0.7071, (y - x) * 0.7071
    lobes = union(circle(x, y, -8, -6, 11.3), circle(x, y, 8, -6, 11.3))
    return [(union(lobes, box(turned_x, turned_y, 1.4, 1.4, 11.3, 11.3)), "main")]


@_shape
def _ring(x: Array, y: Array) -> Layers:
    return [(np.abs(circle(x, y, 0, 0, 14.5)) - 5, "main")]


@_shape
def _cross(x: Array, y: Array) -> Layers:
    return [(union(box(x, y, 0, 0, 19, 6), box(x, y, 0, 0, 6, 19)), "main")]


@_shape
def _moon(x: Array, y: Array) -> Layers:
    return [(np.maximum(circle(x, y, 0, 0, 19), -circle(x, y, 10, -3, 15)), "main")]


@_shape
def _house(x: Array, y: Array) -> Layers:
    roof = polygon(x, y, [(-21, -2), (0, -20), (21, -2)])
    return [(box(x, y, 0, 8, 15, 11), "main"), (roof, "accent"), (box(x, y, 0, 12, 4, 7), "dark")]


@_shape
def _tree(x: Array, y: Array) -> Layers:
    crown = union(polygon(x, y, [(-12, -5), (0, -21), (12, -5)]), polygon(x, y, [(-17, 11), (0, -12), (17, 11)]))
    return [(box(x, y, 0, 15, 4, 6), "accent"), (crown, "main")]


@_shape
def _fish(x: Array, y: Array) -> Layers:
    body = ellipse(x, y, -4, 0, 16, 10.5)
    return [(union(body, polygon(x, y, [(7, 0), (21, -11), (21, 11)])), "main"), (circle(x, y, -12, -2, 2.6), "dark")]


OBJECTS = tuple(SHAPES)
