"""Turn settings into training inputs: a concept's prompts, the prompts its delta protects, and its images as
latents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain

from mu.algorithms.separable_concept_erasure.configs import ConceptIrrelevantErasureConfig, ProtectConfig
from mu.core.concept import folded
from mu.core.config import filled
from mu.data.pairs import open_pairs
from mu.data.prompt_lists import KEPT, entries, everyday
from mu.diffusion.noised_images import ConceptImages
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.training.calibration import Calibration

SENTENCES = 4096
"""Sentences with other words that a gate is closed to, at most: all of eleven words, or some of each of more."""


class SeparableConceptErasureDataHandler:
    """The prompts of each concept; every text is encoded once."""

    def __init__(self, config: ConceptIrrelevantErasureConfig, model: DiffusionModel):
        self.config, self.model = config, model
        self._kept: dict[str, Conditioning] = {}
        self._images: dict[str, ConceptImages] = {}
        self.calibrations: dict[str, Calibration] = {}
        """By concept, in a calibrated search."""
        self.restorable: Sequence[str] = ()
        """Concepts of a bank, which may be restored while the new ones stay erased."""

    def encoded(self, text: str) -> Conditioning:
        if text not in self._kept:
            self._kept[text] = self.model.encode([text])
        return self._kept[text]

    def prompts(self, concept: str, held_out: bool = False) -> list[tuple[str, str]]:
        """The pairs (prompt, anchor), one for each template."""
        settings = self.config.prompt
        if concept in self.calibrations:
            return self.calibrations[concept].pairs()
        templates = settings.held_out if held_out else settings.templates
        return [
            (
                filled(template, concept),
                filled(template, settings.anchor) if settings.template_anchor else settings.anchor,
            )
            for template in templates
        ]

    def exact(self, concept: str, protect: ProtectConfig) -> list[str]:
        """Prompts that ``concept``'s delta must not change: "", the anchor, the given prompts, the other concepts."""
        anchor = [] if self.config.prompt.template_anchor else [self.config.prompt.anchor]
        erased = self.config.concepts if protect.erased == "exactly" else []
        others = [filled(template, other) for other in erased if other != concept for template in protect.templates]
        return list(dict.fromkeys(["", *anchor, *protect.prompts, *others]))

    def others(self, concept: str, protect: ProtectConfig) -> dict[str, list[str]]:
        """Prompts of each word to protect while capacity lasts.

        These are the words of ``protect.others``. If ``protect.erased`` is ``nearly``, the other erased concepts come
        first. A word whose words contain an erased concept's, or are contained in them, is skipped.
        """
        exactly = protect.erased == "exactly"
        own = [words_of(each) for each in (self.config.concepts if exactly else [concept])]
        named = protect.others if exactly else dict.fromkeys([*self.config.concepts, *protect.others])
        if concept in self.calibrations:
            around = self.calibrations[concept].around
            named = dict.fromkeys([*named, *around.peers, *around.partners])
        words = [word for word in named if not any(words_of(word) <= each or each <= words_of(word) for each in own)]
        return {word: [filled(template, word) for template in protect.templates] for word in words}

    def sentences(self, concept: str) -> list[str]:
        """Everyday sentences with the words of the other erased concepts, if ``protect.sentences`` has a weight."""
        protect = getattr(self.config, "protect", None)
        return self.restored(concept) if protect and protect.sentences else []

    def restored(self, concept: str) -> list[str]:
        """Everyday sentences with the words of the other erased concepts and of a bank's, without ``concept``."""
        others = [other for other in dict.fromkeys([*self.config.concepts, *self.restorable]) if other != concept]
        return self._without(concept, (text for other in others for text in sentences_with(other)))

    def unasked(self, concept: str) -> list[str]:
        """Prompts that do not ask for ``concept`` ("": for any): what should stay, and some of `restored`."""
        calibrated, restored = self.calibrations.get(concept), self.restored(concept)
        kept = list(calibrated.around.kept if calibrated else everyday()[:KEPT])
        if protect := getattr(self.config, "protect", None):
            kept += [*self.exact(concept, protect), *chain(*self.others(concept, protect).values())]
        return ["", *self._without(concept, kept), *restored[:: 1 + len(restored) // SENTENCES]]

    def _without(self, concept: str, texts: Iterable[str]) -> list[str]:
        own = words_of(concept)
        return [text for text in texts if not (own and own <= words_of(text)) and self.model.fits(text)]

    def images(self, concept: str) -> ConceptImages:
        """Generated images of the concept's templates in turn, or those in ``data.folder``; at most ``data.images``."""
        if concept not in self._images:
            data, folder = self.config.data, self.config.data.folder_of(concept)
            self._images[concept] = ConceptImages(
                self.model,
                [prompt for prompt, _ in self.prompts(concept)],
                [image_seed(self.config.seed, k) for k in range(data.images)],
                steps=data.steps,
                guidance=data.guidance,
                own=open_pairs(folder, caption=concept, limit=data.images) if folder else (),
            )
        return self._images[concept]


def sentences_with(word: str) -> list[str]:
    """Sentences in which ``word`` may be a style, an object or a name: what people type once it is restored."""
    carriers = ("{} in # style", "# {}", "{}, #", "a # of {}")
    texts = [filled(carriers[k % len(carriers)], prompt) for k, prompt in enumerate(everyday())]
    texts += [filled(carrier, name) for name in entries("objects") for carrier in ("a # {}", "# style {}")]
    return [text.replace("#", word) for text in [*texts, "#", "# style", "a #", "the #", "a picture of #"]]


def words_of(text: str) -> set[str]:
    return set(re.findall(r"\w+", folded(text)))


def image_seed(seed: int, k: int) -> int:
    """The seed of the k-th image. CPU generators use the last 32 bits of a seed, so those must hold both numbers."""
    return (seed * 1_000_003 + k) % 2**32
