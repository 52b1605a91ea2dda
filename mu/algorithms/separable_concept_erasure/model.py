"""The parts that separable erasure adds to a diffusion model: null spaces of protected prompts, and deltas inside them.

A cross-attention computes keys and values only from the prompt embedding E (tokens, d): K = E W^T. A delta D with D e =
0 for every row e of the protected prompts leaves their keys and values, and therefore their predictions, unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mu.algorithms.separable_concept_erasure.configs import BasisConfig
from mu.core.errors import ConfigError, EditError, ModelError, quoted, titled
from mu.edits.edit import Edit, EditInfo, described
from mu.edits.gates import OPEN
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors, Membrane
from mu.edits.weights import WeightEdit
from mu.models.diffusion import DiffusionModel
from mu.models.diffusion.text import TextEncoder
from mu.models.parameters import find_parameter
from mu.training.tuning import Tuning, tuned

SMALLEST = 16
"""The fewest directions that a null space may have."""
_ROUNDING = 16 * torch.finfo(torch.float64).eps

log = logging.getLogger("mu")


# -- protected prompts
# ------------------------------------------------------------------------------------------------------


def token_rows(model: DiffusionModel, prompts: Sequence[str]) -> Tensor:
    """Embeddings (m, d) of ``prompts``, one row for each distinct token prefix with padding; float64, on the CPU.

    The text encoders are causal, so equal prefixes have equal rows, and m bounds the rank. On SD 1.x m is 77 + 76 p for
    the empty prompt and p others with different first words (section 2.3).
    """
    tokens = [ids.tolist() for ids in model.tokens(prompts)]
    sequence = model.encode(prompts).sequence.cpu().double()
    rows: dict[tuple[tuple[int, ...], ...], Tensor] = {}
    for p, embedded in enumerate(sequence):
        for j, row in enumerate(embedded, start=1):
            rows.setdefault(tuple(tuple(ids[p][:j]) for ids in tokens), row)
    return torch.stack(list(rows.values()))


def begins(model: DiffusionModel, text: str, start: str) -> bool:
    """Whether the tokens of ``text`` begin with all tokens of ``start``, which must have some.

    The embedding rows of these tokens are then also rows of ``text``.
    """

    def words(prompt: str, encoder: TextEncoder) -> list[int]:
        ids = encoder.tokens([prompt])[0].tolist()
        return ids[1 : ids.index(encoder.end)] if encoder.end in ids else ids[1:]

    heads = [(words(text, encoder), words(start, encoder)) for encoder in model.text]
    return all(head and whole[: len(head)] == head for whole, head in heads)


@dataclass(frozen=True)
class NullSpace:
    """Orthonormal directions (n, d) orthogonal to all protected rows; ``span`` (r, d) is their orthogonal complement.

    ``leak`` is the largest singular value of the protected rows on ``directions``: a delta D moves no protected key or
    value by more than ``leak * ||D||_2``. It is 0 up to rounding if everything is protected exactly. ``weakest`` is the
    smallest singular value of the rows that are protected exactly, as a share of their largest.
    """

    directions: Tensor
    span: Tensor
    leak: float
    weakest: float = 1.0

    @classmethod
    def of(cls, rows: Tensor) -> NullSpace:
        """The exact null space of ``rows`` (m, d).

        It uses an SVD in float64: elimination in the embeddings' own precision leaves residuals of 1e-6 (section 6.2).
        """
        _, s, directions = torch.linalg.svd(rows.double(), full_matrices=True)
        rank = int((s > _ROUNDING * rows.shape[1] * s[0]).sum())
        return cls(directions[rank:], directions[:rank], 0.0, float(s[rank - 1] / s[0]))

    def without(self, rows: Tensor, tol: float = 0.0) -> NullSpace:
        """The part of the null space that is left when ``rows`` (l, d) are protected too.

        Singular values of ``rows`` below ``tol`` times their largest are ignored.
        """
        largest = torch.linalg.matrix_norm(rows.double(), 2)
        _, s, turned = torch.linalg.svd(rows.double() @ self.directions.T, full_matrices=True)
        rank = int((s > max(tol, _ROUNDING * rows.shape[1]) * largest).sum())
        leak = float(s[rank]) if rank < len(s) else 0.0
        span = torch.cat([self.span, turned[:rank] @ self.directions])
        return NullSpace(turned[rank:] @ self.directions, span, leak, self.weakest)

    def project(self, rows: Tensor) -> Tensor:
        return rows @ self.directions.T @ self.directions


def eliminated(span: Tensor) -> Tensor:
    """The released code's basis (d - r, d) of the null space of ``span`` (r, d), by Gauss-Jordan elimination from the
    left.

    It has one vector for each free column, divided by its norm. The rows are unit vectors, but not orthogonal.
    """
    A = span.clone()
    r, d = A.shape
    pivots: list[int] = []
    for column in range(d):
        done = len(pivots)
        if done == r:
            break
        best = done + int(A[done:, column].abs().argmax())
        if A[best, column].abs() < 1e-10:
            continue
        A[[done, best]] = A[[best, done]]
        A[done] /= A[done, column].clone()
        others = torch.arange(r) != done
        A[others] -= torch.outer(A[others, column], A[done])
        pivots.append(column)
    free = [column for column in range(d) if column not in set(pivots)]
    basis = torch.zeros(len(free), d, dtype=A.dtype)
    basis[range(len(free)), free] = 1
    basis[:, pivots] = -A[: len(pivots), free].T
    return basis / basis.norm(dim=1, keepdim=True)


def basis_of(space: NullSpace, concept: Tensor, config: BasisConfig) -> Tensor:
    """Basis beta S (k, d), float64, of the rows of a delta for the token rows ``concept`` (m, d) (section 2.4).

    Orthonormal: the row space of E P, at most 76 directions for one prompt on SD 1.x. The gradient of the loss lies in
    it. A part of a delta outside of it does not affect the concept and can only disturb other prompts (section 6.5).
    """
    if config.kind == "elimination":
        S = eliminated(space.span)
    else:
        _, s, directions = torch.linalg.svd(concept @ space.directions.T, full_matrices=False)
        S = directions[s > config.concept_tol * s[0]] @ space.directions
    if config.max_base and config.max_base > len(S):
        log.warning("basis.max_base is %d, but the basis has only %d vectors: all are used", config.max_base, len(S))
    return config.scale_factor * S[: config.max_base]


@dataclass(frozen=True)
class Capacity:
    """The room that protected prompts leave for erasing a concept; `str` gives the lines for the log."""

    concept: str
    protected: tuple[str, ...]
    """Prompts protected exactly."""
    spared: tuple[str, ...]
    """Prompts protected up to the leak."""
    left_out: tuple[str, ...]
    rows: int
    """Distinct token rows of the protected prompts."""
    width: int
    free: int
    """Directions of the null space, n."""
    used: int
    """Vectors in the delta's basis."""
    erasability: float
    """||E P_k|| / ||E P_0|| of the concept's rows: 1 if protecting costs nothing, 0 if nothing can be erased."""
    singular: tuple[float, ...]
    """Singular values of E P_k."""
    leak: float
    """Times the norm of the delta, the largest possible change of protected keys and values."""

    def __str__(self) -> str:
        lines = [
            f"{quoted(self.concept)}: {len(self.protected)} prompts protected exactly and {len(self.spared)} "
            "nearly, with "
            f"{self.rows} token rows, leave {self.free} of {self.width} directions; {self.used} are used",
            f"{quoted(self.concept)}: erasability {self.erasability:.2f}; singular values "
            + (f"{self.singular[0]:.3g} to {self.singular[-1]:.3g}" if self.singular else "none"),
        ]
        if self.left_out:
            lines.append(
                f"{quoted(self.concept)}: not protected, no room left: {', '.join(map(quoted, self.left_out))}"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Room:
    """A concept's null space of protected prompts, the basis of its delta, and its capacity."""

    space: NullSpace
    basis: Tensor
    capacity: Capacity


def room_for(
    model: DiffusionModel,
    concept: str,
    prompts: Sequence[str],
    exact: Sequence[str],
    others: Mapping[str, Sequence[str]],
    config: BasisConfig,
    *,
    leave: int = SMALLEST,
    tol: float = 0.0,
) -> Room:
    """Protect the prompts ``exact`` and then, while ``leave`` directions are left, the prompts of each of ``others``.

    Raises `ConfigError` if too few directions are left, or if none of them acts on the concept's ``prompts``.
    """
    exact = list(dict.fromkeys(["", *exact]))
    begun = [next((p for p in exact if begins(model, p, prompt)), None) for prompt in prompts]
    if all(begun):
        raise ConfigError(
            f"{quoted(concept)} lies inside what is protected: {quoted(begun[0])} begins with it, and its words "
            "cannot be both "
            f"erased and retained; do not protect {quoted(begun[0])}"
        )
    fixed, E = token_rows(model, exact), token_rows(model, prompts)
    space = NullSpace.of(fixed)
    if len(space.directions) < SMALLEST:
        cost = ", ".join(f"{quoted(prompt)} {len(token_rows(model, [prompt]))}" for prompt in exact)
        raise ConfigError(
            f"protecting {len(exact)} prompts ({len(fixed)} token rows) leaves {len(space.directions)} of "
            f"{fixed.shape[1]} directions to erase {quoted(concept)}, fewer than {SMALLEST}: protect fewer of {cost}; "
            f"name them in protect.others, or for erased concepts set protect.erased=nearly, with a protect.null_tol"
        )
    kept = space
    taken: list[str] = []
    left_out: list[str] = []
    for other, texts in others.items():
        added = [text for text in texts if text not in exact and text not in taken]
        found = kept.without(token_rows(model, [*taken, *added]), tol) if added else space
        if len(found.directions) >= leave:
            space, taken = found, [*taken, *added]
        else:
            left_out.append(other)
    free = E @ NullSpace.of(token_rows(model, [""])).directions.T
    bound = E @ space.directions.T
    erasability = float(bound.norm() / free.norm())
    if erasability < 1e-3:
        raise ConfigError(
            f"{quoted(concept)} lies inside what is protected and cannot be erased: protect fewer prompts"
        )
    basis, singular = basis_of(space, E, config), torch.linalg.svdvals(bound)
    rows = len(token_rows(model, [*exact, *taken]))
    if space.weakest < 1e-6:
        log.warning(
            "%r: the weakest protected direction is %.1g of the strongest and may be noise: protect fewer prompts",
            concept,
            space.weakest,
        )
    spared = tuple(taken) if tol else ()
    protected = tuple(exact) if tol else (*exact, *taken)
    capacity = Capacity(
        concept, protected, spared, tuple(left_out), rows, E.shape[1], len(space.directions), len(basis), erasability,
        tuple(singular[singular > 1e-6 * singular[0]].tolist()), space.leak,
    )  # fmt: skip
    return Room(space, basis, capacity)


# -- deltas in training
# -----------------------------------------------------------------------------------------------------


class Shift(Protocol):
    """A delta in training. It is on inside ``installed()``, and off again inside ``frozen()``."""

    weights: list[nn.Parameter]

    def installed(self) -> AbstractContextManager[None]: ...

    def frozen(self) -> AbstractContextManager[None]: ...

    def norm(self) -> Tensor:
        """R = 1/M sum_l ||D_l||_1: sum over the elements, mean over the M tensors; with gradient."""
        ...

    def moved(self) -> Tensor | None:
        """How far spared sentences are moved; None if the delta spares none."""
        ...


def text_layers(model: DiffusionModel) -> dict[str, nn.Linear | nn.Conv2d]:
    """``to_k`` and ``to_v`` of every cross-attention by weight name: 32 layers and 19,169,280 parameters on SD 1.x."""
    text = model.layers("text-keys") | model.layers("text-values")
    layers = {name: layer for name, layer in model.layers("transformer").items() if name in text}
    if not layers:
        raise ModelError(
            f"{titled(model.name)} has no cross-attention for separable erasure to change: name another model"
        )
    return layers


def _root(rows: Tensor) -> Tensor:
    """R (k, k) with R^T R the second moment E[e e^T] of ``rows`` (m, k): as many rows as columns in place of m."""
    return torch.linalg.qr(rows / len(rows) ** 0.5, mode="r").R


def _described(model: DiffusionModel, parameters: list[str], info: EditInfo) -> EditInfo:
    return EditInfo(**{**vars(info), **described(model, parameters)})


class SeparableShift:
    """One concept's delta D_l = w_l (beta S) on every text layer; w_l (d_out, k) is trained from zero (section 2.4)."""

    def __init__(self, model: DiffusionModel, room: Room, info: EditInfo, sentences: Sequence[str] = ()):
        layers = text_layers(model)
        dtype = torch.promote_types(next(iter(layers.values())).weight.dtype, torch.float32)
        down = room.basis.to(model.device, dtype)
        if wrong := [name for name, layer in layers.items() if layer.weight.shape[1] != down.shape[1]]:
            raise ModelError(
                f"{wrong[0]} of {titled(model.name)} does not read prompt embeddings of width {down.shape[1]}: "
                "name another"
            )
        factors: dict[str, Factors] = {}
        self.weights: list[nn.Parameter] = []
        for name, layer in layers.items():
            self.weights.append(
                nn.Parameter(torch.zeros(layer.weight.shape[0], len(down), device=model.device, dtype=dtype))
            )
            factors[name] = Factors(down, self.weights[-1], float(len(down)))
        self.model, self.room = model, room
        self.edit = LowRankEdit(
            factors,
            replace(
                _described(model, list(factors), info), protects=room.capacity.protected, spares=room.capacity.spared
            ),
        )
        self.membrane = Membrane([self.edit])
        self._sentences: Tensor | None = None
        if sentences:
            rows = token_rows(model, sentences)
            self._sentences = _root(rows @ room.basis.T).float().to(model.device)
            sizes = [
                float(F.linear(_root(rows), layer.weight.detach().cpu().double()).square().sum())
                for layer in layers.values()
            ]
            self._sizes = torch.tensor(sizes, device=model.device)

    @contextmanager
    def installed(self) -> Iterator[None]:
        with self.membrane.installed(self.model):
            yield

    @contextmanager
    def frozen(self) -> Iterator[None]:
        with torch.no_grad(), self.membrane.off():
            yield

    @torch.no_grad()
    def start_from(self, edit: LowRankEdit) -> None:
        """Start from the delta of ``edit``, projected onto the span of the basis."""
        inverse = torch.linalg.pinv(self.room.basis)
        for weight, name in zip(self.weights, self.edit.factors, strict=True):
            weight.copy_((edit.factors[name].dense().cpu().double() @ inverse).to(weight))

    def norm(self) -> Tensor:
        return torch.stack([(f.up @ f.down).abs().sum() for f in self.edit.factors.values()]).mean()

    def moved(self) -> Tensor | None:
        """Mean over tensors of E||D e||^2 / E||W e||^2, e the token rows of the sentences; with gradient.

        0.01 means that their keys and values move by a tenth of their length. Not in the paper.
        """
        if self._sentences is None:
            return None
        moved = torch.stack([F.linear(self._sentences, weight).square().sum() for weight in self.weights])
        return (moved / self._sizes).mean()

    def finished(self) -> LowRankEdit:
        return LowRankEdit.from_tensors(
            {name: tensor.clone() for name, tensor in self.edit.tensors().items()}, self.edit.info
        )

    @torch.no_grad()
    def leak(self) -> tuple[float, float]:
        """The bound on the change of protected keys and values, and the change itself as a share of the largest of
        them."""
        # Every row of the model's embeddings, also those that `token_rows` treats as equal.
        E = (
            self.model.encode([*self.room.capacity.protected, *self.room.capacity.spared])
            .sequence.flatten(0, 1)
            .cpu()
            .double()
        )
        bound, moved = 0.0, 0.0
        for name, shift in self.edit.deltas():
            D, W = (t.detach().cpu().double() for t in (shift, find_parameter(self.model, name)))
            bound = max(bound, self.room.space.leak * float(torch.linalg.matrix_norm(D, 2)))
            moved = max(moved, float((E @ D.T).abs().max() / (E @ W.T).abs().max()))
        return bound, moved


class DenseShift:
    """CiE's delta: every cross-attention parameter, 80 tensors and 43,962,560 numbers on SD 1.x (section 1.2)."""

    def __init__(self, model: DiffusionModel, info: EditInfo):
        self.parameters = model.parameters("cross-attention")
        self.weights = list(self.parameters.values())
        self.originals = [parameter.data for parameter in self.weights]
        self.info = _described(model, list(self.parameters), info)
        self.tuning: Tuning | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        with tuned(self.parameters) as self.tuning:
            yield

    def frozen(self) -> AbstractContextManager[None]:
        assert self.tuning is not None, "installed() comes first"
        return self.tuning.frozen()

    def norm(self) -> Tensor:
        pairs = zip(self.weights, self.originals, strict=True)
        return torch.stack([(weight - original).abs().sum() for weight, original in pairs]).mean()

    def moved(self) -> None:
        return None

    def finished(self) -> WeightEdit:
        """The trained edit. Call it inside ``installed()``."""
        assert self.tuning is not None, "installed() comes first"
        return WeightEdit(self.tuning.shifts(), self.info)


# -- finished edits
# ---------------------------------------------------------------------------------------------------------


def summed(edits: Sequence[LowRankEdit], info: EditInfo) -> LowRankEdit:
    """The sum of the ``edits``, with their LoRA factors concatenated.

    It protects the prompts that all of them protect, and spares those that all of them spare or protect.
    """
    factors = {}
    for name in edits[0].factors:
        parts = [edit.factors[name] for edit in edits]
        down, up = torch.cat([part.down for part in parts]), torch.cat([part.up * part.scale for part in parts], dim=1)
        factors[name] = Factors(down, up, float(len(down)))
    protects = tuple(prompt for prompt in edits[0].info.protects if all(prompt in edit.info.protects for edit in edits))
    left_alone = [{*edit.info.protects, *edit.info.spares} for edit in edits]
    spares = tuple(p for p in edits[0].info.spares if p not in protects and all(p in each for each in left_alone))
    return LowRankEdit(
        factors,
        replace(
            info,
            protects=protects,
            spares=spares,
            **{name: getattr(edits[0].info, name) for name in ("base", "fingerprint", "loading")},
        ),
    )


def is_separable(edit: Edit, model: DiffusionModel) -> TypeGuard[LowRankEdit]:
    """Whether ``edit`` is like a `SeparableShift`: it changes only cross-attention keys and values, and protects ""."""
    known = isinstance(edit, LowRankEdit) and set(edit.factors) <= set(text_layers(model))
    return known and "" in edit.info.protects and edit.info.gate == OPEN


@torch.no_grad()
def also_protecting(edit: LowRankEdit, model: DiffusionModel, prompts: Sequence[str]) -> LowRankEdit:
    """``edit`` made null on ``prompts`` too, in addition to everything that it protected before (section 2.9).

    An edit found before a later concept was known acts on that concept: to take the old edit off would change the new
    concept's images. D (I - B B^T), with B the row space of the new rows inside the old null space, corrects that
    exactly. The effect of the edit along B is lost, so evaluate again how well it erases. Raises `EditError` for an
    edit that separable erasure did not make.
    """
    if not is_separable(edit, model):
        raise EditError(
            f"the edit of {quoted(edit.concept())} protects no prompts, it is not from separable erasure: erase "
            "with sepce"
        )
    downs = [factors.down.cpu().double() for factors in edit.factors.values()]
    distinct = [downs[0], *(down for down in downs[1:] if not torch.equal(down, downs[0]))]
    # The old null space again, with the edit's own rows: if prompts are spared, other rows may have bounded it.
    space = NullSpace.of(token_rows(model, edit.info.protects))
    if edit.info.spares:
        space = space.without(token_rows(model, edit.info.spares), float(edit.info.config["protect"]["null_tol"]))
    _, s, own = torch.linalg.svd(torch.cat(distinct), full_matrices=False)
    _, s, inside = torch.linalg.svd(torch.cat([space.directions, own[s > 1e-6 * s[0]]]), full_matrices=False)
    inside = inside[s > 1e-6 * s[0]]
    _, s, B = torch.linalg.svd(token_rows(model, prompts) @ inside.T, full_matrices=False)
    B = B[s > 1e-6 * s[0]] @ inside
    factors = {}
    for (name, old), down in zip(edit.factors.items(), downs, strict=True):
        kept = (down - down @ B.T @ B).to(old.down)
        factors[name] = Factors(kept, old.up, old.alpha)
    spares = tuple(prompt for prompt in edit.info.spares if prompt not in prompts)
    return LowRankEdit(
        factors, replace(edit.info, protects=tuple(dict.fromkeys([*edit.info.protects, *prompts])), spares=spares)
    )


@torch.no_grad()
def sparing(
    edit: LowRankEdit, model: DiffusionModel, prompts: Sequence[str], sentences: Sequence[str], weight: float
) -> LowRankEdit:
    """``edit`` with less effect on ``sentences`` and nearly the same on its own ``prompts``. Closed form.

    D' minimises E||D' e - D e||^2 over the token rows e of ``prompts``, plus ``weight`` E||D' s||^2 over those of
    ``sentences``, inside the row space of D: D' = D C (C + weight K)^-1, with C and K the second moments there. What D
    protects exactly stays protected.
    """
    downs = [factors.down.cpu().double() for factors in edit.factors.values()]
    _, s, own = torch.linalg.svd(
        torch.cat([downs[0], *(d for d in downs[1:] if not torch.equal(d, downs[0]))]), full_matrices=False
    )
    own = own[s > 1e-9 * s[0]]
    C, K = (
        (rows @ own.T).T @ (rows @ own.T) / len(rows)
        for rows in (token_rows(model, prompts), token_rows(model, sentences))
    )
    floor = 1e-9 * torch.trace(C) * torch.eye(len(C), dtype=C.dtype)
    change = own.T @ torch.linalg.solve(C + weight * K + floor, C).T @ own
    factors = {}
    for (name, old), down in zip(edit.factors.items(), downs, strict=True):
        factors[name] = Factors((down @ change).to(old.down), old.up, old.alpha)
    return LowRankEdit(factors, edit.info)
