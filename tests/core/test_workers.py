"""Parts of a work in processes of their own: done, refused, killed, and ended with what asked for them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from mu.core.errors import ConfigError
from mu.core.workers import LostPartError, beside, devices_of
from tests.core.parts import leave


def of(folder: Path, *whats: str) -> dict[str, tuple[Path, str]]:
    return {f"part {what}": (folder, what) for what in whats}


def test_all_parts_are_done_beside_the_block(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with beside(leave, of(tmp_path, "a", "b")):
        (tmp_path / "own.txt").write_text(str(os.getpid()))
    numbers = {path.stem: path.read_text() for path in tmp_path.iterdir()}
    assert sorted(numbers) == ["a", "b", "own"] and len({*numbers.values()}) == 3
    assert capfd.readouterr() == ("", "")


LINES = {
    "refuses": "part refuses was not made, this part cannot be made; the same command makes what is missing",
    "breaks": "part breaks was not made, a defect: KeyError",
    "dies": "part dies was not made, its process was ended by signal 9, as when memory is short; the same",
}


@pytest.mark.parametrize("what", LINES)
def test_a_part_that_is_not_done_is_one_line_and_costs_no_other(what: str, tmp_path: Path) -> None:
    with pytest.raises(LostPartError) as caught, beside(leave, of(tmp_path, what, "b")):
        (tmp_path / "own.txt").touch()
    assert str(caught.value).startswith(LINES[what])
    assert {path.stem for path in tmp_path.iterdir()} == {what, "b", "own"}


def test_an_error_of_the_block_ends_the_parts(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match="the block's own"), beside(leave, of(tmp_path, "sleeps")):
        while not (tmp_path / "sleeps.txt").exists() and time.monotonic() - began < 120:
            time.sleep(0.05)
        raise ConfigError("the block's own")
    number = int((tmp_path / "sleeps.txt").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
    assert time.monotonic() - began < 300, "it did not wait for the sleep"


def test_the_devices_that_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_of("cpu,cpu") == ["cpu", "cpu"] and devices_of("0, cuda:3") == ["0", "cuda:3"]
    assert devices_of("cpu") == ["cpu"] and devices_of("1") == ["1"]
    for count, found in ((0, ["auto"]), (1, ["auto"]), (3, ["cuda:0", "cuda:1", "cuda:2"])):
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=count: n)
        assert devices_of(None) == devices_of("auto") == found
        assert devices_of("cuda:1") == ["cuda:1"], "one that is named"
    with pytest.raises(ConfigError, match="unknown device"):
        devices_of("cpu,gpu")
