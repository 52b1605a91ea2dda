"""Concept ablation: train the UNet to predict for prompts of the concept what it predicts for prompts of an anchor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mu.algorithms.concept_ablation.configs import (
    ConceptAblationConfig,
    ConceptAblationMethod,
)
from mu.core.loop import Log
from mu.core.run import RunDirectory
from mu.diffusion.noised_images import concept_images, noised
from mu.edits.weights import WeightEdit
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.training.diffusion_method import WeightErasure
from mu.training.tuning import Tuning


class ConceptAblation(ConceptAblationMethod, WeightErasure):
    """The training of concept ablation.

    Each step draws a template, with the concept (c) and with the anchor (a): "X painting" and "painting". It noises an
    image of the concept to x_t by the forward process, t uniform in 0 .. 999. The loss, with theta* frozen, is

        L = |eps_theta(x_t, c) - eps_theta*(x_t, a)|^2 + anchor_weight |eps_theta(x_t, a) - eps_theta*(x_t, a)|^2,

    means over the elements of x_t. This is the model-based objective of the paper with its regulariser, both towards
    the frozen model. A step costs one sample without gradient and two with gradient; the tensors of
    ``parameters`` are trained.

    Constants and form are those of the program with which separable concept erasure was compared. That program uses
    "painting" for objects too (``templates``) and reads images from disk (``images``). It never zeroes its gradients
    (``train.gradients``; check: with ``summed`` the n-th step uses the sum of n gradients). Its ``--iter_break N`` is
    N + 1 updates (``train.counting``). The authors' own program differs more (preset ``released``): it noises images
    of the anchor, and moves the prediction to that of the model in training, without gradient, or to the noise. It
    trains only ``to_k`` and ``to_v``, and not at the start token. Its regulariser is the ordinary training loss on
    images of the anchor (``prior_weight``). For v-prediction models the loss is on v.
    """

    config: ConceptAblationConfig

    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> WeightEdit:
        model = self.load_model()
        self.calibrate(model, retained=True)
        self.prepare(model)
        return self.finished(self.train(self.parameters(model), self.step, run, log))

    def parameters(self, model: DiffusionModel) -> dict[str, nn.Parameter]:
        """The trained parameters, by full name."""
        if self.config.parameters == "keys-and-values":
            return model.parameters("text-keys") | model.parameters("text-values")
        return model.parameters("cross-attention")

    def prepare(self, model: DiffusionModel) -> None:
        """Make what all steps share: each concept's images, and each template encoded with it and with its anchor."""
        config, pairs = self.config, self.pairs()
        shown = [list(dict.fromkeys(a for _, a in of_one)) for of_one in pairs]
        of_anchors = concept_images(model, config.images, config.concepts, config.seed, shown)
        of_concepts = concept_images(model, config.images, config.concepts, config.seed)
        self.priors, self.images = of_anchors, of_anchors if config.noised == "anchors" else of_concepts
        self.encoded = [[model.encode(pair) for pair in of_one] for of_one in pairs]
        self.choices = [
            [[j for j, (_, a) in enumerate(of_one) if a == shown_there] for shown_there in prompts]
            for of_one, prompts in zip(pairs, shown, strict=True)
        ]
        """By concept and prompt of its anchor: the indices of the pairs with it."""

    def step(self, tuning: Tuning, i: int, generator: torch.Generator) -> dict[str, Tensor]:
        config, B = self.config, self.config.train.batch_size
        n, concept = divmod(i, len(self.encoded))
        aimed = config.target == "frozen" or config.anchor_weight > 0
        with tuning.frozen():
            drawn = Noised.cat([self.drawn(concept, n * B + j, generator) for j in range(B)])
            priors = [self.prior(concept, n * B + j, generator) for j in range(B if config.prior_weight else 0)]
            frozen = self.predicted(drawn.of_anchor())[0] if aimed else drawn.noise
        parts = [drawn, drawn.of_anchor(), *([Noised.cat(priors)] if priors else [])]
        with start_detached(self.model) if config.start_token == "detached" else nullcontext():
            e_c, e_a, *e_prior = self.predicted(*parts)
        aim = {"frozen": frozen, "current": e_a.detach(), "noise": drawn.noise}[config.target]
        losses = {"concept": self.distance(drawn, e_c, aim)}
        total = losses["concept"]
        if aimed:
            losses["anchor"] = self.distance(drawn, e_a, frozen)
            total = total + config.anchor_weight * losses["anchor"]
        for e in e_prior:
            losses["prior"] = self.distance(parts[-1], e, parts[-1].noise)
            total = total + config.prior_weight * losses["prior"]
        return self.with_retained({"loss": total, **losses}, tuning, drawn.x[:1], drawn.t[0], generator)

    def drawn(self, concept: int, k: int, generator: torch.Generator) -> Noised:
        """The k-th image of the ``concept``, noised, with a pair of prompts: with anchors, one of its own anchor."""
        every, of_anchor = range(len(self.encoded[concept])), self.choices[concept]
        choices = (
            of_anchor[k % len(self.images[concept]) % len(of_anchor)] if self.config.noised == "anchors" else every
        )
        both = self.encoded[concept][choices[int(torch.randint(len(choices), (1,), generator=generator))]]
        t = int(torch.randint(1000, (1,), generator=generator))
        x, noise = noised(self.model, self.images[concept][k], t, generator)
        return Noised(x, [t], both[:1], both[1:], noise)

    def prior(self, concept: int, k: int, generator: torch.Generator) -> Noised:
        """The k-th image of the ``concept``'s anchor, noised, with its prompt on both sides."""
        images, of_anchor = self.priors[concept], self.choices[concept]
        both = self.encoded[concept][of_anchor[k % len(images) % len(of_anchor)][0]]
        t = int(torch.randint(1000, (1,), generator=generator))
        x, noise = noised(self.model, images[k], t, generator)
        return Noised(x, [t], both[1:], both[1:], noise)

    def predicted(self, *parts: Noised) -> tuple[Tensor, ...]:
        """The model's noise for each of ``parts`` under their prompts c, in one batch."""
        t = torch.tensor([t for part in parts for t in part.t], device=self.model.device)
        x, c = torch.cat([part.x for part in parts]), Conditioning.cat([part.c for part in parts])
        return self.model.predict_noise(x, t, c).split([len(part.x) for part in parts])

    def distance(self, at: Noised, e: Tensor, aim: Tensor) -> Tensor:
        """The mean squared error, in the space that the model predicts in."""
        weights = [self.model.native_weight(t) for t in at.t]
        return torch.stack([w * F.mse_loss(*rows) for w, *rows in zip(weights, e, aim, strict=True)]).mean()


class Noised(NamedTuple):
    """Noised images x (b, ...) at timesteps t, with their prompts c and a and their noise."""

    x: Tensor
    t: list[int]
    c: Conditioning
    a: Conditioning
    noise: Tensor

    def of_anchor(self) -> Noised:
        """The same images under their anchor's prompt."""
        return self._replace(c=self.a)

    @staticmethod
    def cat(parts: Sequence[Noised]) -> Noised:
        x, t, c, a, noise = zip(*parts, strict=True)
        return Noised(
            torch.cat(x),
            [each for of_one in t for each in of_one],
            Conditioning.cat(c),
            Conditioning.cat(a),
            torch.cat(noise),
        )


@contextmanager
def start_detached(model: DiffusionModel) -> Iterator[None]:
    """Inside the block, keys and values of the start token are constants to gradients."""

    def without(_: Any, __: Any, found: Tensor) -> Tensor:
        return torch.cat([found[:, :1].detach(), found[:, 1:]], dim=1)

    layers = [layer for attention in model.cross_attentions() for layer in (attention.to_k, attention.to_v)]
    handles = [layer.register_forward_hook(without) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
