"""UCE: replace a concept's keys and values by those of another text, by linear least squares in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mu.algorithms.uce.configs import UCEConfig, UCEMethod
from mu.core.concept import says
from mu.core.errors import ConfigError
from mu.core.loop import Log
from mu.core.run import RunDirectory
from mu.edits.edit import Edit, described
from mu.edits.joint import JointEdit, Solve, group_of, joint_info
from mu.edits.weights import WeightEdit
from mu.models.diffusion import DiffusionModel
from mu.training.calibration import Calibration
from mu.training.closed_form import by_least_squares, choose, facts, keys_and_values, least_squares, pair_rows
from mu.training.diffusion_config import given_anchors
from mu.training.diffusion_method import WeightErasure


class UCE(UCEMethod, WeightErasure):
    """The least squares of UCE.

    Let c, a and k be the rows of the prompt embeddings of the concepts, their anchors and the preserved texts. For each
    matrix W of ``to_k`` and ``to_v``, the minimiser (Eq. 7) of

        erase_scale sum |W' c - W a|^2 + preserve_scale sum |W' k - W k|^2 + lamb |W' - W|_F^2

    is W' = W + W R M^-1 with R = erase_scale sum (a - c) c^T and M = erase_scale sum c c^T + preserve_scale sum k k^T +
    lamb I. R M^-1 is the same for all matrices: one solve, in float64. The released code sums and inverts M in float32
    for each matrix separately and stores W'. That differs only by rounding (check: the delta against a dense
    least-squares solver, as in tests/algorithms/test_uce.py).

    The 2023 code erases with a concept's padded positions, truncated to the anchor's number if that is smaller; its
    command line takes lamb 0.5 (preset ``released``). The 2025 code uses its last token, weights 1 and 1 and lamb 0.5
    (preset ``released-2025``, for styles ``styles-2025``). The paper does not say.
    """

    config: UCEConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit | JointEdit:
        model = self.load_model()
        return self.calibrated(model) if self.config.calibrate.on else self.as_set(model)

    def as_set(self, model: DiffusionModel) -> WeightEdit | JointEdit:
        """The edit by the settings' own templates, anchors and preserved texts."""
        config = self.config
        kept = [text for text in config.preserve if not any(says(text, concept) for concept in config.concepts)]
        rows = [[self._aligned(model, *pair) for pair in of_one] for of_one in config.pairs()]
        C, A = (torch.cat(side) for side in zip(*(pair for of_one in rows for pair in of_one), strict=True))
        K = torch.cat([C[:0], *(self._preserved(model, text) for text in kept)])
        if torch.equal(A, C):
            raise ConfigError(
                "the text encoder gives anchors and concepts the same embedding, which erases nothing: name others"
            )
        if config.restorable:
            weights = model.parameters("text-keys") | model.parameters("text-values")
            return self._parts(model, weights, C, A, K, [sum(len(c) for c, _ in of_one) for of_one in rows], kept)
        X = least_squares(C, A, K, config.erase_scale, config.preserve_scale, config.lamb)
        return self.edit(keys_and_values(model, X), spares=tuple(kept))

    def calibrated(self, model: DiffusionModel) -> WeightEdit:
        """The edit by what the model shows (`mu.training.calibration`); only ``calibrate`` and ``anchors`` count.

        Each concept takes the anchor that erases most at least harm, by the probe, among its peers and a few others.
        The sums of the least squares become means, and lamb is a share of the retained rows' mean square. All concepts
        are solved together.
        """
        calibrations = Calibration.of_each(model, self.config.concepts, self.config.calibrate)
        solved = by_least_squares(model, calibrations)
        choose(model, calibrations, given_anchors(self.config), SCALES, solved)
        C, A = (
            torch.cat(side) for side in zip(*(pair_rows(model, each.pairs()) for each in calibrations), strict=True)
        )
        edit = self.edit(solved(C, A, max(each.pressure for each in calibrations)))
        with edit.applied(model):
            edit.info = replace(edit.info, found=facts(calibrations, "erase_scale"))
        return edit

    def _parts(
        self,
        model: DiffusionModel,
        weights: Mapping[str, Tensor],
        C: Tensor,
        A: Tensor,
        K: Tensor,
        counts: Sequence[int],
        kept: Sequence[str],
    ) -> JointEdit:
        """The same minimiser as a sum over concepts, with H = (preserve_scale sum k k^T + lamb I)^-1."""
        config = self.config
        H = config.preserve_scale * K.T @ K + config.lamb * torch.eye(C.shape[1], dtype=C.dtype)
        Z = torch.linalg.solve(H, C.T).T
        info = self.info(spares=tuple(kept), **described(model, list(weights)))
        names = ("preserve_scale", "lamb", "tokens", "erase_scale")
        facts = {name: getattr(config, name) for name in names}
        group = group_of("uce", info.fingerprint, facts, kept)
        solve_of = Solve(group, 1 / config.erase_scale, False, tuple(counts))
        ups = {name: W.detach().cpu().double() @ (A - C).T for name, W in weights.items()}
        return JointEdit(ups, C, dict.fromkeys(weights, Z), joint_info(info, solve_of))

    def separate(self, edit: object) -> Sequence[Edit]:
        return edit.parts() if isinstance(edit, JointEdit) else super().separate(edit)  # type: ignore

    def _aligned(self, model: DiffusionModel, concept: str, anchor: str) -> tuple[Tensor, Tensor]:
        """Rows c and a (n, width): from the last token of each text to the end, or only the last token."""
        c, a = (_embedding(model, text)[model.last_token(text) :] for text in (concept, anchor))
        n = 1 if self.config.tokens == "last" else min(len(c), len(a))
        return c[:n], a[:n]

    def _preserved(self, model: DiffusionModel, text: str) -> Tensor:
        k, last = _embedding(model, text), model.last_token(text)
        return k[last : last + 1] if self.config.tokens == "last" else k


SCALES = (0.1, 0.3, 1.0, 3.0)
"""Weights of the concept beside what is retained, the mildest first."""


def _embedding(model: DiffusionModel, text: str) -> Tensor:
    """Prompt embedding (tokens, width) with all padded positions; on the CPU, since some accelerators lack float64."""
    return model.encode([text]).sequence[0].cpu().double()
