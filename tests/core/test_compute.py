"""Devices and precisions as users write them."""

from __future__ import annotations

import pytest
import torch

from mu.core.compute import full, generator, pick_device, precision
from mu.core.errors import ConfigError


def test_precisions() -> None:
    assert precision("fp16") is precision("float16") is torch.float16
    assert precision("bf16") is precision("bfloat16") is torch.bfloat16
    assert precision("fp32") is precision("float32") is torch.float32
    with pytest.raises(ConfigError, match="float8"):
        precision("float8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
@pytest.mark.parametrize("wanted", ["0", "0,1", "cuda", "cuda:1", "cpu"])
def test_a_gpu_that_is_not_there_is_the_cpu(wanted: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "mu"):
        assert pick_device(wanted) == torch.device("cpu")
    assert len(caplog.records) == (wanted != "cpu")


@pytest.mark.parametrize("wanted", ["toaster", "1" + "0" * 30, "cuda:" + "9" * 20, "٣", "cuda:²"])
def test_no_device_at_all(wanted: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown device '{wanted}'"):
        pick_device(wanted)


def test_generators_are_seeded() -> None:
    assert torch.equal(torch.rand(3, generator=generator(1)), torch.rand(3, generator=generator(1)))
    assert not torch.equal(torch.rand(3, generator=generator(1)), torch.rand(3, generator=generator(2)))


def test_full_keeps_float64_and_widens_what_is_coarser() -> None:
    exact = torch.tensor([1 / 3], dtype=torch.float64)
    assert full(exact) is exact
    for coarse in (torch.float16, torch.bfloat16, torch.float32):
        found = full(exact.to(coarse))
        assert found.dtype == torch.float32 and torch.equal(found, exact.to(coarse).float())
    assert not torch.equal(full(exact.half()).double(), exact)  # control
