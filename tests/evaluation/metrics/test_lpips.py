"""LPIPS against its definition written out slowly, and the laws of a distance."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mu.core.errors import DataError
from mu.evaluation.metrics.lpips import lpips
from mu.models import EMBEDDED
from mu.models.judge import Judge

DRAW = torch.Generator().manual_seed(0)
A, B = torch.rand(2, 3, 8, 8, generator=DRAW), torch.rand(2, 3, 8, 8, generator=DRAW)
KERNELS = [torch.randn(c, 3, 3, 3, generator=DRAW) for c in (4, 6)]
WEIGHTS = [torch.rand(c, generator=DRAW) for c in (4, 6)]


def network(images: Tensor) -> list[Tensor]:
    return [torch.nn.functional.conv2d(images, kernel, stride=k + 1) for k, kernel in enumerate(KERNELS)]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_definition_slowly(weights: list[Tensor] | None):
    for n in range(2):
        told = 0.0
        for layer, (x, y) in enumerate(zip(network(A), network(B), strict=True)):
            places = [(i, j) for i in range(x.shape[2]) for j in range(x.shape[3])]
            for i, j in places:
                p, q = x[n, :, i, j].tolist(), y[n, :, i, j].tolist()
                long, wide = math.sqrt(sum(v * v for v in p)), math.sqrt(sum(v * v for v in q))
                w = weights[layer].tolist() if weights else [1.0] * len(p)
                told += sum(w[c] * (p[c] / long - q[c] / wide) ** 2 for c in range(len(p))) / len(places)
        assert float(lpips(A, B, network, weights)[n]) == pytest.approx(told, rel=1e-5)


def test_laws_of_a_distance():
    assert lpips(A, A, network).tolist() == [0, 0]
    assert torch.equal(lpips(A, B, network), lpips(B, A, network))
    assert (lpips(A, B, network) > 0).all() and (lpips(A, B, network) <= 4 * 2).all()


def test_the_length_of_a_feature_vector_does_not_count_and_its_direction_does():
    def louder(images: Tensor) -> list[Tensor]:
        return [(1 + 9 * k) * maps for k, maps in enumerate(network(images))]

    assert lpips(A, B, louder).tolist() == pytest.approx(lpips(A, B, network).tolist(), rel=1e-5)
    turned = lpips(A, B, lambda images: [maps + images.sum() for maps in network(images)])
    assert turned.tolist() != pytest.approx(lpips(A, B, network).tolist(), rel=1e-2), "the control: a shift does count"


def test_places_where_nothing_fires_are_equal():
    assert lpips(A, B, lambda images: [torch.zeros(2, 4, 3, 3)]).tolist() == [0, 0]


def test_in_the_judge_s_maps_a_larger_change_is_farther():
    judge = Judge.open(EMBEDDED["canvas-judge"])
    base = torch.rand(4, 3, 64, 64, generator=DRAW)
    noise = torch.randn(base.shape, generator=DRAW)
    near, far = (lpips(base, (base + s * noise).clamp(0, 1), judge.feature_maps).mean() for s in (0.02, 0.2))
    assert 0 < near < far / 3


@pytest.mark.parametrize(
    ("a", "b", "features", "weights"),
    [
        (A, B[:1], network, None),
        (A[:0], B[:0], network, None),
        (A, B, network, WEIGHTS[:1]),
        (A, B, network, WEIGHTS[::-1]),
        (A, B, lambda images: [], None),
        (A, B, lambda images: [images.flatten(1)], None),
        (A, B, lambda images: [images / 0], None),
    ],
)
def test_input_that_makes_no_sense_is_refused(a: Tensor, b: Tensor, features, weights):
    with pytest.raises(DataError):
        lpips(a, b, features, weights)
