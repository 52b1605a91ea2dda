"""From settings to what training sees: a concept's prompts, what is protected from its shift, and its pictures as latents."""

from __future__ import annotations

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from mu.algorithms.separable_concept_erasure.configs import ConceptIrrelevantErasureConfig, ProtectConfig
from mu.data.pairs import open_pairs
from mu.diffusion.sampling import PIXELS_AT_ONCE, generate_latents
from mu.models.diffusion import Conditioning, DiffusionModel


class SeparableConceptErasureDataHandler:
    """The prompts of each concept; every text is encoded once."""

    def __init__(self, config: ConceptIrrelevantErasureConfig, model: DiffusionModel):
        self.config, self.model = config, model
        self._kept: dict[str, Conditioning] = {}
        self._pictures: dict[str, Pictures] = {}

    def encoded(self, text: str) -> Conditioning:
        if text not in self._kept:
            self._kept[text] = self.model.encode([text])
        return self._kept[text]

    def prompts(self, concept: str, held_out: bool = False) -> list[tuple[str, str]]:
        """(prompt, anchor) of each template."""
        settings = self.config.prompt
        templates = settings.held_out if held_out else settings.templates
        return [
            (template.replace("{}", concept), template.replace("{}", settings.anchor) if settings.template_anchor else settings.anchor)
            for template in templates
        ]  # fmt: skip

    def exact(self, concept: str, protect: ProtectConfig) -> list[str]:
        """Prompts that ``concept``'s shift must leave exactly as they are: the anchor, those given, the other concepts."""
        anchor = [] if self.config.prompt.template_anchor else [self.config.prompt.anchor]
        others = [
            template.replace("{}", other)
            for other in self.config.concepts
            if other != concept
            for template in protect.templates
        ]
        return list(dict.fromkeys(["", *anchor, *protect.prompts, *others]))

    def others(self, concept: str, protect: ProtectConfig) -> dict[str, list[str]]:
        """Prompts of each word that is protected as far as capacity goes."""
        own = [set(each.lower().split()) for each in self.config.concepts]
        words = [w for w in protect.others if not any(set(w.lower().split()) <= c or c <= set(w.lower().split()) for c in own)]
        return {word: [template.replace("{}", word) for template in protect.templates] for word in words}

    def pictures(self, concept: str) -> Pictures:
        if concept not in self._pictures:
            prompts = [prompt for prompt, _ in self.prompts(concept)]
            self._pictures[concept] = Pictures(self.config, self.model, concept, prompts)
        return self._pictures[concept]


class Pictures:
    """Clean latents x_0 of a concept's pictures: the k-th shows the k-th template, in turn.

    The model makes them when they are first asked for, as many at once as fit, and they stay latents: nothing is made after
    training has stopped, and decoding them only to encode them again is spared. Each depends on the seed and its
    number alone.
    """

    def __init__(self, config: ConceptIrrelevantErasureConfig, model: DiffusionModel, concept: str, prompts: list[str]):
        self.config, self.model, self.prompts = config, model, prompts
        self._kept: dict[int, Tensor] = {}
        folder = config.data.folder
        self._own = open_pairs(folder.replace("{}", concept), caption=concept)[: config.data.images] if folder else []
        self.count = len(self._own) or config.data.images

    def __getitem__(self, k: int) -> Tensor:
        """x_0 (c, h, w); the model must be as it was found."""
        k %= self.count
        if k not in self._kept:
            self._kept |= {k: self._encoded(k)} if self._own else self._made(k)
        return self._kept[k]

    def _made(self, k: int) -> dict[int, Tensor]:
        together = max(1, PIXELS_AT_ONCE // self.model.default_size**2)
        ks = range(k - k % together, min(k - k % together + together, self.count))
        texts, seeds = [self.prompts[j % len(self.prompts)] for j in ks], [picture_seed(self.config.seed, j) for j in ks]
        data = self.config.data
        latents = generate_latents(self.model, texts, seeds, steps=data.steps, guidance=data.guidance, batch=together)
        return dict(zip(ks, torch.cat(list(latents)), strict=True))

    def _encoded(self, k: int) -> Tensor:
        """Short side to the model's size, then the centre; drawn from the autoencoder's posterior."""
        size = self.model.default_size
        fitted = ImageOps.fit(self._own[k].picture(), (size, size))
        pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)[None].float() / 255
        generator = torch.Generator(self.model.device).manual_seed(picture_seed(self.config.seed, k))
        return self.model.encode_pictures(pixels, generator)[0]


def picture_seed(seed: int, k: int) -> int:
    """Of the k-th picture. The generators of the CPU use the last 32 bits of a seed, so both numbers must be in them."""
    return (seed * 1_000_003 + k) % 2**32
