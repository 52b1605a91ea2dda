"""CMMD against its definition, in as little memory as is promised."""

from __future__ import annotations

import math

import pytest
import torch

from mu.evaluation.metrics import cmmd as module
from mu.evaluation.metrics.cmmd import SCALE, SIGMA, cmmd


def test_blocks_of_rows_give_the_mean_over_all_pairs(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(n, 5, generator=draw), dim=1) for n in (11, 7))

    def likeness(p, q):
        pairs = [math.exp(-float((x.double() - y.double()).square().sum()) / (2 * SIGMA**2)) for x in p for y in q]
        return sum(pairs) / len(pairs)

    direct = SCALE * (likeness(a, a) + likeness(b, b) - 2 * likeness(a, b))
    whole, sizes, cdist = cmmd(a, b), [], torch.cdist
    monkeypatch.setattr(module, "BLOCK", 3)
    monkeypatch.setattr(torch, "cdist", lambda p, q, **how: sizes.append(len(p)) or cdist(p, q, **how))
    assert whole == pytest.approx(direct, rel=1e-6) and cmmd(a, b) == pytest.approx(whole, rel=1e-9)
    assert max(sizes) == 3 and sum(sizes) == 11 + 7 + 11
