"""What every method has in common: settings go in, an edit comes out."""

from __future__ import annotations

import inspect
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mu.core.concept import Concept
from mu.core.config import BaseConfig
from mu.core.errors import ConfigError, MuError
from mu.core.run import RunDirectory

if TYPE_CHECKING:
    from mu.core.loop import Log


class Saveable(Protocol):
    def save(self, path: Path | str) -> None: ...


class Algorithm(ABC):
    """A method of unlearning. A subclass gives ``config_class`` and `find_edit`; its docstring holds the BibTeX entry.

    ``config`` may be a settings object, a mapping or a YAML path; keyword overrides go on top of a copy.
    ``model`` overrides the model that the settings name, so that one loaded model serves many runs; `find_edit` leaves
    the one it loaded in ``self.model``.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[BaseConfig]]
    presets: ClassVar[Mapping[str, BaseConfig]] = {}

    def __init__(
        self, config: BaseConfig | Mapping[str, Any] | Path | str | None = None, *, model: Any = None, **overrides: Any
    ):
        match config:
            case BaseConfig():
                base = config
            case Mapping():
                base = self.config_class.parse(config)
            case Path() | str():
                base = self.config_class.load(config)
            case None:
                base = self.config_class.parse({})
            case _:
                raise ConfigError(f"settings must be a config, a mapping or a YAML path, not {type(config).__name__}")
        self.config = base.merged(overrides)
        self.model = model

    @abstractmethod
    def load_model(self) -> Any:
        """The model that the settings name, or the one given; settings that contradict that one are refused, or told."""

    @abstractmethod
    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> Saveable:
        """Search for the edit. The model is left as it was found, bit for bit.

        With ``run``, checkpoints go to ``run.checkpoints``, and one that is there is resumed. ``log`` takes one row a step.
        """

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
    def for_concepts(
        cls, concepts: Sequence[str], model: str | None = None, preset: str | BaseConfig | None = None
    ) -> BaseConfig:
        """Settings that remove ``concepts`` from ``model`` (a name): ``preset`` (settings or their name), or what fits the model."""
        raise ConfigError(f"{cls.name} does not say how it takes concepts")

    def run_folder(self) -> Path:
        """Where `run` writes."""
        return Path(getattr(self.config, "output_dir", "outputs"))

    def describe(self) -> dict[str, Any]:
        """What the run's ``environment.json`` tells beside the library versions."""
        return {"method": self.name, "citation": citation(type(self))}

    def run(self, *, resume: bool = False, overwrite: bool = False) -> RunDirectory:
        """Find the edit, save it, and leave a run directory behind. ``resume`` goes on with an interrupted run, if there is one.

        ``seconds`` of its ``environment.json`` counts all parts of a run that was interrupted, but those that were killed outright.
        """
        run = RunDirectory(self.run_folder())
        settings = self.config.to_yaml(comments=False)
        if resume and run.edit.exists():
            run.require(settings)
            return run
        earlier = run.read_environment().get("seconds", 0.0) if resume and run.environment.exists() else 0.0
        facts = self.describe()
        if earlier:
            facts["seconds"] = earlier
        run.begin(settings, facts, resume=resume, overwrite=overwrite)
        began = time.monotonic()
        try:
            with run.recording() as log:
                edit = self.find_edit(run, log)
        except MuError:
            run.withdraw()
            raise
        finally:
            if run.environment.exists():
                run.describe({"seconds": round(earlier + time.monotonic() - began, 1)})
        edit.save(run.edit)
        return run


def citation(method: type) -> str:
    """The BibTeX entry in a class's docstring."""
    match = re.search(r"^@\w+\{.*?^\}", inspect.getdoc(method) or "", re.MULTILINE | re.DOTALL)
    return match.group(0) if match else ""
