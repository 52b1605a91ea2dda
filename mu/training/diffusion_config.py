"""Settings of every method that erases concepts by shifting weights of a diffusion model; read without torch."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from mu.core.concept import Concept, ConceptList
from mu.core.config import BaseConfig, Devices
from mu.models.load_options import LoadingConfig


class DiffusionConfig(BaseConfig):
    """What is erased, from which model, and where that runs."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    model: str = "CompVis/stable-diffusion-v1-4"
    """The model: ``canvas``, a hub id, a diffusers folder, or a single CompVis .safetensors/.ckpt file."""
    concepts: ConceptList = Field([Concept("Van Gogh")], min_length=1)
    """What is erased, as words of a prompt; several go into one edit."""
    loading: LoadingConfig = LoadingConfig()
    """How a diffusion model is loaded, where its files do not say it."""
    devices: Devices = "auto"
    """GPU numbers (the first does the work), or cpu, mps, auto."""
