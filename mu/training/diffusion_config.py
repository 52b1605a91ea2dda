"""Settings of every method that erases concepts by changing weights of a diffusion model. Does not import torch."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from mu.core.concept import Concept, ConceptList
from mu.core.config import BaseConfig, Devices
from mu.models.load_options import LoadingConfig


class DiffusionConfig(BaseConfig):
    """The concepts to erase, the model and the device."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    model: str = "CompVis/stable-diffusion-v1-4"
    """The model: ``canvas``, a hub id, a diffusers folder, or a single CompVis .safetensors/.ckpt file."""
    concepts: ConceptList = Field([Concept("Van Gogh")], min_length=1)
    """Concepts to erase, as words of a prompt; several go into one edit."""
    loading: LoadingConfig = LoadingConfig()
    """How to load a diffusion model whose files do not state it."""
    devices: Devices = "auto"
    """GPU numbers (the first does the work), or cpu, mps, auto."""
