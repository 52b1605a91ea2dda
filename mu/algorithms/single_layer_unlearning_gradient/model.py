"""Scores of each tensor for forgetting and retaining (SLUG, section 3): importance, alignment, Pareto front."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mu.core.errors import EditError, ModelError, titled
from mu.models.clip import ClipModel
from mu.models.parameters import EditableModel, find_parameter, select
from mu.models.towers import Which, tower_of, towers_of
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


@dataclass(frozen=True)
class Group:
    """What is searched as one tensor: the tensors that are ``scored`` together, and those that are ``moved``."""

    name: str
    scored: tuple[str, ...]
    moved: tuple[str, ...]


_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("fc1", "fc2"))


def grouped(names: Iterable[str], found: Collection[str], compat: Collection[str]) -> dict[str, Group]:
    """The groups that ``names`` are searched in, by name; ``found`` are all tensors that may change.

    Each is alone, except with ``compat``. ``in_proj``: q, k and v of one attention are one tensor, named as such
    (``...self_attn.in_proj.weight``). ``siblings``: each is scored alone, and moves the others of its kind, q, k and v
    or fc1 and fc2, as far as they are weights.
    """
    groups: dict[str, Group] = {}
    for name in names:
        layer, _, rest = name.rpartition(".")
        owner, _, part = layer.rpartition(".")
        kinds = next((kinds for kinds in _SIBLINGS if part in kinds), ())
        together = tuple(other for kind in kinds if (other := f"{owner}.{kind}.{rest}") in found)
        if kinds == _SIBLINGS[0] and "in_proj" in compat:
            joint = f"{owner}.in_proj.{rest}"
            groups[joint] = Group(joint, together, together)
        else:
            moves = "siblings" in compat and rest == "weight" and bool(together)
            groups[name] = Group(name, (name,), together if moves else (name,))
    return groups


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
    parameters: Mapping[str, Tensor],
    g_f: Mapping[str, Tensor],
    g_r: Mapping[str, Tensor],
    groups: Mapping[str, Group] | None = None,
) -> dict[str, LayerScore]:
    """Score every tensor, or every group of tensors, with a forget gradient.

    Raises `DataError` if a gradient is not finite.
    """
    scores = {}
    for name, group in (groups or grouped(parameters, parameters, ())).items():
        theta, f, r = (_flat(each, group.scored) for each in (parameters, g_f, g_r))
        check_finite(name, f)
        check_finite(name, r)
        norm, gradient = float(theta.norm()), float(f.norm())
        if gradient > 0 and norm > 0:
            alignment = float(F.cosine_similarity(f, r, dim=0, eps=1e-6).abs())
            scores[name] = LayerScore(name, gradient / norm, alignment, norm, gradient)
    return scores


def _flat(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([tensors[name].detach().flatten().cpu().double() for name in names])


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


def deepest(front: Sequence[LayerScore]) -> list[LayerScore]:
    """The tensor of the front that the released programs take: in the deepest block, never the first block.

    Of several in one block it is the one with the largest alignment, the first on the front. Raises `EditError` if the
    front has none.
    """
    depths = {s.name: int(found[1]) for s in front if (found := re.search(r"\.layers\.(\d+)\.", s.name))}
    deep = [s for s in front if depths.get(s.name, 0) > 0]
    if not deep:
        raise EditError(
            f"the front ({', '.join(s.name for s in front)}) has no tensor behind the first block: name one in "
            f"layers.names, or take deepest out of layers.compat"
        )
    return [max(deep, key=lambda s: depths[s.name])]


def to_search(
    clip: ClipModel, scores: Mapping[str, LayerScore], most: int | None, *, only_deepest: bool = False
) -> list[LayerScore]:
    """The ``most`` important tensors of each tower's front, or all tensors (None), in the order of the forward pass.

    With ``only_deepest``, the `deepest` of each front.
    """
    chosen = list(scores.values())
    if only_deepest:
        chosen = [s for front in fronts(scores).values() for s in deepest(front)]
    elif most is not None:
        chosen = [s for front in fronts(scores).values() for s in sorted(front, key=lambda s: -s.importance)[:most]]
    towers = towers_of(clip)

    def place(score: LayerScore) -> tuple[str, int]:
        which = tower_of(score.name)
        assert which is not None, "candidates are in towers"
        return which, towers[which].stage_of(score.name)

    return sorted(chosen, key=place)
