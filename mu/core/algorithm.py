"""The interface of all methods: settings in, an edit out.

A method is two classes. Its `Method` says what is known of it: name, paper, settings and presets. Its `Algorithm`
inherits that and holds the mathematics. Only the second may import torch, so lists, settings and errors come at once.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar

from mu.core import parallel
from mu.core.concept import Concept, distinct
from mu.core.config import BaseConfig, read_settings, values_set, without_effect
from mu.core.errors import ConfigError, nearest, titled
from mu.core.evidence import hardware, note_search
from mu.core.files import write_json
from mu.core.run import RunDirectory
from mu.core.tracking import Tracking, tracker
from mu.core.tunable import Tunable

if TYPE_CHECKING:
    from mu.core.loop import Log

log = logging.getLogger("mu")

Config = TypeVar("Config", bound=BaseConfig)


class Saveable(Protocol):
    def save(self, path: Path | str) -> None: ...


class Found(NamedTuple):
    """An edit and the folder of the run that found it."""

    edit: Saveable
    run: RunDirectory


class Preset(NamedTuple):
    """Settings by name: plain values or a YAML file of them, over those of the preset ``of`` or the defaults."""

    name: str
    what: str
    """What it is for, in one line for `mu methods NAME`."""
    values: Mapping[str, Any] | Path = {}
    of: str | None = None


class Presets(Mapping[str, Config]):
    """A method's presets as settings, each built at its first use, so unused files are not read.

    ``former`` maps old names to present ones; only `Method.preset_name` knows them.
    """

    def __init__(self, config: type[Config], *presets: Preset, former: Mapping[str, str] | None = None):
        self.config, self.former = config, dict(former or {})
        self._presets = {preset.name: preset for preset in presets}
        self._built: dict[str, Config] = {}

    def __getitem__(self, name: str) -> Config:
        if name not in self._built:
            _, _, values, of = self._presets[name]
            layer = read_settings(values, self.config) if isinstance(values, Path) else values
            self._built[name] = self[of].merged(layer) if of else self.config.parse(layer)
        return self._built[name]

    def __contains__(self, name: object) -> bool:
        return name in self._presets

    def __iter__(self) -> Iterator[str]:
        return iter(self._presets)

    def __len__(self) -> int:
        return len(self._presets)

    def descriptions(self) -> dict[str, str]:
        """What each preset is for, one line by name. Reads no file."""
        return {name: preset.what for name, preset in self._presets.items()}


class Method:
    """What is known of a method without its mathematics. The module of a subclass must not import torch.

    The docstring of a subclass begins with one line that says what the method does, and holds the BibTeX entry.
    """

    name: ClassVar[str]
    home: ClassVar[str]
    """The `Algorithm` that inherits from this class, as ``module:Class``."""
    config_class: ClassVar[type[BaseConfig]]
    presets: ClassVar[Presets[Any]] = Presets(BaseConfig)
    set_by: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "--concept": ("concepts",),
        "--anchor": ("anchors",),
        "--retain": ("retain", "preserve", "calibrate.retain"),
        "--model": ("model",),
        "--out": ("output_dir", "run_dir"),
        "--device": ("devices",),
        "--precision": ("precision", "train.precision"),
    }
    """The settings that an option of `mu erase` gives, by dotted names."""
    default_preset: ClassVar[str | None] = None
    """Preset for a model that no preset names; None: the default settings."""
    tunable: ClassVar[Mapping[str, Tunable]] = {}
    """The few settings that `mu tune` searches, by dotted names, and where; empty: none."""

    @classmethod
    def summary(cls) -> str:
        """What the method does, in one line."""
        return (cls.__doc__ or cls.name).strip().partition("\n")[0]

    @classmethod
    def preset_name(cls, name: str) -> str:
        """Return ``name``, or with a warning the present name for a former one. `ConfigError` suggests the nearest."""
        present = cls.presets.former.get(name, name)
        if present not in cls.presets:
            raise ConfigError(f"unknown preset {titled(name)} of {cls.name}.{nearest(name, cls.presets)}")
        if present != name:
            log.warning("preset %r is now called %r; the old name works until 0.2", name, present)
        return present

    @classmethod
    def preset(cls, name: str) -> BaseConfig:
        """Return the preset ``name``, as `preset_name` understands it."""
        return cls.presets[cls.preset_name(name)]

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
        return {**values, "concepts": list(concepts)} | ({"model": model} if model else {})

    @classmethod
    def placed(cls, out: Path | None = None, device: str | None = None, precision: str | None = None) -> dict[str, str]:
        """The run's folder, the device and the precision under this method's own setting names; without those None."""
        names = cls.config_class.model_fields
        given = {name: str(out) for name in ("output_dir", "run_dir") if out and name in names}
        where = "precision" if "precision" in names else "train.precision"
        return given | {name: value for name, value in (("devices", device), (where, precision)) if value}

    @classmethod
    def check_files(cls, config: Any) -> None:
        """Raise a `MuError` for a file that ``config`` names and that is missing, before any library is imported."""


class Algorithm(Method, ABC):
    """The mathematics of a method. A subclass inherits from its own `Method` too, and defines `find_edit`.

    ``config`` may be a settings object, a mapping or a YAML path. Keyword overrides are applied to a copy; without
    overrides a settings object is used itself.
    ``model`` overrides the model named by the settings, so one loaded model serves many runs. `find_edit` keeps a model
    it loads in ``self.model``.
    """

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
        self.tracks: str | None = None
        """The tracker that `run` sends the log's rows to."""
        self.told: Sequence[str] = ()
        """Further notes for `notes`: of a program, on its flags."""
        self._telling = self._told_of_model = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "find_edit" in vars(cls):
            cls.find_edit = _after_notes(cls.find_edit)  # type: ignore[method-assign]
        if "load_model" in vars(cls):
            cls.load_model = _then_notes(cls.load_model)  # type: ignore[method-assign]

    def notes(self) -> list[str]:
        """What `find_edit` logs first: the settings that were given and have no effect, one line for each reason."""
        return [*self.told, *self.config.notes()]

    def idle_on(self, model: Any) -> dict[str, str]:
        """The settings that were given and have no effect on ``model``: the reason of each, by dotted name.

        `find_edit` logs them as `notes` when it has loaded the model."""
        return {}

    @abstractmethod
    def load_model(self) -> Any:
        """Return the given model, or load the one in the settings. Conflicting settings raise or log a warning."""

    @abstractmethod
    def find_edit(self, run: RunDirectory | None = None, log: Log | None = None) -> Saveable:
        """Search for the edit. Afterwards the model's weights are bit for bit unchanged.

        With ``run``, checkpoints go to ``run.checkpoints``, and an existing one is resumed. ``log`` receives one row a
        step. First, `notes` are logged as warnings, which Python shows without any set-up.
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

    def run_folder(self) -> Path:
        """The folder that `run` writes to."""
        return Path(getattr(self.config, "output_dir", "outputs"))

    def base_fingerprint(self) -> str:
        """Of the weights of the base model, which is loaded; empty if there is none."""
        return ""

    def calibration(self, edit: Saveable) -> dict[str, dict[str, Any]]:
        """What a calibrated search measured, for each concept; empty for other searches."""
        info = getattr(edit, "info", None)
        found, names = getattr(info, "found", {}), getattr(info, "concepts", ())
        if isinstance(found.get("gone"), bool) and names:
            return {str(names[0]): found}
        shared = {name: found[name] for name in ("strength", "strengths", "curve") if name in found}
        own = {name: found.get(name) for name in names}
        return {name: {**shared, **each} for name, each in own.items() if isinstance(each, dict) and "gone" in each}

    def describe(self) -> dict[str, Any]:
        """Facts for the run's ``environment.json``, in addition to the library versions."""
        return {"method": self.name, "citation": citation(type(self))}

    def run(self, *, resume: bool = False, overwrite: bool = False, track: str | None = None) -> Found:
        """Find the edit and save it in a run folder. ``resume`` continues an interrupted run, or reads a finished edit.

        ``track`` (``wandb``, ``tensorboard``) also sends the log's rows there. It is an argument and not a setting,
        because it affects no result.
        ``seconds`` in ``environment.json`` sums all attempts of an interrupted run, except attempts that were killed.

        Of several processes (`mu.core.parallel`), only the first uses the folder; all return the same edit.
        """
        run = RunDirectory(self.run_folder())
        self._share_draws()
        if parallel.follows():
            return Found(parallel.from_first(lambda: None) or self.find_edit(), run)
        settings = self.config.to_yaml(comments=False)
        usual = type(self.config).parse({}).to_yaml(comments=False)
        with run.alone():
            if resume and run.edit.exists():
                run.require(settings, usual)
                return Found(parallel.from_first(lambda: self.read_edit(run.edit)), run)
            tracking = self._tracking(track)
            self.tracks = tracking.kind
            earlier = run.read_environment().get("seconds") if resume and run.environment.exists() else None
            facts = self.describe() | ({"seconds": earlier} if earlier else {})
            if parallel.count() > 1:
                facts["processes"] = parallel.count()
            run.begin(settings, facts, resume=resume, overwrite=overwrite, usual=usual)
            try:
                quiet = not getattr(self.config, "verbose", True)
                recording = run.recording(tracking, self.config.model_dump(mode="json"), quiet=quiet)
                with _timed(run, earlier or 0.0), recording as log:
                    parallel.from_first(lambda: None)  # the others wait for this: the edit is not there yet
                    edit = self.find_edit(run, log)
                edit.save(run.edit)
                if measured := self.calibration(edit):
                    write_json(run.calibration, measured)
                note_search(run, **hardware(self.model), base=self.base_fingerprint())
            except Exception:
                run.withdraw()
                raise
            run.finish()
        return Found(edit, run)

    def _share_draws(self) -> None:
        """Write one draw for each of several processes into the settings, unless these state ``train.draws``.

        The run's ``config.yaml`` then gives the same edit in one process.
        """
        train = getattr(self.config, "train", None)
        if parallel.count() > 1 and getattr(train, "draws", 1) is None:
            self.config = self.config.merged({"train": {"draws": parallel.count()}})

    def _tracking(self, track: str | None) -> Tracking:
        if track is None:
            return self.tracking()
        return self.tracking()._replace(kind=tracker(track))


def _after_notes(find_edit: Callable[..., Any]) -> Callable[..., Any]:
    """``find_edit``, but it logs the method's `Algorithm.notes` first. One that calls its parent's tells them once."""

    @functools.wraps(find_edit)
    def told(self: Algorithm, *given: Any, **named: Any) -> Any:
        if self._telling:
            return find_edit(self, *given, **named)
        self._telling, self._told_of_model = True, False
        try:
            for note in self.notes():
                log.warning(note)
            return find_edit(self, *given, **named)
        finally:
            self._telling = False

    return told


def _then_notes(load_model: Callable[..., Any]) -> Callable[..., Any]:
    """``load_model``, but in a search it then logs what has no effect on that model (`Algorithm.idle_on`), once."""

    @functools.wraps(load_model)
    def loaded(self: Algorithm) -> Any:
        model = load_model(self)
        if self._telling and not self._told_of_model:
            self._told_of_model = True
            for note in without_effect(self.idle_on(model)):
                log.warning(note)
        return model

    return loaded


@contextmanager
def _timed(run: RunDirectory, earlier: float) -> Iterator[None]:
    """Write the seconds of the block, and those of ``earlier`` attempts, to the run's ``environment.json``."""
    began = time.monotonic()
    try:
        yield
    finally:
        run.describe({"seconds": round(earlier + time.monotonic() - began, 1)})


def citation(method: type) -> str:
    """The BibTeX entry in the docstring of a class or of the nearest it inherits from, or an empty string."""
    for cls in method.__mro__:
        match = re.search(r"^@\w+\{.*?^\}", inspect.cleandoc(cls.__doc__ or ""), re.MULTILINE | re.DOTALL)
        if match:
            return match.group(0)
    return ""
