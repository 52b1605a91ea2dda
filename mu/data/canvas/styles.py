"""The styles: functions that paint layers, distinct in palette and texture.

All textures are coarse (period of 10 px or more), so that they survive an 8x autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mu.data.canvas.fields import SIZE, Array, Layers, X, Y, union

Colours = dict[str, Array]
Painter = Callable[[Layers, Colours, np.random.Generator], Array]
PAINTERS: dict[str, Painter] = {}
"""By style name: maps layers, the colour of each role and a generator to an image (64, 64, 3), about 0..1."""


def _style(paint: Painter) -> Painter:
    PAINTERS[paint.__name__.strip("_").replace("_", " ")] = paint
    return paint


def rgb(hue: float, saturation: float, value: float) -> Array:
    """Red, green and blue (3,) in 0..1; ``hue`` has period 1."""
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    return (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)


def coverage(distance: Array, softness: float = 1.0) -> Array:
    """Coverage (64, 64, 1) of a distance field, 0..1; its edge is ``softness`` pixels wide."""
    return np.clip(0.5 - distance / softness, 0, 1)[..., None]


def over(image: Array, colour: Array | np.floating, cover: Array) -> Array:
    """Blend ``colour`` over ``image`` (64, 64, channels) with opacity ``cover`` (64, 64, 1)."""
    return image + (colour - image) * cover


def smooth_noise(rng: np.random.Generator, cells: int) -> Array:
    """Smooth noise in -1..1 with ``cells`` bumps across the image."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    at = (np.arange(SIZE) + 0.5) / SIZE * cells
    low, t = at.astype(int), (at % 1).astype(np.float32)
    t = t * t * (3 - 2 * t)
    rows = grid[low] * (1 - t)[:, None] + grid[low + 1] * t[:, None]
    return rows[:, low] * (1 - t) + rows[:, low + 1] * t


def luminance(colour: Array) -> float:
    return float(colour @ np.array([0.3, 0.59, 0.11], dtype=np.float32))


@_style
def _photo(layers: Layers, colours: Colours, rng: np.random.Generator) -> Array:
    top, bottom = rgb(rng.uniform(), 0.25, rng.uniform(0.75, 0.95)), rgb(rng.uniform(), 0.3, rng.uniform(0.35, 0.6))
    image = top + (bottom - top) * (Y / SIZE)[..., None] ** 1.5
    light = (1.08 - 0.4 * (0.35 * X + 0.65 * Y) / SIZE)[..., None]
    shadow = np.pad(union(*(d for d, _ in layers)), ((3, 0), (2, 0)), mode="edge")[:SIZE, :SIZE]
    image = image * (1 - 0.35 * coverage(shadow, 8))
    for distance, role in layers:
        shade = light * (0.8 + 0.25 * np.clip(-distance / 6, 0, 1))[..., None]
        image = over(image, colours[role] * shade, coverage(distance))
    return image


@_style
def _neon(layers: Layers, colours: Colours, rng: np.random.Generator) -> Array:
    night = np.array([0.04, 0.02, 0.1], dtype=np.float32)
    image: Array = np.broadcast_to(night, (SIZE, SIZE, 3))
    hue = rng.uniform()
    for k, (distance, _) in enumerate(layers):
        tube = rgb(hue + 0.31 * k, 0.85, 1)
        image = over(image, night, coverage(distance))
        glow = np.exp(-np.abs(distance) / 3)[..., None]
        image = image + tube * glow * 0.75 + 0.5 * np.clip(1.3 - np.abs(distance), 0, 1)[..., None]
    return image


@_style
def _sketch(layers: Layers, colours: Colours, rng: np.random.Generator) -> Array:
    paper = rng.uniform(0.9, 0.98)
    image = np.full((SIZE, SIZE, 3), paper, dtype=np.float32)
    for distance, role in layers:
        tone = 0.45 + 0.5 * luminance(colours[role]) if role != "dark" else 0.2
        image = over(image, np.float32(tone * paper), coverage(distance))
        image = over(image, np.float32(0.1), np.clip(1.6 - np.abs(distance), 0, 1)[..., None])
    return image


@_style
def _pop_art(layers: Layers, colours: Colours, rng: np.random.Generator) -> Array:
    hue = rng.uniform()
    right, low = (X > SIZE / 2), (Y > SIZE / 2)
    quadrant = right * 1 + low * 2
    ground = np.stack([rgb(hue + 0.25 * q, 0.9, 1) for q in range(4)])
    figure = np.stack([rgb(hue + 0.25 * q + 0.5, 0.8, 0.95) for q in range(4)])
    image = ground[quadrant]
    for distance, role in layers:
        tone = np.float32(0.55 + 0.6 * luminance(colours[role])) if role != "dark" else np.float32(0)
        image = over(image, np.clip(figure[quadrant] * tone, 0, 1), coverage(distance))
        image = over(image, np.float32(0), np.clip(1.8 - np.abs(distance), 0, 1)[..., None])
    return image


@_style
def _watercolor(layers: Layers, colours: Colours, rng: np.random.Generator) -> Array:
    wash = rgb(rng.uniform(), 0.22, 1)
    paper = np.array([0.99, 0.97, 0.92], dtype=np.float32)
    image = over(np.broadcast_to(paper, (SIZE, SIZE, 3)), wash, (0.5 + 0.5 * smooth_noise(rng, 4))[..., None])
    wobble = 1.2 * smooth_noise(rng, 6)
    pigment = (0.78 + 0.16 * smooth_noise(rng, 5))[..., None]
    for distance, role in layers:
        image = over(image, 0.15 + 0.8 * colours[role], coverage(distance + wobble, 4.5) * pigment)
    return image


@_style
def _blueprint(layers: Layers, colours: Colours, rng: np.random.Generator) -> Array:
    ground = np.array([0.08, 0.24, 0.58], dtype=np.float32) * rng.uniform(0.9, 1.1)
    lines = np.minimum(np.abs((X + 8) % 16 - 8), np.abs((Y + 8) % 16 - 8))
    image = over(
        np.broadcast_to(ground, (SIZE, SIZE, 3)), np.float32(0.6), 0.45 * np.clip(1.5 - lines, 0, 1)[..., None]
    )
    for distance, role in layers:
        image = over(image, ground * (0.85 if role != "dark" else 2.2), coverage(distance) * 0.85)
        image = over(image, np.float32(0.95), np.clip(1.5 - np.abs(distance), 0, 1)[..., None])
    return image


@_style
def _vintage(layers: Layers, colours: Colours, rng: np.random.Generator) -> Array:
    grey = np.full((SIZE, SIZE, 1), rng.uniform(0.85, 1.0), dtype=np.float32)
    for distance, role in layers:
        tone = 0.18 + 0.55 * luminance(colours[role]) * (0.75 + 0.25 * np.clip(-distance / 6, 0, 1))[..., None]
        grey = over(grey, tone, coverage(distance, 1.5))
    sepia = grey * np.array([1.0, 0.8, 0.53], dtype=np.float32) + 0.03
    edge = np.hypot(X - SIZE / 2, Y - SIZE / 2) / (SIZE / 2)
    return sepia * np.clip(1.55 - 0.8 * edge**2, 0.15, 1)[..., None]


_HEAT_STOPS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
_HEAT = np.array([[0.02, 0.0, 0.2], [0.45, 0.0, 0.6], [0.9, 0.15, 0.25], [1.0, 0.65, 0.0], [1.0, 1.0, 0.75]])


@_style
def _thermal(layers: Layers, colours: Colours, rng: np.random.Generator) -> Array:
    heat = 0.16 + 0.06 * smooth_noise(rng, 3)
    for k, (distance, role) in enumerate(layers):
        level = 0.25 if role == "dark" else 0.52 + 0.28 * (k % 2) + 0.12 * luminance(colours[role])
        inside = level + 0.2 * np.clip(-distance / 8, 0, 1)
        heat = heat + (inside - heat) * coverage(distance, 2.0)[..., 0]
        heat = np.maximum(heat, 0.42 * np.exp(-np.abs(distance) / 5))
    return np.stack([np.interp(heat, _HEAT_STOPS, _HEAT[:, c]) for c in range(3)], axis=-1).astype(np.float32)


STYLES = tuple(PAINTERS)
