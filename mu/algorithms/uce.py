"""UCE: replace a concept's keys and values by those of another text, by linear least squares in closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mu.core.concept import says
from mu.core.errors import ConfigError
from mu.core.loop import Log
from mu.core.presets import Presets
from mu.core.run import RunDirectory
from mu.edits.weights import WeightEdit
from mu.models.diffusion import DiffusionModel
from mu.training.diffusion_method import AnchoredConfig, WeightErasure


class UCEConfig(AnchoredConfig):
    """All settings of UCE. Defaults: the published settings for objects on SD 1.4."""

    preserve: list[str] = [""]
    """Texts whose keys and values are retained. A text that contains an erased concept is skipped."""
    erase_scale: float = Field(1.0, gt=0)
    """Weight of the concepts in the least squares."""
    preserve_scale: float = Field(0.1, ge=0)
    """Weight of the preserved texts. A larger value retains more and erases less."""
    lamb: float = Field(0.1, gt=0)
    """lambda, weight of the distance from the old matrix in all directions. A larger value changes less."""
    tokens: Literal["padded", "last"] = "padded"
    """``padded``: a concept's last token and all positions after it, and all positions of preserved texts (released
    2023). ``last``: only the last token of each text (released 2025)."""
    output_dir: str = "outputs/uce"
    """The run folder."""


PRESETS: Presets[UCEConfig] = Presets({
    "objects": UCEConfig(),
    "styles": UCEConfig.parse({"anchors": ["art"]}),
    "styles-2025": UCEConfig.parse({
        "anchors": ["art"], "preserve": [], "preserve_scale": 1.0, "lamb": 0.5, "tokens": "last",
    }),
    "canvas": lambda: UCEConfig.load(Path(__file__).parent / "presets" / "uce-canvas.yaml"),
})  # fmt: skip


class UCE(WeightErasure):
    """Unified concept editing: cross-attention keys and values by linear least squares, in closed form.

    Let c, a and k be the rows of the prompt embeddings of the concepts, their anchors and the preserved texts. For each
    matrix W of ``to_k`` and ``to_v``, the minimiser (Eq. 7) of

        erase_scale sum |W' c - W a|^2 + preserve_scale sum |W' k - W k|^2 + lamb |W' - W|_F^2

    is W' = W + W R M^-1 with R = erase_scale sum (a - c) c^T and M = erase_scale sum c c^T + preserve_scale sum k k^T +
    lamb I. R M^-1 is the same for all matrices: one solve, in float64. The released code sums and inverts M in float32
    for each matrix separately and stores W'. That differs only by rounding (check: the delta against a dense
    least-squares solver, as in tests/algorithms/test_uce.py).

    The 2023 code erases with a concept's padded positions, truncated to the anchor's number if that is smaller. The
    2025 code uses its last token, weights 1 and 1 and lamb 0.5 (preset ``styles-2025``). The paper does not say.

    @inproceedings{gandikota2024unified,
      title     = {Unified Concept Editing in Diffusion Models},
      author    = {Gandikota, Rohit and Orgad, Hadas and Belinkov, Yonatan and Materzy{\\'n}ska, Joanna and Bau, David},
      booktitle = {IEEE/CVF Winter Conference on Applications of Computer Vision (WACV)},
      year      = {2024}
    }
    """

    name = "uce"
    config_class = UCEConfig
    presets = PRESETS
    config: UCEConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        config, model = self.config, self.load_model()
        weights = model.parameters("text-keys") | model.parameters("text-values")
        kept = [text for text in config.preserve if not any(says(text, concept) for concept in config.concepts)]
        rows = [self._aligned(model, *pair) for of_one in config.pairs() for pair in of_one]
        C, A = (torch.cat(side) for side in zip(*rows, strict=True))
        K = torch.cat([C[:0], *(self._preserved(model, text) for text in kept)])
        X = solve(C, A, K, config.erase_scale, config.preserve_scale, config.lamb)
        if not X.any():
            raise ConfigError(
                "the text encoder gives anchors and concepts the same embedding, which erases nothing: name others"
            )
        with torch.no_grad():
            shifts = {name: (W.cpu().double() @ X).float().to(model.device) for name, W in weights.items()}
        return self.edit(shifts, spares=tuple(kept))

    def _aligned(self, model: DiffusionModel, concept: str, anchor: str) -> tuple[Tensor, Tensor]:
        """Rows c and a (n, width): from the last token of each text to the end, or only the last token."""
        c, a = (_embedding(model, text)[last_token(model, text) :] for text in (concept, anchor))
        n = 1 if self.config.tokens == "last" else min(len(c), len(a))
        return c[:n], a[:n]

    def _preserved(self, model: DiffusionModel, text: str) -> Tensor:
        k, last = _embedding(model, text), last_token(model, text)
        return k[last : last + 1] if self.config.tokens == "last" else k


def solve(C: Tensor, A: Tensor, K: Tensor, erase_scale: float, preserve_scale: float, lamb: float) -> Tensor:
    """R M^-1 (width, width) for rows C and A (n, width) and K (m, width), in float64: the delta of W is W R M^-1."""
    R = erase_scale * (A - C).T @ C
    M = erase_scale * C.T @ C + preserve_scale * K.T @ K + lamb * torch.eye(C.shape[1], dtype=C.dtype)
    return torch.linalg.solve(M, R.T).T


def last_token(model: DiffusionModel, text: str) -> int:
    """The position before the end token; for an empty text, the position of the start token."""
    encoder = model.text[0]
    return encoder.tokens([text])[0].tolist().index(encoder.end) - 1


def _embedding(model: DiffusionModel, text: str) -> Tensor:
    """Prompt embedding (tokens, width) with all padded positions; on the CPU, since some accelerators lack float64."""
    return model.encode([text]).sequence[0].cpu().double()
