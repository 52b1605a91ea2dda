"""SPEED: erase many concepts at once inside the null space of what is retained, in closed form."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mu.algorithms.speed.configs import SpeedConfig, SpeedMethod
from mu.core.compute import generator
from mu.core.concept import says
from mu.core.errors import ConfigError
from mu.core.loop import Log
from mu.core.run import RunDirectory
from mu.data.prompt_lists import KINDS, entries, everyday
from mu.edits.edit import described
from mu.edits.joint import JointEdit, Solve, group_of, joint_info, right_factor
from mu.models.diffusion import DiffusionModel
from mu.training.calibration import Calibration
from mu.training.closed_form import choose, facts, kept_texts, pair_rows, rows
from mu.training.diffusion_config import given_anchors
from mu.training.diffusion_method import WeightErasure

CENTRES = 3
"""Centres of the empty prompt's rows that are held beside its start token."""
_ROUNDING = 1e-10
HELD = 0.1
"""In a calibrated search, the share of the mean square of retained rows in one direction that makes it retained."""
PRESSURES = (3e2, 1e3, 3e3, 1e4)
"""1 / s in a calibrated search, as multiples of 1 over the rows' mean square norm; the mildest first."""

log = logging.getLogger("mu")


class Speed(SpeedMethod, WeightErasure):
    """The closed form of SPEED, for all targets at once and with each of them a part that comes off again.

    Let c_i and a_i be the rows of n target tokens and of their anchors, S_tt the mean of c c^T, S_at that of a c^T, P
    the projector on the directions in which the mean of r r^T over retained rows r has eigenvalues below ``threshold``,
    K (d, 4) the rows that must not move, s ``retain_scale`` and l ``lamb``. For each matrix W the paper's delta is

        D = W (S_at - S_tt) P [I - M K (K^T P M K + l I)^-1 K^T P] M,   M = (S_tt P + s I)^-1.

    It is computed as D = W (A - C)^T (n I + C H C^T)^-1 C H with C and A (n, d) and H (d, d) = (P - P K (K^T P K + s l
    I)^+ K^T P) / s: the same by Woodbury's identity, but one n x n system instead of d x d, rank n, and H does not
    depend on the targets, so that any target can be left out (`mu.edits.joint`). All sums are in float64 on the CPU.
    With ``lamb`` 0, H projects on what is orthogonal to P K, without the inverse of a nearly singular matrix.

    With ``filter``, of the retained rows r only those with |E r| above the mean are kept, E = W (S_at - S_tt) (I +
    S_tt)^-1, and each of them gets ``augmentations`` rows r + g v, with g from N(0, 1) and v the right singular vector
    of W's smallest singular value, of which again those with |E r| above their mean are kept. P then differs by matrix.

    Where this differs from the released code: the k-means centres of the empty prompt start from rows far from each
    other and not from random ones, so nothing depends on the device; g is one number and not the product of d numbers
    with v, which has the same distribution; filter off leaves out augmentation too, so that all matrices share P; and
    the released lists of retained texts are not shipped: see ``retain``. Check: the delta against the formula above in
    dense algebra, as in tests/algorithms/test_speed.py.
    """

    config: SpeedConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> JointEdit:
        model = self.load_model()
        if self.config.calibrate.on:
            return self.calibrated(model)
        weights = self.weights(model, self.config.matrices)
        targets = self.targets(model)
        texts = self.retained(model)
        R, K = model.last_rows(texts), held(model)
        return self.solved(model, weights, targets, R, K, texts)

    @staticmethod
    def weights(model: DiffusionModel, matrices: str) -> dict[str, Tensor]:
        """The matrices to change, by full name, in float64 on the CPU."""
        kinds = {"K": ("text-keys",), "V": ("text-values",), "KV": ("text-keys", "text-values")}[matrices]
        found = {name: W for kind in kinds for name, W in model.parameters(kind).items()}  # type: ignore[arg-type]
        return {name: W.detach().cpu().double() for name, W in found.items()}

    def calibrated(self, model: DiffusionModel) -> JointEdit:
        """The edit by what the model shows (`mu.training.calibration`); only ``calibrate`` and ``anchors`` count.

        Keys and values change, for all positions of all phrasings. Directions are retained whose eigenvalue is at least
        `HELD` of the mean, and the weight of the distance from the old matrix is a share of what is erased: it, and the
        anchors, are chosen by the probe.
        """
        calibrations = Calibration.of_each(model, self.config.concepts, self.config.calibrate)
        texts, weights = kept_texts(calibrations), self.weights(model, "KV")
        R, K = rows(model, texts), held(model)
        span = free_of(R * len(R) ** 0.5, HELD * float(R.square().sum()) / R.shape[1], R.shape[1])

        def solved(C: Tensor, A: Tensor, pressure: float) -> dict[str, Tensor]:
            F = right_factor(C, self._without(span, C, K) * pressure / float(C.square().sum()), 1.0)
            X = (A - C).T @ F  # (d, d), the same for all matrices
            return {name: (W @ X).float().to(model.device) for name, W in weights.items()}

        choose(model, calibrations, given_anchors(self.config), PRESSURES, solved)
        pairs = [fewest(*pair_rows(model, each.pairs())) for each in calibrations]
        C, A = (torch.cat(side) for side in zip(*pairs, strict=True))
        norms = (float(c.square().sum()) for c, _ in pairs)
        pressure = max(each.pressure / norm for each, norm in zip(calibrations, norms, strict=True))
        Z = self._without(span, C, K) * pressure
        info = self.info(spares=tuple(texts), **described(model, list(weights)))
        group = group_of("speed", info.fingerprint, {"calibrated": pressure}, texts)
        solve = Solve(group, 1.0, False, tuple(len(c) for c, _ in pairs))
        edit = JointEdit(
            {name: W @ (A - C).T for name, W in weights.items()}, C, dict.fromkeys(weights, Z), joint_info(info, solve)
        )
        with edit.applied(model):
            edit.info = replace(edit.info, found={**edit.info.found, **facts(calibrations, "pressure")})
        return edit

    def solved(
        self,
        model: DiffusionModel,
        weights: dict[str, Tensor],
        targets: Targets,
        R: Tensor,
        K: Tensor,
        texts: Sequence[str],
    ) -> JointEdit:
        """The edit of ``weights`` for ``targets``, retained rows R (m, d) of ``texts``, and rows K (4, d) to hold."""
        config = self.config
        C, shift = targets.C, targets.A - targets.C
        draw = generator(config.seed)
        shared = None if config.filter else self._without(free_of(R, config.threshold, C.shape[1]), C, K)
        solved: dict[str, Tensor] = {}
        ups: dict[str, Tensor] = {}
        for name, W in weights.items():
            if shared is None:
                kept = influenced(W, targets, R)
                span = free_of(self._augmented(W, targets, kept, draw), config.threshold, C.shape[1])
                solved[name] = self._without(span, C, K)
            else:
                solved[name] = shared
            ups[name] = W @ shift.T
        if not any(bool(Z.abs().max() > _ROUNDING * C.abs().max()) for Z in solved.values()):
            raise ConfigError(
                "the retained texts leave no direction in which the concepts can be erased: raise threshold, or "
                "retain fewer texts"
            )
        if not any(bool(up.any()) for up in ups.values()):
            raise ConfigError(
                "the text encoder gives anchors and concepts the same embedding, which erases nothing: name others"
            )
        info = self.info(**described(model, list(weights)))
        return JointEdit(
            ups, C, solved, joint_info(info, Solve(self._group(info.fingerprint, texts), 1.0, True, targets.counts))
        )

    def separate(self, edit: object) -> Sequence[JointEdit]:
        assert isinstance(edit, JointEdit)
        return edit.parts()

    def targets(self, model: DiffusionModel) -> Targets:
        C, A, counts = [], [], []
        for of_one in self.config.pairs():
            if self.config.tokens == "all":
                rows = [[model.encode([text]).sequence[0, 1:].cpu().double() for text in pair] for pair in of_one]
                c, a = (torch.cat(side) for side in zip(*rows, strict=True))
            else:
                c, a = (model.last_rows(side) for side in zip(*of_one, strict=True))
            C.append(c)
            A.append(a)
            counts.append(len(c))
        return Targets(torch.cat(C), torch.cat(A), tuple(counts))

    def retained(self, model: DiffusionModel) -> list[str]:
        """The texts to retain, once each, without those that say an erased concept.

        Of the shipped lists, only the texts that the text encoder reads whole.
        """
        texts = list(dict.fromkeys(self.config.retain)) or [text for text in shipped() if model.fits(text)]
        kept = [text for text in texts if not any(says(text, concept) for concept in self.config.concepts)]
        if self.config.retain and len(kept) < len(texts):
            log.info(
                "%d of %d texts to retain say an erased concept and are left out", len(texts) - len(kept), len(texts)
            )
        if not kept:
            raise ConfigError("every text to retain says an erased concept: name others in retain")
        return kept

    def _augmented(self, W: Tensor, targets: Targets, kept: Tensor, draw: torch.Generator) -> Tensor:
        count = self.config.augmentations
        if not count or not len(kept):
            return kept
        v = least_scaled(W)
        drawn = torch.randn(len(kept), count, 1, generator=draw, dtype=torch.float64)
        return torch.cat([kept, influenced(W, targets, (kept[:, None] + drawn * v).flatten(0, 1))])

    def _without(self, span: Tensor, C: Tensor, K: Tensor) -> Tensor:
        """Z = C H (n, d) for the orthonormal retained directions ``span`` (k, d)."""
        s, lamb = self.config.retain_scale, self.config.lamb
        free = off(C, span)
        PK = off(K, span)
        if lamb:
            system = PK @ PK.T + s * lamb * torch.eye(len(K), dtype=K.dtype)
            return (free - free @ PK.T @ torch.linalg.solve(system, PK)) / s
        _, sizes, directions = torch.linalg.svd(PK, full_matrices=False)
        directions = directions[sizes > _ROUNDING * torch.linalg.matrix_norm(K, 2)]
        return off(free, directions) / s

    def _group(self, fingerprint: str, texts: Sequence[str]) -> str:
        """A digest of all that H follows from."""
        names = ["matrices", "threshold", "retain_scale", "lamb", "filter"]
        if self.config.filter:  # then H knows the targets too
            names += ["concepts", "anchors", "templates", "tokens", "augmentations", "seed"]
        facts = {name: self.config.model_dump(mode="json")[name] for name in names}
        return group_of("speed", fingerprint, facts, texts)


@dataclass(frozen=True)
class Targets:
    """Rows C of target tokens and A of their anchors, (n, d), and how many each concept has."""

    C: Tensor
    A: Tensor
    counts: tuple[int, ...]


def shipped() -> list[str]:
    """The texts that are retained if none are named."""
    return [*(text for kind in KINDS for text in entries(kind)), *everyday()]


def held(model: DiffusionModel) -> Tensor:
    """The start token's row of the empty prompt and the centres of its others, (1 + CENTRES, d)."""
    rows = model.encode([""]).sequence[0].cpu().double()
    return torch.cat([rows[:1], centres(rows[1:], CENTRES)])


def centres(rows: Tensor, count: int) -> Tensor:
    """k-means centres (count, d) of ``rows`` (n, d), without chance.

    It starts from the row nearest to the mean, and then adds the row that is farthest from all that it has.
    """
    chosen = [int((rows - rows.mean(0)).norm(dim=1).argmin())]
    while len(chosen) < count:
        chosen.append(int(torch.cdist(rows, rows[chosen]).amin(1).argmax()))
    found = rows[chosen]
    for _ in range(100):
        nearest = torch.cdist(rows, found).argmin(1)
        new = torch.stack(
            [rows[nearest == k].mean(0) if bool((nearest == k).any()) else found[k] for k in range(count)]
        )
        if torch.equal(new, found):
            break
        found = new
    return found


def influenced(W: Tensor, targets: Targets, R: Tensor) -> Tensor:
    """The rows of R (m, d) that E moves more than their average: with one row, none."""
    if not len(R):
        return R
    C = targets.C
    inner = torch.linalg.solve(len(C) * torch.eye(len(C), dtype=C.dtype) + C @ C.T, C @ R.T)
    moved = (W @ ((targets.A - C).T @ inner)).norm(dim=0)
    return R[moved > moved.mean()]


def least_scaled(W: Tensor) -> Tensor:
    """The right singular vector (d,) of the smallest of W's min(out, d) singular values, its largest entry positive."""
    v = torch.linalg.svd(W, full_matrices=False).Vh[-1]
    return v * v[v.abs().argmax()].sign()


def free_of(R: Tensor, threshold: float, width: int) -> Tensor:
    """Orthonormal directions (k, d) in which the mean of r r^T over R (m, d) has eigenvalues of ``threshold`` or more.

    One eigendecomposition, of the smaller of d x d and m x m.
    """
    if not len(R):
        return torch.zeros(0, width, dtype=torch.float64)
    if len(R) >= width:
        sizes, directions = torch.linalg.eigh(R.T @ R / len(R))
        return directions[:, sizes >= threshold].T
    sizes, turned = torch.linalg.eigh(R @ R.T / len(R))
    return torch.linalg.qr(R.T @ turned[:, sizes >= threshold]).Q.T


def fewest(C: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """As few rows c and a as have the same sums c c^T and a c^T, to a millionth: a rotation of the rows."""
    U, sizes, _ = torch.linalg.svd(torch.cat([C, A], dim=1), full_matrices=False)
    turned = U[:, sizes > 1e-6 * sizes[0]].T
    return turned @ C, turned @ A


def off(rows: Tensor, directions: Tensor) -> Tensor:
    """``rows`` (m, d) without their parts along orthonormal ``directions`` (k, d); twice, for the last digits."""
    for _ in range(2):
        rows = rows - rows @ directions.T @ directions
    return rows
