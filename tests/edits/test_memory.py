"""Beside a model, neither another checkpoint nor the edit that it becomes is whole in memory."""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mu.core.errors import OutputError
from mu.core.run import RunDirectory
from mu.edits.bank import summed, sums
from mu.edits.edit import EditInfo
from mu.edits.weights import WeightEdit
from mu.evaluation.audit import begin, subject
from mu.models import mapped
from mu.models.diffusion import DiffusionModel
from mu.models.mapped import Keeper, on_disk

MAPS = Path("/proc/self/maps")


def of_files() -> list[tuple[int, int]]:
    """The ranges of addresses that files are mapped to, the lowest first, as Linux lists them."""
    ranges = []
    for line in MAPS.read_text().splitlines():
        place, *_, name = line.split(maxsplit=5)
        if name.startswith("/"):
            start, end = (int(address, 16) for address in place.split("-"))
            ranges.append((start, end))
    return ranges


def lies_in(address: int, ranges: list[tuple[int, int]]) -> bool:
    k = bisect_right(ranges, address, key=itemgetter(0))
    return k > 0 and address < ranges[k - 1][1]


def held() -> int:
    """Bytes of all tensors that exist and lie in no mapped file."""
    files, sizes = of_files(), {}
    for each in gc.get_objects():
        if type(each) in (Tensor, torch.nn.Parameter) and each.device.type == "cpu":
            storage = each.untyped_storage()
            if not lies_in(storage.data_ptr(), files):
                sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The bytes that were held at every 40th tensor that was compared with OTHER or put on the model."""
    seen, copies = [], [0]
    copy = Keeper.copy

    def counted(self: Keeper, tensor: Tensor) -> Tensor:
        copies[0] += 1
        if copies[0] % 40 == 0:
            seen.append(held())
        return copy(self, tensor)

    monkeypatch.setattr(Keeper, "copy", counted)
    yield seen


def other(model: DiffusionModel, folder: Path) -> Path:
    """All of the UNet, changed."""
    g = torch.Generator().manual_seed(0)
    changed = {n: p + torch.randn(p.shape, generator=g) for n, p in model.backbone.named_parameters()}
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, folder / "other.safetensors")
    return folder / "other.safetensors"


@pytest.mark.skipif(not MAPS.exists(), reason="reads which memory belongs to files as Linux tells it")
@pytest.mark.parametrize("limit", [0, 2**40])
def test_an_audit_never_holds_a_second_copy(
    limit: int, tiny: DiffusionModel, tmp_path: Path, most: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "IN_MEMORY", limit)
    place = other(tiny, tmp_path)
    sizes = [p.numel() * p.element_size() for p in tiny.backbone.parameters()]
    before, base = held(), {n: p.detach().clone() for n, p in tiny.backbone.named_parameters()}
    before += sum(sizes)  # the test's own copy
    run = begin(RunDirectory(tmp_path / "run").folder, tiny, edited=str(place), concepts=["neon"])
    with subject(run, tiny).applied():
        most.append(held())
        now = {name: parameter.detach() for name, parameter in tiny.backbone.named_parameters()}
        assert max(float((now[n] - base[n]).abs().max()) for n in base) > 1
    assert all(torch.equal(p, base[n]) for n, p in tiny.backbone.named_parameters())
    more = max(most) - before
    if limit:
        assert more > 0.9 * sum(sizes)  # the control: in memory, the sum of all changes is seen
    else:
        assert more < 4 * max(sizes) < 0.5 * sum(sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_what_is_on_disk_is_the_same(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for tensor in (torch.randn(3, 4, 5), torch.randn(6, 4)[::2].T, torch.randn(())):
        given = (10 * tensor).to(dtype)
        kept = on_disk(given)
        assert torch.equal(kept, given) and kept.dtype == dtype
        kept += 1  # a change stays in memory
        assert not torch.equal(kept, given) and not list(tmp_path.iterdir())


def test_no_room_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(OutputError, match="TMPDIR"):
        on_disk(torch.ones(3))
    full: Any = Path("/dev/full")
    if full.exists():
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setattr(mapped, "open", lambda *_: full.open("wb"), raising=False)
        with pytest.raises(OutputError, match="No space"):
            on_disk(torch.ones(100_000))
        assert not list(tmp_path.iterdir())


def test_edits_that_change_the_same_weights_add_up_one_at_a_time() -> None:
    ones = WeightEdit({"unet.conv_out.bias": torch.ones(4), "unet.conv_in.bias": torch.ones(4)}, EditInfo("a", ("a",)))
    twos = WeightEdit({"unet.conv_in.bias": torch.full((4,), 2.0)}, EditInfo("b", ("b",)))
    found = summed([(ones, 1.0), (twos, 0.5)])
    assert {name: float(shift[0]) for name, shift in found.items()} == {
        "unet.conv_out.bias": 1.0,
        "unet.conv_in.bias": 2.0,
    }
    names = [name for name, _ in sums([(ones, 1.0), (twos, 0.5)])]
    assert names == list(found)
