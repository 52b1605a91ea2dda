"""Facilitated transport: scores as specified, paper's and reference's arithmetic against a direct computation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mu.core.errors import ConfigError, DataError, EditError
from mu.diffusion.sampling import generate
from mu.edits.bank import Bank
from mu.edits.edit import EditInfo
from mu.edits.gates import (
    FacilitatedTransport,
    FixedStrength,
    gate_from_json,
    gate_to_json,
    global_similarity,
    local_similarity,
)
from mu.edits.low_rank import Factors, LowRankEdit, Membrane
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import find_module, find_parameter

LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
CONV = "unet.mid_block.attentions.0.proj_in.weight"


def edit(model: DiffusionModel, concepts: tuple[str, ...], seed: int, rank: int = 1, name: str = LINEAR) -> LowRankEdit:
    g = torch.Generator().manual_seed(seed)
    out, *inner = find_parameter(model, name).shape
    up = torch.randn(out, rank, *[1] * (len(inner) - 1), generator=g)
    return LowRankEdit({name: Factors(torch.randn(rank, *inner, generator=g), up, 1.0)}, EditInfo("test", concepts))


# -- scores -----------------------------------------------------------------------------------------------------------------


def test_the_local_score_is_the_share_of_the_concepts_tokens(tiny: DiffusionModel) -> None:
    tokenizer = tiny.towers[0][0]
    assert len(tokenizer("van gogh").input_ids) == 4  # start, two names, end
    long = "the night sky in the style of van gogh"
    scores = local_similarity(tokenizer, [long, "a van", "gogh gogh van", "a dog", ""], ["van gogh", "dog"])
    assert scores.tolist() == [[1, 0], [0.5, 0], [1, 0], [0, 1], [0, 0]]


def test_the_global_score_is_the_cosine_of_all_positions(tiny: DiffusionModel) -> None:
    prompts, concepts = ["a star", "a dog in neon style"], ["neon", "dog"]
    scores = global_similarity(tiny, prompts, concepts)
    for i, prompt in enumerate(prompts):
        for j, concept in enumerate(concepts):
            p, c = (tiny.encode([text]).sequence.flatten() for text in (prompt, concept))
            assert scores[i, j] == pytest.approx(float(F.cosine_similarity(p, c, dim=0)), abs=1e-5)
    assert float(global_similarity(tiny, ["neon"], ["neon"])) == pytest.approx(1, abs=1e-5)


def test_gamma_is_the_largest_score_times_the_factor(tiny: DiffusionModel) -> None:
    prompts, concepts = ["a van", "a dog"], [["van gogh", "dog"], ["star"]]
    flat = ["van gogh", "dog", "star"]
    both = torch.maximum(global_similarity(tiny, prompts, flat), local_similarity(tiny.towers[0][0], prompts, flat))
    wanted = torch.stack([both[:, :2].amax(1), both[:, 2]], dim=1)
    assert torch.allclose(FacilitatedTransport()(tiny, prompts, concepts), wanted, atol=1e-6)
    assert torch.allclose(FacilitatedTransport(factor=2.0)(tiny, prompts, concepts), 2 * wanted, atol=1e-6)
    local = FacilitatedTransport(metric="tokenuni")(tiny, prompts, concepts)
    assert local.tolist() == [[0.5, 0], [1, 0]]
    assert FacilitatedTransport(metric="allone")(tiny, prompts, concepts).tolist() == [[1, 1], [1, 1]]
    with pytest.raises(DataError, match="concepts"):
        FacilitatedTransport()(tiny, prompts, [[]])
    with pytest.raises(DataError, match="' '"):
        FacilitatedTransport(metric="tokenuni")(tiny, prompts, [[" "]])


@pytest.mark.parametrize(
    "gate", [FacilitatedTransport(2.0, "clipcos", "reference"), FixedStrength(0.5, "reference"), FixedStrength()]
)
def test_a_gate_survives_the_file(gate: FacilitatedTransport | FixedStrength) -> None:
    assert gate_from_json(gate_to_json(gate)) == gate


def test_unknown_gates_are_refused() -> None:
    assert gate_from_json({}) == FixedStrength()
    with pytest.raises(ConfigError, match="'magic'"):
        gate_from_json({"kind": "magic"})


# -- arithmetic -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [LINEAR, CONV])
@pytest.mark.parametrize("gammas", [[0.5, 2.0], [1.0, 1.0], [0.0, 0.7]])
def test_paper_and_reference_arithmetic(name: str, gammas: list[float], tiny: DiffusionModel) -> None:
    """Eq. 9 is sum_j gamma_j U_j D_j; the released code is (sum_i gamma_i U_i)(sum_j gamma_j D_j)."""
    edits = [edit(tiny, (str(k),), k, name=name) for k in range(2)]
    (d1, u1), (d2, u2) = ((e.factors[name].down.flatten(1), e.factors[name].up.flatten(1)) for e in edits)
    g1, g2 = gammas
    paper = g1 * u1 @ d1 + g2 * u2 @ d2
    reference = (g1 * u1 + g2 * u2) @ (g1 * d1 + g2 * d2)
    assert torch.allclose(reference, g1**2 * u1 @ d1 + g2**2 * u2 @ d2 + g1 * g2 * (u1 @ d2 + u2 @ d1), atol=1e-4)
    module = find_module(tiny, name)
    x = torch.randn(2, paper.shape[1], 3, 3) if name == CONV else torch.randn(2, 3, paper.shape[1])
    base = module(x)
    for arithmetic, weight in (("paper", paper), ("reference", reference)):
        wanted = torch.einsum("oi,bi...->bo...", weight, x) if name == CONV else x @ weight.T
        membrane = Membrane(edits, arithmetic)  # type: ignore[arg-type]
        membrane.gates = torch.tensor(gammas)
        with membrane.installed(tiny):
            assert torch.allclose(module(x) - base, wanted, atol=1e-4)
            membrane.gates = torch.tensor([gammas, [1.0, 0.0]])  # per sample: the first row is the same
            assert torch.allclose((module(x) - base)[0], wanted[0], atol=1e-4)
    assert not torch.allclose(paper, reference, atol=1e-2)


def test_one_edit_acts_with_gamma_squared_in_the_reference(tiny: DiffusionModel) -> None:
    one = edit(tiny, ("a",), 0)
    module, x = find_module(tiny, LINEAR), torch.randn(2, 192)
    shifts = {}
    for arithmetic in ("paper", "reference"):
        membrane = Membrane([one], arithmetic)  # type: ignore[arg-type]
        membrane.gates = torch.tensor([0.5])
        base = module(x)
        with membrane.installed(tiny):
            shifts[arithmetic] = module(x) - base
    assert torch.allclose(shifts["reference"], 0.5 * shifts["paper"], atol=1e-5)


def test_the_references_arithmetic_needs_equal_ranks(tiny: DiffusionModel) -> None:
    membrane = Membrane([edit(tiny, ("a",), 0), edit(tiny, ("b",), 1, rank=2)], "reference")
    with pytest.raises(EditError, match="rank"), membrane.installed(tiny):
        find_module(tiny, LINEAR)(torch.randn(2, 192))
    mixed = [edit(tiny, ("a",), 0), edit(tiny, ("b",), 1)]
    for one, arithmetic in zip(mixed, ("paper", "reference"), strict=True):
        one.info = replace(one.info, gate={"kind": "fixed", "arithmetic": arithmetic})
    with pytest.raises(EditError, match="gate"), Bank(tiny, mixed).applied():
        pass


# -- through generate -------------------------------------------------------------------------------------------------------


def test_generate_tells_the_gate_its_prompts(tiny: DiffusionModel) -> None:
    """Facilitated transport by the prompt listeners equals gates set by hand; prompts of one batch have their own."""
    edits = [edit(tiny, ("van gogh",), 0), edit(tiny, ("dog",), 1, name=CONV)]
    gate = FacilitatedTransport(factor=1.5)
    prompts = ["a dog", "a star by van", "night sky by van gogh"]
    ask = {"prompts": prompts, "seeds": [1, 2, 3], "steps": 2, "batch": 3}
    bank = Bank(tiny, edits)
    with bank.applied(gate=FixedStrength()) as membrane:
        assert membrane is not None
        full = generate(tiny, **ask)
        membrane.gates = gate(tiny, prompts, [e.info.concepts for e in edits])
        by_hand = generate(tiny, **ask)
    with bank.applied(gate=gate):
        told = generate(tiny, **ask)
    assert torch.allclose(told, by_hand, atol=1e-5)
    assert not torch.allclose(told, full, atol=1e-3)
    for one in edits:
        one.info = replace(one.info, gate=gate_to_json(gate))
    with bank.applied():  # the gate of the edits' own files, one picture a batch
        assert torch.allclose(generate(tiny, **{**ask, "batch": 1}), by_hand, atol=1e-4)
    with bank.applied(strengths=[0.5, 0.0]) as membrane:
        half = generate(tiny, **ask)
    with bank.applied(gate=FixedStrength()) as membrane:
        assert membrane is not None
        membrane.gates = gate(tiny, prompts, [e.info.concepts for e in edits]) * torch.tensor([0.5, 0.0])
        assert torch.allclose(half, generate(tiny, **ask), atol=1e-4)
    assert not tiny.prompt_listeners
