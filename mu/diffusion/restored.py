"""How far a restored concept's images still are from the base's, because of the edits that stay on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mu.core.errors import quoted
from mu.data.prompt_lists import phrasings
from mu.diffusion.sampling import generate
from mu.edits.bank import Bank
from mu.models.diffusion import DiffusionModel

STEPS, GUIDANCE, SEED = 20, 4.0, 188


@dataclass(frozen=True)
class Distance:
    """Over the images of ``prompts``: the mean and the largest of each image's mean difference, in 1/255."""

    concept: str
    mean: float
    largest: float
    worst: str
    """The prompt with the largest one."""
    prompts: int

    def __str__(self) -> str:
        if not self.largest:
            return f"{quoted(self.concept)} is as in the base model: {self.prompts} sentences with it give equal images"
        return (
            f"{quoted(self.concept)}: in {self.prompts} sentences with it, images differ from the base model's by "
            f"{self.mean:.2f}/255 on average and {self.largest:.2f}/255 at most ({quoted(self.worst)}), because of "
            "the edits that are on"
        )


def left_over(bank: Bank, concept: str, prompts: Sequence[str] = ()) -> Distance:
    """The distance that the bank's edits which are on leave for ``concept``; two sets of images are made.

    The default ``prompts`` are the phrasings of its kind that no preset trains on or protects, one image each.
    """
    model = bank.model
    assert isinstance(model, DiffusionModel), "only diffusion models make images"
    texts = list(prompts) or [text for text in phrasings(concept) if model.fits(text)] or [concept]
    base = _images(model, texts)
    with bank.applied():
        edited = _images(model, texts)
    each = ((edited - base).abs().flatten(1).mean(dim=1) * 255).tolist()
    worst = max(range(len(each)), key=each.__getitem__)
    return Distance(concept, sum(each) / len(each), each[worst], texts[worst], len(each))


def _images(model: DiffusionModel, texts: Sequence[str]) -> Tensor:
    return generate(model, texts, [SEED] * len(texts), steps=STEPS, guidance=GUIDANCE)
