"""The methods that SLUG is compared with: order of steps, rates, signs, mask, dampening."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mu
from mu.algorithms import algorithm
from mu.algorithms.clip_salun.algorithm import salient
from mu.algorithms.clip_ssd.algorithm import CONSTANTS, dampened
from mu.core.errors import ConfigError, DataError, EditError
from mu.core.run import RunDirectory
from mu.edits.weights import WeightEdit
from mu.models.clip import ClipModel
from mu.models.contrastive import losses, mean_gradients
from mu.models.parameters import find_parameter
from mu.training import clip_method
from mu.training.clip_config import TrainConfig
from mu.training.clip_method import TEMPERATURE, half_cosine, new_optimizer, plan, retain_order
from mu.training.tuning import tuned

B = 4
N_FORGET, N_RETAIN = 6, 10
"""Two forget batches, the second of two pairs, and three retain batches, the third filled up."""


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    found = mu.load("canvas-clip", device="cpu")
    assert isinstance(found, ClipModel)
    return found


def method(name: str, clip: Any, **overrides: Any) -> Any:
    chosen = algorithm(name)
    fields = set(chosen.config_class.model_fields["data"].annotation.model_fields)
    short: dict[str, Any] = {
        "batch_size": B,
        "data": {k: n for k, n in (("n_forget", N_FORGET), ("n_retain", N_RETAIN)) if k in fields},
    }
    if "train" in chosen.config_class.model_fields:
        short["train"] = {"epochs": 2, "lr": 1e-4}
    if name == "clip-ssd":
        short |= {"selection": 1.0, "forget_loss": "cosine"}
    return chosen(chosen.for_concepts(["neon style"], "canvas-clip").merged(short, overrides), model=clip)


def find(name: str, clip: Any, **overrides: Any) -> WeightEdit:
    return method(name, clip, **overrides).find_edit()


def rows_of(name: str, clip: ClipModel, **overrides: Any) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    method(name, clip, **overrides).find_edit(None, rows.append)
    return rows


# -- steps -------------------------------------------------------------------------------------------------------------


def test_each_epoch_is_one_whole_pass_of_ascent_and_then_one_of_descent() -> None:
    order = [(step.of, step.epoch, step.batch) for step in plan({"forget": 2, "retain": 3}, 2)]
    one = [("forget", 0), ("forget", 1), ("retain", 0), ("retain", 1), ("retain", 2)]
    assert order == [(of, epoch, k) for epoch in (0, 1) for of, k in one]


def test_retain_batches_are_full_shuffled_anew_and_miss_no_pair() -> None:
    first, second = (retain_order(10, 4, 0, epoch) for epoch in (0, 1))
    for order in (first, second):
        assert order.shape == (3, 4)
        assert set(order.flatten()) == set(range(10))
        assert all(len(set(batch)) == 4 for batch in order), "no pair stands against itself"
    assert (first != second).any() and (first != retain_order(10, 4, 1, 0)).any()
    assert (first == retain_order(10, 4, 0, 0)).all()
    with pytest.raises(DataError, match=r"\b3\b.*\b4\b"):
        retain_order(3, 4, 0, 0)


def test_rates_fall_over_the_retain_steps_and_each_set_counts_its_own(clip: ClipModel) -> None:
    assert [half_cosine(k, 4) for k in (0, 2, 4, 5)] == pytest.approx([1, 0.5, 0, 0])
    rows = rows_of("clip-gaft", clip)
    assert ["forget" if "forget" in row else "retain" for row in rows] == 2 * (["forget"] * 2 + ["retain"] * 3)
    places = [0, 1, 0, 1, 2, 2, 3, 3, 4, 5]
    assert [row["lr"] for row in rows] == pytest.approx([1e-4 * half_cosine(k, 6) for k in places])
    assert [row["lr"] for row in rows_of("clip-ft", clip)] == pytest.approx(
        [1e-4 * half_cosine(k, 6) for k in range(6)]
    )
    alone = rows_of("clip-ga", clip, n_retain=16)
    assert [row["lr"] for row in alone] == pytest.approx([1e-4 * half_cosine(k, 8) for k in range(4)])


def test_the_loss_is_minus_the_forget_loss_and_plus_the_retain_loss(clip: ClipModel) -> None:
    """At the first step, whose weights are the base's: the mean of 1 - cos, or the contrastive loss in the ``_o``
    variant."""
    work = method("clip-gaft", clip)
    forget = work.forget_pairs()[:B]
    order = retain_order(N_RETAIN, B, 0, 0)[0]
    with torch.no_grad():
        cosine, contrastive = (float(losses(clip, forget, kind, B).mean()) for kind in ("cosine", "contrastive"))
        retain = float(losses(clip, [work.retain_pairs()[int(j)] for j in order], "contrastive", B).mean())
    for loss, told in ((cosine, "cosine"), (contrastive, "contrastive")):
        row = rows_of("clip-gaft", clip, forget_loss=told)[0]
        assert row["forget"] == pytest.approx(loss, rel=1e-4) and row["loss"] == -row["forget"]
    row = rows_of("clip-ft", clip)[0]
    assert row["retain"] == row["loss"] == pytest.approx(retain, rel=1e-4)
    assert abs(cosine - contrastive) > 1e-2, "control"


def test_the_temperature_and_all_of_less_than_two_dimensions_do_not_decay(clip: ClipModel) -> None:
    parameters = method("clip-ft", clip).parameters()
    optimizer = new_optimizer(parameters, TrainConfig(lr=3e-4))
    plain, decayed = optimizer.param_groups
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0, 0.1)
    assert all((g["betas"], g["eps"], g["lr"]) == ((0.9, 0.98), 1e-6, 3e-4) for g in (plain, decayed))
    exempt = {id(p) for p in plain["params"]}
    for name, p in parameters.items():
        by_name = any(part in name for part in ("bias", "norm", "layrnorm", "logit_scale", "class_embedding"))
        assert (id(p) in exempt) == by_name, name
    assert len(plain["params"]) + len(decayed["params"]) == len(parameters) == len(list(clip.model.parameters()))


@pytest.mark.parametrize("name", ["clip-ga", "clip-ft"])
def test_one_step_is_adamw_by_hand(name: str, clip: ClipModel) -> None:
    """The first step has m / sqrt(v) = g / |g|: theta (1 - lr wd) - lr g / (|g| + eps)."""
    lr, decay, sets = 1e-3, 0.1, {"clip-ga": {"n_forget": B}, "clip-ft": {"n_retain": B}}
    work = method(name, clip, train={"epochs": 1, "lr": lr}, data=sets[name])
    pairs = work.forget_pairs() if name == "clip-ga" else work.retain_pairs()
    if name == "clip-ft":
        pairs = [pairs[int(j)] for j in retain_order(B, B, 0, 0)[0]]
    names = [
        "visual_projection.weight",
        "text_encoder.final_layer_norm.weight",
        "vision_model.encoder.layers.0.mlp.fc1.weight",
    ]
    tensors = [find_parameter(clip, each) for each in names]
    for p in tensors:
        p.requires_grad_(True)
    loss = losses(clip, pairs, "cosine" if name == "clip-ga" else "contrastive", B).mean()
    gradients = torch.autograd.grad(-loss if name == "clip-ga" else loss, tensors)
    for p in tensors:
        p.requires_grad_(False)
    shifts = work.find_edit().shifts
    for each, theta, g in zip(names, tensors, gradients, strict=True):
        wanted = -lr * g / (g.abs() + 1e-6) - (lr * decay * theta.detach() if theta.ndim > 1 else 0)
        assert torch.allclose(shifts[each], wanted, atol=lr * 0.01), each
        assert not torch.allclose(shifts[each], -wanted, atol=lr * 0.01), "control: the other direction"


def test_the_temperature_is_clamped_in_training_and_not_in_the_edit(
    clip: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, seen = clip.model.logit_scale.data, []

    def watched(*args: Any) -> Tensor:
        seen.append(float(clip.model.logit_scale.detach()))
        return losses(*args)

    monkeypatch.setattr(clip_method, "losses", watched)
    clip.model.logit_scale.data = torch.tensor(5.0)
    try:
        edit = find("clip-ft", clip)
        assert float(clip.model.logit_scale) == 5
    finally:
        clip.model.logit_scale.data = kept
    assert seen[0] == 5 and max(seen[1:]) <= math.log(100) + 1e-6 and len(seen) == 6
    assert TEMPERATURE not in edit.parameters
    assert len(edit.parameters) == len(list(clip.model.parameters())) - 1


# -- what comes out ----------------------------------------------------------------------------------------------------


def test_ascent_drives_the_concept_apart_and_fine_tuning_does_not(clip: ClipModel) -> None:
    work = method("clip-ga", clip)
    forget = work.forget_pairs()

    def apart() -> float:
        with torch.no_grad():
            return float(losses(clip, forget, "cosine", B).mean())

    base = apart()
    with work.find_edit().applied(clip):
        ascended = apart()
    with find("clip-ft", clip).applied(clip):
        tuned = apart()
    assert ascended > base + 0.05 > tuned


@pytest.mark.parametrize("name", ["clip-gaft", "clip-salun"])
def test_an_interrupted_training_ends_in_the_same_numbers(
    name: str, clip: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the second epoch's ascent: the order of its retain pairs is still to come."""
    whole = find(name, clip).shifts
    run, calls = RunDirectory(tmp_path), 0

    def seventh(*args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return losses(*args)

    with monkeypatch.context() as patch:
        patch.setattr(clip_method, "losses", seventh)
        with pytest.raises(KeyboardInterrupt):
            method(name, clip).find_edit(run)
    assert (run.checkpoints / "training.pt").exists()
    rows: list[dict[str, float]] = []
    resumed = method(name, clip).find_edit(run, rows.append).shifts
    assert [row["step"] for row in rows] == [6, 7, 8, 9], "control: it did not start over"
    assert all(torch.equal(resumed[each], shift) for each, shift in whole.items())


def test_several_concepts_go_into_one_forget_set(clip: ClipModel) -> None:
    chosen = algorithm("clip-ga")
    work = chosen(chosen.for_concepts(["neon", "star"], "canvas-clip").merged({"data": {"n_forget": 3}}), model=clip)
    captions = [pair.caption for pair in work.forget_pairs()]  # type: ignore[attr-defined]
    assert len(captions) == 6 and all("neon" in c for c in captions[:3]) and all("star" in c for c in captions[3:])


# -- SalUn -------------------------------------------------------------------------------------------------------------


def test_the_mask_is_that_of_a_sort_over_all_tensors() -> None:
    source = torch.Generator().manual_seed(0)
    g = {
        name: scale * torch.randn(shape, generator=source)
        for name, shape, scale in (("a", (7, 9), 1), ("b", (30,), 0.1), ("c", (), 5))
    }
    sizes = torch.cat([each.abs().flatten() for each in g.values()])
    for share in (0.5, 0.1, 1.0):
        chosen = torch.zeros(len(sizes), dtype=torch.bool)
        chosen[sizes.argsort(descending=True)[: int(share * len(sizes))]] = True
        found = torch.cat([each.flatten() for each in salient(g, share).values()])
        assert torch.equal(found, chosen), share
    half = salient(g, 0.5)
    assert half["a"].float().mean() > 0.6 > 0.4 > half["b"].float().mean(), "control: one ranking, not one a tensor"


def test_equals_are_all_in_and_what_has_no_gradient_never_is() -> None:
    mask = salient({"a": torch.tensor([3.0, -2, 2, 1]), "b": torch.zeros(4)}, 0.25)
    assert mask["a"].tolist() == [True, True, True, False] and not mask["b"].any()
    assert salient({"a": torch.tensor([3.0, 1]), "b": torch.zeros(6)}, 0.5)["b"].sum() == 0
    with pytest.raises(EditError, match="gradient"):
        salient({"a": torch.zeros(3)}, 0.5)


def test_the_mask_holds_gradients_back_and_not_the_decay(clip: ClipModel) -> None:
    name = "text_encoder.encoder.layers.0.mlp.fc1.weight"
    work = method("clip-salun", clip)
    mask = work.mask(work.forget_pairs())
    share = sum(float(m.sum()) for m in mask.values()) / sum(m.numel() for m in mask.values())
    assert 0.49 < share <= 0.5 + 1e-6
    out = ~mask[name]
    theta = find_parameter(clip, name).detach()
    still = find("clip-salun", clip, train={"epochs": 2, "lr": 1e-4, "weight_decay": 0.0}).shifts[name]
    assert not still[out].any() and (still[~out] != 0).float().mean() > 0.99
    decayed = find("clip-salun", clip).shifts[name]
    kept = math.prod(1 - 0.1 * row["lr"] for row in rows_of("clip-salun", clip))
    assert torch.allclose(decayed[out], (kept - 1) * theta[out], rtol=0.05, atol=1e-7)
    assert decayed[out].any()


def test_the_released_mask_counts_a_short_batch_in_full(clip: ClipModel) -> None:
    """Six forget pairs in batches of four, with both losses."""
    for loss in ("cosine", "contrastive"):
        masks = {}
        for compat in (False, True):
            work = method("clip-salun", clip, compat=compat, forget_loss=loss)
            masks[compat] = work.mask(work.forget_pairs())
        pairs, parameters = work.forget_pairs(), work.parameters()
        with tuned(parameters):
            parts = [mean_gradients(clip, part, parameters, loss, block=len(part)) for part in (pairs[:B], pairs[B:])]
        released = salient({name: parts[0][name] + parts[1][name] for name in parameters}, 0.5)
        apart = {
            compat: sum(int((mask[name] != released[name]).sum()) for name in released)
            for compat, mask in masks.items()
        }
        assert apart[True] < 1e-4 * 2.4e6 < 1e-2 * 2.4e6 < apart[False], (
            "control: by default every pair counts the same"
        )


# -- SSD ---------------------------------------------------------------------------------------------------------------


def test_dampening_by_hand() -> None:
    f, r = torch.tensor([8.0, 8.0, 8.0, 10.0, 0.0, 1.0]), torch.tensor([0.5, 0.5, 2.0, 1.0, 0.0, 0.0])
    assert dampened(f, r, 10, [2]).tolist() == [0.125, 0.125, 1, 1, 1, 0], "10 is not more than 10 times 1"
    assert dampened(f, r, 3, [2]).tolist() == pytest.approx([0.125, 0.125, 0.5, 0.2, 1, 0])
    assert dampened(f, r, 10, [100]).tolist() == [1, 1, 1, 1, 1, 0], "a weight never grows"
    twice = dampened(f, r, 10, [2, 4])
    assert twice[0] == 0.125 * 0.25 and dampened(f, r, 10, [4])[0] == 0.25, "one on top of the other, or from the start"


def test_compat_multiplies_the_constants_up_to_the_chosen_one(clip: ClipModel) -> None:
    assert len(CONSTANTS) == 10 and CONSTANTS[9] == 5
    assert all(c == pytest.approx(0.1 + k * 4.9 / 9) for k, c in enumerate(CONSTANTS))
    assert method("clip-ssd", clip, dampening=5.0).constants() == [5.0]
    assert method("clip-ssd", clip, dampening=5.0, compat=True).constants() == [*CONSTANTS]
    assert method("clip-ssd", clip, dampening=1.2, compat=True).constants() == pytest.approx(
        [0.1, 0.1 + 4.9 / 9, 0.1 + 9.8 / 9]
    )
    assert method("clip-ssd", clip, compat=True).constants() == [0.1], "the first epoch is the same in both"
    with pytest.raises(ConfigError, match=r"(?=.*dampening).*0.1"):
        method("clip-ssd", clip, dampening=0.05, compat=True)


def test_importances_are_the_squares_of_batch_means_and_the_edit_is_the_dampening(clip: ClipModel) -> None:
    name = "visual_projection.weight"
    work = method("clip-ssd", clip, data={"n_forget": 6, "n_retain": 8})
    p, found = find_parameter(clip, name), {}
    for title, pairs, objective in (
        ("forget", work.forget_pairs(), "cosine"),
        ("retain", work.retain_pairs(), "contrastive"),
    ):
        squares = []
        for k in range(0, len(pairs), B):
            p.requires_grad_(True)
            squares.append(torch.autograd.grad(losses(clip, pairs[k : k + B], objective, B).mean(), p)[0].square())
            p.requires_grad_(False)
        assert len(squares) == 2
        found[title] = (squares[0] + squares[1]) / 2
        F = work.importances(title, pairs, objective)
        assert torch.allclose(F[name], found[title], rtol=1e-3, atol=1e-12)
        assert F[TEMPERATURE].any() == (objective == "contrastive")
    edit = work.find_edit()
    factor = dampened(found["forget"], found["retain"], 1.0, [0.1])
    assert torch.allclose(edit.shifts[name], (factor - 1) * p.detach(), rtol=1e-2, atol=1e-4)
    assert (factor < 1).any() and TEMPERATURE not in edit.parameters


def test_contrastive_importances_take_the_last_batch_as_it_is(
    clip: ClipModel, caplog: pytest.LogCaptureFixture
) -> None:
    name = "visual_projection.weight"
    work = method("clip-ssd", clip, forget_loss="contrastive")
    p, pairs, squares = find_parameter(clip, name), work.forget_pairs(), []
    assert len(pairs) == 6, "four and two"
    for part in (pairs[:B], pairs[B:]):
        p.requires_grad_(True)
        squares.append(torch.autograd.grad(losses(clip, part, "contrastive", len(part)).mean(), p)[0].square())
        p.requires_grad_(False)
    F = work.importances("forget", pairs, "contrastive", partial=True)[name]
    assert torch.allclose(F, (squares[0] + squares[1]) / 2, rtol=1e-2, atol=1e-9)
    assert not torch.allclose(F, squares[0], rtol=0.1), "control"
    assert not caplog.records
    few = find("clip-ssd", clip, forget_loss="contrastive", data={"n_forget": 3, "n_retain": 9})
    assert few.parameters, "fewer forget pairs than a batch"
    assert "1 of 9 pairs" in caplog.text and "forget" not in caplog.text


def test_no_weight_to_dampen_is_an_error(clip: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    work = method("clip-ssd", clip, selection=7.0)
    monkeypatch.setattr(
        work, "importances", lambda *_, **__: {name: torch.ones(p.shape) for name, p in work.parameters().items()}
    )
    with pytest.raises(EditError, match=r"(?=.*\b7\b).*selection"):
        work.find_edit()
