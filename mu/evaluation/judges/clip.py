"""Zero-shot judge: the concept whose texts are nearest to the image, in any CLIP that mu loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mu.core.config import filled
from mu.evaluation.judges import Seen
from mu.models import load_clip
from mu.models.clip import ClipModel
from mu.models.parameters import fingerprint, select

TEMPLATES = ("{}", "a picture of {}", "an image in {} style", "a {} image")
"""The texts of a concept of any kind. Their unit vectors are averaged, as in CLIP's own zero-shot classification."""
NOTHING = ("a thing", "anything", "something")
"""The texts of the answer that the image shows none of the concepts. "An image" or "a photo" would name a style."""


class ClipJudge:
    """Answers with the nearest concept, or "" if the texts `NOTHING` are nearer than all."""

    def __init__(self, model: ClipModel, name: str, templates: Sequence[str] = TEMPLATES):
        self.model, self.name, self.templates = model, name, tuple(templates)
        self._texts: dict[str, Tensor] = {}

    def known(self, concept: str) -> str:
        """Any concept that its text encoder can read."""
        self.model.check_concepts([concept])
        return concept

    def rivals(self, concept: str) -> list[str]:
        return []

    @torch.no_grad()
    def look(self, images: Tensor, among: Sequence[str]) -> Seen:
        features = self.model.encode_images(images.to(self.model.device))
        texts = torch.stack([self._text(name) for name in ("", *among)])
        nearest = (features @ texts.T).argmax(dim=1).tolist()
        return Seen([("", *among)[k] for k in nearest], features.cpu())

    @torch.no_grad()
    def _text(self, concept: str) -> Tensor:
        """The unit vector (d,) of ``concept``; of `NOTHING` for ""."""
        if concept not in self._texts:
            texts = [filled(template, concept) for template in self.templates] if concept else list(NOTHING)
            self._texts[concept] = F.normalize(self.model.encode_text(texts).mean(dim=0), dim=0)
        return self._texts[concept]

    def facts(self, among: Sequence[str]) -> dict[str, Any]:
        weights = fingerprint(self.model, select(self.model, "*"))
        return {"judge": self.name, "weights": weights, "texts": list(self.templates), "nothing": list(NOTHING)}


def open_clip_judge(model: str, device: torch.device | str) -> ClipJudge:
    """Raises `ModelError` if ``model``, a name as `mu.load` takes it, is no CLIP."""
    name = f"clip:{model}"
    other = "choose a judge of its own classes, like --judge classifier:FOLDER"
    return ClipJudge(load_clip(model, f"the judge {name}", "--judge clip:FOLDER", other, device=device), name)
