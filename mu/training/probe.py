"""How much of a concept an edit leaves, and how far it moves what should stay: read from images of few steps.

The frozen model's own images of the same prompts and seeds are the measure. Latents are compared, and nothing is
decoded unless a CLIP looks too. The phrasings are those of `mu.training.surroundings` that nothing trains on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from mu.core.concept import says
from mu.core.config import filled, phrased
from mu.data.prompt_lists import KEPT, everyday
from mu.diffusion.denoising import denoise, initial_noise
from mu.models.clip import ClipModel
from mu.models.diffusion import Conditioning, DiffusionModel
from mu.training.surroundings import PROBED_ALONE, Surroundings

log = logging.getLogger("mu")

STEPS, GUIDANCE = 6, 4.0
"""Denoising steps and guidance scale of the images."""
PEERS = 6
"""Words that stand in the concept's place for comparison."""
TRIED = 18
"""Peers whose images are looked at until `PEERS` are found."""
OWN = 0.5
"""How far a peer's images must be from those of the same phrasings without a word, as a share of the concept's own
squared distance, or of the first peers' mean if that is larger. Beside an hourglass and a pyramid of a sibling of
canvas, words that name an object reach 0.7 and more, and "anything", "picture" and pieces of words at most 0.4."""
TELLS = 0.25
"""How far the frozen model's image of the concept must be from the nearest peer's, as a share of the mean over all
phrasings, for its phrasing to show whether the concept is gone. Where a sibling of canvas draws no hourglass though it
is asked for one, that is 0.01 to 0.2, and where it draws one 0.77 and more."""
BATCH = 16


class Reading(NamedTuple):
    """What a probe finds."""

    left: float
    """The share of the concept that is left in images: 1 in the frozen model, 0 if a peer stands there."""
    shown: float
    """The share of images that are nearer to the frozen model's image of the concept than to that of any peer, of the
    phrasings where that image stands apart (`TELLS`). With a CLIP: or in which it sees the concept, of all images."""
    moved: float
    """The mean squared change of images of what should stay, as a share of what tells the concept from its peers."""
    spilled: float
    """The largest such change of one image."""
    strange: float
    """How far images of the concept's prompts are from the nearest image with a peer in its place, as a share of how
    far the frozen model's are. Where the concept is gone and this stays high, the rest of the prompt is gone too."""


class Sight:
    """A CLIP's view of images of ``prompts`` (n lists): whether the first text of each is nearer than its others."""

    def __init__(self, clip: ClipModel, prompts: Sequence[Sequence[str]]):
        self.clip = clip
        self.texts = torch.stack([clip.encode_text(texts) for texts in prompts])

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(n,), whether each image (n, 3, H, W) in 0..1 shows the concept of its own texts."""
        features = self.clip.encode_images(images.to(self.clip.device))
        return ((self.texts @ features[:, :, None])[:, :, 0].argmax(1) == 0).cpu()


class Probe:
    """Fixed prompts and seeds, and the frozen model's images of them. Make it while the model is unedited.

    Let x(p) be the latents of an image of prompt p. For each phrasing p of concept c, with one seed,

        r = x(p(c)) - y

    for what stands in its place, y: of the images x(p(w)) of the peers w and their mean, the nearest to the edited
    model's x'(p(c)). What is left of c is <x'(p(c)) - y, r> / |r|^2; both sums run over all phrasings, so those that
    the model reads well weigh more. Against the mean alone, a third of a mug would be left where a peer that looks like
    one stands, beside peers that do not. ``evaluations`` counts samples of the backbone.
    """

    def __init__(self, model: DiffusionModel, around: Surroundings, seed: int = 0, clip: ClipModel | None = None):
        self.model, self.around, self.evaluations = model, around, 0
        seeds = [seed * 1000 + k for k in range(len(around.probes))]
        kept = probed_prompts(model, around)
        self.starts = self._starts(self._at(around.concept), seeds)
        self.starts_kept = self._starts(kept, cycled(seeds, len(kept)))
        self.target, self.kept = self._images(self.starts), self._images(self.starts_kept)
        found = self._standing(seeds)
        self.peers, of_peers = tuple(found), torch.stack([*found.values()])
        self.instead = torch.cat([of_peers.mean(0, keepdim=True), of_peers])
        self.average, self.of_peers = self.instead[0], self.instead[1:]
        self.scale = float((self.target - self.average).square().sum(1).mean())
        self.apart, self.tells = self._telling()
        self.sight = self._sight(clip) if clip else None

    def _at(self, word: str) -> list[str]:
        return [phrased(template, word) for template in self.around.probes]

    def glance(self) -> Reading:
        """Images of the concept's prompts alone. Nothing seems moved: a bound on the full reading, from below."""
        now = self._images(self.starts)
        to_concept, to_each = (now - self.target).square().sum(1), self._distances(now)
        to_peers = to_each[1:].amin(0)
        y = self.instead[to_each.argmin(0), torch.arange(len(now))]
        r = self.target - y
        shown = ((to_concept < to_peers) & self.tells) | self._seen(now)
        return Reading(
            left=float(((now - y) * r).sum() / r.square().sum().clamp_min(1e-12)),
            shown=float((shown if self.sight else shown[self.tells]).float().mean()),
            moved=0.0,
            spilled=0.0,
            strange=float(to_peers.mean()) / self.apart,
        )

    def read(self, glance: Reading | None = None) -> Reading:
        """The reading of the model as it is now, with the edit that is on; its ``glance`` is not made again."""
        moved = (self._images(self.starts_kept) - self.kept).square().sum(1) / self.scale
        return (glance or self.glance())._replace(moved=float(moved.mean()), spilled=float(moved.max()))

    def _standing(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Up to `PEERS` peers with their images (n, values): the first that draw something of their own.

        A word that the model hardly learned may still move predictions, but its images are those of the phrasing
        without a word, where the model draws what it likes, the concept too. Nothing stands in a concept's place there.
        Without any such peer, those images themselves are the only entry, under "".
        """

        def of(words: Sequence[str]) -> Tensor:
            texts = [text for word in words for text in self._at(word)]
            return self._images(self._starts(texts, [*seeds] * len(words))).reshape(len(words), len(seeds), -1)

        def own(images: Tensor) -> Tensor:
            return (images - bare).square().sum(-1).mean(-1)

        (bare,), least = of([""]), None
        waiting, found = list(self.around.peers[:TRIED]), dict[str, Tensor]()
        while waiting and len(found) < PEERS:
            part, waiting = waiting[: PEERS - len(found)], waiting[PEERS - len(found) :]
            images = of(part)
            shares = own(images)
            if least is None:
                least = OWN * torch.maximum(own(self.target), shares.mean())
            found |= {word: x for word, x, share in zip(part, images, shares, strict=True) if share >= least}
        return found or {"": bare}

    def _telling(self) -> tuple[float, Tensor]:
        """How far the frozen model's images of the concept are from the nearest peer's, on average, and (p,) which
        phrasings show whether it is gone."""
        apart = self._distances(self.target)[1:].amin(0)
        return float(apart.mean()), apart >= TELLS * apart.mean()

    def _sight(self, clip: ClipModel) -> Sight | None:
        """None, with a warning, if the CLIP cannot tell: it sees the concept in less than half of the frozen model's
        images of it, or in half of those with a peer in its place."""
        words = [self.around.concept, *self.peers]
        sight = Sight(clip, [[phrased(template, word) for word in words] for template in self.around.probes])
        share, *others = (float(sight(self._decoded(each)).float().mean()) for each in (self.target, *self.of_peers))
        if share >= 0.5 > max(others):
            return sight
        log.warning(
            "%s sees %r in %.0f %% of the unedited model's images of it, and in up to %.0f %% of those of other words: "
            "it cannot tell, and is not asked",
            clip.name,
            self.around.concept,
            100 * share,
            100 * max(others),
        )
        return None

    def _seen(self, latents: Tensor) -> Tensor:
        """(n,), whether the CLIP sees the concept in each image; without one, nowhere."""
        return self.sight(self._decoded(latents)) if self.sight else torch.zeros(len(latents), dtype=torch.bool)

    def _decoded(self, latents: Tensor) -> Tensor:
        parts = latents.reshape(len(latents), *self.starts[0][0].shape[1:]).to(self.model.device).split(BATCH)
        return torch.cat([self.model.decode(part) for part in parts])

    def _distances(self, images: Tensor) -> Tensor:
        """(1 + n, p) squared distances of each phrasing's image to what may stand there: the peers' mean, each peer."""
        return (images - self.instead).square().sum(2)

    def _starts(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[tuple[Tensor, Conditioning]]:
        """Noise and encoded prompts, in batches."""
        size, noise = self.model.default_size, [torch.Generator().manual_seed(seed) for seed in seeds]
        return [
            (
                initial_noise(self.model, size, size, noise[k : k + BATCH]),
                self.model.encode(prompts[k : k + BATCH]),
            )
            for k in range(0, len(prompts), BATCH)
        ]

    @torch.no_grad()
    def _images(self, starts: Sequence[tuple[Tensor, Conditioning]]) -> Tensor:
        """Latents (n, values) on the CPU, in float32."""
        model, found = self.model, []
        nothing = model.encode([""])
        for x, c in starts:
            n, scheduler = len(x), model.new_scheduler(STEPS)
            generators = [torch.Generator().manual_seed(k) for k in range(n)]  # for schedulers that draw noise
            x = denoise(model, x, c, nothing.repeat(n), scheduler, guidance=GUIDANCE, generators=generators)
            found.append(x.flatten(1).float().cpu())
            self.evaluations += 2 * STEPS * n
        return torch.cat(found)


def cycled(seeds: Sequence[int], count: int) -> list[int]:
    return [seeds[k % len(seeds)] for k in range(count)]


def probed_prompts(model: DiffusionModel, around: Surroundings) -> list[str]:
    """What should stay, in phrasings that nothing trains on: peers and partners, alone and together, and no word."""
    peers = [
        filled(template, word) for template, word in zip(around.probes, cycle(around.peers or ("",)), strict=False)
    ]
    alone = [filled(PROBED_ALONE[1], word) for word in around.partners]
    erased = (around.concept, *around.beside)
    common = [t for t in everyday()[KEPT:] if model.fits(t) and not any(says(t, concept) for concept in erased)]
    n = len(around.probes)
    return [*peers, *["", "a picture", *alone[:8], *common][:n]]
