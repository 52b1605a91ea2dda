"""The null space of protected prompts, and the room that it leaves for erasing a concept.

A cross-attention computes keys and values only from the prompt embedding E (tokens, d): K = E W^T. A delta D with D e =
0 for every row e of the protected prompts leaves their keys and values, and therefore their predictions, unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mu.algorithms.separable_concept_erasure.configs import BasisConfig
from mu.core.errors import ConfigError, quoted
from mu.models.diffusion import DiffusionModel
from mu.models.diffusion.text import TextEncoder

SMALLEST = 16
"""The fewest directions that a null space may have."""
_ROUNDING = 16 * torch.finfo(torch.float64).eps

log = logging.getLogger("mu")


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
