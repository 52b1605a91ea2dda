"""Diffusion models behind one interface, `base`. The file of a family holds what differs."""

from mu.models.diffusion.base import DiffusionModel, Role
from mu.models.diffusion.border import face
from mu.models.diffusion.conditioning import Conditioning
from mu.models.diffusion.noise import NoiseLevel

__all__ = ["Conditioning", "DiffusionModel", "NoiseLevel", "Role", "face"]
