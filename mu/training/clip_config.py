"""Settings of every method that erases concepts by training all weights of a CLIP. Does not import torch."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from mu.core.algorithm import Method
from mu.core.concept import Concept, ConceptList
from mu.core.config import BaseConfig, Devices
from mu.data.clip_sets import BothSets, check_sources
from mu.models.objectives import Objective

CANVAS_SETS: dict[str, Any] = {"forget": "canvas", "n_forget": 256, "retain": "canvas", "n_retain": 512}
"""The pairs that the presets for the embedded CLIP take."""


class ClipErasureConfig(BaseConfig):
    """Settings of all these methods. The defaults are those of the published comparison."""

    model: str = "open_clip:ViT-B-32/laion400m_e32"
    """The CLIP: ``canvas-clip``, ``open_clip:ARCH/TAG``, a hub id, a folder or a file."""
    concepts: ConceptList = Field([Concept("Elon Musk")], min_length=1)
    """Concepts to erase; several go into one edit."""
    batch_size: int = Field(32, ge=2, le=65_536)
    """Pairs of one step. The contrastive loss compares them with each other, so its value depends on this number."""
    devices: Devices = "auto"
    """GPU number, cpu, mps or auto."""
    seed: int = Field(0, ge=0)
    """Sets the order of the retain pairs, and the rendered images."""


class TrainConfig(BaseConfig):
    epochs: int = Field(10, ge=1)
    """Passes over the sets. More passes erase more, nearby concepts too."""
    lr: float = Field(1e-7, gt=0)
    """Initial learning rate of AdamW; it falls along half a cosine."""
    weight_decay: float = Field(0.1, ge=0)
    """Weight decay of tensors with two or more dimensions; biases, norms and the temperature have none."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints; a killed run loses at most this many."""


class TrainedConfig(ClipErasureConfig):
    train: TrainConfig = TrainConfig()
    """The optimisation."""


class AlternatingConfig(TrainedConfig):
    """Settings of methods that alternate between the forget set and the retain set."""

    data: BothSets = BothSets()
    """Sources of the forget and retain pairs."""
    forget_loss: Objective = "cosine"
    """Loss maximised on the forget pairs: the mean of 1 - cos, or (the ``_o`` variants) CLIP's contrastive loss."""


class ClipMethod(Method):
    """A method that reads pairs of images and captions."""

    @classmethod
    def check_files(cls, config: Any) -> None:
        check_sources(config.data, config.concepts)
