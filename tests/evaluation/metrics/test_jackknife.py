"""Intervals of distances of sets: against what they claim, and against the bootstrap, which does not hold it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mu.core.errors import DataError
from mu.evaluation.metrics.cmmd import cmmd, cmmd_jackknife
from mu.evaluation.metrics.frechet import frechet_distance, frechet_jackknife
from mu.evaluation.metrics.jackknife import GROUPS, Squared, T, groups

Distance, Jackknife = Callable[[Tensor, Tensor], float], Callable[..., Squared]


def unit(distance: Callable) -> Callable:
    return lambda a, b, **how: distance(F.normalize(a, dim=1), F.normalize(b, dim=1), **how)


BOTH = [(frechet_distance, frechet_jackknife), (unit(cmmd), unit(cmmd_jackknife))]


def pair(n: int, d: int, seed: int, far: float = 0.3) -> tuple[Tensor, Tensor]:
    """Two sets of equal prompts and seeds: the second is the first, moved by chance."""
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(n, d, generator=draw, dtype=torch.float64)
    return a, a + far * torch.randn(n, d, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize(("distance", "jackknife"), BOTH)
@pytest.mark.parametrize("fixed", [False, True])
def test_what_is_left_out_is_left_out(distance: Distance, jackknife: Jackknife, fixed: bool) -> None:
    a, b = pair(47, 6, 0)
    b = torch.cat([b, b[:5]]) if fixed else b
    own, found = groups(len(a)), jackknife(a, b, fixed=fixed)
    direct = [distance(a[own != k], b if fixed else b[own != k]) for k in range(GROUPS)]
    assert found.without == pytest.approx(direct, rel=1e-9) and found.value == pytest.approx(distance(a, b), rel=1e-9)
    assert len({*direct}) == GROUPS  # control: every group makes a difference


@pytest.mark.parametrize(("distance", "jackknife"), BOTH)
@pytest.mark.parametrize("d", [4, 60])
def test_the_interval_holds_the_mean_of_other_draws(distance: Distance, jackknife: Jackknife, d: int) -> None:
    """Also with more features than images, where the covariances are singular."""
    draws = [pair(40, d, seed) for seed in range(60)]
    found = [jackknife(*each) for each in draws]
    mean = sum(each.value for each in found) / len(found)
    inside = [each.interval is not None and each.interval[0] <= mean <= each.interval[1] for each in found]
    assert sum(inside) >= 0.92 * len(inside)


def test_the_bootstrap_s_interval_does_not_hold_it() -> None:
    """The control: what would be wrong. Two samples of one distribution, drawn again."""
    draws = [(pair(40, 8, seed)[0], pair(40, 8, 1000 + seed)[0]) for seed in range(20)]
    mean = sum(frechet_distance(*each) for each in draws) / len(draws)
    hits = {"bootstrap": 0, "jackknife": 0}
    for seed, (a, b) in enumerate(draws):
        draw = torch.Generator().manual_seed(seed)
        again = [torch.randint(len(a), (len(a),), generator=draw) for _ in range(40)]
        drawn = torch.tensor([frechet_distance(a[k], b[k]) for k in again])
        low, high = drawn.quantile(torch.tensor([0.025, 0.975])).tolist()
        hits["bootstrap"] += low <= mean <= high
        low, high = frechet_jackknife(a, b).interval or (0, 0)
        hits["jackknife"] += low <= mean <= high
    assert hits["bootstrap"] <= 10 and hits["jackknife"] >= 18


def test_the_variance_is_not_too_small_where_covariances_are_singular() -> None:
    """Efron and Stein's law, with its control: no room for more than what it promises."""
    found = [frechet_jackknife(*pair(30, 50, seed)) for seed in range(60)]
    values = torch.tensor([each.value for each in found]).sqrt()
    halves = [math.sqrt(each.interval[1]) - math.sqrt(each.value) for each in found if each.interval]
    assert 1 <= sum(halves) / len(halves) / T / float(values.std()) <= 1.8


@pytest.mark.parametrize(("distance", "jackknife"), BOTH)
def test_equal_images_are_surely_equal_and_few_have_no_interval(distance: Distance, jackknife: Jackknife) -> None:
    a, b = pair(GROUPS, 5, 1)
    same = jackknife(a, a).interval
    assert same == pytest.approx((0, 0), abs=1e-9) and jackknife(a, b).interval > (0, 0)
    few = jackknife(a[1:], b[1:])
    assert few.interval is None and few.change(few) is None and few.value > 0
    with pytest.raises(DataError, match="equally many"):
        jackknife(a, b[1:])


def test_the_change_is_paired() -> None:
    """Both columns share the chance of prompts and seeds, which their difference leaves out."""
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(80, 4, generator=draw)
    real, edited = torch.randn(300, 4, generator=draw), base + 0.5
    before, after = (frechet_jackknife(each, real, fixed=True) for each in (base, edited))
    low, high = after.change(before)
    alone = [each.interval[1] - each.interval[0] for each in (before, after)]
    assert 0 < low < after.value - before.value < high and high - low < sum(alone)
    assert frechet_jackknife(base, real, fixed=True).change(before) == pytest.approx((0, 0), abs=1e-12)
