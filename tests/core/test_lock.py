"""One process at a time in a folder, and nothing of it left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mu.core.errors import OutputError
from mu.core.lock import locked

HOLD = "import sys, time; from mu.core.lock import locked\nwith locked(sys.argv[1]): print('in', flush=True); time.sleep(60)"


def held(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds ``folder``."""
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "in\n"
    return other


def test_a_second_process_is_told_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder) as other:
        with pytest.raises(OutputError, match=f"another process is working in {folder}"), locked(folder):
            pytest.fail("two at once")
        with locked(tmp_path / "another"):  # control
            pass
        other.kill()
    (folder / ".partial-a-12345678.png").write_bytes(b"half")
    (folder / "a.png").write_bytes(b"whole")
    with locked(folder):
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "a.png"]
    assert [path.name for path in folder.iterdir()] == ["a.png"]


def test_a_folder_made_for_nothing_is_gone_and_one_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for folder in (tmp_path / "old", tmp_path / "new" / "run"):
        with pytest.raises(ZeroDivisionError), locked(folder):
            assert folder.is_dir()
            raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    with locked(tmp_path / "new" / "run"):  # control: what was written stays
        (tmp_path / "new" / "run" / "x").touch()
    assert (tmp_path / "new" / "run" / "x").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OutputError, match="is a file and not a folder"), locked(tmp_path / "file"):
        pytest.fail("entered")
    assert (tmp_path / "file").read_text() == "kept"
