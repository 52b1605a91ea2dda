"""Steps that leave alone what prompts of what should stay have in common."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mu.training.kept_directions import LAMB, Shortened, shortening


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_unused_directions_stay_and_used_ones_become_short():
    basis = torch.linalg.qr(draw(12, 12)).Q
    kept = draw(40, 4, seed=1) @ basis[:4]
    P = shortening(kept / len(kept) ** 0.5)
    assert torch.allclose(P, P.T)
    assert torch.allclose(basis[4:] @ P, basis[4:], atol=1e-9)
    assert (basis[:4] @ P).norm(dim=1).max() < 0.15
    S = kept.T @ kept / len(kept)
    whole = torch.eye(12, dtype=S.dtype) + S / (LAMB * S.trace() / 12)
    assert torch.allclose(P @ P @ whole, torch.eye(12, dtype=S.dtype), atol=1e-9), "the head's formula"


def moved(P: Tensor | None, steps: int = 60) -> tuple[float, float]:
    """How near a trained weight comes to its aim for row c, and how far it moves rows k that share much with c."""
    common, c, k = 3 * draw(1, 12, seed=2), draw(1, 12, seed=3), draw(6, 12, seed=4)[:, :1] * draw(1, 12, seed=5)
    c, k = c + common, k + common
    W = nn.Parameter(draw(5, 12, seed=6))
    before, aim = W.detach().clone(), draw(1, 5, seed=7)
    optimizer = torch.optim.Adam([W], lr=0.02)
    if P is None:
        P = shortening(k / len(k) ** 0.5)
    Shortened(optimizer, [W], P)
    for _ in range(steps):
        optimizer.zero_grad()
        (c @ W.T - aim).square().mean().backward()
        optimizer.step()
    after = W.detach()
    return float((c @ after.T - aim).norm() / (c @ before.T - aim).norm()), float((k @ (after - before).T).norm())


def test_the_aim_is_reached_and_what_is_kept_moves_far_less():
    (left, moved_with), (usual, moved_without) = moved(None, 400), moved(torch.eye(12, dtype=torch.float64), 400)
    assert left < 0.05 and usual < 0.05
    assert moved_with < 0.2 * moved_without, "control: the optimiser's own coordinates"


def test_steps_are_those_of_the_coordinates():
    """Of plain descent, V = V - r G P, so W moves by - r G P^2; a weight that has no gradient stays."""
    P = shortening(draw(6, 12))
    W, idle = nn.Parameter(draw(5, 12)), nn.Parameter(draw(5, 12))
    optimizer = torch.optim.SGD([W, idle], lr=0.1)
    Shortened(optimizer, [W, idle], P)
    before, G = W.detach().clone(), draw(5, 12, seed=1)
    W.grad = G.clone()
    optimizer.step()
    assert torch.allclose(W, before - 0.1 * G @ P @ P)
    assert torch.equal(idle, draw(5, 12))
    assert not torch.allclose(W, before - 0.1 * G, atol=1e-3), "control"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_keep_their_precision(dtype: torch.dtype):
    W = nn.Parameter(draw(5, 12).to(dtype))
    optimizer = torch.optim.Adam([W])
    Shortened(optimizer, [W], shortening(draw(6, 12)))
    W.square().sum().backward()
    optimizer.step()
    assert W.dtype == dtype and W.isfinite().all()
