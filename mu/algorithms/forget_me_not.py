"""Forget-Me-Not: the cross-attention learns to look past the words of the concept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mu.core.config import Templates
from mu.core.errors import ConfigError
from mu.core.loop import Log
from mu.core.presets import Presets
from mu.core.run import RunDirectory
from mu.diffusion.noised_images import ImagesConfig, concept_images, noised
from mu.edits.weights import WeightEdit
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.training.diffusion_method import AnchoredConfig, TrainConfig, WeightErasure
from mu.training.tuning import Tuning


class ForgetMeNotTrainConfig(TrainConfig):
    iterations: int = Field(30, ge=1)
    """Optimiser steps. More erase more, and more of what is near. Published: 20 or 30 for styles, 30 to 50 for objects, 75 for nudity."""
    gradients: Literal["zeroed", "summed"] = "summed"
    """``summed``: each step sees the sum of all gradients so far, as in the program that the published numbers are of."""


class ForgetMeNotConfig(AnchoredConfig):
    """All settings of Forget-Me-Not. Without a preset they are those of the published comparison for styles on SD 1.4."""

    renamed: ClassVar[Mapping[str, str]] = {"pictures": "images"}

    train: ForgetMeNotTrainConfig = ForgetMeNotTrainConfig()
    """The optimisation."""
    templates: Templates = Field(["a painting of {}"], min_length=1)
    """Prompts around the concept, each with one {}; one is drawn each step."""
    objective: Literal["logits", "attention"] = "logits"
    """``logits``: attention logits become those of the anchor (the published comparison). ``attention``: the concept's words get
    no attention (the paper)."""
    images: ImagesConfig = ImagesConfig()
    """What is noised: images of the concepts."""
    seed: int = 0
    """Decides all random numbers: same seed, same edit."""
    output_dir: str = "outputs/fmn"
    """The run's folder."""


PRESETS: Presets[ForgetMeNotConfig] = Presets({
    "styles": ForgetMeNotConfig(),
    "objects": ForgetMeNotConfig.parse({"train": {"iterations": 50}}),
    "nudity": ForgetMeNotConfig.parse({"concepts": ["nudity"], "train": {"iterations": 75}}),
    "canvas": lambda: ForgetMeNotConfig.load(Path(__file__).parent / "presets" / "fmn-canvas.yaml"),
    "canvas-object": lambda: PRESETS["canvas"].merged({"anchors": ["house"]}),
})  # fmt: skip
"""Published ones for Stable Diffusion 1.4, those of the embedded model for styles, and for objects."""


class ForgetMeNot(WeightErasure):
    """Forget-Me-Not: fine-tuning of the cross-attention alone, on its own maps.

    Per step: a template with the concept, c, and with the anchor, a ("a painting of X" and "a painting of"), a image of the
    concept and x_t by the forward process at t uniform in 0 .. 999. One pass of the UNet under c gives each layer's queries Q;
    K_c and K_a are its keys of the two prompts, d the width of a head:

        logits      L = sum over layers of mean((Q K_c^T - Q K_a^T)^2 / d)       over heads, places and tokens
        attention   L = sum over layers of |A_X|^2,  A = softmax(Q K_c^T / sqrt(d)),  A_X its columns of the concept's words

    ``attention`` is the attention resteering of the paper; its released code takes the norm of all A_X together, not the sum of squares,
    and may use words learned by textual inversion, which we leave out. ``logits`` and the constants are those of the program
    that separable concept erasure was compared with. That program never zeroes its gradients (``train.gradients``; check: with
    ``summed`` the n-th step is taken with the sum of n gradients) and reads images from disk (``images``). As there, the
    loss does not reach the values and the output of the last layer: their shift is 0.

    @inproceedings{zhang2024forget,
      title     = {Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models},
      author    = {Zhang, Gong and Wang, Kai and Xu, Xingqian and Wang, Zhangyang and Shi, Humphrey},
      booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR) Workshops},
      year      = {2024}
    }
    """

    name = "fmn"
    config_class = ForgetMeNotConfig
    presets = PRESETS
    config: ForgetMeNotConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        model = self.load_model()
        self.prepare(model)
        return self.edit(self.train(model.parameters("cross-attention"), self.step, run, log))

    def prepare(self, model: DiffusionModel) -> None:
        """What all steps share: for each concept its images, and each template with it and with its anchor, and where its words are."""
        config, pairs = self.config, self.config.pairs()
        self.images = concept_images(model, config.images, config.concepts, config.seed)
        self.encoded = [[model.encode(pair) for pair in of_one] for of_one in pairs]
        self.words = [
            [word_positions(model, c, concept) for c, _ in of_one]
            for concept, of_one in zip(config.concepts, pairs, strict=True)
        ]

    def step(self, tuning: Tuning, i: int, generator: torch.Generator) -> dict[str, Tensor]:
        model = self.model
        k, concept = divmod(i, len(self.encoded))
        choice = int(torch.randint(len(self.encoded[concept]), (1,), generator=generator))
        both, words = self.encoded[concept][choice], self.words[concept][choice]
        t = int(torch.randint(1000, (1,), generator=generator))
        with tuning.frozen():
            x = noised(model, self.images[concept][k], t, generator)
        with queries(model) as found:
            model.predict_noise(x, t, both[:1])
        terms = [self.term(layer, Q, both, words) for layer, Q in found]
        return {"loss": torch.stack(terms).sum()}

    def term(self, layer: Any, Q: Tensor, both: Conditioning, words: list[int]) -> Tensor:
        """The loss at one layer from its queries (1, places, heads * d)."""
        with self.model.autocast():
            K = layer.to_k(both.sequence)
        Q, K_c, K_a = (part.float().unflatten(-1, (layer.heads, -1)).transpose(0, 1) for part in (Q[0], *K))
        d = Q.shape[-1]
        if self.config.objective == "logits":
            return (Q @ (K_c - K_a).transpose(1, 2)).square().mean() / d
        A = (Q @ K_c.transpose(1, 2) / d**0.5).softmax(dim=-1)
        return A[..., words].square().sum()


@contextmanager
def queries(model: DiffusionModel) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Each cross-attention layer with the queries it computes inside the block, in the order of computation."""
    found: list[tuple[nn.Module, Tensor]] = []

    def noting(layer: nn.Module) -> Any:
        return lambda _, __, Q: found.append((layer, Q))

    handles = [layer.to_q.register_forward_hook(noting(layer)) for layer in model.cross_attentions()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def word_positions(model: DiffusionModel, prompt: str, concept: str) -> list[int]:
    """Where the tokens of ``concept`` stand among those of ``prompt``."""
    encoder = model.text[0]
    ids, words = encoder.tokens([prompt])[0].tolist(), encoder.words(concept)
    for start in range(len(ids) - len(words) + 1):
        if ids[start : start + len(words)] == words:
            return list(range(start, start + len(words)))
    raise ConfigError(f"the words of {concept!r} do not fit into {prompt!r} for the text encoder: use a shorter template")
