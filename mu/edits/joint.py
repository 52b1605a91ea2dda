"""Edits of several concepts that were solved together, and that any concept can be taken out of again exactly.

A closed form finds one delta for all targets. With one row c_i, in C (n, d), for each target token, its delta of a
weight W (out, d) is a sum over targets,

    D = sum_i u_i f_i^T,   u_i = W (a_i - c_i),   F = (kappa I + Z C^T)^-1 Z   with the rows f_i,

where a_i is the anchor's row and Z = C H holds what the solve knows of everything else: H (d, d) is symmetric, and the
same for any set of targets. So an edit keeps its own rows c_i and z_i, and the solve for any other set of targets is
one n x n system of kept rows: without one concept, or together with an edit that was found later with the same H.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mu.core.errors import EditError, nearest, quoted
from mu.edits.edit import Edit, EditInfo
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors

FACTS = "joint"
"""Name of `Solve` in `EditInfo.found`."""
_ROWS, _SOLVED = "joint.rows", "joint.solved"


@dataclass(frozen=True)
class Solve:
    """Which solve an edit is a part of."""

    group: str
    """Edits of one group have the same H, so that they can be solved together."""
    ridge: float
    """kappa, for each row if ``by_row``: the sums of the solve are then means over rows."""
    by_row: bool
    rows: tuple[int, ...]
    """How many rows each concept has, in their order."""

    def kappa(self, count: int) -> float:
        return self.ridge * (count if self.by_row else 1)


def right_factor(C: Tensor, Z: Tensor, kappa: float) -> Tensor:
    """F (n, d) of rows C and Z (n, d), by the smaller of two systems, n x n or d x d."""
    n, d = C.shape
    if n <= d:
        return torch.linalg.solve(kappa * torch.eye(n, dtype=C.dtype) + Z @ C.T, Z)
    return torch.linalg.solve(kappa * torch.eye(d, dtype=C.dtype) + C.T @ Z, Z, left=False)


class Dropped(NamedTuple):
    """An edit without the terms of some concepts, and ||D - D'||_F / ||D'||_F with D' from a solve without them."""

    edit: LowRankEdit
    error: float


class JointEdit(LowRankEdit):
    """Low-rank edits of one or several concepts, each a part that can be left out: see this module.

    ``ups`` (out, n) holds the u_i of each parameter, ``rows`` is C (n, d), and ``solved`` Z (n, d) of each parameter:
    parameters that share it share the tensor. C and Z are kept in float64. The LoRA factors are those of the concepts'
    own solve; `solved_together` makes those of several edits.
    """

    kind: ClassVar[str] = "joint"

    def __init__(
        self,
        ups: Mapping[str, Tensor],
        rows: Tensor,
        solved: Mapping[str, Tensor],
        info: EditInfo,
        rights: Mapping[str, Tensor] | None = None,
    ):
        """``rights`` (n, d): F of each parameter, if it is known; by default that of these rows alone."""
        whole = {id(Z): Z.contiguous() for Z in solved.values()}  # equal numbers in another layout round otherwise
        self.ups, self.rows, self.info = dict(ups), rows.contiguous(), info
        self.solved = {name: whole[id(Z)] for name, Z in solved.items()}
        self.solve = _solve_of(info, len(rows))
        self.rights = dict(rights) if rights else self._alone()
        factors = {
            name: Factors(self._as(self.rights[name], up), self._as(up, up), float(len(rows)))
            for name, up in self.ups.items()
        }
        super().__init__(factors, info)

    @staticmethod
    def _as(tensor: Tensor, like: Tensor) -> Tensor:
        return tensor.to(like.device, torch.float32).contiguous()

    def _alone(self) -> dict[str, Tensor]:
        found: dict[int, Tensor] = {}
        kappa = self.solve.kappa(len(self.rows))
        for Z in self.solved.values():
            if id(Z) not in found:
                found[id(Z)] = right_factor(self.rows, Z, kappa)
        return {name: found[id(Z)] for name, Z in self.solved.items()}

    def part(self, concepts: Iterable[str]) -> JointEdit:
        """The edit of ``concepts`` alone, solved anew. Raises `EditError` for one that this edit does not erase."""
        wanted = list(concepts)
        for concept in wanted:
            if concept not in self.info.concepts:
                raise EditError(f"the edit does not erase {quoted(concept)}.{nearest(concept, self.info.concepts)}")
        index = self._rows_of(wanted)
        kept = [k for k, concept in enumerate(self.info.concepts) if concept in wanted]
        solve = replace(self.solve, rows=tuple(self.solve.rows[k] for k in kept))
        shared = {id(Z): Z[index] for Z in self.solved.values()}
        return JointEdit(
            {name: up[:, index] for name, up in self.ups.items()},
            self.rows[index],
            {name: shared[id(Z)] for name, Z in self.solved.items()},
            replace(self.info, concepts=tuple(self.info.concepts[k] for k in kept), found=_with(self.info, solve)),
        )

    def without(self, *concepts: str) -> JointEdit:
        """The exact solve for all other concepts: what the method gives if it is never asked for ``concepts``."""
        self._known(concepts)
        return self.part(concept for concept in self.info.concepts if concept not in concepts)

    def dropped(self, *concepts: str) -> Dropped:
        """The edit with the terms of ``concepts`` left out and all others as they are, and how far that is from exact.

        No system is solved for the edit itself, only for its error.
        """
        exact = self.without(*concepts)
        index = self._rows_of(exact.info.concepts)
        factors, off, whole = {}, 0.0, 0.0
        for name, up in exact.ups.items():
            right, wanted = self.rights[name][index], exact.rights[name]
            factors[name] = Factors(self._as(right, up), self._as(up, up), float(len(right)))
            gram = (up.T @ up).cpu().double()
            off += float(((right - wanted).T @ gram * (right - wanted).T).sum())
            whole += float((wanted.T @ gram * wanted.T).sum())
        return Dropped(LowRankEdit(factors, exact.info), (off / whole) ** 0.5 if whole else 0.0)

    def parts(self) -> list[JointEdit]:
        """One edit for each concept."""
        return [self.part([concept]) for concept in self.info.concepts]

    def _known(self, concepts: Sequence[str]) -> None:
        self.part(concepts)
        if len(set(concepts)) == len(self.info.concepts):
            raise EditError("nothing would be erased: leave out fewer concepts")

    def _rows_of(self, concepts: Iterable[str]) -> Tensor:
        owners = [concept for concept, n in zip(self.info.concepts, self.solve.rows, strict=True) for _ in range(n)]
        wanted = set(concepts)
        return torch.tensor([k for k, owner in enumerate(owners) if owner in wanted], dtype=torch.long)

    def tensors(self) -> dict[str, Tensor]:
        number = {key: k for k, key in enumerate(dict.fromkeys(id(self.solved[name]) for name in sorted(self.solved)))}
        named = super().tensors() | {_ROWS: self.rows}
        for name, Z in self.solved.items():
            named.setdefault(f"{_SOLVED}.{number[id(Z)]}", Z)
            named[f"{name.removesuffix('.weight')}.{_SOLVED}"] = torch.tensor(number[id(Z)])
        return named

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], info: EditInfo) -> JointEdit:
        """The inverse of `tensors`. Raises `EditError` if a tensor is missing or does not fit the others."""
        plain = LowRankEdit.from_tensors(tensors, info)
        try:
            rows = tensors[_ROWS]
            layers = {name: int(tensors[f"{name.removesuffix('.weight')}.{_SOLVED}"]) for name in plain.factors}
            shared = {k: tensors[f"{_SOLVED}.{k}"] for k in set(layers.values())}
        except (KeyError, RuntimeError, ValueError) as error:
            raise EditError(f"the rows of the joint solve are missing ({error}), so the file is damaged") from None
        if any(Z.shape != rows.shape for Z in shared.values()) or any(
            factors.down.shape != rows.shape for factors in plain.factors.values()
        ):
            raise EditError("the rows of the joint solve do not fit each other, so the file is damaged: copy it again")
        ups = {name: factors.up for name, factors in plain.factors.items()}
        return cls(ups, rows, {name: shared[k] for name, k in layers.items()}, info)


def group_of(*facts: Any) -> str:
    """A digest of all that H follows from, given as plain values."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def joint_info(info: EditInfo, solve: Solve) -> EditInfo:
    """``info`` with what `JointEdit` needs to know of its solve."""
    return replace(info, found=_with(info, solve))


def solved_together(edits: Sequence[Edit]) -> list[Edit]:
    """``edits`` in their order, but each `JointEdit` with the factors of one solve for all edits of its group.

    One system of n rows for each distinct Z, in float64: milliseconds for 100 targets of one row.
    """
    groups: dict[str, list[int]] = {}
    for k, edit in enumerate(edits):
        if isinstance(edit, JointEdit):
            groups.setdefault(edit.solve.group, []).append(k)
    found = list(edits)
    for places in groups.values():
        members = [edit for k in places if isinstance(edit := edits[k], JointEdit)]
        if len(members) > 1:
            for k, solved in zip(places, _together(members), strict=True):
                found[k] = solved
    return found


def _together(members: Sequence[JointEdit]) -> list[JointEdit]:
    C, counts = torch.cat([member.rows for member in members]), [len(member.rows) for member in members]
    kappa = members[0].solve.kappa(len(C))
    solved: dict[tuple[int, ...], Sequence[Tensor]] = {}
    rights: list[dict[str, Tensor]] = [{} for _ in members]
    for name in members[0].solved:
        if any(name not in member.solved for member in members):
            raise EditError(f"edits that were solved together do not all change {name}: search for them again")
        key = tuple(id(member.solved[name]) for member in members)
        if key not in solved:
            solved[key] = right_factor(C, torch.cat([member.solved[name] for member in members]), kappa).split(counts)
        for mine, right in zip(rights, solved[key], strict=True):
            mine[name] = right
    return [
        JointEdit(member.ups, member.rows, member.solved, member.info, mine)
        for member, mine in zip(members, rights, strict=True)
    ]


def _solve_of(info: EditInfo, count: int) -> Solve:
    facts: Any = info.found.get(FACTS)
    try:
        solve = Solve(str(facts["group"]), float(facts["ridge"]), bool(facts["by_row"]), tuple(map(int, facts["rows"])))
    except (KeyError, TypeError, ValueError):
        raise EditError("the edit does not say which solve it is a part of, so its file is damaged") from None
    if len(solve.rows) != len(info.concepts) or sum(solve.rows) != count or not solve.ridge > 0:
        raise EditError(
            f"{count} rows do not fit the {len(info.concepts)} concepts of the joint edit, so its file is damaged"
        )
    return solve


def _with(info: EditInfo, solve: Solve) -> dict[str, Any]:
    return {**info.found, FACTS: {**asdict(solve), "rows": list(solve.rows)}}
