"""Style and content loss against their sums written out, and what each of the two does not see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mu.core.errors import DataError
from mu.evaluation.metrics.style_loss import gram_matrix, style_loss

DRAW = torch.Generator().manual_seed(0)
A, B = torch.rand(2, 3, 6, 5, generator=DRAW).double(), torch.rand(2, 3, 6, 5, generator=DRAW).double()
KERNELS = [torch.randn(c, 3, 1, 1, generator=DRAW).double() for c in (4, 2, 5, 3, 2)]


def network(images: Tensor) -> list[Tensor]:
    """Five layers that mix channels place by place."""
    return [torch.nn.functional.conv2d(images, kernel) for kernel in KERNELS]


def test_the_definition_slowly():
    found = style_loss(A, B, network)
    for n in range(2):
        style = 0.0
        for x, y in zip(network(A), network(B), strict=True):
            c, h, w = x.shape[1:]
            for i in range(c):
                for j in range(c):
                    gx, gy = (float((m[n, i] * m[n, j]).sum()) / (c * h * w) for m in (x, y))
                    style += (gx - gy) ** 2 / c**2
        fourth = [m[3][n] for m in (network(A), network(B))]
        content = float((fourth[0] - fourth[1]).pow(2).sum()) / fourth[0].numel()
        assert float(found.style[n]) == pytest.approx(style, rel=1e-9)
        assert float(found.content[n]) == pytest.approx(content, rel=1e-9)
        assert float(found.total[n]) == pytest.approx(1e6 * style + content, rel=1e-9)


def test_a_gram_matrix_is_symmetric_without_negative_eigenvalues():
    gram = gram_matrix(A)
    assert gram.shape == (2, 3, 3) and torch.equal(gram, gram.mT)
    assert (torch.linalg.eigvalsh(gram) > -1e-12).all()
    assert gram.diagonal(dim1=1, dim2=2).sum(1).tolist() == pytest.approx(A.square().mean(dim=(1, 2, 3)).tolist())


def test_style_does_not_see_where_things_are_and_content_does():
    turned = A.flip(-1).flip(-2)
    moved = style_loss(A, turned, network)
    assert moved.style.abs().max() < 1e-20 < 1e-3 < moved.content.min()
    assert style_loss(A, B, network).style.min() > 1e-6, "the control: other colours are seen"


def test_equal_images_and_symmetry():
    assert style_loss(A, A, network).total.tolist() == [0, 0]
    assert style_loss(A, B, network).total.tolist() == pytest.approx(
        style_loss(B, A, network).total.tolist(), rel=1e-12
    )


@pytest.mark.parametrize(
    ("a", "b", "features", "layer"),
    [
        (A, B[:1], network, 3),
        (A[:0], B[:0], network, 3),
        (A, B, network, 5),
        (A, B, network, -1),
        (A, B, lambda images: network(images / 0), 3),
        (A, B, lambda images: [images.flatten(1)], 0),
    ],
)
def test_input_that_makes_no_sense_is_refused(a: Tensor, b: Tensor, features, layer: int):
    with pytest.raises(DataError):
        style_loss(a, b, features, layer)
