"""What every method has in common: settings go in, an edit comes out."""

from __future__ import annotations

import inspect
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from mu.core.concept import Concept, distinct
from mu.core.config import BaseConfig, values_set
from mu.core.errors import ConfigError, MuError, nearest
from mu.core.run import RunDirectory
from mu.core.tracking import KINDS, Tracking

if TYPE_CHECKING:
    from mu.core.loop import Log


class Saveable(Protocol):
    def save(self, path: Path | str) -> None: ...


class Found(NamedTuple):
    """An edit, and the folder of the run that found it."""

    edit: Saveable
    run: RunDirectory


class Algorithm(ABC):
    """A method of unlearning. A subclass gives ``config_class`` and `find_edit`; its docstring holds the BibTeX entry.

    ``config`` may be a settings object, a mapping or a YAML path; keyword overrides go on top of a copy. A settings object without
    overrides is taken as it is.
    ``model`` overrides the model that the settings name, so that one loaded model serves many runs; `find_edit` leaves
    the one it loaded in ``self.model``.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[BaseConfig]]
    presets: ClassVar[Mapping[str, BaseConfig]] = {}
    default_preset: ClassVar[str | None] = None
    """For a model that no preset names; None: the settings' defaults."""

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
        """The model that the settings name, or the one given; settings that contradict that one are refused, or told."""

    @abstractmethod
    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> Saveable:
        """Search for the edit. The model is left as it was found, bit for bit.

        With ``run``, checkpoints go to ``run.checkpoints``, and one that is there is resumed. ``log`` takes one row a step.
        """

    @abstractmethod
    def read_edit(self, path: Path) -> Saveable:
        """The edit that an earlier run kept at ``path``."""

    def tracking(self) -> Tracking:
        """The tracker that the settings ask for, and the names of a run in it."""
        return Tracking()

    def concepts(self) -> tuple[Concept, ...]:
        """What the settings erase, as the edit will name it."""
        return tuple(getattr(self.config, "concepts", ()))

    def separate(self, edit: Saveable) -> Sequence[Saveable]:
        """``edit`` as one for each concept, where the method finds them so that each acts and is taken off on its own."""
        return [edit]

    def join(self, bank: Any) -> None:
        """Before a search whose edit goes into ``bank`` (a `BankFolder`, which need not exist yet): take its concepts into account.

        Raises `EditError` where the bank was made on other weights than those of the model.
        """
        if bank.json.exists():
            self.model = self.load_model()
            bank.require(self.model)

    def reconciled(self, older: Sequence[Saveable], added: Sequence[Saveable], run: RunDirectory) -> Sequence[Saveable]:
        """After it: those of the bank's ``older`` edits that are to be others from now on, because ``added`` join them."""
        return []

    @classmethod
    def preset(cls, name: str) -> BaseConfig:
        """Settings by name. `ConfigError` names the nearest known one."""
        if name not in cls.presets:
            raise ConfigError(f"unknown preset {name!r} of {cls.name}.{nearest(name, cls.presets)}")
        return cls.presets[name]

    @classmethod
    def fitting(cls, model: str | None) -> BaseConfig:
        """The first preset that is for ``model``, else `default_preset`."""
        usual = cls.presets[cls.default_preset] if cls.default_preset else cls.config_class.parse({})
        return next((preset for preset in cls.presets.values() if model and getattr(preset, "model", None) == model), usual)

    @classmethod
    def for_concepts(
        cls, concepts: Sequence[str], model: str | None = None, preset: str | BaseConfig | Mapping[str, Any] | None = None,
        *overrides: Mapping[str, Any],
    ) -> BaseConfig:  # fmt: skip
        """Settings that remove ``concepts`` from ``model`` (a name): ``preset`` (settings, their plain values or their name), or what
        fits the model, with ``overrides`` on top. Validated once, at the end."""
        if isinstance(preset, Mapping):
            kind, values = cls.config_class, dict(preset)
        elif isinstance(preset, BaseConfig):
            kind, values = type(preset), values_set(preset)
        else:
            found = cls.fitting(model) if preset is None else cls.preset(preset)
            kind, values = type(found), values_set(found, old=False)
        return kind.parse(cls.naming(values, distinct(concepts), model), *overrides)

    @classmethod
    def naming(cls, values: Mapping[str, Any], concepts: Sequence[Concept], model: str | None) -> dict[str, Any]:
        """Plain settings with ``concepts`` and, where it is given, the name of the ``model`` put in."""
        raise ConfigError(f"{cls.name} does not say how it takes concepts")

    def run_folder(self) -> Path:
        """Where `run` writes."""
        return Path(getattr(self.config, "output_dir", "outputs"))

    def describe(self) -> dict[str, Any]:
        """What the run's ``environment.json`` tells beside the library versions."""
        return {"method": self.name, "citation": citation(type(self))}

    def run(self, *, resume: bool = False, overwrite: bool = False, track: str | None = None) -> Found:
        """Find the edit, save it, and leave a run directory behind. ``resume`` goes on with an interrupted run, if there is one; of
        a finished one the edit is read.

        ``track`` (``wandb``, ``tensorboard``) sends the rows of the log there too; it is no setting, since no number follows from it.
        ``seconds`` of its ``environment.json`` counts all parts of a run that was interrupted, but those that were killed outright.
        """
        run = RunDirectory(self.run_folder())
        settings = self.config.to_yaml(comments=False)
        if resume and run.edit.exists():
            run.require(settings)
            return Found(self.read_edit(run.edit), run)
        tracking = self._tracking(track)
        earlier = run.read_environment().get("seconds", 0.0) if resume and run.environment.exists() else 0.0
        facts = self.describe()
        if earlier:
            facts["seconds"] = earlier
        run.begin(settings, facts, resume=resume, overwrite=overwrite)
        began = time.monotonic()
        try:
            with run.recording(tracking, self.config.model_dump(mode="json")) as log:
                edit = self.find_edit(run, log)
        except MuError:
            run.withdraw()
            raise
        finally:
            if run.environment.exists():
                run.describe({"seconds": round(earlier + time.monotonic() - began, 1)})
        edit.save(run.edit)
        return Found(edit, run)

    def _tracking(self, track: str | None) -> Tracking:
        if track is None:
            return self.tracking()
        kind = next((kind for kind in KINDS if kind == track), None)
        if kind is None:
            raise ConfigError(f"unknown tracker {track!r}.{nearest(track, KINDS)}")
        return self.tracking()._replace(kind=kind)


def citation(method: type) -> str:
    """The BibTeX entry in a class's docstring."""
    match = re.search(r"^@\w+\{.*?^\}", inspect.getdoc(method) or "", re.MULTILINE | re.DOTALL)
    return match.group(0) if match else ""
