"""Names that users' scripts import: they stay, misspelt ones too."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import mu

SPM = "mu.algorithms.semipermeable_membrane"
NAMES = {
    "mu": ["load", "erase", "generate", "open_edit", "difference", "Edit", "Bank", "__version__"],
    f"{SPM}.algorithm": ["SemipermeableMembraneAlgorithm"],
    f"{SPM}.configs": [
        "SemipermeableMembraneConfig",
        "semipermiable_membrane_train_mu",
        "semipermiable_membrane_train_i2p",
    ],
    f"{SPM}.model": ["SemipermeableMembraneModel"],
    f"{SPM}.trainer": ["SemipermeableMembraneTrainer"],
    f"{SPM}.data_handler": ["SemipermeableMembraneDataHandler"],
    f"{SPM}.scripts.train": ["main"],
    "mu.algorithms": ["ALGORITHMS", "algorithm", "method"],
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in NAMES.items() for name in names])
def test_it_is_there(module: str, name: str) -> None:
    assert getattr(import_module(module), name)


def test_the_packages_own_list_is_complete() -> None:
    assert set(mu.__all__) | {"__version__"} == set(NAMES["mu"]) == set(dir(mu))
    with pytest.raises(AttributeError, match="'nothing'"):
        mu.nothing  # noqa: B018


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, mu; dir(mu); mu.__version__; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_settings_are_read_without_torch() -> None:
    code = f"import sys; from {SPM}.configs import semipermiable_membrane_train_mu as c; c.merged({{}}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
