"""UCE against a dense least-squares solver, matrix by matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mu.algorithms.uce.algorithm import UCE
from mu.core.errors import ConfigError
from mu.edits.joint import JointEdit
from mu.edits.weights import WeightEdit
from mu.models.diffusion import DiffusionModel
from mu.training.closed_form import least_squares

CASES: list[dict[str, Any]] = [
    {"concepts": ["neon style"], "anchors": ["watercolor"]},
    {"concepts": ["neon style", "star"], "anchors": ["a photo", ""], "preserve": ["moon", "a pop art picture"]},
    {"concepts": ["neon", "star"], "templates": ["{}", "a {} image"], "preserve": [], "erase_scale": 0.05, "lamb": 1.0},
    {"concepts": ["neon", "moon"], "preserve": ["star", ""], "preserve_scale": 2.0, "tokens": "last", "lamb": 0.5},
]


def dense(model: DiffusionModel, W: Tensor, edits: list[tuple[str, str]], preserve: list[str], config: Any) -> Tensor:
    """The minimiser of the sum of squares, one row an equation: sqrt(weight) c^T W'^T = sqrt(weight) (W a)^T."""
    tokenizer, W = model.text[0].tokenizer, W.double()
    left, right = [], []

    def row(c: Tensor, wanted: Tensor, weight: float) -> None:
        left.append(weight**0.5 * c)
        right.append(weight**0.5 * wanted)

    for concept, anchor in edits:
        lasts = [len(tokenizer(text).input_ids) - 2 for text in (concept, anchor)]
        c, a = (model.encode([text]).sequence[0].double() for text in (concept, anchor))
        for j in range(1 if config.tokens == "last" else len(c) - max(lasts)):
            row(c[lasts[0] + j], W @ a[lasts[1] + j], config.erase_scale)
    for text in preserve:
        k, last = model.encode([text]).sequence[0].double(), len(tokenizer(text).input_ids) - 2
        for each in [k[last]] if config.tokens == "last" else k:
            row(each, W @ each, config.preserve_scale)
    for direction in torch.eye(W.shape[1], dtype=torch.float64):
        row(direction, W @ direction, config.lamb)
    return torch.linalg.lstsq(torch.stack(left), torch.stack(right), driver="gelsd").solution.T


@pytest.mark.parametrize("settings", CASES)
def test_the_shift_is_the_least_squares_solution(settings: dict[str, Any], tiny: DiffusionModel) -> None:
    method = UCE(settings, model=tiny)
    edit, config = method.find_edit(), method.config
    edits = [pair for of_one in config.pairs() for pair in of_one]
    weights = tiny.parameters("text-keys") | tiny.parameters("text-values")
    assert list(edit.shifts) == list(weights)
    wrong = config.model_copy(update={"lamb": 1.01 * config.lamb})
    for name, W in list(weights.items())[::5]:
        wanted, scale = (
            dense(tiny, W.detach(), edits, config.preserve, config) - W,
            float(edit.shifts[name].abs().max()),
        )
        assert scale > 0
        assert torch.allclose(edit.shifts[name].double(), wanted.double(), rtol=0, atol=1e-6 * scale)
        off = dense(tiny, W.detach(), edits, config.preserve, wrong) - W
        assert not torch.allclose(edit.shifts[name].double(), off.double(), rtol=0, atol=1e-4 * scale)  # control


def test_each_term_holds_what_it_weighs() -> None:
    """In its limits: a large erase_scale makes W' c = W a, a large preserve_scale W' k = W k, a large lamb W' = W."""
    draw = torch.Generator().manual_seed(0)
    C, A, K, W = (torch.randn(n, 32, generator=draw, dtype=torch.float64) for n in (5, 5, 6, 20))

    def leaves(*weights: float) -> tuple[float, float, float]:
        new = W + W @ least_squares(C, A, K, *weights)
        return tuple(float(part.norm()) for part in (new @ C.T - W @ A.T, new @ K.T - W @ K.T, new - W))  # type: ignore[return-value]

    erased, kept, moved = leaves(1.0, 1.0, 1e-9)  # fewer equations than unknowns: both can hold
    assert erased < 1e-6 and kept < 1e-6 and moved > 1
    assert leaves(1.0, 1e-9, 1e-6)[1] > 1  # control: what is not preserved moves
    assert leaves(1.0, 1.0, 1e9)[2] < 1e-6


def test_keys_and_values_alone_move_and_meet_their_anchor(tiny: DiffusionModel) -> None:
    edit = UCE(
        {"concepts": ["neon style"], "anchors": ["photo"], "preserve_scale": 0.0, "lamb": 1e-7}, model=tiny
    ).find_edit()
    assert all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in edit.parameters)
    c, a = (tiny.encode([text]).sequence[0, tiny.last_token(text)] for text in ("neon style", "photo"))
    for W in (tiny.parameters("text-keys") | tiny.parameters("text-values")).values():
        aim = W @ a
        with edit.applied(tiny):
            assert torch.allclose(W @ c, aim, atol=1e-3 * float(aim.abs().max()))
        assert not torch.allclose(W @ c, aim, atol=0.1 * float(aim.abs().max()))  # control


def test_what_names_the_concept_is_not_preserved(tiny: DiffusionModel) -> None:
    preserve = ["a star in Neon style", "neon", "starfish", ""]
    edit = UCE({"concepts": ["neon style", "star"], "preserve": preserve}, model=tiny).find_edit()
    assert edit.info.protects == ()  # lambda lets all of them move
    assert edit.info.spares == ("neon", "starfish", "")
    with pytest.raises(ConfigError, match="anchors"):
        UCE(
            {
                "concepts": ["neon"],
                "anchors": ["moon"],
                "templates": ["star star star star star star star star star star star star star star star {}"],
            },
            model=tiny,
        ).find_edit()


def test_last_tokens(tiny: DiffusionModel) -> None:
    assert [tiny.last_token(text) for text in ("", "neon", "neon style", "star " * 40)] == [0, 1, 2, 14]


def test_other_members_of_the_family(tiny_xl: DiffusionModel, tiny_folder: Any) -> None:
    """Two text encoders side by side; a model in half precision gives the shift of its own weights."""
    edit = UCE({"concepts": ["neon style"]}, model=tiny_xl).find_edit()
    assert isinstance(edit, WeightEdit)
    edit.check(tiny_xl)
    settings = {"concepts": ["neon style"], "model": str(tiny_folder), "devices": "cpu"}
    full, half = (UCE({**settings, "train": {"precision": p}}).find_edit() for p in ("float32", "bfloat16"))
    for name, shift in full.shifts.items():
        assert half.shifts[name].dtype == torch.float32
        assert float((half.shifts[name] - shift).norm() / shift.norm()) < 0.2


@pytest.mark.parametrize("settings", CASES)
def test_kept_as_a_sum_over_concepts_it_is_the_same_edit(settings: dict[str, Any], tiny: DiffusionModel) -> None:
    """And one concept left out is the edit that never had it. Control: the other concept's edit differs."""
    whole = UCE(settings, model=tiny).find_edit()
    parts = UCE({**settings, "restorable": True}, model=tiny).find_edit()
    assert isinstance(whole, WeightEdit) and isinstance(parts, JointEdit)
    for name, dense_delta in parts.deltas():
        scale = float(whole.shifts[name].abs().max())
        assert torch.allclose(dense_delta, whole.shifts[name], rtol=0, atol=1e-4 * scale)
    assert [each.info.concepts for each in UCE(settings).separate(parts)] == [(c,) for c in settings["concepts"]]
    if len(settings["concepts"]) > 1:
        second = {"concepts": settings["concepts"][1:], "anchors": settings.get("anchors", [""])[-1:]}
        kept = [text for text in settings.get("preserve", [""]) if text != "star"]
        alone = UCE({**settings, **second, "preserve": kept}, model=tiny).find_edit()
        left = parts.without(settings["concepts"][0])
        if kept == settings.get("preserve", [""]):
            for name, dense_delta in left.deltas():
                scale = float(alone.shifts[name].abs().max())
                assert torch.allclose(dense_delta, alone.shifts[name], rtol=0, atol=1e-4 * scale)
                assert not torch.allclose(dense_delta, whole.shifts[name], rtol=0, atol=1e-2 * scale)
