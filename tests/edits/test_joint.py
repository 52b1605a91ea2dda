"""Edits of one solve in a bank: any set of them is what a solve for that set alone gives, and nothing is lost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mu.core.errors import EditError
from mu.edits.bank_folder import BankFolder
from mu.edits.edit import EditInfo
from mu.edits.export import joined
from mu.edits.files import open_edit
from mu.edits.joint import JointEdit, Solve, joint_info, right_factor, solved_together
from mu.edits.low_rank import LowRankEdit

WIDTH, NAMES = 24, [f"name {k}" for k in range(6)]
LAYERS = {"net.a.weight": 10, "net.b.weight": 14}


class Plain:
    """A model of two layers that read rows of `WIDTH` numbers."""

    name = "plain"

    def __init__(self) -> None:
        torch.manual_seed(0)
        net = nn.ModuleDict({name.split(".")[1]: nn.Linear(WIDTH, out, bias=False) for name, out in LAYERS.items()})
        self.components = {"net": net.requires_grad_(False)}


@pytest.fixture
def model() -> Any:
    return Plain()


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


H = (lambda A: A @ A.T / WIDTH + torch.eye(WIDTH, dtype=torch.float64))(rand(WIDTH, WIDTH, seed=9))


def joint(names: list[str], *, group: str = "g", by_row: bool = True, shared: bool = True) -> JointEdit:
    """An edit whose rows follow from its names alone, as those of a search do: two rows for the first name."""
    counts = [2 if name == NAMES[0] else 1 for name in names]
    C = torch.cat([rand(n, WIDTH, seed=100 + NAMES.index(name)) for name, n in zip(names, counts, strict=True)])
    ups = {
        layer: torch.cat(
            [rand(out, n, seed=200 + out + NAMES.index(name)) for name, n in zip(names, counts, strict=True)], 1
        )
        for layer, out in LAYERS.items()
    }
    Z = C @ H
    solved = dict.fromkeys(LAYERS, Z) if shared else {layer: k * Z for k, layer in enumerate(LAYERS, 1)}
    info = joint_info(EditInfo("speed", tuple(names)), Solve(group, 0.5, by_row, tuple(counts)))
    return JointEdit(ups, C, solved, info)


def delta(edits: list[Any], layer: str) -> Tensor:
    return sum(edit.ups[layer].double() @ edit.rights[layer] for edit in edits)  # type: ignore[return-value]


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_parts_solved_together_are_the_whole(by_row: bool, shared: bool) -> None:
    whole = joint(NAMES, by_row=by_row, shared=shared)
    parts = whole.parts()
    assert [part.info.concepts for part in parts] == [(name,) for name in NAMES]
    together = solved_together(parts)
    for layer in LAYERS:
        assert torch.allclose(delta(together, layer), delta([whole], layer), atol=1e-12)
        assert not torch.allclose(delta(parts, layer), delta([whole], layer), atol=1e-3)  # control: each alone


def test_the_right_factor_is_the_same_by_either_system() -> None:
    C = rand(WIDTH + 5, WIDTH)
    n = len(C)
    by_rows = torch.linalg.solve(0.3 * torch.eye(n, dtype=torch.float64) + C @ H @ C.T, C @ H)
    assert torch.allclose(right_factor(C, C @ H, 0.3), by_rows, atol=1e-10)
    assert torch.allclose(right_factor(C[:3], C[:3] @ H, 0.3), torch.linalg.inv(
        0.3 * torch.eye(3, dtype=torch.float64) + C[:3] @ H @ C[:3].T) @ C[:3] @ H, atol=1e-10)  # fmt: skip


def test_a_bank_acts_as_the_solve_for_what_is_on(model: Any, tmp_path: Path) -> None:
    """Restored, erased again, merged and found in two searches. Control: the terms of the whole are another edit."""
    folder = BankFolder(tmp_path / "bank")
    first, later = joint(NAMES[:4]), joint(NAMES[4:])
    folder.add(model, *first.parts())
    folder.add(model, *later.parts())
    whole = joint(NAMES)
    for off in ([], [NAMES[0]], [NAMES[2], NAMES[5]]):
        if off:
            folder.restore(*off)
        bank = folder.open(model)
        wanted = whole.without(*off) if off else whole
        assert [edit.concept() for edit in bank.on] == [name for name in NAMES if name not in off]
        for layer, found in bank.deltas().items():
            assert torch.allclose(found.double(), delta([wanted], layer), atol=1e-5)
            if off:
                terms = whole.dropped(*off).edit.factors[layer].dense().double()
                assert float((found.double() - terms).norm()) > 1e-3 * float(terms.norm())
        assert joined(bank).factors["net.a.weight"].rank == len(wanted.rows)
        x = rand(3, WIDTH).float()
        net = model.components["net"]["a"]
        with bank.applied():
            moved = net(x)
        assert torch.allclose(moved - net(x), x @ delta([wanted], "net.a.weight").float().T, atol=1e-4)
        if off:
            folder.erase(*off)
    bank = folder.open(model, only=NAMES[1:3])
    for layer, found in bank.deltas().items():
        assert torch.allclose(found.double(), delta([joint(NAMES[1:3])], layer), atol=1e-5)


def test_other_groups_and_plain_edits_are_left_as_they_are() -> None:
    one, two = joint(NAMES[:1]), joint(NAMES[1:2], group="another")
    plain = LowRankEdit(dict(joint(NAMES[2:3]).factors), EditInfo("x", ("plain",)))
    assert all(a is b for a, b in zip(solved_together([one, plain, two]), [one, plain, two], strict=True))


def test_a_file_holds_all_that_a_solve_needs(tmp_path: Path) -> None:
    for shared in (True, False):
        edit = joint(NAMES[:3], shared=shared)
        edit.save(tmp_path / "edit.safetensors")
        back = open_edit(tmp_path / "edit.safetensors")
        assert isinstance(back, JointEdit) and back.info == edit.info
        mine, theirs = edit.tensors(), back.tensors()
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert len({id(Z) for Z in back.solved.values()}) == (1 if shared else 2)
        left = back.without(NAMES[0])
        for layer in LAYERS:
            assert torch.allclose(delta([left], layer), delta([joint(NAMES[1:3], shared=shared)], layer), atol=1e-5)


@pytest.mark.parametrize("gone", ["joint.rows", "joint.solved.0", "net.a.joint.solved"])
def test_a_damaged_file_is_one_line(gone: str) -> None:
    edit = joint(NAMES[:2])
    tensors = {name: tensor for name, tensor in edit.tensors().items() if name != gone}
    with pytest.raises(EditError, match="damaged"):
        JointEdit.from_tensors(tensors, edit.info)
    with pytest.raises(EditError, match="damaged"):
        JointEdit.from_tensors(edit.tensors(), EditInfo("speed", ("a",)))
    with pytest.raises(EditError, match="rows"):
        JointEdit.from_tensors({**edit.tensors(), "joint.rows": edit.rows[:1]}, edit.info)


def test_who_is_not_there_cannot_be_left_out() -> None:
    edit = joint(NAMES[:2])
    with pytest.raises(EditError, match="name 1"):
        edit.without("name 9")
    with pytest.raises(EditError, match="nothing"):
        edit.without(*NAMES[:2])


def test_a_hundred_targets_of_sd_s_width_are_solved_in_milliseconds() -> None:
    C = rand(100, 768)
    began = time.perf_counter()
    right_factor(C, C, 1.0)
    assert time.perf_counter() - began < 1  # a few milliseconds, on a machine that is not busy
