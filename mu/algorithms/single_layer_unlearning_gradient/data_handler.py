"""From settings to pairs for the gradients and tasks for the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL.Image import Image

from mu.algorithms.single_layer_unlearning_gradient.configs import SlugConfig, forget_source
from mu.core.errors import ConfigError, DataError
from mu.data.canvas import rendered_pairs
from mu.data.pairs import Pair, open_pairs, spaced
from mu.evaluation.zero_shot import ZeroShot, open_tasks
from mu.models.contrastive import Captioned

FORGET_SEED, RETAIN_SEED, SEARCH_SEED = 1, 2, 3


@dataclass(frozen=True)
class Recaptioned:
    """A pair with another caption."""

    of: Captioned
    caption: str

    def picture(self) -> Image:
        return self.of.picture()


class SingleLayerUnlearningGradientDataHandler:
    def __init__(self, config: SlugConfig):
        self.config = config

    def forget_pairs(self, concept: str) -> Sequence[Captioned]:
        data = self.config.data
        if data.forget == "canvas":
            pairs: Sequence[Captioned] = rendered_pairs(data.n_forget, self._seed(FORGET_SEED), self._named(concept))
        else:
            pairs = self._naming(open_pairs(forget_source(self.config, concept)), concept)[: data.n_forget]
        return [Recaptioned(pair, concept) for pair in pairs] if data.caption == "concept" else pairs

    def _naming(self, pairs: Sequence[Pair], concept: str) -> Sequence[Pair]:
        naming = [pair for pair in pairs if spaced(concept) in spaced(pair.caption)]
        if not naming and self.config.data.caption == "own":
            raise DataError(
                f"no caption of {forget_source(self.config, concept)} names {concept!r}: set data.caption=concept to give all of them that name"
            )
        return naming or pairs

    def retain_pairs(self, concept: str) -> Sequence[Captioned]:
        """The same for every concept, unless ``constant_retain_caption`` gives all of them the concept's name."""
        data = self.config.data
        pairs: Sequence[Captioned]
        if data.retain == "canvas":
            pairs = rendered_pairs(data.n_retain, self._seed(RETAIN_SEED))
        else:
            pairs = open_pairs(data.retain)[: data.n_retain]
        constant = "constant_retain_caption" in self.config.gradients.compat
        return [Recaptioned(pair, concept) for pair in pairs] if constant else pairs

    def tasks(self) -> list[ZeroShot]:
        """On other pictures than the gradients', and than any report's."""
        return open_tasks(self.config.data.tasks, self.config.data.per_class, self._seed(SEARCH_SEED))

    def _named(self, concept: str) -> str:
        """The class that the concept names in one of the tasks, as it is spelt there."""
        for task in open_tasks(["canvas"], 1, 0):
            label = task.label_of(concept)
            if label is not None:
                return task.classes[label]
        raise ConfigError(f"{concept!r} is no style, object or person of the canvas world: name one, or set data.forget")

    def _seed(self, part: int) -> int:
        return self.config.seed * 10 + part
