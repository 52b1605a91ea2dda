"""SPEED against its formula in dense algebra, matrix by matrix, and what the formula promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mu.algorithms import algorithm
from mu.algorithms.speed.algorithm import Speed, Targets, centres, free_of, held, influenced, least_scaled, off, shipped
from mu.core.errors import ConfigError
from mu.edits.joint import JointEdit
from mu.models.diffusion import DiffusionModel

NAMES = ["neon style", "star", "moon"]
CASES: list[dict[str, Any]] = [
    {"concepts": NAMES, "anchors": ["photo"], "filter": False},
    {"concepts": NAMES, "anchors": ["photo"], "filter": False, "lamb": 0.3, "retain_scale": 0.05, "matrices": "KV"},
    {"concepts": ["neon"], "anchors": ["a photo"], "augmentations": 3, "matrices": "K"},
    {"concepts": ["neon", "star"], "tokens": "all", "filter": False, "templates": ["{}", "a {} image"]},
]
KEPT = ["watercolor", "a dog", "house", "a portrait", "pop art", "vintage", "a street in rain", "a tree", "fish", "sea"]


def dense(
    W: Tensor, targets: Targets, R: Tensor, K: Tensor, config: Any, draw: torch.Generator, *, P: Tensor | None = None
) -> Tensor:
    """The formula as it is printed, d x d, with no identity used. ``P`` replaces the projector, for a control."""
    C, A, one = targets.C, targets.A, torch.eye(W.shape[1], dtype=torch.float64)
    S_tt = sum(torch.outer(c, c) for c in C) / len(C)
    S_at = sum(torch.outer(a, c) for a, c in zip(A, C, strict=True)) / len(C)
    if config.filter:
        E = W @ (S_at - S_tt) @ torch.linalg.inv(one + S_tt)

        def moved(rows: Tensor) -> Tensor:
            return torch.stack([torch.linalg.vector_norm(E @ row) for row in rows])

        R = R[moved(R) > moved(R).mean()]
        v = torch.linalg.svd(W, full_matrices=False).Vh[-1]
        v = v if v[v.abs().argmax()] > 0 else -v
        made = torch.stack(
            [r + g * v for r, gs in zip(R, torch.randn(len(R), config.augmentations, 1, generator=draw,
             dtype=torch.float64), strict=True) for g in gs]
        )  # fmt: skip
        R = torch.cat([R, made[moved(made) > moved(made).mean()]])
    U, sizes, _ = torch.linalg.svd(R.T @ R / len(R))
    if P is None:
        P = U[:, sizes < config.threshold] @ U[:, sizes < config.threshold].T
    M = torch.linalg.inv(S_tt @ P + config.retain_scale * one)
    middle = K.T @ torch.linalg.inv(K @ P @ M @ K.T + config.lamb * torch.eye(len(K), dtype=torch.float64)) @ K
    return W @ (S_at - S_tt) @ P @ (one - M @ middle @ P) @ M


def parts(method: Speed, model: DiffusionModel) -> tuple[Targets, Tensor, Tensor, dict[str, Tensor]]:
    targets, texts = method.targets(model), method.retained(model)
    weights = {name: W.detach().double() for name, W in model.parameters("text-values").items()}
    weights |= {name: W.detach().double() for name, W in model.parameters("text-keys").items()}
    return targets, model.last_rows(texts), held(model), weights


def delta(edit: JointEdit, name: str) -> Tensor:
    return edit.ups[name] @ edit.rights[name]


@pytest.mark.parametrize("settings", CASES)
def test_the_delta_is_the_formula_s(settings: dict[str, Any], tiny: DiffusionModel) -> None:
    """(a), and (e): its low-rank factors are of a rank of at most the number of target tokens."""
    method = Speed({**settings, "retain": KEPT}, model=tiny)
    edit = method.find_edit()
    targets, R, K, weights = parts(method, tiny)
    draw, wrong_draw = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    wrong = method.config.model_copy(update={"retain_scale": 1.001 * method.config.retain_scale})
    for name in edit.parameters:
        wanted = dense(weights[name], targets, R, K, method.config, draw)
        assert float((delta(edit, name) - wanted).norm()) < 1e-8 * float(wanted.norm())
        off_by = dense(weights[name], targets, R, K, wrong, wrong_draw)
        assert float((delta(edit, name) - off_by).norm()) > 1e-6 * float(wanted.norm())  # control
        factors = edit.factors[name]
        assert factors.rank == len(targets.C)
        assert torch.allclose(factors.dense().double(), wanted, atol=1e-5 * float(wanted.abs().max()))
    assert {name.rpartition("attn2.")[2] for name in edit.parameters} == {
        f"to_{kind.lower()}.weight" for kind in method.config.matrices
    }


def test_what_is_retained_stays_within_the_bound_of_the_threshold(tiny: DiffusionModel) -> None:
    """(b) |D r| <= |D|_2 sqrt(m threshold), since |P r|^2 <= m times P's largest eigenvalue; in the span of the
    directions above the threshold it is 0. Control: with P = I, the same rows move."""
    method = Speed({**CASES[0], "retain": KEPT, "threshold": 1e-3}, model=tiny)
    edit = method.find_edit()
    targets, R, K, weights = parts(method, tiny)
    span = free_of(R, 1e-3, R.shape[1])
    assert 0 < len(span) < R.shape[1]
    for name in edit.parameters:
        D = delta(edit, name)
        size = float(torch.linalg.matrix_norm(D, 2))
        assert float((D @ R.T).norm(dim=0).max()) <= size * (len(R) * 1e-3) ** 0.5
        assert float((D @ span.T).norm()) < 1e-9 * size
        everywhere = torch.eye(R.shape[1], dtype=torch.float64)
        free = dense(weights[name], targets, R, K, method.config, torch.Generator(), P=everywhere)
        assert float((free @ span.T).norm()) > 1e-2 * float(torch.linalg.matrix_norm(free, 2))


def test_the_rows_that_are_held_do_not_move(tiny: DiffusionModel) -> None:
    """(c). Controls: with lamb they move, and so do the targets."""
    found = [Speed({**CASES[0], "retain": KEPT, "lamb": lamb}, model=tiny) for lamb in (0.0, 1.0)]
    exact, loose = (method.find_edit() for method in found)
    targets, _, K, _ = parts(found[0], tiny)
    for name in exact.parameters:
        size = float(delta(exact, name).norm())
        assert float((delta(exact, name) @ K.T).norm()) < 1e-9 * size
        assert float((delta(loose, name) @ K.T).norm()) > 1e-6 * size
        assert float((delta(exact, name) @ targets.C.T).norm()) > 1e-2 * size


def test_targets_land_nearer_to_their_anchors(tiny: DiffusionModel) -> None:
    """(d), of every target in every matrix. Control: with a large retain_scale they stay where they are."""
    weak, strong = (Speed({**CASES[0], "retain": KEPT, "retain_scale": s}, model=tiny).find_edit() for s in (1e6, 1e-3))
    method = Speed({**CASES[0], "retain": KEPT}, model=tiny)
    targets, _, _, weights = parts(method, tiny)

    def distances(edit: JointEdit, name: str) -> tuple[Tensor, Tensor]:
        now = (weights[name] + delta(edit, name)) @ targets.C.T
        return tuple((now - weights[name] @ rows.T).norm(dim=0) for rows in (targets.A, targets.C))  # type: ignore

    for name in strong.parameters:
        to_anchor, to_target = distances(strong, name)
        assert bool((to_anchor < to_target).all())
        assert bool(torch.gt(*distances(weak, name)).all())


def test_same_seed_same_edit_whatever_torch_s_own_seed(tiny: DiffusionModel) -> None:
    """(f). All is drawn and summed on the CPU, so no device has a part in it. Control: another seed, another edit."""
    settings = {"concepts": ["neon"], "anchors": ["photo"], "retain": KEPT}
    edits = []
    for torch_seed, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(torch_seed)
        edits.append(Speed({**settings, "seed": seed}, model=tiny).find_edit())
    first, again, other = (edit.tensors() for edit in edits)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all(Z.device.type == "cpu" for Z in edits[0].solved.values())


def test_the_pieces_of_the_formula() -> None:
    draw = torch.Generator().manual_seed(3)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    rows = torch.cat([rand(1, 8) * 0.01 + 5 * k for k in (0, 1, 2) for _ in range(6)])
    found = centres(rows, 3)
    assert {round(float(each.mean())) for each in found} == {0, 5, 10}
    assert torch.equal(found, centres(rows, 3))
    few, many = rand(5, 40), rand(60, 40)
    for R in (few, many):  # by either of the two eigendecompositions
        sizes, directions = torch.linalg.eigh(R.T @ R / len(R))
        P = directions[:, sizes < 0.5] @ directions[:, sizes < 0.5].T
        x = rand(3, 40)
        assert torch.allclose(off(x, free_of(R, 0.5, 40)), x @ P, atol=1e-10)
    W = rand(6, 9)
    v = least_scaled(W)
    assert float((W @ v).norm()) == pytest.approx(float(torch.linalg.svdvals(W)[-1]))
    assert torch.equal(v, least_scaled(W)) and torch.equal(v, least_scaled(-W))
    targets = Targets(rand(2, 9), rand(2, 9), (1, 1))
    assert 0 < len(influenced(W, targets, rand(30, 9))) < 30


def test_what_is_retained_by_default_and_what_is_left_out(tiny: DiffusionModel) -> None:
    method = Speed({"concepts": ["neon", "dog"], "filter": False}, model=tiny)
    texts = method.retained(tiny)
    assert texts and set(texts) < set(shipped()) and all(tiny.fits(text) for text in texts)
    assert "dog" in shipped() and "dog" not in texts  # control: it is left out because it is erased
    given = Speed({"concepts": ["dog"], "retain": ["dog", "Dog days", "hotdog", "cat", "cat"]}, model=tiny)
    assert given.retained(tiny) == ["hotdog", "cat"]
    with pytest.raises(ConfigError, match="retain"):
        Speed({"concepts": ["dog"], "retain": ["a dog"]}, model=tiny).find_edit()
    with pytest.raises(ConfigError, match="threshold"):
        Speed({"concepts": ["dog"], "filter": False, "threshold": 1e-15}, model=tiny).find_edit()
    with pytest.raises(ConfigError, match="anchor"):
        Speed({"concepts": ["dog"], "anchors": ["Dog"]}, model=tiny)


def test_last_rows_are_the_whole_prompt_s(tiny: DiffusionModel, tiny_xl: DiffusionModel) -> None:
    texts = ["", "neon", "a star in neon style", "star " * 40, "neon"]
    for model in (tiny, tiny_xl):
        rows = model.last_rows(texts, batch=2)
        sequence = model.encode(texts).sequence.double()
        for row, whole, text in zip(rows, sequence, texts, strict=True):
            assert torch.allclose(row, whole[model.last_token(text)], atol=1e-5)
        assert not torch.allclose(rows[1], rows[2], atol=1e-2)  # control


def test_presets_hold_the_published_constants() -> None:
    presets = algorithm("speed").presets
    few, people = presets["objects"], presets["celebrities"]
    assert (few.matrices, few.threshold, few.retain_scale, few.lamb, few.augmentations) == ("V", 0.1, 1.0, 0.0, 10)
    assert few.filter and few.tokens == "last" and few.anchors == [""]
    assert (people.threshold, people.retain_scale, people.filter, people.anchors) == (1e-4, 0.05, False, ["person"])
    assert presets["styles"].anchors == ["art"] and presets["nudity"].tokens == "all"


# -- the concepts of one solve
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [CASES[0], CASES[1], CASES[3]])
def test_one_target_left_out_is_the_solve_without_it(settings: dict[str, Any], tiny: DiffusionModel) -> None:
    """Exactly, and at once with the error that is stated. Control: the whole edit is neither."""
    names, retain = settings["concepts"], [text for text in KEPT if "image" not in text]
    whole = Speed({**settings, "retain": retain}, model=tiny).find_edit()
    alone = Speed({**settings, "concepts": names[1:], "retain": retain}, model=tiny).find_edit()
    exact, (dropped, error) = whole.without(names[0]), whole.dropped(names[0])
    assert exact.info.concepts == dropped.info.concepts == tuple(names[1:])
    differ = total = 0.0
    for name in whole.parameters:
        wanted = delta(alone, name)
        assert float((delta(exact, name) - wanted).norm()) < 1e-10 * float(wanted.norm())
        assert float((delta(whole, name) - wanted).norm()) > 1e-3 * float(wanted.norm())
        differ += float((dropped.factors[name].dense().double() - wanted).square().sum())
        total += float(wanted.square().sum())
    assert 0 < error == pytest.approx((differ / total) ** 0.5, rel=1e-4)
    assert replace(exact.info, config={}, versions={}) == replace(alone.info, config={}, versions={})
