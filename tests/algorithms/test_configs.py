"""Every YAML file that the package ships is read by the method it belongs to."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

import mu
from mu.algorithms import ALGORITHMS, algorithm
from mu.core.errors import ConfigError

SHIPPED = sorted(path for path in Path(mu.__file__).parent.glob("algorithms/**/*.yaml"))


def methods_of(path: Path) -> list[str]:
    """Those whose folder holds ``path``; of several in one folder the one that its name begins with."""
    homes = {name: Path(inspect.getfile(algorithm(name))).parent for name in ALGORITHMS}
    own = [name for name, home in homes.items() if home in path.parents]
    return [name for name in own if path.stem == name or path.stem.startswith(f"{name}-")] or own


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: "/".join(p.parts[-3:]))
def test_it_loads(path: Path) -> None:
    if path.name == "environment.yaml":
        assert yaml.safe_load(path.read_text())["name"].startswith("mu_")
        return
    names = methods_of(path)
    assert names, "a settings file stands in its method's folder"
    for name in names:
        algorithm(name).config_class.load(path)
    assert path.read_text().startswith("#"), "its head is the command that runs it"


def test_a_wrong_key_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("no_such_key: 1\n")
    with pytest.raises(ConfigError, match="no_such_key"):
        algorithm("spm").config_class.load(tmp_path / "c.yaml")
