"""mu erases a concept from a pretrained text-to-image model or CLIP, retains the rest, and can restore it exactly.

>>> model = mu.load("canvas")
>>> edit = mu.erase(model, "neon style", method="spm")
>>> with edit.applied(model):
...     images = mu.generate(model, ["A star image in neon style."], seeds=[188])
>>> edit.save("neon.safetensors")

Importing this package does not import torch: the names below are resolved at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mu.algorithms import erase as erase
    from mu.diffusion.sampling import generate as generate
    from mu.edits.bank import Bank as Bank
    from mu.edits.difference import difference as difference
    from mu.edits.edit import Edit as Edit
    from mu.edits.files import open_edit as open_edit
    from mu.models import load as load

_HOMES = {
    "load": "mu.models",
    "erase": "mu.algorithms",
    "generate": "mu.diffusion.sampling",
    "open_edit": "mu.edits.files",
    "difference": "mu.edits.difference",
    "Edit": "mu.edits.edit",
    "Bank": "mu.edits.bank",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("mu-unlearning")
        except PackageNotFoundError:
            return "0+uninstalled"
    if name not in _HOMES:
        raise AttributeError(f"module 'mu' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
