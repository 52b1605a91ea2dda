"""Pictures and curves as text that a page can hold: data URIs, and inline SVG coloured by the page's own CSS."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PureWindowsPath

from markupsafe import Markup
from PIL import Image

from mu.core.errors import DataError

PIXEL_ART = 128
"""Pictures up to this size (pixels) are kept exactly and enlarged without smoothing."""
LARGEST = 512
"""Larger pictures are reduced to this size (pixels), so that the page stays light."""
BUCKETS = 160
"""Stretches of x that a curve is summarised in."""

Point = tuple[float, float]


# -- numbers -----------------------------------------------------------------------------------------------------------


def short(value: float, digits: int = 4, padded: bool = False) -> str:
    """``value`` with so many significant digits, as people write it: 0.2781, 12,400, 1e-4; ``padded`` keeps last zeros."""
    if not math.isfinite(value):
        return "not finite"
    text = f"{value:#.{digits}g}" if padded else f"{value:.{digits}g}"
    if 1000 <= abs(value) < 1e6:
        text = f"{value:,.0f}"
    elif "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "\N{MINUS SIGN}") if text.startswith("-") else text


# -- pictures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A picture inside the page. Without ``uri`` it is a gap: the file is not there or not readable."""

    alt: str
    uri: str = ""
    width: int = 1
    height: int = 1

    @property
    def pixelated(self) -> bool:
        return max(self.width, self.height) <= PIXEL_ART


def inside(folder: Path, name: str) -> Path:
    """The path of ``name`` in ``folder``; a name that leaves the folder, also by a link, is refused."""
    parts = PureWindowsPath(name)  # splits at both kinds of slash, and knows drives
    try:
        path = folder / name
        safe = not parts.anchor and ".." not in parts.parts and path.resolve().is_relative_to(folder.resolve())
    except (ValueError, OSError, RuntimeError):
        safe = False
    if not safe:
        raise DataError(f"the path {name!r} leaves the run folder {folder}: give paths relative to it, without '..'")
    return path


def picture(folder: Path, name: str, alt: str) -> Picture:
    """The picture file ``name`` of ``folder``: small ones exact to the pixel, large ones reduced."""
    path = inside(folder, name)
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as file:
            image = file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return Picture(alt)
    image.thumbnail((LARGEST, LARGEST))
    kind = "PNG" if max(image.size) <= PIXEL_ART else "JPEG"
    content = io.BytesIO()
    image.save(content, kind, quality=88)
    return Picture(alt, embedded(content.getvalue(), kind.lower()), *image.size)


def embedded(content: bytes, kind: str) -> str:
    """The bytes of a picture file (``png``, ``jpeg``) as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


# -- curves ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bucket:
    x: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class _Scale:
    """From values ``low .. high`` to places ``start .. end`` in the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            every = max(1, math.ceil((last - first + 1) / about))
            return [10.0**power for power in range(first, last + 1, every)]
        rough = (self.high - self.low) / about
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = min((m * magnitude for m in (1, 2, 5, 10)), key=lambda candidate: abs(candidate - rough))
        return [k * step for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 170, 46, 10, 8, 24


def line_chart(name: str, points: Iterable[Point]) -> Markup:
    """A curve of ``(x, y)`` as SVG: a line through the mean of each stretch of x, a band from its lowest to its highest.

    Logarithmic where all values are positive and four fifths of the line span more than two decades. Values that are not
    finite are left out; without any other there is no chart, and the answer is empty.
    """
    buckets = _summarise([(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)])
    if not buckets:
        return Markup("")
    low, high = min(b.low for b in buckets), max(b.high for b in buckets)
    means = sorted(b.mean for b in buckets)
    log = low > 0 and means[-1 - len(means) // 10] > 100 * means[len(means) // 10]
    xs = _Scale(*_widened(buckets[0].x, buckets[-1].x), _LEFT, _WIDTH - _RIGHT)
    ys = _Scale(*(low, high) if log else _widened(low, high), _HEIGHT - _BOTTOM, _TOP, log)

    def path(corners: Iterable[Point]) -> str:
        return " ".join(f"{xs(x):.1f},{ys(y):.1f}" for x, y in corners)

    shapes = [
        Markup('<line class="rule" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/><text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
            _LEFT, _WIDTH - _RIGHT, _LEFT - 6, ys(tick) + 3.5, short(tick, 3), y=ys(tick)
        )
        for tick in ys.ticks(4)
    ]  # fmt: skip
    shapes += [
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(xs(tick), _HEIGHT - 6, short(tick, 4))
        for tick in xs.ticks(4)
    ]
    band = [(b.x, b.high) for b in buckets] + [(b.x, b.low) for b in reversed(buckets)]
    shapes.append(Markup('<polygon class="band" points="{}"/>').format(path(band)))
    shapes.append(Markup('<polyline class="line" points="{}"/>').format(path((b.x, b.mean) for b in buckets)))
    shapes.append(Markup('<circle class="dot" r="3" cx="{:.1f}" cy="{:.1f}"/>').format(xs(buckets[-1].x), ys(buckets[-1].mean)))
    told = f"{name}: from {short(buckets[0].mean)} to {short(buckets[-1].mean)}{', logarithmic scale' if log else ''}"
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, told, Markup("").join(shapes)
    )


def _summarise(points: Sequence[Point]) -> list[_Bucket]:
    if not points:
        return []
    points = sorted(points)
    start, width = points[0][0], (points[-1][0] - points[0][0]) or 1.0
    buckets = []
    for _, group in groupby(points, key=lambda p: min(int((p[0] - start) / width * BUCKETS), BUCKETS - 1)):
        members = list(group)
        values = [y for _, y in members]
        buckets.append(_Bucket(sum(x for x, _ in members) / len(members), sum(values) / len(values), min(values), max(values)))
    return buckets


def _widened(low: float, high: float) -> Point:
    """The range itself, or a range around it where it is too narrow to draw."""
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    room = abs(low) / 10 or 1.0
    return low - room, high + room
