"""SLUG as a method of this package."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from mu.algorithms.single_layer_unlearning_gradient.configs import ImagesConfig, SlugConfig, SlugMethod
from mu.algorithms.single_layer_unlearning_gradient.data_handler import SingleLayerUnlearningGradientDataHandler
from mu.algorithms.single_layer_unlearning_gradient.model import (
    Group,
    LayerScore,
    candidates,
    fronts,
    grouped,
    layer_scores,
    to_search,
)
from mu.algorithms.single_layer_unlearning_gradient.preconditioner import preconditioned, second_moments
from mu.algorithms.single_layer_unlearning_gradient.probe import (
    AnswerProbe,
    ClipProbe,
    Direction,
    ImageProbe,
    Probe,
)
from mu.algorithms.single_layer_unlearning_gradient.trainer import (
    Curve,
    Gradients,
    best,
    check_kept,
    gradients,
    joint_factor,
    search,
    summed,
)
from mu.core import parallel
from mu.core.concept import Concept, folded
from mu.core.errors import ConfigError, DataError, EditError, ModelError, quoted, titled
from mu.core.files import write_json
from mu.core.loop import Log
from mu.core.progress import progress_bar
from mu.core.run import RunDirectory
from mu.edits.edit import shifted
from mu.edits.weights import WeightEdit
from mu.models import EMBEDDED, load
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel
from mu.models.judge import Judge
from mu.models.parameters import select
from mu.models.towers import tower_of
from mu.models.vision_language import VisionLanguageModel
from mu.models.zero_shot import Target, ZeroShot
from mu.training.gradient_files import GradientInfo, Kind, Sign, described_model, read_gradients, write_gradients
from mu.training.weight_method import Erasure

log = logging.getLogger("mu")

_NO_COMPAT = "gradients.compat accumulates gradients over both sets in one run: unset it to use gradient files"


class SingleLayerUnlearningGradientAlgorithm(SlugMethod, Erasure):
    """Computes two gradients, chooses tensors to search, makes the edit. `trainer` holds gradients and search."""

    config: SlugConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        """Find one edit for all concepts. The single edits, each found on the base model, are in ``self.parts``."""
        self.load_model()
        data = SingleLayerUnlearningGradientDataHandler(self.config)
        targets, tasks = data.targets()
        parameters = self._candidates()
        found, probes = [], list[Probe]()
        for target, (scores, directions) in zip(targets, self._scored(data, targets, parameters), strict=True):
            probes.append(self._probe(target, tasks, probes[0] if probes else None))
            found.append(self._search(probes[-1], target, scores, directions, run))
        self.parts = [self._edit([part], shifts) for part, shifts in found]
        shifts = summed([each for _, each in found])
        if len(found) > 1:
            factor = self._joint(probes, shifts)
            shifts = {name: factor * shift for name, shift in shifts.items()}
        return self._edit(self.config.concepts, shifts)

    def load_model(self) -> ClipModel | DiffusionModel | VisionLanguageModel:
        """Load the model that the settings name, or use the one given.

        ``self.model`` is the model to edit, ``self.clip`` gives the gradients.
        """
        name, device, precision = self.config.clip, self.config.devices, self.config.precision
        if self.model is None:
            self.model = load(self.config.model, device=device, precision=precision, **self.config.loading.model_dump())
        else:
            self.config.loading.check(self.model)
        if name is None and not isinstance(self.model, ClipModel):
            raise ConfigError(f"{titled(self.model.name)} is not a CLIP: set clip to the CLIP that it was made with")
        clip = self.model if isinstance(self.model, ClipModel) else load(str(name), device=device, precision=precision)
        if not isinstance(clip, ClipModel):
            raise ModelError(
                f"{titled(name)} is not a CLIP: set clip to a CLIP, SLUG needs both towers for its gradients"
            )
        clip.check_concepts(self.concepts())
        self.clip = clip
        return self.model

    def idle_on(self, model: ClipModel | DiffusionModel | VisionLanguageModel) -> dict[str, str]:
        config, idle = self.config, dict[str, str]()
        if isinstance(model, ClipModel):
            if config.clip != config.model:
                idle["clip"] = f"{titled(model.name)} is a CLIP and gives the gradients itself"
            idle["search.on"] = f"{titled(model.name)} is a CLIP and is evaluated by its own classification"
        if config.search.on == "model" and not isinstance(model, DiffusionModel):
            why = f"{titled(model.name)} makes no images"
            idle |= dict.fromkeys([f"search.images.{name}" for name in ImagesConfig.model_fields], why)
        return config.departing(idle)

    def _candidates(self) -> dict[str, Any]:
        """All tensors that are scored or moved, in model order."""
        used = {name for group in self._groups().values() for name in (*group.scored, *group.moved)}
        return {name: tensor for name, tensor in select(self.clip, "*").items() if name in used}

    def _groups(self) -> dict[str, Group]:
        layers = self.config.layers
        found = candidates(self.model, self.clip, layers.tower, layers.unchanged)
        chosen = dict.fromkeys([] if layers.names else found)
        for pattern in layers.names:
            matches = select(self.clip, pattern)
            if not (fit := [name for name in matches if name in found]):
                raise ConfigError(
                    f"layers.names: {next(iter(matches))} does not affect the output of {titled(self.model.name)}, or "
                    f"is in layers.exclude, or left out by layers.compat: name another tensor"
                )
            chosen |= dict.fromkeys(fit)
        return grouped(chosen, found, layers.compat)

    def save_gradients(
        self, kind: Kind, path: Path | str, concept: str = "", *, overwrite: bool = False
    ) -> GradientInfo:
        """Write the gradient of all candidates on the forget pairs of ``concept``, or on the retain pairs, to ``path``.

        The file can be named in ``data.forget`` or ``data.retain``. Of several processes the first opens the pairs and
        writes, and each computes a part.
        """
        if self.config.gradients.compat:
            raise ConfigError(_NO_COMPAT)
        self.load_model()
        parameters, facts = self._candidates(), self._facts(kind, concept)
        pairs = parallel.from_first(lambda: SingleLayerUnlearningGradientDataHandler(self.config).pairs(kind, concept))
        found, _ = self._computed(facts, pairs, parameters)
        block = facts["batch_size"] or 1
        info = GradientInfo(**facts, pairs=len(pairs) // block * block, **described_model(self.clip, parameters))
        if not parallel.follows():
            write_gradients(path, found, info, overwrite=overwrite)
        return info

    def _facts(self, kind: Kind, concept: str) -> dict[str, Any]:
        """The description of a gradient: fields of `GradientInfo`."""
        settings, forget = self.config.gradients, kind == "forget"
        loss = settings.forget_loss if forget else "contrastive"
        block = settings.batch_size if loss == "contrastive" else None
        told = (self.config.data.caption, concept) if forget else ("own", "")
        return {"kind": kind, "loss": loss, "batch_size": block, "captions": told[0], "concept": told[1]}

    def _gradients(
        self,
        kind: Kind,
        data: SingleLayerUnlearningGradientDataHandler,
        concept: str,
        parameters,
        carried: Gradients | None = None,
    ) -> tuple[Gradients, Gradients]:
        """Gradients from a file if the settings name one, else from images."""
        facts, settings = self._facts(kind, concept), self.config.gradients
        file = data.gradient_file(kind, concept)
        if file is None:
            return self._computed(facts, data.pairs(kind, concept), parameters, carried)
        if settings.compat:
            raise ConfigError(_NO_COMPAT)
        return read_gradients(file, self.clip, parameters, cast("Sign | None", settings.grad_sign), **facts), {}

    def _computed(self, facts, pairs, parameters, carried: Gradients | None = None) -> tuple[Gradients, Gradients]:
        settings, loss = self.config.gradients, facts["loss"]
        with progress_bar(f"{facts['kind']} gradient", len(pairs)) as advance:
            return gradients(
                self.clip, pairs, parameters, loss, settings, carried, lambda done, _: advance(done, ""), facts["kind"]
            )

    def _scored(
        self, data: SingleLayerUnlearningGradientDataHandler, targets: Sequence[Target], parameters: dict[str, Any]
    ) -> list[tuple[dict[str, LayerScore], dict[str, Direction]]]:
        """For each target, the scores of all tensors and the directions of the tensors to search, in search order.

        The gradients of all other tensors are freed here.
        """
        layers, groups = self.config.layers, self._groups()
        most = None if layers.names else layers.max_front
        retain, found = None, []
        for target in targets:
            g_f, carried = self._gradients("forget", data, target.concept, parameters)
            if retain is None or self.config.gradients.compat:
                retain, _ = self._gradients("retain", data, target.concept, parameters, carried)
            scores = layer_scores(parameters, g_f, retain, groups)
            searched = to_search(self.clip, scores, most, only_deepest=layers.one_deepest)
            front: dict[str, Direction] = {
                score.name: {name: g_f[name] for name in groups[score.name].moved} for score in searched
            }
            found.append((scores, self._directions(data, target.concept, front)))
        return found

    def _directions(
        self, data: SingleLayerUnlearningGradientDataHandler, concept: str, g_f: dict[str, Direction]
    ) -> dict[str, Direction]:
        """The direction of each searched tensor: the forget gradient, or the preconditioned one."""
        damping = self.config.damping
        if damping is None:
            return g_f
        named = folded(concept).removesuffix(" style")
        others = [pair for pair in data.pairs("retain", concept) if named not in folded(pair.caption)]
        if not others:
            raise DataError(
                f"every retain caption names {quoted(concept)}: gradients.precondition needs others, add some"
            )
        names = list(dict.fromkeys(name for direction in g_f.values() for name in direction))
        moments = second_moments(self.clip, others, names, self.config.gradients.chunk)
        return {name: preconditioned(direction, moments, damping) for name, direction in g_f.items()}

    def _probe(self, target: Target, tasks: list[ZeroShot], first: Probe | None = None) -> Probe:
        """The probe for ``target``. ``first`` is another concept's probe of the same tasks; its base features are
        reused."""
        if self.config.search.on == "clip" or self.model is self.clip:
            probe = copy(first) if isinstance(first, ClipProbe) else ClipProbe(self.clip, target, tasks)
            probe.target = target
            return probe
        settings = self.config.search.images
        judge = (
            Judge.open(EMBEDDED.get(settings.judge, Path(settings.judge)), self.model.device)
            if settings.judge
            else None
        )
        if self.config.search.criterion == "fa5" and (judge or isinstance(self.model, VisionLanguageModel)):
            raise ConfigError("search.criterion fa5 needs a ranking, but answers have none: set search.criterion=fa1")
        if judge and not set(target.task.classes) <= set(judge.classes.get(target.task.name, ())):
            raise ConfigError(
                f"search.images.judge: {settings.judge} has no head {titled(target.task.name)} with all of its "
                "classes: "
                f"name another judge, or none"
            )
        if isinstance(self.model, DiffusionModel):
            return ImageProbe(self.model, self.clip, target, tasks, settings, self.config.seed, judge)
        assert isinstance(self.model, VisionLanguageModel)
        return AnswerProbe(self.model, target, tasks)

    def _search(
        self,
        probe: Probe,
        target: Target,
        scores: dict[str, LayerScore],
        directions: dict[str, Direction],
        run: RunDirectory | None,
    ) -> tuple[str, dict[str, Tensor]]:
        """The concept and the deltas of the best tensor, or of the tensors that move with it."""
        curves = list[Curve]()
        probe.prepare(list(directions))
        base = probe.base()
        if getattr(base, self.config.search.criterion) <= self.config.search.target:
            raise EditError(
                f"{probe.not_shown(self.model.name)} before any change (forget accuracy {base.fa1:.2f}): "
                f"{probe.instead}"
            )
        with progress_bar(f"search {target.concept}", len(directions)) as advance:
            for name, direction in directions.items():
                curves.append(search(probe, scores[name], direction, self.config.search))
                advance(len(curves), name)
        portions = sum(len(probe.portions(curve.score.name)) for curve in curves if curve.outcome)
        with progress_bar(f"retained without {target.concept}", portions) as advance:
            curve = best(probe, curves, directions, base, self.config.search, lambda done: advance(done, ""))
        assert curve.chosen is not None and curve.outcome is not None
        step, direction = curve.score.step(curve.chosen), directions[curve.score.name]
        log.info(
            "%s: %s, rho %.3g, forget accuracy %.2f -> %.2f, retained %.3f -> %.3f",
            target.concept,
            curve.score.name,
            curve.chosen,
            base.fa1,
            curve.outcome.fa1,
            base.utility,
            curve.outcome.utility,
        )
        if run:
            self._record(run, target, scores, curves, base, curve)
        return target.concept, {name: (step * g).detach().cpu() for name, g in direction.items()}

    def _record(self, run: RunDirectory, target: Target, scores, curves: list[Curve], base, chosen: Curve) -> None:
        """Write ``slug_<concept>.json``: every tensor's importance and alignment, every curve, the chosen step."""
        front = {score.name for each in fronts(scores).values() for score in each}
        write_json(
            run.folder / f"slug_{Concept(target.concept).file_stem}.json",
            {
                "concept": target.concept,
                "sign": "+grad L_f",
                "precondition": self.config.damping,
                "chosen": chosen.score.name,
                "rho": chosen.chosen,
                "lambda": chosen.score.step(chosen.chosen or 0.0),
                "base": asdict(base),
                "layers": [
                    {**asdict(score), "tower": tower_of(score.name), "front": score.name in front}
                    for score in scores.values()
                ],
                "curves": [
                    {
                        "name": c.score.name,
                        "rho": c.rho,
                        self.config.search.criterion: c.forget,
                        "chosen": c.chosen,
                        "outcome": asdict(c.outcome) if c.outcome else None,
                        "seen": c.seen,
                    }
                    for c in curves
                ],
            },
        )

    def _joint(self, probes: Sequence[Probe], shifts: dict[str, Tensor]) -> float:
        """The common factor of all deltas. Raises `EditError` if too little is retained with all of them on."""
        on = self.clip if isinstance(probes[0], ClipProbe) else self.model

        def look(tried: dict[str, Tensor]) -> list[float]:
            with shifted(on, tried):
                return [getattr(probe.now(forget_only=True), self.config.search.criterion) for probe in probes]

        factor = joint_factor(shifts, look, self.config.search.target)
        base = probes[0].base()
        with shifted(on, {name: factor * shift for name, shift in shifts.items()}):
            seen = probes[0].now()  # any probe: no erased concept counts as retained in any of them
        check_kept(seen.kept(base), self.config.search)
        log.info(
            "%d concepts together: steps times %g, retained %.3f -> %.3f",
            len(probes),
            factor,
            base.utility,
            seen.utility,
        )
        return factor

    def _edit(self, concepts: Sequence[str], shifts: dict[str, Tensor]) -> WeightEdit:
        return self.edit(shifts, concepts)
