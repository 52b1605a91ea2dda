"""Settings by name are made when they are asked for, and once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mu.core.config import BaseConfig
from mu.core.presets import Presets


class Settings(BaseConfig):
    n: int = 1
    """A number."""


def test_a_preset_is_made_once_when_it_is_asked_for(tmp_path: Path) -> None:
    file, read = tmp_path / "n.yaml", []

    def reading() -> Settings:
        read.append(file)
        return Settings.load(file)

    presets = Presets[Settings](
        {"plain": Settings(), "file": reading, "more": lambda: presets["file"].merged({"n": 3})}
    )
    assert list(presets) == ["plain", "file", "more"] and len(presets) == 3
    assert "file" in presets and "fil" not in presets and presets["plain"].n == 1
    assert not read, "the file is not there yet"
    file.write_text("n: 2\n")
    assert presets["more"].n == 3 and presets["file"] is presets["file"] and presets["file"].n == 2
    assert len(read) == 1
    with pytest.raises(KeyError):
        presets["fil"]
