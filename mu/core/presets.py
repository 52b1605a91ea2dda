"""A method's presets by name, each built at its first use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from mu.core.config import BaseConfig

Config = TypeVar("Config", bound=BaseConfig)


class Presets(Mapping[str, Config]):
    """Settings by name. Those given as a function are built at their first use, so unused files are not read."""

    def __init__(self, given: Mapping[str, Config | Callable[[], Config]]):
        self._given = dict(given)

    def __getitem__(self, name: str) -> Config:
        found = self._given[name]
        if not isinstance(found, BaseConfig):
            found = self._given[name] = found()
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._given

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)
