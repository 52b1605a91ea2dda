"""A CLIP tower as a chain of stages. After a change in one stage, only that stage and the later ones run again."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn

from mu.core.errors import EditError
from mu.models.clip import ClipModel
from mu.models.formats.timm_towers import TimmTower

Which = Literal["vision", "language"]
COMPONENTS: dict[Which, tuple[str, str]] = {
    "vision": ("vision_model", "visual_projection"),
    "language": ("text_encoder", "text_projection"),
}


PREPROCESSED_AT_ONCE = 128


def tower_of(parameter: str) -> Which | None:
    """The tower that a full parameter name belongs to; None for the temperature."""
    component = parameter.partition(".")[0]
    return next((which for which, names in COMPONENTS.items() if component in names), None)


def _few(images: Iterator[Image]) -> list[Image]:
    return list(itertools.islice(images, PREPROCESSED_AT_ONCE))


@dataclass
class Hidden:
    """Input of a stage: ``x`` is the tower's own input (n, ...) before stage 0, else states (n, tokens, width), or
    (n, channels, h, w) of a network of convolutions.

    ``ends`` (n,) is the position in each row of the token that the last stage reads."""

    x: Tensor
    ends: Tensor

    def __getitem__(self, rows: Tensor) -> Hidden:
        return Hidden(self.x[rows], self.ends[rows])

    def leaving(self) -> Hidden:
        """Only the token at ``ends`` of each row, which is all that the last stage reads."""
        x = self.x[torch.arange(len(self.x), device=self.x.device), self.ends]
        return Hidden(x[:, None], torch.zeros_like(self.ends))

    @staticmethod
    def cat(parts: Sequence[Hidden]) -> Hidden:
        return Hidden(torch.cat([part.x for part in parts]), torch.cat([part.ends for part in parts]))


def causal_mask(x: Tensor, attention: str) -> Tensor | None:
    """What text blocks with inputs ``x`` (b, n, width) add to their attention logits, (1, 1, n, n).

    None for implementations that hide later tokens themselves. The libraries have such a function too, but each of its
    versions has other argument names.
    """
    if attention == "sdpa" or attention.startswith("flash"):
        return None
    n = x.shape[1]
    hidden = torch.full((n, n), torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device)
    return hidden.triu(1)[None, None]


class Tower:
    """Stage 0 embeds, stages 1 .. L are the blocks, stage L + 1 normalises and projects to unit vectors (n, d).

    All stages together equal ``encode_text`` and ``encode_pixels`` of the model.
    """

    def __init__(self, clip: ClipModel, which: Which):
        self.clip, self.which = clip, which
        self.trunk, self.projection = (cast(Any, clip.components[name]) for name in COMPONENTS[which])
        self.stages = len(self.trunk.encoder.layers) + 2

    def texts(self, texts: Sequence[str]) -> Hidden:
        tokens = self.clip.tokens(texts)
        return Hidden(tokens, self.clip.ends(tokens))

    def images(self, images: Tensor | Iterable[Image]) -> Hidden:
        """Preprocess images (n, 3, H, W) in 0..1, or PIL images; an iterator of these is read a few at a time."""
        parts = [images] if isinstance(images, Tensor) else iter(partial(_few, iter(images)), [])
        pixels = torch.cat([self.clip.preprocess(part).to(self.clip.device, self.clip.model.dtype) for part in parts])
        return Hidden(pixels, torch.zeros(len(pixels), dtype=torch.long, device=pixels.device))

    def stage_of(self, parameter: str) -> int:
        """The stage that uses a parameter (full name). Raises `EditError` if it belongs to the other tower."""
        component, _, path = parameter.partition(".")
        if component not in COMPONENTS[self.which]:
            raise EditError(f"{parameter} is not in the {self.which} tower")
        if path.startswith("encoder.layers."):
            return int(path.split(".")[2]) + 1
        return 0 if path.startswith(("embeddings.", "pre_layrnorm.")) else self.stages - 1

    def run(self, hidden: Hidden, start: int, stop: int) -> Hidden:
        """Run the stages ``start`` .. ``stop - 1``, at most up to the last block."""
        x, causal, mask = hidden.x, self.which == "language", None
        if start == 0 < stop:
            x = self.trunk.embeddings(input_ids=x) if causal else self.trunk.pre_layrnorm(self.trunk.embeddings(x))
        if causal and max(start, 1) < stop:
            mask = causal_mask(x, self.trunk.config._attn_implementation)
        for block in self.trunk.encoder.layers[max(start, 1) - 1 : max(stop, 1) - 1]:
            x = block(x, mask, is_causal=causal)
        return Hidden(x, hidden.ends)

    def leave(self, hidden: Hidden) -> Tensor:
        """Run the last stage: unit vectors (n, d) in float32."""
        return F.normalize(self.projection(self._pooled(self.leaving(hidden))).float(), dim=-1)

    def leaving(self, hidden: Hidden) -> Hidden:
        """Only what the last stage reads of ``hidden``."""
        return hidden.leaving()

    def _pooled(self, left: Hidden) -> Tensor:
        """What is projected, of the input that `leaving` left."""
        norm = self.trunk.final_layer_norm if self.which == "language" else self.trunk.post_layernorm
        return norm(left.x[:, 0])

    def features(self, hidden: Hidden, start: int = 0) -> Tensor:
        """Run from stage ``start`` to the end: unit vectors (n, d) in float32."""
        return self.leave(self.run(hidden, start, self.stages - 1))

    @torch.no_grad()
    def along(
        self, hidden: Hidden, stage: int, changes: Sequence[tuple[nn.Parameter, Tensor]], steps: Sequence[float]
    ) -> Tensor:
        """Unit vectors (K, n, d) with ``parameter + step * shift`` of all ``changes``, parameters of ``stage``.

        ``hidden`` goes into ``stage``. Only that stage runs K times, once for each of ``steps``; later stages run once
        on the K outputs, stacked. Afterwards the original weight tensors are put back, not copies.
        """
        kept, last, outputs = [parameter.data for parameter, _ in changes], stage == self.stages - 1, []
        try:
            for step in steps:
                for (parameter, shift), original in zip(changes, kept, strict=True):
                    parameter.data = original + (step * shift).to(original)
                outputs.append(self.leave(hidden) if last else self.run(hidden, stage, stage + 1).x)
        finally:
            for (parameter, _), original in zip(changes, kept, strict=True):
                parameter.data = original
        if last:
            return torch.stack(outputs)
        stacked = Hidden(torch.cat(outputs), hidden.ends.repeat(len(steps)))
        return self.features(stacked, stage + 1).unflatten(0, (len(steps), -1))


class TrunkTower(Tower):
    """An image tower of timm: its own stages, the last with the projection."""

    def __init__(self, clip: ClipModel):
        self.clip, self.which = clip, "vision"
        self.trunk, self.projection = (cast(Any, clip.components[name]) for name in COMPONENTS["vision"])
        self.chain = self.trunk.stages()
        self.stages = len(self.chain)

    def stage_of(self, parameter: str) -> int:
        component, _, path = parameter.partition(".")
        if component not in COMPONENTS["vision"]:
            raise EditError(f"{parameter} is not in the vision tower")
        if component == COMPONENTS["vision"][1]:
            return self.stages - 1
        return next(k for k, stage in enumerate(self.chain) if path.startswith(stage.names))

    def run(self, hidden: Hidden, start: int, stop: int) -> Hidden:
        x = hidden.x
        for stage in self.chain[start : min(stop, self.stages - 1)]:
            x = stage.run(x)
        return Hidden(x, hidden.ends)

    def leaving(self, hidden: Hidden) -> Hidden:
        return Hidden(self.trunk.read(hidden.x), hidden.ends)

    def _pooled(self, left: Hidden) -> Tensor:
        return self.chain[-1].run(left.x)


def towers_of(clip: ClipModel) -> dict[Which, Tower]:
    """Both towers of a model."""
    whole = isinstance(clip.components["vision_model"], TimmTower)
    return {"vision": TrunkTower(clip) if whole else Tower(clip, "vision"), "language": Tower(clip, "language")}
