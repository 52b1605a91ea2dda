"""The Fréchet distance against closed forms, a direct matrix square root, and the laws of a distance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mu.core.errors import DataError
from mu.evaluation.metrics.frechet import frechet_distance


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean: Tensor, covariance: Tensor, seed: int, n: int = 50) -> Tensor:
    """n rows whose sample mean and unbiased covariance are exactly these."""
    rows = normal(n, len(mean), seed)
    rows = rows - rows.mean(dim=0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(rows.T)), rows.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def matrix_root(matrix: Tensor) -> Tensor:
    """Denman and Beavers' iteration; checked by squaring."""
    root, inverse = matrix, torch.eye(len(matrix), dtype=matrix.dtype)
    for _ in range(60):
        root, inverse = (root + torch.linalg.inv(inverse)) / 2, (inverse + torch.linalg.inv(root)) / 2
    assert torch.allclose(root @ root, matrix, rtol=1e-9)
    return root


@pytest.mark.parametrize(("n", "m", "d"), [(40, 60, 5), (300, 300, 16)])
def test_equals_the_formula_with_a_direct_matrix_root(n: int, m: int, d: int):
    a, b = normal(n, d, 0) @ normal(d, d, 1), 2 * normal(m, d, 2) @ normal(d, d, 3) + 1
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    direct = (a.mean(0) - b.mean(0)).square().sum() + torch.trace(cov_a + cov_b - 2 * matrix_root(cov_a @ cov_b))
    assert frechet_distance(a, b) == pytest.approx(float(direct), rel=1e-8)


def test_closed_form_of_independent_features():
    """Diagonal covariances: |difference of means|^2 + sum of (difference of deviations)^2."""
    mean_a, mean_b = torch.tensor([0.0, 1.0, -2.0]).double(), torch.tensor([3.0, 1.0, 0.0]).double()
    s_a, s_b = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([1.5, 2.0, 4.0]).double()
    a, b = with_moments(mean_a, torch.diag(s_a**2), 0), with_moments(mean_b, torch.diag(s_b**2), 1)
    assert frechet_distance(a, b) == pytest.approx(13 + 0.5**2 + 3.5**2, rel=1e-10)


def test_a_shift_adds_its_square_and_a_scale_its_share():
    a = normal(80, 6, 0)
    a = a - a.mean(dim=0)
    assert frechet_distance(a, a + 2) == pytest.approx(6 * 4, rel=1e-10)
    assert frechet_distance(a, 3 * a) == pytest.approx(4 * float(torch.trace(torch.cov(a.T))), rel=1e-10)


def test_laws_of_a_distance():
    a, b = normal(50, 8, 0), normal(70, 8, 1) * 1.5 + 0.3
    turn = torch.linalg.qr(normal(8, 8, 2)).Q
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b), rel=1e-10)
    assert frechet_distance(a.flip(0), b) == pytest.approx(frechet_distance(a, b), rel=1e-10)
    assert 0 <= frechet_distance(a, a) < 1e-10 < frechet_distance(a, b)


def test_exact_where_the_covariances_are_singular():
    """Fewer rows than features, as in a small run. The control: roots of the eigenvalues of S S lose half the digits
    here."""
    a = normal(20, 64, 0)
    covariance = torch.cov(a.T)
    roots = torch.linalg.eigvals(covariance @ covariance).sqrt().real.sum()
    assert abs(float(2 * torch.trace(covariance) - 2 * roots)) > 1e-9
    assert 0 <= frechet_distance(a, a.flip(0)) < 1e-10
    assert frechet_distance(a, a + 1) == pytest.approx(64, rel=1e-10)
    constant = torch.ones(5, 64)
    assert frechet_distance(constant, constant) == 0


def test_small_samples_of_one_distribution_are_apart_like_1_over_n():
    """The caveat of the docstring, as a number."""
    apart = [
        sum(frechet_distance(normal(n, 4, k), normal(n, 4, 100 + k)) for k in range(30)) / 30 for n in (25, 100, 400)
    ]
    assert apart[0] > 0.1
    assert apart[0] / apart[1] == pytest.approx(4, rel=0.35) and apart[1] / apart[2] == pytest.approx(4, rel=0.35)


def test_half_precision_features_are_computed_in_double():
    a, b = normal(50, 8, 0).half(), (normal(50, 8, 1) * 100).half()
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(a.double(), b.double()), rel=1e-12)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.ones(5, 3), torch.ones(5, 4)),
        (torch.ones(1, 3), torch.ones(5, 3)),
        (torch.ones(5), torch.ones(5)),
        (torch.ones(5, 3), torch.full((5, 3), float("nan"))),
        (torch.full((5, 3), float("inf")), torch.ones(5, 3)),
    ],
)
def test_input_that_makes_no_sense_is_refused(a: Tensor, b: Tensor):
    with pytest.raises(DataError):
        frechet_distance(a, b)
