"""The interface of all methods: settings in, an edit out."""

from __future__ import annotations

import inspect
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from mu.core.concept import Concept, distinct
from mu.core.config import BaseConfig, values_set
from mu.core.errors import ConfigError, nearest
from mu.core.run import RunDirectory
from mu.core.tracking import KINDS, Tracking

if TYPE_CHECKING:
    from mu.core.loop import Log


class Saveable(Protocol):
    def save(self, path: Path | str) -> None: ...


class Found(NamedTuple):
    """An edit and the folder of the run that found it."""

    edit: Saveable
    run: RunDirectory


class Algorithm(ABC):
    """An unlearning method. A subclass defines ``config_class`` and `find_edit`; its docstring holds the BibTeX entry.

    ``config`` may be a settings object, a mapping or a YAML path. Keyword overrides are applied to a copy; without
    overrides a settings object is used itself.
    ``model`` overrides the model named by the settings, so one loaded model serves many runs. `find_edit` keeps a model
    it loads in ``self.model``.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[BaseConfig]]
    presets: ClassVar[Mapping[str, BaseConfig]] = {}
    default_preset: ClassVar[str | None] = None
    """Preset for a model that no preset names; None: the default settings."""

    def __init__(
        self, config: BaseConfig | Mapping[str, Any] | Path | str | None = None, *, model: Any = None, **overrides: Any
    ):
        match config:
            case BaseConfig():
                self.config = config.merged(overrides) if overrides else config
            case Mapping() | None:
                self.config = self.config_class.parse(config or {}, overrides)
            case Path() | str():
                self.config = self.config_class.load(config, overrides)
            case _:
                raise ConfigError(f"settings must be a config, a mapping or a YAML path, not {type(config).__name__}")
        self.model = model

    @abstractmethod
    def load_model(self) -> Any:
        """Return the given model, or load the one in the settings. Conflicting settings raise or log a warning."""

    @abstractmethod
    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> Saveable:
        """Search for the edit. Afterwards the model's weights are bit for bit unchanged.

        With ``run``, checkpoints go to ``run.checkpoints``, and an existing one is resumed. ``log`` receives one row a
        step.
        """

    @abstractmethod
    def read_edit(self, path: Path) -> Saveable:
        """Read the edit that an earlier run saved at ``path``."""

    def tracking(self) -> Tracking:
        """The tracker chosen in the settings, with its project and run names."""
        return Tracking()

    def concepts(self) -> tuple[Concept, ...]:
        """The concepts to erase, as the edit will name them."""
        return tuple(getattr(self.config, "concepts", ()))

    def separate(self, edit: Saveable) -> Sequence[Saveable]:
        """Split ``edit`` into one edit per concept, if the method can apply and remove each independently."""
        return [edit]

    def join(self, bank: Any) -> None:
        """Before a search: account for the concepts in ``bank`` (a `BankFolder`, perhaps not created yet).

        Raises `EditError` if the bank was made for different weights than the model's.
        """
        if bank.json.exists():
            self.model = self.load_model()
            bank.require(self.model)

    def reconciled(self, older: Sequence[Saveable], added: Sequence[Saveable], run: RunDirectory) -> Sequence[Saveable]:
        """After the search: replacements for those ``older`` edits that must change because ``added`` were added."""
        return []

    @classmethod
    def preset(cls, name: str) -> BaseConfig:
        """Return the preset ``name``. For an unknown name, `ConfigError` suggests the nearest."""
        if name not in cls.presets:
            raise ConfigError(f"unknown preset {name!r} of {cls.name}.{nearest(name, cls.presets)}")
        return cls.presets[name]

    @classmethod
    def fitting(cls, model: str | None) -> BaseConfig:
        """The first preset for ``model``, else `default_preset`."""
        usual = cls.presets[cls.default_preset] if cls.default_preset else cls.config_class.parse({})
        return next(
            (preset for preset in cls.presets.values() if model and getattr(preset, "model", None) == model), usual
        )

    @classmethod
    def for_concepts(
        cls,
        concepts: Sequence[str],
        model: str | None = None,
        preset: str | BaseConfig | Mapping[str, Any] | None = None,
        *overrides: Mapping[str, Any],
    ) -> BaseConfig:
        """Settings that erase ``concepts`` from ``model`` (a name).

        They start from ``preset`` (settings, plain values or a name), by default the preset that fits the model, with
        ``overrides`` on top. They are validated once, at the end."""
        if isinstance(preset, Mapping):
            kind, values = cls.config_class, dict(preset)
        elif isinstance(preset, BaseConfig):
            kind, values = type(preset), values_set(preset)
        else:
            found = cls.fitting(model) if preset is None else cls.preset(preset)
            kind, values = type(found), values_set(found, old=False)
        return kind.parse(cls.with_concepts(values, distinct(concepts), model), *overrides)

    @classmethod
    def with_concepts(cls, values: Mapping[str, Any], concepts: Sequence[Concept], model: str | None) -> dict[str, Any]:
        """Plain settings with ``concepts`` and, if given, the name of the ``model`` filled in."""
        raise ConfigError(f"{cls.name} has no setting for concepts")

    def run_folder(self) -> Path:
        """The folder that `run` writes to."""
        return Path(getattr(self.config, "output_dir", "outputs"))

    def describe(self) -> dict[str, Any]:
        """Facts for the run's ``environment.json``, in addition to the library versions."""
        return {"method": self.name, "citation": citation(type(self))}

    def run(self, *, resume: bool = False, overwrite: bool = False, track: str | None = None) -> Found:
        """Find the edit and save it in a run folder. ``resume`` continues an interrupted run, or reads a finished edit.

        ``track`` (``wandb``, ``tensorboard``) also sends the log's rows there. It is an argument and not a setting,
        because it affects no result.
        ``seconds`` in ``environment.json`` sums all attempts of an interrupted run, except attempts that were killed.
        """
        run = RunDirectory(self.run_folder())
        settings = self.config.to_yaml(comments=False)
        with run.alone():
            if resume and run.edit.exists():
                run.require(settings)
                return Found(self.read_edit(run.edit), run)
            tracking = self._tracking(track)
            earlier = run.read_environment().get("seconds") if resume and run.environment.exists() else None
            facts = self.describe() | ({"seconds": earlier} if earlier else {})
            run.begin(settings, facts, resume=resume, overwrite=overwrite)
            try:
                with _timed(run, earlier or 0.0), run.recording(tracking, self.config.model_dump(mode="json")) as log:
                    edit = self.find_edit(run, log)
                edit.save(run.edit)
            except Exception:
                run.withdraw()
                raise
            run.finish()
        return Found(edit, run)

    def _tracking(self, track: str | None) -> Tracking:
        if track is None:
            return self.tracking()
        kind = next((kind for kind in KINDS if kind == track), None)
        if kind is None:
            raise ConfigError(f"unknown tracker {track!r}.{nearest(track, KINDS)}")
        return self.tracking()._replace(kind=kind)


@contextmanager
def _timed(run: RunDirectory, earlier: float) -> Iterator[None]:
    """Write the seconds of the block, and those of ``earlier`` attempts, to the run's ``environment.json``."""
    began = time.monotonic()
    try:
        yield
    finally:
        run.describe({"seconds": round(earlier + time.monotonic() - began, 1)})


def citation(method: type) -> str:
    """The BibTeX entry in a class's docstring, or an empty string."""
    match = re.search(r"^@\w+\{.*?^\}", inspect.getdoc(method) or "", re.MULTILINE | re.DOTALL)
    return match.group(0) if match else ""
