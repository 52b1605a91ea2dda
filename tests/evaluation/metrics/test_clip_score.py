"""CLIPScore against torch's cosine, and its bounds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mu.core.errors import DataError
from mu.evaluation.metrics.clip_score import clip_score

GENERATOR = torch.Generator().manual_seed(0)
IMAGES, TEXTS = torch.randn(64, 16, generator=GENERATOR), torch.randn(64, 16, generator=GENERATOR)


def test_equals_the_formula_with_torch_s_cosine():
    cosines = F.cosine_similarity(IMAGES.double(), TEXTS.double())
    assert (cosines < 0).any() and (cosines > 0).any()
    assert clip_score(IMAGES, TEXTS) == pytest.approx(float((2.5 * cosines.clamp(min=0)).mean()), rel=1e-12)


def test_bounds():
    assert clip_score(IMAGES, IMAGES) == pytest.approx(2.5)
    assert clip_score(IMAGES, -IMAGES) == 0


def test_a_mismatched_pair_is_zero_and_does_not_take_from_the_others():
    both = torch.cat([IMAGES, IMAGES])
    assert clip_score(both, torch.cat([IMAGES, -IMAGES])) == pytest.approx(1.25)


def test_lengths_do_not_matter_and_the_pairing_does():
    assert clip_score(7 * IMAGES, TEXTS / 3) == pytest.approx(clip_score(IMAGES, TEXTS), rel=1e-6)
    assert clip_score(IMAGES, IMAGES.roll(1, dims=0)) < 1


@pytest.mark.parametrize(
    ("images", "texts"),
    [(IMAGES, TEXTS[:5]), (IMAGES[0], TEXTS[0]), (IMAGES[:0], TEXTS[:0]), (IMAGES, TEXTS * 0), (IMAGES / 0, TEXTS)],
)
def test_input_that_makes_no_sense_is_refused(images: Tensor, texts: Tensor):
    with pytest.raises(DataError):
        clip_score(images, texts)
