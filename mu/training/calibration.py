"""A search that decides by what it measures on the model in front of it: on what to train, how hard, and when to stop.

`Calibration` prepares a concept: its surroundings and a probe. `mu.training.watch` reads the probe in a training loop.
`settled` scales a finished edit to the mildest strength that still erases.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, TypeVar

from mu.core import parallel
from mu.core.concept import says
from mu.core.config import filled, phrased
from mu.core.errors import ConfigError, quoted, titled
from mu.edits.edit import Edit
from mu.models import load
from mu.models.clip import ClipModel
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.training.calibration_config import CalibrateConfig
from mu.training.probe import Probe, Reading
from mu.training.surroundings import Surroundings, learned, surroundings

log = logging.getLogger("mu")

LEFT, MOVED, STRANGE = 2.0, 4.0, 0.5
"""What a rest of the concept, changes of what should stay, and images that show nothing of the prompt cost."""
STRENGTHS = (0.8, 1.0, 1.25, 1.5, 2.0)
"""Strengths at which a finished edit is read, the mildest first."""

SPARED = 0.01
"""By how much a strength below 1 must lower `Reading.moved` to be taken. Where both erase on the few phrasings of the
probe and little is spared, the trained strength is the safer one on all others."""

E = TypeVar("E", bound=Edit)


@dataclass
class Calibration:
    """One concept on one model: what stands around it, and the probe that measures it."""

    settings: CalibrateConfig
    around: Surroundings
    probe: Probe
    known: bool = True
    """Whether the model seems to have learned the concept. Of one that it never learned, nothing is called gone."""
    anchor: str | None = None
    """What takes the concept's place; `mu.training.closed_form` chooses it. None: the method needs none."""
    pressure: float = 0.0
    """How hard a closed form presses, in its own unit; 0 for other methods."""
    reading: Reading | None = None
    """What the probe read with the chosen anchor and pressure, the concept erased alone."""
    tried: list[dict[str, Any]] = field(default_factory=list)
    """Every anchor and pressure that was tried, with its reading."""

    @classmethod
    def of(
        cls,
        model: DiffusionModel,
        concept: str,
        settings: CalibrateConfig,
        seed: int = 0,
        beside: Sequence[str] = (),
        clip: ClipModel | None = None,
    ) -> Calibration:
        """``beside`` are concepts that are erased together with this one; the ``clip`` looks at the probe's images.

        Raises `ConfigError` for a word to retain that contains an erased concept.
        """
        for word, erased in product(settings.retain, (concept, *beside)):
            if says(word, erased):
                raise ConfigError(f"{quoted(word)} cannot be retained: it contains {quoted(erased)}, which is erased")
        around = parallel.from_first(lambda: surroundings(model, concept, settings.retain, beside))
        log.info("%r: words in its place: %s; beside it: %s", concept, *map(_listed, (around.peers, around.partners)))
        known = parallel.from_first(lambda: learned(model, concept))
        return cls(settings, around, Probe(model, around, seed, clip), known)

    @classmethod
    def of_each(cls, model: DiffusionModel, concepts: Sequence[str], settings: CalibrateConfig) -> list[Calibration]:
        """One for each of ``concepts``, which are erased together. Raises `ConfigError` if ``clip`` names no CLIP."""
        clip = load(settings.clip, device=model.device) if settings.clip and concepts else None
        if clip is not None and not isinstance(clip, ClipModel):
            raise ConfigError(f"calibrate.clip needs a CLIP, and {titled(settings.clip)} is none")
        return [
            cls.of(model, concept, settings, beside=[other for other in concepts if other is not concept], clip=clip)
            for concept in concepts
        ]

    @property
    def concept(self) -> str:
        return self.around.concept

    def pairs(self, anchor: str | None = None) -> list[tuple[str, str]]:
        """Every training phrasing with the concept, and with ``anchor``, by default its own, in its place."""
        instead = (self.anchor or "") if anchor is None else anchor
        return [(filled(text, self.concept), phrased(text, instead)) for text in self.around.templates]

    @cached_property
    def kept(self) -> Conditioning:
        """The prompts of what should stay, encoded."""
        return self.probe.model.encode(self.around.kept)

    def gone(self, reading: Reading) -> bool:
        return reading.left <= self.settings.left and reading.shown <= self.settings.shown

    def cost(self, reading: Reading) -> float:
        """What the best of several states has least of: the concept, what should stay and moves, and strange images.

        A state that has not lost the concept costs 1 more, so much harm costs more than a rest of the concept. Readings
        that are not finite are the worst.
        """
        if not all(map(math.isfinite, reading)):
            return math.inf
        rest = LEFT * (max(reading.left, 0.0) + reading.shown) + (0 if self.gone(reading) else 1)
        return rest + MOVED * reading.moved + STRANGE * reading.strange

    def found(self, reading: Reading, **more: Any) -> dict[str, Any]:
        """The facts for `EditInfo.found`. Logs plainly how the search ended."""
        gone = self.known and self.gone(reading)
        if not self.known:
            log.warning(
                "the model does not seem to know %r: it reads it in pieces, or draws something else in every phrasing. "
                "The edit changes what the model makes of these letters; that nothing is left cannot be shown",
                self.concept,
            )
        elif gone:
            log.info(
                "%r is gone in the images of the probe, where %d phrasings ask for it; what should stay moves by %.0f "
                "%% of what tells it from its kind",
                self.concept,
                len(self.around.probes),
                100 * reading.moved,
            )
        else:
            log.warning(
                "%r is not gone: %.0f %% of it is left, and %.0f %% of the images of the probe show it; the best state "
                "is kept",
                self.concept,
                100 * reading.left,
                100 * reading.shown,
            )
        if reading.moved > self.settings.moved:
            log.warning(
                "erasing %r moves what should stay by %.0f %% of what tells it from its kind; up to %.0f %% is mild",
                self.concept,
                100 * reading.moved,
                100 * self.settings.moved,
            )
        facts = {name: round(value, 4) for name, value in reading._asdict().items()}
        around = {name: list(getattr(self.around, name)) for name in ("peers", "partners", "others", "templates")}
        return {
            "gone": gone,
            "known": self.known,
            "mild": reading.moved <= self.settings.moved,
            **facts,
            **around,
            "anchor": self.anchor,
            "tried": self.tried,
            "probe_evaluations": self.probe.evaluations,
            **more,
        }


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:8]) or "none"


def readings(calibrations: Sequence[Calibration]) -> list[Reading]:
    """What each probe reads of the model as it is now; of several processes, what the first reads."""
    return parallel.from_first(lambda: [each.probe.read() for each in calibrations])


def worst(several: Sequence[Reading]) -> Reading:
    """The largest of each value; nan if one is nan."""
    return Reading(*(math.nan if any(map(math.isnan, each)) else max(each) for each in zip(*several, strict=True)))


def check_finite(reading: Reading) -> None:
    """Raise `ConfigError` for a probe whose images are not finite."""
    if not all(map(math.isfinite, reading)):
        raise ConfigError("the edited model's images are not finite: load it in a finer precision, such as float32")


def _chosen(calibration: Calibration, read: Mapping[float, Reading]) -> float:
    """The strength of the lowest cost; 1 in place of a lower one that spares less than `SPARED`."""
    best, whole = min(read, key=lambda s: calibration.cost(read[s])), read.get(1.0)
    safer = best < 1 and whole and calibration.gone(whole) and whole.moved - read[best].moved < SPARED
    return 1.0 if safer else best


def settled(edit: E, model: DiffusionModel, calibrations: Sequence[Calibration], **more: Any) -> E:
    """``edit`` at the mildest of `STRENGTHS` that still erases, read with its gate; if none does, the best of them.

    `EditInfo.found` then holds the reading of each concept, the strength, the curve over strengths, and ``more``.
    """
    read: dict[float, list[Reading]] = {}
    for strength in STRENGTHS:
        with edit.applied(model, strength):
            read[strength] = readings(calibrations)
    strength = _chosen(calibrations[0], {s: worst(several) for s, several in read.items()})
    check_finite(worst(read[strength]))
    found = edit.scaled(strength)
    facts = [each.found(reading) for each, reading in zip(calibrations, read[strength], strict=True)]
    by_concept = facts[0] if len(facts) == 1 else {each.concept: f for each, f in zip(calibrations, facts, strict=True)}
    strengths = [{"strength": s, **worst(several)._asdict()} for s, several in read.items()]
    found.info = replace(
        found.info, found={**edit.info.found, **by_concept, "strength": strength, "strengths": strengths, **more}
    )
    return found
