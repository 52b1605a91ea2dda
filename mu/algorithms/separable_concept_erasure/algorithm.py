"""CiE and SepCE as methods of this package."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from mu.algorithms.separable_concept_erasure.configs import (
    ConceptIrrelevantErasureConfig,
    ConceptIrrelevantErasureMethod,
    ProtectConfig,
    SeparableConceptErasureConfig,
    SeparableConceptErasureMethod,
)
from mu.algorithms.separable_concept_erasure.data_handler import SeparableConceptErasureDataHandler
from mu.algorithms.separable_concept_erasure.model import DenseShift, SeparableShift
from mu.algorithms.separable_concept_erasure.null_space import Capacity, Room, room_for
from mu.algorithms.separable_concept_erasure.reconciling import also_protecting, is_separable, sparing, summed
from mu.algorithms.separable_concept_erasure.trainer import Effect, SeparableConceptErasureTrainer
from mu.core import compute, parallel
from mu.core.algorithm import Saveable
from mu.core.config import filled, without_effect
from mu.core.errors import ConfigError, MuError, quoted
from mu.core.evidence import describe
from mu.core.loop import Log
from mu.core.run import RunDirectory
from mu.edits.edit import Edit
from mu.edits.files import open_edit
from mu.edits.gatekeeper import closed_to
from mu.edits.gates import OPEN, FacilitatedTransport, Gate
from mu.edits.low_rank import LowRankEdit
from mu.training.calibration import settled
from mu.training.diffusion_config import updates
from mu.training.diffusion_method import WeightErasure

log = logging.getLogger("mu")


ENOUGH = 0.9
"""The share of its effect that an older delta must keep when it is made null on new concepts."""
SPARING = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3)
"""How much sparing a new concept's sentences weighs beside an older delta's own effect: the first that keeps enough."""
NEARLY = 0.95
"""The share of its effect that sparing must leave."""


class ConceptIrrelevantErasureAlgorithm(ConceptIrrelevantErasureMethod, WeightErasure):
    """The training of CiE: all cross-attention weights at once. `trainer` holds the objective."""

    config: ConceptIrrelevantErasureConfig

    def _begin(self) -> SeparableConceptErasureDataHandler:
        model = self.load_model()
        if compute.precision("bfloat16") == model.precision:
            log.warning("bfloat16 rounds as much as a concept changes predictions: use float32 or float16")
        data = SeparableConceptErasureDataHandler(self.config, model)
        self.calibrate(model)
        data.calibrations = {each.concept: each for each in self.calibrations}
        return data

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> Edit:
        """Find one dense delta. Several concepts share it (SRS-ME-double-dagger) and cannot be restored one by one."""
        data, concepts = self._begin(), self.config.concepts
        shift = DenseShift(data.model, self.info(concepts))
        trainer = SeparableConceptErasureTrainer(self.config, data.model, data, shift, concepts, anchor_moves=True)
        with shift.installed():
            trainer.train(
                "CiE", checkpoint=run.checkpoints / "training.pt" if run else None, log=log,
                calibrations=self.calibrations,
            )  # fmt: skip
            edit = shift.finished()
            edit.info = replace(edit.info, found=findings(", ".join(concepts), trainer, shift))
        return settled(edit, data.model, self.calibrations, curve=trainer.curve) if self.calibrations else edit


class SeparableConceptErasureAlgorithm(SeparableConceptErasureMethod, ConceptIrrelevantErasureAlgorithm):
    """The training of SepCE: each concept alone, in the null space of what is protected. `model` holds that space."""

    config: SeparableConceptErasureConfig
    parts: Sequence[LowRankEdit] = ()
    restorable: Sequence[str] = ()
    """Concepts of the bank that the new edits join."""

    joins: bool = False
    """Whether the new edits join a bank."""

    def notes(self) -> list[str]:
        protect, usual = self.config.protect, self._usual()
        given = {n: w for n, w in self.idle_alone() if getattr(protect, n) != getattr(usual, n)}
        return [*super().notes(), *without_effect({f"protect.{n}": w for n, w in protect.departing(given).items()})]

    def _usual(self) -> ProtectConfig:
        """What the user need not have set: ``protect`` of the preset for such a search or such a model."""
        on, model = self.config.calibrate.on, self.config.model
        presets = cast(Iterable[SeparableConceptErasureConfig], self.presets.values())
        fitting = (each for each in presets if each.calibrate.on == on and (on or each.model == model))
        return next((each.protect for each in fitting), ProtectConfig())

    def idle_alone(self) -> Iterator[tuple[str, str]]:
        """Settings of ``protect`` that need other erased concepts, where there are none, each with the reason."""
        protect = self.config.protect
        if not self.restorable:
            yield "mend", "the search joins no bank with other concepts (mu erase --bank)"
        if not self.joins and protect.gate == "never":
            yield "gate", "the search joins no bank (mu erase --bank), and other deltas have no gate by default"
        if not self.restorable and len(self.config.concepts) == 1:
            why = "one concept is erased, and no bank has others"
            yield from ((name, why) for name in ("sentences", "erased"))
            if not protect.others:
                yield "templates", f"{why}, and protect.others is empty"
                yield from ((name, why) for name in ("leave", "null_tol") if protect.erased == "nearly")

    def _gate(self, data: SeparableConceptErasureDataHandler, concept: str) -> Gate:
        gated = {"never": False, "bank": self.joins, "always": True}[self.config.protect.gate]
        if not gated:
            return OPEN
        return closed_to(data.unasked(concept), [FacilitatedTransport()], data.model, [[concept]])[0]

    def _begin(self) -> SeparableConceptErasureDataHandler:
        data = super()._begin()
        data.restorable = self.restorable
        return data

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> LowRankEdit:
        """The sum of the edits from `find_edits`, which are also kept in ``self.parts``."""
        self.parts = self.find_edits(run, log)
        if len(self.parts) == 1:
            return self.parts[0]
        found = {part.concept(): dict(part.info.found) for part in self.parts}
        return summed(self.parts, self.info(self.config.concepts, found=found))

    def find_edits(self, run: RunDirectory | None = None, log: Log | None = None) -> list[LowRankEdit]:
        """Find one edit for each concept, each null on all others: the parts of a bank.

        N independent searches give exactly the same result as joint training (section 2.7). With ``run``, finished
        edits are kept in its checkpoints.
        """
        data = self._begin()
        rooms = [self.room(data, concept) for concept in self.config.concepts]
        for concept in self.config.concepts:
            data.images(concept)  # raises for a concept without images before the first one is trained
        if run:
            run.describe({"capacity": [asdict(room.capacity) for room in rooms]})
        return [self._find(data, k, room, run, log) for k, room in enumerate(rooms)]

    def separate(self, edit: Saveable) -> Sequence[Saveable]:
        """The edits whose sum is ``edit``, found by this object or kept in its run folder."""
        parts: Sequence[Saveable] = self.parts or [
            open_edit(p) for p in self._kept(RunDirectory(self.run_folder())) if p.exists()
        ]
        return parts if len(parts) == len(self.config.concepts) else [edit]

    def join(self, bank: Any) -> None:
        """Protect the concepts of the bank's edits, whether erased or restored (section 2.9).

        Raises `EditError` for a bank of other weights: edits found here would not lie in its null spaces.
        """
        super().join(bank)
        self.joins = True
        if bank.json.exists():
            known = [concept for edit in bank.open(self.model).edits.values() for concept in edit.info.concepts]
            protect, self.restorable = self.config.protect, known
            if protect.erased == "exactly":
                more = {"prompts": list(dict.fromkeys([*protect.prompts, *self._protecting(known)]))}
            else:
                more = {"others": list(dict.fromkeys([*known, *protect.others]))}
            self.config = self.config.merged({"protect": more})

    def reconciled(self, older: Sequence[Saveable], added: Sequence[Saveable], run: RunDirectory) -> list[LowRankEdit]:
        """The edits among ``older`` that this run's concepts change; see `mended` and `_closed`.

        They are made null on those concepts, if they are not, and their gates are closed to sentences with them.
        """
        model, mend = self.load_model(), self.config.protect.mend
        prompts, before, after = self._protecting(self.config.concepts), list[LowRankEdit](), list[LowRankEdit]()
        for edit in older if mend is not None else ():
            if not isinstance(edit, Edit):
                continue
            null = set(prompts) <= set(edit.info.protects)
            if not is_separable(edit, model):
                if not null:
                    log.warning(
                        "the edit of %r was not made by separable erasure: restoring it may change the new concepts",
                        edit.concept(),
                    )
                continue
            mended, kept = (edit, None) if null else self.mended(edit, prompts, cast(int, mend))
            if kept is not None and mended is not edit:
                describe(run, {"mended": {**run.read_environment().get("mended", {}), edit.concept(): round(kept, 3)}})
            before.append(edit)
            after.append(mended)
        pairs = zip(before, self._closed(after), strict=True)
        return [now for was, now in pairs if now is not was]

    def _closed(self, edits: Sequence[LowRankEdit]) -> list[LowRankEdit]:
        """``edits``, their gates closed to everyday sentences with this run's concepts and the others of the bank."""
        assert self.model is not None, "load_model() comes first"
        gated = [edit for edit in edits if isinstance(edit.info.gate, FacilitatedTransport)]
        if not gated:
            return list(edits)
        data = SeparableConceptErasureDataHandler(self.config, self.model)
        data.restorable = self.restorable
        gates = closed_to(
            data.unasked(""),
            [cast(FacilitatedTransport, edit.info.gate) for edit in gated],
            self.model,
            [edit.info.concepts for edit in gated],
        )
        found, raised = [], {id(edit): gate for edit, gate in zip(gated, gates, strict=True)}
        for edit in edits:
            if (gate := raised.get(id(edit), edit.info.gate)) != edit.info.gate:
                log.info("the gate of %r is closed to sentences with the new concepts", edit.concept())
                edit = LowRankEdit(edit.factors, replace(edit.info, gate=gate))
            found.append(edit)
        return found

    def mended(self, edit: LowRankEdit, prompts: Sequence[str], updates: int) -> tuple[LowRankEdit, float]:
        """``edit`` made null on ``prompts``, and the share of its effect that is left.

        The effect is the drop of its concept's correlation (Eq. 28) below that of the frozen model, on fixed noised
        images. If the projection costs more than a tenth of it, the projected delta is trained by the edit's own
        settings until that share is back, for at most ``updates`` updates. The edit is returned unchanged if its
        settings are unknown, or if protecting ``prompts`` leaves nothing of its concept to erase.
        """
        assert self.model is not None, "load_model() comes first"
        try:
            if len(edit.info.concepts) > 1:
                raise ConfigError("it erases several concepts at once")
            (concept,), config = edit.info.concepts, self.config_class.parse(dict(edit.info.config))
            config = as_calibrated(config, edit.info.found).merged(
                {
                    "protect.prompts": [*config.protect.prompts, *edit.info.protects, *prompts],
                    "protect.sentences": self.config.protect.sentences,
                    "train": {"stop": "steps", "iterations": max(updates, 1)},
                }
            )
            data = SeparableConceptErasureDataHandler(config, self.model)
            data.restorable = self.config.concepts
            room = self.room_in(data, concept)
            shift = SeparableShift(self.model, room, edit.info)
            trainer = SeparableConceptErasureTrainer(config, self.model, data, shift, [concept], anchor_moves=False)
            effect = Effect(trainer)
        except MuError as error:
            log.warning("the edit of %r is unchanged; restoring it changes the new concepts: %s", edit.concept(), error)
            return edit, 1.0
        projected = also_protecting(edit, self.model, prompts)
        whole, left = effect.of(edit), effect.of(projected)
        kept = left / whole if whole > 0 else 1.0
        if kept >= ENOUGH or not updates:
            log.info("%r was made null on %s: %.0f %% of its effect is left", concept, ", ".join(prompts), 100 * kept)
            if kept < ENOUGH:
                log.warning("%r erases less than before and is not trained again: raise protect.mend above 0", concept)
            return self._sparing(projected, kept, data, effect)
        shift.start_from(projected)
        with shift.installed():
            trainer.train(
                f"SepCE {quoted(concept)}, again", stop=lambda i: i % 5 == 4 and effect.now() >= ENOUGH * whole
            )
            again = effect.now() / whole
        log.info(
            "%r was made null on %s, which left %.0f %% of its effect; %d updates brought back %.0f %%",
            concept,
            ", ".join(prompts),
            100 * kept,
            trainer.done,
            100 * again,
        )
        if again < ENOUGH:
            log.warning("%r erases less than before: check its images, or erase it again", concept)
        return self._sparing(*((shift.finished(), again) if again > kept else (projected, kept)), data, effect)

    def _sparing(
        self, edit: LowRankEdit, kept: float, data: SeparableConceptErasureDataHandler, effect: Effect
    ) -> tuple[LowRankEdit, float]:
        """``edit``, which ``kept`` a share of its effect, with less effect on sentences with the new concepts.

        The largest weight of `SPARING` counts that keeps the share `NEARLY` of that effect; without one, or without
        sentences, the edit is returned as it is.
        """
        assert self.model is not None, "load_model() comes first"
        (concept,) = edit.info.concepts
        sentences, own = data.sentences(concept), [prompt for prompt, _ in data.prompts(concept)]
        before = effect.of(edit)
        for weight, spared in sparing(edit, self.model, own, sentences, SPARING) if sentences else ():
            if (left := effect.of(spared)) >= NEARLY * before:
                log.info("%r: sentences with the new concepts weigh %g in its delta", concept, weight)
                return spared, kept * left / before
        return edit, kept

    def _protecting(self, concepts: Sequence[str]) -> list[str]:
        return [filled(template, concept) for concept in concepts for template in self.config.protect.templates]

    def capacities(self) -> list[Capacity]:
        """The room for each concept, without training: check it before a long run."""
        data = self._begin()
        return [self.room(data, concept).capacity for concept in self.config.concepts]

    def room(self, data: SeparableConceptErasureDataHandler, concept: str) -> Room:
        room = self.room_in(data, concept)
        for line in str(room.capacity).splitlines():
            log.info(line)
        if room.capacity.erasability < 0.1:
            log.warning("%r will hardly be erased, most of its directions are protected: protect fewer", concept)
        return room

    @staticmethod
    def room_in(data: SeparableConceptErasureDataHandler, concept: str) -> Room:
        config, prompts = (
            cast(SeparableConceptErasureConfig, data.config),
            [prompt for prompt, _ in data.prompts(concept)],
        )
        protect = config.protect
        return room_for(
            data.model, concept, prompts, data.exact(concept, protect), data.others(concept, protect), config.basis,
            leave=protect.leave, tol=protect.null_tol,
        )  # fmt: skip

    def _kept(self, run: RunDirectory) -> list[Path]:
        return [run.checkpoints / f"concept_{k}.safetensors" for k in range(len(self.config.concepts))]

    def _found(self, k: int, run: RunDirectory | None) -> LowRankEdit | None:
        """The k-th of several edits, if an interrupted run has found it."""
        if run is None or len(self.config.concepts) == 1 or not self._kept(run)[k].exists():
            return None
        return cast(LowRankEdit, open_edit(self._kept(run)[k]))

    def _find(
        self, data: SeparableConceptErasureDataHandler, k: int, room: Room, run: RunDirectory | None, log: Log | None
    ) -> LowRankEdit:
        concept, several = self.config.concepts[k], len(self.config.concepts) > 1
        if kept := parallel.from_first(lambda: self._found(k, run)):
            return kept
        shift = SeparableShift(
            data.model, room, self.info([concept], gate=self._gate(data, concept)), data.sentences(concept)
        )
        trainer = SeparableConceptErasureTrainer(self.config, data.model, data, shift, [concept], anchor_moves=False)
        first = k * updates(
            self.config.train.iterations, self.config.train.counting
        )  # the log's steps count on from concept to concept
        with shift.installed():
            trainer.train(
                f"SepCE {quoted(concept)}",
                checkpoint=run.checkpoints / f"training_{k}.pt" if run else None,
                log=(lambda row: log({**row, "step": row["step"] + first})) if log else None,
                calibrations=self.calibrations[k : k + 1],
            )
        edit = shift.finished()
        edit.info = replace(edit.info, found=findings(concept, trainer, shift))
        if self.calibrations:
            edit = settled(edit, data.model, self.calibrations[k : k + 1], curve=trainer.curve)
        tell_leak(concept, shift)
        if run and several:
            edit.save(self._kept(run)[k])
        return edit


def as_calibrated(config: SeparableConceptErasureConfig, found: Mapping[str, Any]) -> SeparableConceptErasureConfig:
    """``config`` with what a calibrated search ``found`` as settings: phrasings, anchor, and the words to protect.

    An edit of an earlier version does not say its phrasings: those of the settings then stay, with a warning."""
    if not config.calibrate.on:
        return config
    if "templates" not in found:
        log.warning("%s: the edit does not say its phrasings, so its bare name stands for them", config.concepts[0])
    prompt = {"templates": found.get("templates", config.prompt.templates), "anchor": found.get("anchor") or ""}
    others = [
        *config.protect.others,
        *(word for kind in ("peers", "partners") for word in found.get(kind, ())),
    ]
    return config.merged({"prompt": prompt, "protect.others": list(dict.fromkeys(others))})


def findings(
    concept: str, trainer: SeparableConceptErasureTrainer, shift: SeparableShift | DenseShift
) -> dict[str, Any]:
    """The search's results, for the edit's file and the log; they show later whether the search stopped by itself."""
    m, norm = trainer.momentum.value, float(shift.norm().detach())
    found = {
        "updates": trainer.done,
        "updates_at_most": updates(trainer.config.train.iterations, trainer.config.train.counting),
        "correlation": None if m is None else float(m),
        "norm": norm,
    }
    log.info(
        "%r: %d updates, correlation %s (momentum statistic), mean L1 norm of the deltas %.3g",
        concept,
        trainer.done,
        "unknown" if m is None else f"{float(m):.3g}",
        norm,
    )
    if isinstance(shift, SeparableShift):
        capacity = shift.room.capacity
        found |= {name: getattr(capacity, name) for name in ("width", "free", "used", "erasability", "leak")}
    return found


def tell_leak(concept: str, shift: SeparableShift) -> None:
    bound, moved = shift.leak()
    log.info("%r: leak: protected keys and values change by at most %.3g; largest share %.2g", concept, bound, moved)
    if shift.room.space.leak < 1e-8 and moved > 1e-4:
        log.warning("%r: exactly protected prompts still change: check that the text encoder is causal", concept)
