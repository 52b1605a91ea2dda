"""Settings of a search that calibrates itself on the model in front of it. Does not import torch."""

from __future__ import annotations

from pydantic import Field

from mu.core.config import MOST, BaseConfig


class CalibrateConfig(BaseConfig):
    """Whether and how the model itself decides what is trained, on what, and how long (`mu.training.calibration`)."""

    on: bool = False
    """Ask the model for the words around the concept. Phrasings, anchors and what is retained then follow from them,
    and the search ends when its probe finds the concept gone."""
    retain: list[str] = []
    """Words to retain, in addition to those that the model itself shows to be near the concept."""
    clip: str = ""
    """A CLIP, by the names that ``--model`` takes, that looks at the probe's images too: an image shows the concept if
    its text is nearest there, or its image in latents. Without one, only latents are compared."""
    left: float = Field(0.1, lt=1)
    """Share of the concept in the probe's images below which it counts as gone: 1 in the frozen model, 0 where a word
    of the same kind might stand. A lower value erases more and harms more."""
    shown: float = Field(0.0, ge=0, le=1)
    """Share of the probe's images that may still show the concept: nearest to the frozen model's image of it, or seen
    there by a CLIP."""
    moved: float = Field(0.15, gt=0)
    """Squared change of images of what should stay, as a share of what tells the concept from words of its kind. An
    edit that moves more is not called mild, and the search says so."""
    rate: float = Field(2e-3, gt=0)
    """Learning rate to begin with, as a share of the root mean square of the trained tensors. It rises by half, up to
    four times, while the concept does not give way. It is ten times as high where only keys and values are trained,
    whose steps are short where kept prompts are long."""
    weight: float = Field(3.0, ge=0)
    """Weight of the loss that keeps predictions for the words around the concept, beside the method's own loss."""
    every: int = Field(20, ge=1, le=MOST)
    """Optimiser steps between two readings of the probe."""
