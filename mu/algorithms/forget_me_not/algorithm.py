"""Forget-Me-Not: train the cross-attention to ignore the words of the concept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mu.algorithms.forget_me_not.configs import ForgetMeNotConfig, ForgetMeNotMethod
from mu.core.compute import full
from mu.core.errors import ConfigError, quoted
from mu.core.loop import Log
from mu.core.run import RunDirectory
from mu.diffusion.noised_images import concept_images, noised
from mu.edits.weights import WeightEdit
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.models.parameters import select
from mu.training.diffusion_method import WeightErasure
from mu.training.tuning import Tuning


class ForgetMeNot(ForgetMeNotMethod, WeightErasure):
    """The training of Forget-Me-Not.

    Each step draws a template, with the concept (c) and with the anchor (a): "a painting of X" and "a painting of". It
    noises an image of the concept to x_t by the forward process, t uniform in 0 .. 999. One pass of the UNet under c
    gives each layer's queries Q. K_c and K_a are the layer's keys of the two prompts, d is the width of a head:

        logits      L = sum over layers of mean((Q K_c^T - Q K_a^T)^2 / d)       over heads, places and tokens
        attention   L = sum over layers of |A_X|^2,  A = softmax(Q K_c^T / sqrt(d))

    A_X are the columns of A for the concept's words (``words``).
    ``attention`` is the attention resteering of the paper. Its released code (preset ``released``) takes the norm of
    all A_X together, ``attention-norm``, also those of the end token, and trains the whole UNet. It may use words
    learned by textual inversion, which we leave out. ``logits`` and the constants are those of the program with which
    separable concept erasure was compared. That program reads images from disk (``images``), never zeroes its gradients
    (``train.gradients``; check: with ``summed`` the n-th step uses the sum of n gradients), and makes N + 1 updates of
    ``--iter_break N`` (``train.counting``). As in that program, the loss does not reach the values and the output of
    the last layer: their delta is 0.
    """

    config: ForgetMeNotConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        model = self.load_model()
        self.calibrate(model)
        self.prepare(model)
        return self.finished(self.train(self.parameters(model), self.step, run, log))

    def parameters(self, model: DiffusionModel) -> dict[str, nn.Parameter]:
        """The trained parameters, by full name."""
        if self.config.parameters == "unet":
            return select(model, f"{model.backbone_name}.*")
        return model.parameters("cross-attention")

    def prepare(self, model: DiffusionModel) -> None:
        """Make what all steps share: each concept's images, its templates encoded with it and with its anchor, and the
        positions of its words."""
        config, pairs = self.config, self.pairs()
        self.images = concept_images(model, config.images, config.concepts, config.seed)
        self.encoded = [[model.encode(pair) for pair in of_one] for of_one in pairs]
        self.words = [
            [word_positions(model, c, concept, ends=config.words == "concept-and-end") for c, _ in of_one]
            for concept, of_one in zip(config.concepts, pairs, strict=True)
        ]

    def step(self, tuning: Tuning, i: int, generator: torch.Generator) -> dict[str, Tensor]:
        model = self.model
        k, concept = divmod(i, len(self.encoded))
        choice = int(torch.randint(len(self.encoded[concept]), (1,), generator=generator))
        both, words = self.encoded[concept][choice], self.words[concept][choice]
        t = int(torch.randint(1000, (1,), generator=generator))
        with tuning.frozen():
            x, _ = noised(model, self.images[concept][k], t, generator)
        with queries(model) as found:
            model.predict_noise(x, t, both[:1])
        terms = [self.term(layer, Q, both, words) for layer, Q in found]
        loss = torch.stack(terms).sum()
        return {"loss": loss.sqrt() if self.config.objective == "attention-norm" else loss}

    def term(self, layer: Any, Q: Tensor, both: Conditioning, words: list[int]) -> Tensor:
        """The loss at one layer from its queries (1, places, heads * d)."""
        with self.model.autocast():
            K = layer.to_k(both.sequence)
        Q, K_c, K_a = (full(part).unflatten(-1, (layer.heads, -1)).transpose(0, 1) for part in (Q[0], *K))
        d = Q.shape[-1]
        if self.config.objective == "logits":
            return (Q @ (K_c - K_a).transpose(1, 2)).square().mean() / d
        A = (Q @ K_c.transpose(1, 2) / d**0.5).softmax(dim=-1)
        return A[..., words].square().sum()


@contextmanager
def queries(model: DiffusionModel) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Collect each cross-attention layer with the queries it computes inside the block, in the order of computation."""
    found: list[tuple[nn.Module, Tensor]] = []

    def noting(layer: nn.Module) -> Any:
        return lambda _, __, Q: found.append((layer, Q))

    handles = [layer.to_q.register_forward_hook(noting(layer)) for layer in model.cross_attentions()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def word_positions(model: DiffusionModel, prompt: str, concept: str, *, ends: bool = False) -> list[int]:
    """Positions of the tokens of ``concept`` in ``prompt``, and with ``ends`` of the end tokens, padding included if
    it is the same token. Raises `ConfigError` if the concept's do not all occur there."""
    encoder = model.text[0]
    ids, words = encoder.tokens([prompt])[0].tolist(), encoder.words(concept)
    for start in range(len(ids) - len(words) + 1):
        if ids[start : start + len(words)] == words:
            end = [place for place, token in enumerate(ids) if ends and token == encoder.end]
            return [*range(start, start + len(words)), *end]
    raise ConfigError(
        f"the tokens of {quoted(concept)} are not all found in those of {quoted(prompt)}: use a shorter template"
    )
