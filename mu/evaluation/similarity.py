"""The similarity matrix: which of a few names does each of a few images go with? (SLUG, arXiv 2407.11867)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from mu.core.charts import drawing, new_figure, png
from mu.core.files import atomic_path, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANGE = (0.1, 0.3)
"""Of the colours, as published. Where the first state's cosines go beyond, as those of small models do, it is widened to them."""
SIZE, DPI = (8.0, 6.0), 100
"""Of one matrix: inches, and pixels in an inch."""


@dataclass(frozen=True)
class Similarity:
    """Cosines of ``names`` (rows) and ``images`` (columns, each of the class in ``shown``), one matrix (n, m) a state of the model."""

    names: Sequence[str]
    shown: Sequence[str]
    images: Sequence[Image.Image]
    states: Mapping[str, Tensor]

    def write(self, path: Path) -> None:
        """The numbers: rows are names, columns images."""
        rows = {state: [[round(value, 6) for value in row] for row in found.tolist()] for state, found in self.states.items()}
        write_json(path, {"names": list(self.names), "pictures": list(self.shown), **rows})

    def draw(self, path: Path, only: Sequence[str] = (), size: tuple[float, float] = SIZE) -> None:
        """The matrices side by side, or ``only`` some states, in one scale of colours; each image stands above its column."""
        with atomic_path(path) as partial:
            partial.write_bytes(png(self.figure(only, size), DPI))

    @drawing()
    def figure(self, only: Sequence[str] = (), size: tuple[float, float] = SIZE) -> Figure:
        """What `draw` writes."""
        states = list(only) or list(self.states)
        values = np.stack([found.detach().cpu().float().numpy() for found in self.states.values()])
        low, high = min(RANGE[0], float(values[0].min())), max(RANGE[1], float(values[0].max()))
        figure = new_figure(size[0] * len(states), size[1])
        axes = figure.subplots(1, len(states), squeeze=False)[0]
        width = 1 / len(self.shown)
        for axis, state in zip(axes, states, strict=True):
            matrix = values[list(self.states).index(state)]
            painted = axis.imshow(matrix, vmin=low, vmax=high)
            axis.set_xticks(range(len(self.shown)), self.shown, rotation=30, ha="right")
            axis.set_yticks(range(len(self.names)), self.names)
            axis.set_xlabel(state)
            for (i, j), value in np.ndenumerate(matrix):
                dark = value < (low + high) / 2
                axis.text(
                    j, i, f"{round(float(value), 2) + 0.0:.2f}", ha="center", va="center", color="white" if dark else "black"
                )
            for j, image in enumerate(self.images):
                above = axis.inset_axes((j * width, 1.02, width * 0.96, width * len(self.shown) / len(self.names)))
                above.imshow(image)
                above.set_axis_off()
        figure.colorbar(painted, ax=list(axes), shrink=0.7)
        return figure
