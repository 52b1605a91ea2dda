"""SLUG (Cai et al., ICML 2025): compute two gradients once, then search for one tensor and one step.

    L_f = mean over the forget set of 1 - cos(v_i, t_i)        L_r = CLIP's contrastive loss, mean over retain batches
    theta_l(lambda) = theta_l + lambda g_f,l,  lambda > 0          gradient *ascent* on L_f, all other tensors unchanged

The released programs disagree on the sign. Here g_f is always +grad L_f, and lambda is always positive. To check: the
mean cosine of the forget pairs falls as lambda grows. Steps are given as rho = lambda |g_f,l| / |theta_l|: the scale of
the gradient cancels and only its direction counts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from mu.algorithms.single_layer_unlearning_gradient.configs import GradientConfig, SearchConfig
from mu.algorithms.single_layer_unlearning_gradient.model import LayerScore
from mu.algorithms.single_layer_unlearning_gradient.probe import Direction, Outcome, Probe, Tally
from mu.core.errors import EditError
from mu.models.clip import ClipModel
from mu.models.contrastive import Captioned, Objective, batch_gradients, mean_gradients
from mu.training.gradient_files import Kind

log = logging.getLogger("mu")

Gradients = dict[str, Tensor]


def gradients(
    clip: ClipModel,
    pairs: Sequence[Captioned],
    parameters: dict[str, nn.Parameter],
    objective: Objective,
    settings: GradientConfig,
    carried: Gradients | None = None,
    progress: Callable[[int, int], None] | None = None,
    kind: Kind = "forget",
) -> tuple[Gradients, Gradients]:
    """The gradient of the mean loss, and the gradients that the ``cumulative`` programs carry over.

    By default it is the exact mean over the data set. With ``compat``, ``batch_mean`` weighs every batch of
    ``batch_size`` the same, also a shorter last one. ``cumulative`` never zeroes: batch i of N counts N - i times, and
    the second set starts from all gradients of the first (``carried``). Both take the pairs of ``kind`` forget that do
    not fill a batch, also for the contrastive loss; of kind retain only with ``partial_retain``.
    """
    B = settings.batch_size
    partial = "partial_retain" in settings.compat if kind == "retain" else bool(settings.accumulates)
    if not settings.accumulates:
        return mean_gradients(
            clip, pairs, parameters, objective, block=B, chunk=settings.chunk, partial=partial, progress=progress
        ), {}
    accumulated = dict(carried or {})
    total: Gradients = {}
    N = 0
    for found, n in batch_gradients(
        clip, pairs, parameters, objective, block=B, chunk=B, partial=partial, progress=progress
    ):
        mean = {name: g / n for name, g in found.items()}
        if "cumulative" in settings.compat:
            accumulated = {name: accumulated[name] + g for name, g in mean.items()} if accumulated else mean
            mean = accumulated
        total = {name: total[name] + g for name, g in mean.items()} if total else mean
        N += 1
    return {name: g / N for name, g in total.items()}, accumulated


@dataclass
class Curve:
    """The search along one tensor: steps (rho), forget accuracies, the chosen step and its outcome.

    ``seen``: share of the retained images evaluated at the chosen step. ``outcome`` counts the others as retained.
    """

    score: LayerScore
    rho: list[float] = field(default_factory=list)
    forget: list[float] = field(default_factory=list)
    chosen: float | None = None
    outcome: Outcome | None = None
    seen: float = 0.0

    def note(self, rho: float, forget: float) -> None:
        self.rho.append(rho)
        self.forget.append(forget)


def search(probe: Probe, score: LayerScore, direction: Direction, settings: SearchConfig) -> Curve:
    """Find the smallest evaluated step at which the concept is gone, times ``margin``; without one ``chosen`` is None.

    A curve can rise again: if the concept is not gone at the enlarged step, the step itself is chosen. The retained
    images are not evaluated yet: see `best`.
    """
    curve, found = Curve(score), dict[float, Outcome]()

    def gone(rhos: Sequence[float]) -> list[bool]:
        seen = probe.look(score.name, direction, [score.step(rho) for rho in rhos], forget_only=True)
        found.update(zip(rhos, seen, strict=True))
        return [getattr(each, settings.criterion) <= settings.target for each in seen]

    smallest = bisect(gone) if settings.method == "reference" else grid(gone, settings, probe.at_once)
    for rho, seen in found.items():
        curve.note(rho, getattr(seen, settings.criterion))
    if smallest is not None:
        enlarged = smallest * settings.margin
        curve.chosen = enlarged if enlarged == smallest or gone([enlarged])[0] else smallest
        curve.outcome = found[curve.chosen]
    return curve


def grid(gone: Callable[[Sequence[float]], list[bool]], settings: SearchConfig, at_once: int = 16) -> float | None:
    """Search a logarithmic grid, then a finer grid below its first step that forgets, in batches of ``at_once`` steps.

    The forget accuracy need not fall monotonically: the first grid finds the first of several crossings.
    """
    low, high, K = settings.rho_min, settings.rho_max, settings.steps

    def first(rhos: Sequence[float]) -> int | None:
        for start in range(0, len(rhos), at_once):
            for k, each in enumerate(gone(rhos[start : start + at_once])):
                if each:
                    return start + k
        return None

    rhos = [low * (high / low) ** (k / (K - 1)) for k in range(K)]
    found = first(rhos)
    if not found:
        return None if found is None else rhos[0]
    below, above, half = rhos[found - 1], rhos[found], max(2, K // 2)
    finer = [below + (above - below) * k / half for k in range(1, half)]
    nearer = first(finer)
    return above if nearer is None else finer[nearer]


def bisect(gone: Callable[[Sequence[float]], list[bool]], start: float = 0.1, evaluations: int = 10) -> float | None:
    """The released search: double rho until the concept is gone, then bisect; always ten evaluations.

    Returns the last ``hi``, or None.
    """
    lo, hi, rho = 0.0, math.inf, start
    for _ in range(evaluations):
        if gone([rho])[0]:
            hi = rho
            rho = (lo + hi) / 2
        else:
            lo = rho
            rho = 2 * rho if math.isinf(hi) else (lo + hi) / 2
    return None if math.isinf(hi) else hi


def best(
    probe: Probe,
    curves: Sequence[Curve],
    directions: Mapping[str, Direction],
    base: Outcome,
    settings: SearchConfig,
    progress: Callable[[int], None] | None = None,
) -> Curve:
    """The tensor that forgets the concept and retains most; ties go to the smaller step. Raises `EditError` without
    one.

    This is our rule; the released code leaves the choice to the reader. The search is best first: it evaluates a
    portion of the retained images for the tensor that can still retain most, until that tensor has seen all of them. No
    other tensor can then retain more, and most of their images were never evaluated. ``progress`` gets the number of
    portions so far.
    """
    forgot = [curve for curve in curves if curve.outcome]
    if not forgot:
        tried = ", ".join(f"{curve.score.name} (to {min(curve.forget, default=1):.2f})" for curve in curves)
        raise EditError(
            f"no step made {settings.criterion} fall to {settings.target:g}; tried {tried}: raise search.rho_max or "
            f"search.target, or allow more tensors with layers.max_front"
        )
    races = [_Race(probe, curve, directions[curve.score.name], base) for curve in forgot]
    done = 0
    while (first := max(races, key=lambda race: (race.kept, -race.rho))).left:
        first.advance()
        done += 1
        if progress:
            progress(done)
    check_kept(first.kept, settings)
    return first.curve


class _Race:
    """An upper bound on the share that a curve's step retains, from the images seen so far."""

    def __init__(self, probe: Probe, curve: Curve, direction: Direction, base: Outcome):
        assert curve.chosen is not None and curve.outcome is not None
        self.probe, self.curve, self.direction, self.base, self.rho = probe, curve, direction, base, curve.chosen
        self.left, self.tally = probe.portions(curve.score.name), Tally(probe.target, probe.tasks)
        self.images = self._unseen()
        self._note()

    def advance(self) -> None:
        rows, *self.left = self.left
        (scores,) = self.probe.scores_along(
            self.curve.score.name, self.direction, [self.curve.score.step(self.rho)], rows
        )
        self.tally.add(scores, rows)
        self._note()

    def _note(self) -> None:
        assert self.curve.outcome is not None
        self.curve.outcome = replace(self.curve.outcome, retained=self.tally.outcome(at_best=True).retained)
        self.curve.seen = 1 - self._unseen() / max(self.images, 1)
        self.kept = self.curve.outcome.kept(self.base)

    def _unseen(self) -> int:
        return sum(len(rows) for portion in self.left for rows in portion.values())


def check_kept(share: float, settings: SearchConfig) -> None:
    """Raise `EditError` if the ``share`` of the retained accuracies is too small."""
    if share < settings.retained:
        raise EditError(
            f"forgetting leaves less than {settings.retained:.0%} of the retained accuracies (at best {share:.1%}): "
            f"lower search.retained"
        )


def joint_factor(shifts: dict[str, Tensor], look: Callable[[dict[str, Tensor]], list[float]], target: float) -> float:
    """The smallest common factor of all deltas at which every concept is gone with all deltas on.

    The searches are independent, so one concept's delta may restore a part of another. ``look`` returns each concept's
    forget accuracy with the given deltas on. Raises `EditError` if no factor up to 2 is enough.
    """
    seen: list[float] = []
    for factor in (1.0, 1.1, 1.25, 1.5, 2.0):
        seen = look({name: factor * shift for name, shift in shifts.items()})
        if max(seen) <= target:
            return factor
    raise EditError(
        f"together the concepts are not forgotten (forget accuracies {', '.join(f'{each:.2f}' for each in seen)} "
        f"at twice the steps): erase fewer at once"
    )


def summed(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Deltas by tensor; the deltas of concepts that chose the same tensor are added."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, shift in part.items():
            total[name] = total[name] + shift if name in total else shift
    return total
