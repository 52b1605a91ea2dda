"""Training in place: the base comes back as the same tensors, and what is returned is how far they moved."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from mu.models import load_diffusion
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import select
from mu.training.tuning import RunningGradients, tuned

NAMES = "unet.*.attn2.to_k.weight"


def test_the_shift_is_the_move_and_the_base_comes_back(tiny: DiffusionModel, snapshot: Callable) -> None:
    before, chosen = snapshot(tiny), select(tiny, NAMES)
    places = {name: parameter.data_ptr() for name, parameter in chosen.items()}
    wanted = {name: torch.full_like(parameter, 0.5) for name, parameter in chosen.items()}
    with tuned(chosen) as tuning:
        assert all(not shift.any() for shift in tuning.shifts().values())
        with torch.no_grad():
            for parameter in chosen.values():
                parameter.add_(0.5)
        moved = snapshot(tiny)
        assert moved != before
        with tuning.frozen():
            assert snapshot(tiny) == before
            assert not torch.is_grad_enabled()
        assert snapshot(tiny) == moved
        shifts = tuning.shifts()
    assert snapshot(tiny) == before
    assert places == {name: parameter.data_ptr() for name, parameter in chosen.items()}
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in chosen.values())
    assert all(torch.allclose(shifts[name], wanted[name], atol=1e-6) for name in chosen)


def test_the_base_comes_back_after_an_exception_inside_frozen(tiny: DiffusionModel, snapshot: Callable) -> None:
    before, chosen = snapshot(tiny), select(tiny, NAMES)
    with pytest.raises(KeyboardInterrupt), tuned(chosen) as tuning:
        for parameter in chosen.values():
            parameter.data.add_(1)
        with tuning.frozen():
            raise KeyboardInterrupt
    assert snapshot(tiny) == before


def test_a_model_in_half_precision_is_trained_in_single(tiny_folder: object) -> None:
    model = load_diffusion(str(tiny_folder), device="cpu", precision="bfloat16")
    chosen = select(model, NAMES)
    with tuned(chosen) as tuning:
        assert all(parameter.dtype == torch.float32 for parameter in chosen.values())
        for parameter in chosen.values():
            parameter.data.add_(1e-5)
        shifts = tuning.shifts()
    assert all(parameter.dtype == torch.bfloat16 for parameter in chosen.values())
    assert all(torch.allclose(shift, torch.full_like(shift, 1e-5), atol=1e-7) for shift in shifts.values())
    rounded = next(iter(chosen.values())).detach().clone()
    assert torch.equal(
        rounded.abs().clamp_min(0.01) + 1e-5, rounded.abs().clamp_min(0.01)
    )  # control: in its own type it stays


def test_running_gradients_are_those_of_a_loop_that_never_zeroes() -> None:
    data = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))

    def run(summed: bool, zero: bool, interrupted: bool = False) -> torch.Tensor:
        weight = torch.ones(3, requires_grad=True)
        unused = torch.ones(1, requires_grad=True)
        optimizer = torch.optim.Adam([weight, unused], lr=0.1)
        running = RunningGradients(optimizer) if summed else None
        for i, row in enumerate(data):
            if zero:
                optimizer.zero_grad(set_to_none=True)
            if interrupted and running and i == 4:
                kept = (copy.deepcopy(optimizer.state_dict()), copy.deepcopy(running.state_dict()))
                optimizer = torch.optim.Adam([weight, unused], lr=0.1)
                running = RunningGradients(optimizer)
                optimizer.load_state_dict(kept[0])
                running.load_state_dict(kept[1])
            ((weight * row).sum() - 1).square().backward()
            optimizer.step()
        return weight.detach()

    never_zeroed = run(summed=False, zero=False)
    assert torch.equal(run(summed=True, zero=True), never_zeroed)
    assert torch.equal(run(summed=True, zero=True, interrupted=True), never_zeroed)
    assert not torch.allclose(run(summed=False, zero=True), never_zeroed)  # control
