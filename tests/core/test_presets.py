"""Settings by name are made when they are asked for, and once; a former name is a name with a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from mu.core.algorithm import Method, Preset, Presets
from mu.core.config import BaseConfig
from mu.core.errors import ConfigError


class Settings(BaseConfig):
    n: int = 1
    """A number."""
    m: int = 1
    """Another."""


def test_a_preset_is_made_once_when_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "n.yaml"
    presets = Presets(
        Settings,
        Preset("plain", "nothing set"),
        Preset("file", "of a file", file),
        Preset("more", "", {"m": 3}, "file"),
    )
    assert list(presets) == ["plain", "file", "more"] and len(presets) == 3
    assert "file" in presets and "fil" not in presets and presets["plain"].n == 1
    assert presets.descriptions() == {"plain": "nothing set", "file": "of a file", "more": ""}
    with pytest.raises(ConfigError, match="does not exist"):
        presets["more"]
    file.write_text("n: 2\n")
    more = presets["more"]
    assert (more.n, more.m) == (2, 3) and more.model_fields_set == {"n", "m"}
    file.unlink()
    assert presets["file"] is presets["file"] and presets["file"].n == 2
    with pytest.raises(KeyError):
        presets["fil"]


class Numbers(Method):
    """Counts.

    @misc{numbers,
      year = {2000}
    }
    """

    name = "numbers"
    config_class = Settings
    presets = Presets(Settings, Preset("twos", "two of each", {"n": 2}), former={"two": "twos"})


def test_a_former_name_works_with_one_line_of_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert Numbers.preset("two") is Numbers.preset("twos")
    (line,) = caplog.messages
    assert "'two'" in line and "'twos'" in line
    with pytest.raises(ConfigError, match="'twos'"):
        Numbers.preset("tows")
