"""Diffusion models, CLIP and vision-language models, one class for each kind. `loader` opens them."""

from importlib import import_module
from typing import Any

from mu.models.loader import load, load_clip, load_diffusion
from mu.models.places import EMBEDDED, WEIGHTS, is_single_file

__all__ = ["EMBEDDED", "WEIGHTS", "is_single_file", "load", "load_clip", "load_diffusion"]

FORMER = {"architectures": "mu.models.formats.architectures", "quiet_libraries": "mu.models.quiet:quiet_libraries"}
"""Names that were here before 0.1.0, and where they are now."""


def __getattr__(name: str) -> Any:
    if name not in FORMER:
        raise AttributeError(f"module 'mu.models' has no attribute {name!r}")
    module, _, attribute = FORMER[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found
