"""Turn settings into training inputs: concepts, their embeddings, resolutions, anchors. SPM reads no dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mu.algorithms.semipermeable_membrane.configs import PromptConfig, SemipermeableMembraneConfig
from mu.core.compute import full
from mu.core.config import filled
from mu.core.errors import ConfigError, titled
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.training.calibration import Calibration


@dataclass
class Task:
    """One encoded entry of the prompt settings. Each conditioning has one row; anchors are drawn by `Anchors`."""

    number: int
    """Index of the entry."""
    entry: PromptConfig
    target: Conditioning
    positive: Conditioning
    neutral: Conditioning
    unconditional: Conditioning
    anchors: Anchors


class SemipermeableMembraneDataHandler:
    """Encodes every text once and draws the inputs that change from step to step."""

    def __init__(
        self, config: SemipermeableMembraneConfig, model: DiffusionModel, calibrations: Sequence[Calibration] = ()
    ):
        self.config, self.model, self.calibrations = config, model, calibrations
        self.entries = config.entries()
        self._kept: dict[str, Conditioning] = {}
        self._anchors: dict[int, Anchors] = {}

    def encoded(self, text: str) -> Conditioning:
        if text not in self._kept:
            self._kept[text] = self.model.encode([text])
        return self._kept[text]

    def draw(self, generator: torch.Generator) -> Task:
        """Draw an entry; with use_template, also a template for target and positive (with template_neutral,
        neutral)."""
        k = int(torch.randint(len(self.entries), (1,), generator=generator))
        entry = self.entries[k]
        template = "{}"
        if entry.use_template:
            templates = self.calibrations[k].around.templates if self.calibrations else entry.templates
            template = templates[int(torch.randint(len(templates), (1,), generator=generator))]
        target, positive = (self.encoded(filled(template, str(text))) for text in (entry.target, entry.positive))
        if k not in self._anchors:
            kept = self.calibrations[k].kept if self.calibrations else None
            self._anchors[k] = Anchors(self.model, entry, self.encoded(str(entry.target)), self.config.seed, kept)
        word = self.calibrations[k].anchor or "" if self.calibrations else str(entry.neutral)
        neutral = self.encoded(filled(template, word) if entry.template_neutral else word)
        unconditional = self.encoded(entry.unconditional)
        return Task(k, entry, target, positive, neutral, unconditional, self._anchors[k])

    def size(self, entry: PromptConfig, generator: torch.Generator) -> tuple[int, int]:
        """Height and width in pixels.

        ``dynamic_resolution`` draws them independently from 64 * {floor(R/128), ..., floor(R/64) - 1}. As in the
        released code, R itself is never drawn (R = 512 gives 256 .. 448). If that set is empty (R < 128), both are R.
        """
        full = entry.resolution or self.model.default_size
        unit = self.model.pixels_per_latent
        if full % unit:
            raise ConfigError(
                f"prompt.resolution must be a multiple of {unit} for {titled(self.model.name)}, got {full}"
            )
        choices = resolutions(full) if entry.dynamic_resolution else [full]
        height, width = (choices[int(i)] for i in torch.randint(len(choices), (2,), generator=generator))
        return height, width

    def time_ids(self, entry: PromptConfig, height: int, width: int, generator: torch.Generator) -> Tensor | None:
        """SDXL's size conditioning; with dynamic_crops, a random original size and crop corner shared by all passes."""
        plain = self.model.time_ids(height, width)
        if not entry.dynamic_crops or plain is None:
            return plain
        s, top, left = (1 + 2 * torch.rand(1, generator=generator)).item(), *torch.rand(2, generator=generator).tolist()
        original = (int(height * s), int(width * s))
        crop = (int(top * (original[0] - height + 1)), int(left * (original[1] - width + 1)))
        return self.model.time_ids(height, width, original=original, crop=crop)


def resolutions(full: int) -> list[int]:
    """Side lengths in pixels that ``dynamic_resolution`` draws from at resolution ``full``."""
    return [64 * k for k in range(max(1, full // 2 // 64), full // 64)] or [full]


class Anchors:
    """Conditionings whose predictions the edit must not change (latent anchoring, Eq. 6-8)."""

    POOL = 512
    LONGEST = 6

    def __init__(
        self,
        model: DiffusionModel,
        entry: PromptConfig,
        target: Conditioning,
        seed: int,
        kept: Conditioning | None = None,
    ):
        self.entry, self.target = entry, target
        self.pool: tuple[Conditioning, Tensor] | None = None
        if kept is not None:
            self.pool = kept, self._weights(kept)
        elif entry.anchors == "vocabulary" and entry.anchored:
            self.pool = self._vocabulary(model, torch.Generator().manual_seed(seed))

    def draw(self, generator: torch.Generator, unconditional: Conditioning) -> Conditioning:
        """Draw S rows in the layout of the settings; ``paper+empty`` adds one unconditional row."""
        count = self.entry.sampling_batch_size
        rows = self._paper(count, generator)
        match self.entry.anchor_layout:
            case "paper":
                return rows
            case "paper+empty":
                return Conditioning.cat([rows, unconditional])
        # The released code interleaves [u, a1, u, a2, ...] and uses the second half.
        pairs = Conditioning.cat([part for k in range(count) for part in (unconditional, rows[k : k + 1])])
        return pairs[count:]

    def _paper(self, count: int, generator: torch.Generator) -> Conditioning:
        if self.pool is not None:
            texts, weights = self.pool
            return texts[torch.multinomial(weights, count, generator=generator)]
        pooled = None if self.target.pooled is None else shell(self.target.pooled, count, generator)
        ids = None if self.target.time_ids is None else self.target.time_ids.expand(count, -1)
        return Conditioning(shell(self.target.sequence, count, generator), pooled, ids)

    def _vocabulary(self, model: DiffusionModel, generator: torch.Generator) -> tuple[Conditioning, Tensor]:
        """Encoded texts of 1 to 6 random words, none of them in the target, and their weights (1 - |cos|)^alpha, Eq.
        6."""
        tokenizer = model.text[0].tokenizer
        avoided = set(tokenizer(str(self.entry.target), verbose=False).input_ids)
        words = [
            token.removesuffix("</w>")
            for token, k in tokenizer.get_vocab().items()
            if k not in avoided and token.endswith("</w>") and token.removesuffix("</w>").isalpha() and token.isascii()
        ]
        words = sorted(word for word in words if len(word) > 1)
        texts = []
        for _ in range(self.POOL):
            length = int(torch.randint(1, self.LONGEST + 1, (1,), generator=generator))
            texts.append(" ".join(words[int(k)] for k in torch.randint(len(words), (length,), generator=generator)))
        pool = Conditioning.cat([model.encode(texts[k : k + 64]) for k in range(0, len(texts), 64)])
        return pool, self._weights(pool)

    def _weights(self, pool: Conditioning) -> Tensor:
        """(1 - |cos|)^alpha of each row of ``pool``, Eq. 6."""
        cosine = F.cosine_similarity(pool.sequence.flatten(1), self.target.sequence.flatten(1))
        return (1 - cosine.abs()).clamp_min(1e-6).pow(self.entry.anchor_alpha).cpu()


def shell(target: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` random directions at 0.8 to 1.2 times the target's norm: (1, ...) -> (count, ...).

    As in the released code, a direction with cosine s to the target is kept with probability 1 - s (s signed). In the
    59,136 dimensions of SD 1.x, s has a standard deviation of 0.004. The distance weighting of the paper (Eq. 6)
    therefore has no measurable effect here. ``anchors: vocabulary`` samples Eq. 6 from real texts.
    """
    kept: list[Tensor] = []
    flat = F.normalize(full(target.detach().flatten().cpu()), dim=0)
    while len(kept) < count:
        direction = F.normalize(torch.randn(flat.shape, generator=generator, dtype=flat.dtype), dim=0)
        if torch.rand(1, generator=generator) < 1 - direction @ flat:
            scale = 0.8 + 0.4 * torch.rand(1, generator=generator)
            kept.append(scale * direction)
    return (torch.stack(kept).to(target) * target.norm()).reshape(count, *target.shape[1:])
