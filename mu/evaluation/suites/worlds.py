"""Suite ``worlds``: one style or object, erased from canvas or from a sibling of it that `mu canvas train` made.

Answer set: every style x object x seed in the world's own benchmark sentence, 20 steps, the guidance that the world was
trained for. The world's judge, a classifier trained on rendered images only, names the style and object of each image.
Protocol ``worlds/1``, whose shares have 95 % intervals, and in the edited column those of the change:

- UA, IRA, CRA as in `mu.evaluation.metrics.unlearning`.
- unasked: share of the images of neutral prompts, which name nothing of the concept's kind, on which the judge sees it.

Suite ``canvas`` measures more, and knows one world. Its neutral prompts are others, so its ``unasked`` is no equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

from mu.core.concept import says
from mu.core.errors import ConfigError, DataError, quoted
from mu.core.files import sha256
from mu.core.run import RunDirectory
from mu.core.scores import Score, Table
from mu.data.canvas.layouts import folder_name
from mu.data.canvas.scenes import Scene
from mu.data.canvas.world import World
from mu.diffusion.image_folder import ImageRow
from mu.evaluation.answers import Images, Subject, batches
from mu.evaluation.comparing import share
from mu.evaluation.doubt import doubtful
from mu.evaluation.metrics.unlearning import Hits, Kind, Prediction, scores_of, unlearning_hits
from mu.evaluation.suites.canvas import neutral_row
from mu.models.canvas.folder import world_of
from mu.models.judge import Judge

PROTOCOL, STEPS = "worlds/1", 20
UNNAMED = ("an image", "a person", "a drawing")
"""Prompts that name neither a style nor an object."""


class Looked(NamedTuple):
    """What the judge sees in one column: in the images of every style x object, and in those of neutral prompts."""

    told: list[Prediction]
    unasked: list[float]
    """1 for each image of a neutral prompt that shows the concept, else 0."""


class WorldsSuite:
    """Protocol ``worlds/1``. Raises what `world_of` raises, and `DataError` for a concept that the world lacks."""

    only_base: Sequence[ImageRow] = ()

    def __init__(
        self, subject: Subject, seeds: Sequence[int], *, steps: int | None = None, guidance: float | None = None
    ):
        assert subject.model is not None
        place = world_of(subject.model.name)
        self.world, self.concept, self.kind = place.world, *requested(subject.concepts, place.world)
        self.steps = STEPS if steps is None else steps
        self.guidance = place.sizes.guidance if guidance is None else guidance
        self.judge, self.judged_by = Judge.open(place.judge, subject.device), place.judge
        self.scenes = [Scene(style, object=name) for style, name in product(place.world.styles, place.world.objects)]
        self.asked = [row_of(scene, place.world, seed) for seed in seeds for scene in self.scenes]
        self.neutral = [
            neutral_row(prompt, seed) for seed in seeds for prompt in neutral_prompts(place.world, self.kind)
        ]
        self.rows = [*self.asked, *self.neutral]
        departs = {f"{self.steps} steps": self.steps != STEPS}
        departs[f"guidance {self.guidance:g}"] = self.guidance != place.sizes.guidance
        self.protocol = ", ".join([PROTOCOL, *(text for text, differs in departs.items() if differs)])

    def score(self, run: RunDirectory, answers: Images) -> tuple[Table, dict[str, Any]]:
        """Judge all images. Returns the table and how it was measured."""
        before, after = self._looked(answers, "base"), self._looked(answers, "edited")
        doubt = self._doubt(before.told)
        table = {"base": self._scores(before, None, doubt), "edited": self._scores(after, before, doubt)}
        how = {"world": self.world.name, "steps": self.steps, "guidance": self.guidance}
        return table, {**how, "judges": {"judge": sha256(self.judged_by)}}

    def _looked(self, answers: Images, column: str) -> Looked:
        seen: dict[str, list[str]] = {"style": [], "object": []}
        for images in batches(answers.paths(self.rows, column)):
            found, _ = self.judge.look(images)
            for kind, answered in seen.items():
                answered += found[kind]
        end = len(self.asked)
        scenes = self.scenes * (end // len(self.scenes))
        pairs = zip(scenes, seen["style"][:end], seen["object"][:end], strict=True)
        told = [Prediction(str(scene.style), str(scene.object), style, name) for scene, style, name in pairs]
        return Looked(told, [float(each == self.concept) for each in seen[self.kind][end:]])

    def _hits(self, looked: Looked) -> Hits:
        return unlearning_hits(looked.told, self.concept, self.kind)

    def _scores(self, looked: Looked, base: Looked | None, doubt: str) -> list[Score]:
        """The scores of one column; with the base's answers, also the intervals of the change."""
        ua, ira, cra = scores_of(self._hits(looked), self.protocol, before=self._hits(base) if base else None)
        unasked = share("unasked", looked.unasked, self.protocol, before=base.unasked if base else None)
        return [replace(ua, doubt=doubt), ira, cra, unasked]

    def _doubt(self, told: Sequence[Prediction]) -> str:
        """Why the judge cannot tell whether the concept is gone, from the base's images; "" if it can."""
        seen: dict[str, list[str]] = {}
        for each in told:
            seen.setdefault(getattr(each, self.kind), []).append(getattr(each, f"{self.kind}_seen"))
        others = {name: answers for name, answers in seen.items() if name != self.concept}
        return doubtful({self.concept: self.concept}, {self.concept: seen[self.concept]}, others)


def requested(concepts: Sequence[str], world: World) -> tuple[str, Kind]:
    """The style or object of ``world`` that the erased concept names, and its kind: "neon style" names "neon".

    Raises `ConfigError` for several concepts, and `DataError` for one that the world lacks.
    """
    if len(concepts) != 1:
        raise ConfigError(f"suite worlds measures one concept, and {len(concepts)} are erased: choose suite concept")
    kinds: dict[Kind, Sequence[str]] = {"style": world.styles, "object": world.objects}
    for kind, names in kinds.items():
        for name in names:
            if says(concepts[0], name):
                return name, kind
    known = ", ".join((*world.styles, *world.objects))
    raise DataError(f"suite worlds measures styles and objects, and {quoted(concepts[0])} names none of: {known}")


def neutral_prompts(world: World, kind: Kind) -> list[str]:
    """Prompts that name nothing of ``kind``: none at all, or one concept of the other kind."""
    others = world.objects if kind == "style" else world.styles
    return [*UNNAMED, *others, *(f"a {name}" for name in others)]


def row_of(scene: Scene, world: World, seed: int) -> ImageRow:
    name = f"{folder_name(str(scene.style))}_{folder_name(str(scene.object))}_seed{seed}.png"
    return ImageRow(name, world.prompt(scene), seed)
