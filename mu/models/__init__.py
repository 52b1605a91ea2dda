"""Diffusion models, CLIP and vision-language models, one class for each kind. `loader` opens them."""

from mu.models.loader import load, load_diffusion
from mu.models.places import EMBEDDED, WEIGHTS, is_single_file

__all__ = ["EMBEDDED", "WEIGHTS", "is_single_file", "load", "load_diffusion"]
