"""Gates as an edit's file states them; the paper's and the reference's arithmetic against a direct computation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mu.core.errors import ConfigError, EditError
from mu.edits.bank import Bank
from mu.edits.edit import EditInfo
from mu.edits.gates import OPEN, FacilitatedTransport, FixedStrength, Gate, gate_from_json, gate_to_json
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors, Membrane
from mu.edits.weights import WeightEdit
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import find_module, find_parameter

LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
CONV = "unet.mid_block.attentions.0.proj_in.weight"


def edit(model: DiffusionModel, concepts: tuple[str, ...], seed: int, rank: int = 1, name: str = LINEAR) -> LowRankEdit:
    g = torch.Generator().manual_seed(seed)
    out, *inner = find_parameter(model, name).shape
    up = torch.randn(out, rank, *[1] * (len(inner) - 1), generator=g)
    return LowRankEdit({name: Factors(torch.randn(rank, *inner, generator=g), up, 1.0)}, EditInfo("test", concepts))


@pytest.mark.parametrize(
    "gate",
    [
        FacilitatedTransport(2.0, "clipcos", "reference"),
        FacilitatedTransport(floor=0.75),
        FixedStrength(0.5, "reference"),
        FixedStrength(),
    ],
)
def test_a_gate_survives_the_file(gate: Gate) -> None:
    assert gate_from_json(gate_to_json(gate)) == gate


def test_gates_of_other_kinds_are_refused() -> None:
    assert gate_from_json({}) == OPEN == FixedStrength()
    for content, named in (({"kind": "magic"}, "magic"), ({"kind": "fixed", "threshold": 1}, "threshold")):
        with pytest.raises(ConfigError, match=named):
            gate_from_json(content)


@pytest.mark.parametrize("floor", [-0.1, 1.0, float("nan"), "much"])
def test_a_floor_is_a_similarity_below_one(floor: object) -> None:
    with pytest.raises(ConfigError, match="floor"):
        gate_from_json({"kind": "facilitated_transport", "floor": floor})
    assert "floor" not in gate_to_json(FacilitatedTransport(2.0)), "earlier versions read the published gate"


# -- arithmetic
# -------------------------------------------------------------------------------------------------------------


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
        one.info = replace(one.info, gate=FixedStrength(arithmetic=arithmetic))
    with pytest.raises(EditError, match="gate"), Bank(tiny, mixed).applied():
        pass


def test_a_gate_for_dense_edits_is_refused(tiny: DiffusionModel, caplog: pytest.LogCaptureFixture) -> None:
    """They always act in full: with others one line says so, and alone the gate would do nothing."""
    shift = torch.ones_like(find_parameter(tiny, LINEAR))
    dense = WeightEdit({LINEAR: shift}, EditInfo(method="test", concepts=("neon",)))
    by_prompt = FacilitatedTransport()
    with pytest.raises(EditError, match="'neon'"), Bank(tiny, [dense]).applied(gate=by_prompt):
        pass
    both = Bank(tiny, [dense, edit(tiny, ("star",), 1)])
    for bank, gate, told in ((both, by_prompt, 1), (both, None, 0), (Bank(tiny, [dense]), FixedStrength(), 0)):
        caplog.clear()
        with bank.applied(gate=gate):
            pass
        assert len(caplog.messages) == told and all("'neon'" in line for line in caplog.messages)
    off = Bank(tiny, [dense, edit(tiny, ("star",), 1)])
    off.restore("neon")
    with off.applied(gate=by_prompt):
        pass
    assert not caplog.messages, "control: an edit that is off needs no gate"
