"""Charts by matplotlib in one style: the same bytes for the same numbers, and no text parsed as a formula.

The user's own matplotlib settings are ignored, and nothing is written to the user's home. No display is needed.
"""

from __future__ import annotations

import atexit
import io
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mu.core.errors import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_LABEL = 80
"""Characters of a label."""
CONFIG_FOLDER = "MPLCONFIGDIR"
LOOK = {
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a concept may be called $x$
    "svg.hashsalt": "mu",
    "svg.fonttype": "path",
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in this package's style inside the block; also a decorator, ``@drawing()``."""
    _keep_out_of_home()
    import matplotlib.style

    with matplotlib.style.context(["default", LOOK]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)  # no font for the script
        yield


def _keep_out_of_home() -> None:
    """Keep matplotlib's font cache in a temporary folder of this process, unless the user set another."""
    if "matplotlib" not in sys.modules and not os.environ.get(CONFIG_FOLDER):
        folder = tempfile.mkdtemp(prefix="mu-matplotlib-")
        os.environ[CONFIG_FOLDER] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, to be filled inside `drawing`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def label(text: str) -> str:
    """``text`` as a label of a chart: one short line, which a legend shows also if it begins with an underscore."""
    shown = one_line(text, LONGEST_LABEL)
    return f" {shown}" if shown.startswith("_") else shown


def svg(figure: Figure) -> bytes:
    """``figure`` as an SVG file without date and creator."""
    return _saved(figure, "svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))


def png(figure: Figure, dpi: int) -> bytes:
    """``figure`` as a PNG file with ``dpi`` pixels per inch."""
    return _saved(figure, "png", dpi=dpi, metadata={"Software": None})


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    with drawing():
        figure.savefig(content, format=kind, **options)
    return content.getvalue()
