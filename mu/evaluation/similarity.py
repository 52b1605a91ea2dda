"""The similarity matrix of a few names and images (SLUG, arXiv 2407.11867)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from mu.core.charts import drawing, label, new_figure, png
from mu.core.files import atomic_path, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANGE = (0.1, 0.3)
"""Colour range, as published. It is widened to the first state's cosines if they exceed it, as in small models."""
SIZE, DPI = (8.0, 6.0), 100
"""Size of one matrix in inches, and pixels per inch."""


@dataclass(frozen=True)
class Similarity:
    """Cosines of ``names`` (rows) and ``images`` (columns): one matrix (n, m) for each state of the model.

    ``shown`` gives each image's class.
    """

    names: Sequence[str]
    shown: Sequence[str]
    images: Sequence[Image.Image]
    states: Mapping[str, Tensor]

    def write(self, path: Path) -> None:
        """Write the numbers: rows are names, columns images."""
        rows = {
            state: [[round(value, 6) for value in row] for row in found.tolist()]
            for state, found in self.states.items()
        }
        write_json(path, {"names": list(self.names), "pictures": list(self.shown), **rows})

    def draw(self, path: Path, only: Sequence[str] = (), size: tuple[float, float] = SIZE) -> None:
        """Draw all matrices, or ``only`` some states, side by side in one colour scale. Images are above columns."""
        with atomic_path(path) as partial:
            partial.write_bytes(png(self.figure(only, size), DPI))

    @drawing()
    def figure(self, only: Sequence[str] = (), size: tuple[float, float] = SIZE) -> Figure:
        """The figure that `draw` writes."""
        states = list(only) or list(self.states)
        values = np.stack([found.detach().cpu().float().numpy() for found in self.states.values()])
        low, high = min(RANGE[0], float(values[0].min())), max(RANGE[1], float(values[0].max()))
        figure = new_figure(size[0] * len(states), size[1])
        axes = figure.subplots(1, len(states), squeeze=False)[0]
        width = 1 / len(self.shown)
        for axis, state in zip(axes, states, strict=True):
            matrix = values[list(self.states).index(state)]
            painted = axis.imshow(matrix, vmin=low, vmax=high)
            axis.set_xticks(range(len(self.shown)), [*map(label, self.shown)], rotation=30, ha="right")
            axis.set_yticks(range(len(self.names)), [*map(label, self.names)])
            axis.set_xlabel(state)
            for (i, j), value in np.ndenumerate(matrix):
                dark = value < (low + high) / 2
                axis.text(
                    j,
                    i,
                    f"{round(float(value), 2) + 0.0:.2f}",
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                )
            for j, image in enumerate(self.images):
                above = axis.inset_axes((j * width, 1.02, width * 0.96, width * len(self.shown) / len(self.names)))
                above.imshow(image)
                above.set_axis_off()
        figure.colorbar(painted, ax=list(axes), shrink=0.7)
        return figure
