"""Scores of each tensor for forgetting and retaining (SLUG, section 3): importance, alignment, Pareto front."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mu.core.errors import ModelError, titled
from mu.models.clip import ClipModel
from mu.models.parameters import EditableModel, find_parameter, select
from mu.models.towers import COMPONENTS, Tower, Which, tower_of
from mu.training.gradient_files import check_finite


@dataclass(frozen=True)
class LayerScore:
    """``importance`` I = |g_f| / |theta|; ``alignment`` A = |cos(g_f, g_r)|; norms are Frobenius."""

    name: str
    importance: float
    alignment: float
    norm: float
    gradient_norm: float

    def step(self, rho: float) -> float:
        """lambda: the factor of g_f that changes the tensor by the share ``rho`` of its norm."""
        return rho * self.norm / self.gradient_norm


class Reader(EditableModel, Protocol):
    """A model that knows which of its parameters its output depends on."""

    def reads(self, parameter: str) -> bool: ...


def candidates(model: Reader, clip: ClipModel, tower: str, exclude: Sequence[str]) -> dict[str, nn.Parameter]:
    """Tensors of ``clip`` that affect the output of ``model``.

    Excluded are tensors that ``model`` lacks (Stable Diffusion has no vision tower and no projections), and layers
    behind the one that it reads (SD 2.1 reads 23 of 24 text layers, LLaVA-1.5 the last vision layer but one). A change
    there has no effect and could pass for a success. Raises `ModelError` if no tensor is left, or if shapes of model
    and CLIP differ.
    """
    found = {}
    for name, parameter in select(clip, "*").items():
        which = tower_of(name)
        if which is None or tower not in ("both", which) or parameter.ndim == 0 or _matches(name, exclude):
            continue
        if not model.reads(name):
            continue
        shape = find_parameter(model, name).shape
        if shape != parameter.shape:
            raise ModelError(
                f"{name} is {tuple(shape)} in {titled(model.name)} and {tuple(parameter.shape)} in "
                f"{titled(clip.name)}: "
                f"name the CLIP that the model was made with"
            )
        found[name] = parameter
    if not found:
        raise ModelError(
            f"no tensor of {titled(clip.name)} (tower: {tower}) affects the output of {titled(model.name)}: "
            "change layers.tower or "
            f"layers.exclude"
        )
    return found


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def layer_scores(
    parameters: Mapping[str, Tensor], g_f: Mapping[str, Tensor], g_r: Mapping[str, Tensor]
) -> dict[str, LayerScore]:
    """Score every tensor with a forget gradient. Raises `DataError` if a gradient is not finite."""
    scores = {}
    for name, theta in parameters.items():
        f, r = (g[name].detach().flatten().cpu().double() for g in (g_f, g_r))
        check_finite(name, f)
        check_finite(name, r)
        norm, gradient = float(theta.detach().cpu().double().norm()), float(f.norm())
        if gradient > 0 and norm > 0:
            alignment = float(F.cosine_similarity(f, r, dim=0, eps=1e-6).abs())
            scores[name] = LayerScore(name, gradient / norm, alignment, norm, gradient)
    return scores


def pareto_front(scores: Sequence[LayerScore]) -> list[LayerScore]:
    """Scores that no other score beats in both numbers, by descending alignment.

    As in the released code, a tie in one number stays on the front.
    """
    kept, best, level = [], -torch.inf, -torch.inf
    previous = None
    for score in sorted(scores, key=lambda s: s.alignment):
        if score.alignment != previous:
            best, previous = max(best, level), score.alignment
        level = max(level, score.importance)
        if score.importance >= best:
            kept.append(score)
    return kept[::-1]


def fronts(scores: Mapping[str, LayerScore]) -> dict[Which, list[LayerScore]]:
    """The Pareto front of each tower that has candidates."""
    towers: dict[Which, list[LayerScore]] = {}
    for name, score in scores.items():
        which = tower_of(name)
        assert which is not None, "candidates are in towers"
        towers.setdefault(which, []).append(score)
    return {which: pareto_front(each) for which, each in towers.items()}


def to_search(clip: ClipModel, scores: Mapping[str, LayerScore], most: int | None) -> list[LayerScore]:
    """The ``most`` important tensors of each tower's front, or all tensors (None), in the order of the forward pass."""
    chosen = list(scores.values())
    if most is not None:
        chosen = [s for front in fronts(scores).values() for s in sorted(front, key=lambda s: -s.importance)[:most]]
    towers = {which: Tower(clip, which) for which in COMPONENTS}

    def place(score: LayerScore) -> tuple[str, int]:
        which = tower_of(score.name)
        assert which is not None, "candidates are in towers"
        return which, towers[which].stage_of(score.name)

    return sorted(chosen, key=place)
