"""Another distribution that installs a package ``mu`` too is named, with what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mu.__main__ import clash

ROOT = Path(__file__).resolve().parent.parent
BROKEN = """
import sys, types
sys.modules["mu.cli.bank"] = types.ModuleType("mu.cli.bank")  # a file that another package has overwritten
from mu.__main__ import main
main()
"""


def installed(folder: Path, name: str, *files: str) -> Path:
    info = folder / f"{name}-2.0.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0.9\n")
    (info / "RECORD").write_text("".join(f"{file},sha256=x,1\n" for file in files))
    return folder


def ran(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("name", "files", "told"),
    [
        ("unlearn_diff", ["unlearn_diff/__init__.py", "mu/__init__.py"], True),
        ("mu", ["mu/__init__.py"], True),
        ("other", ["other/mu/__init__.py", "mu.py", "mutation/__init__.py"], False),
        ("mu_unlearning", ["mu/__init__.py"], False),
        ("mu-unlearning", ["mu/__init__.py"], False),
    ],
)
def test_it_is_found_by_its_files(name: str, files: list[str], told: bool, tmp_path: Path) -> None:
    found = clash([str(installed(tmp_path, name, *files))])
    assert (found is not None) == told
    if found:
        assert name in found and "2.0.9" in found and "pip uninstall" in found and "\n" not in found


def test_the_version_says_so(tmp_path: Path) -> None:
    alone, beside = tmp_path / "alone", installed(tmp_path / "beside", "unlearn_diff", "mu/core/__init__.py")
    alone.mkdir()
    for folder, told in ((alone, 0), (beside, 1)):
        done = ran(folder, "-m", "mu", "--version")
        assert done.returncode == 0 and done.stdout.startswith("mu ")
        assert done.stderr.count("\n") == done.stderr.count("unlearn_diff 2.0.9") == told


def test_a_crash_is_explained_by_it(tmp_path: Path) -> None:
    done = ran(installed(tmp_path / "beside", "unlearn_diff", "mu/__init__.py"), "-c", BROKEN)
    assert done.returncode == 2 and done.stderr.startswith("error: unlearn_diff") and done.stderr.count("\n") == 1
    (tmp_path / "alone").mkdir()
    done = ran(tmp_path / "alone", "-c", BROKEN)
    assert done.returncode == 1 and "Traceback" in done.stderr, "control: a defect keeps its traceback"
