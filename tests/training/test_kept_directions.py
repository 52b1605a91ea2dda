"""Steps that leave alone what prompts of what should stay have in common."""

from __future__ import annotations

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


def trained(shortens: bool) -> tuple[float, float]:
    """How near a trained weight comes to its aim for row c, and how far it moves rows k that share much with c."""
    common, c, k = 3 * draw(1, 12, seed=2), draw(1, 12, seed=3), draw(6, 12, seed=4)[:, :1] * draw(1, 12, seed=5)
    c, k = c + common, k + common
    W = nn.Parameter(draw(5, 12, seed=6))
    before, aim = W.detach().clone(), draw(1, 5, seed=7)
    optimizer = torch.optim.Adam([W], lr=0.02)
    if shortens:
        Shortened(optimizer, [W], shortening(k / len(k) ** 0.5))
    for _ in range(400):
        optimizer.zero_grad()
        (c @ W.T - aim).square().mean().backward()
        optimizer.step()
    after = W.detach()
    return float((c @ after.T - aim).norm() / (c @ before.T - aim).norm()), float((k @ (after - before).T).norm())


def test_the_aim_is_reached_and_what_is_kept_moves_far_less():
    (left, moved), (left_usually, moved_usually) = trained(True), trained(False)
    assert left < 0.05 and left_usually < 0.05
    assert moved < 0.2 * moved_usually, "control: the optimiser's own coordinates"


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
