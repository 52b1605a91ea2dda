"""The search for a method's settings on a model: `mu tune`, and the key ``tune`` of a grid.

Each trial is a cell for each tuning concept, like any cell of a grid: so a killed search goes on where it was. Optuna
proposes the settings, by its tree-structured Parzen estimator; the first trial is the method's own settings. A trial's
value is the harmonic mean of the erased and the kept share, as the suite measures them, mean over the concepts.

Beside the trials' runs lie, by the search's name: its journal, which Optuna reads and writes; the settings found, as
YAML for `mu erase METHOD --config`; and where they come from, as JSON.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import yaml

from mu.algorithms import ALGORITHMS, method
from mu.core.algorithm import Method
from mu.core.concept import Concept
from mu.core.config import BaseConfig
from mu.core.errors import ConfigError, DataError, MissingDependency, OutputError, quoted
from mu.core.files import write_json, write_text
from mu.core.lock import locked
from mu.core.run import command, versions
from mu.core.tunable import Choice, LogRange, Range, Tunable
from mu.grid.engines import Engine, work_off
from mu.grid.folder import GridFolder
from mu.grid.outcome import Outcome, outcome
from mu.grid.plan import Cell, Measuring, Plan, digest, new_cell, together

STARTUP = 8
"""Trials at random, after the method's own settings, before the estimator has enough to go on."""


log = logging.getLogger("mu")


@dataclass(frozen=True)
class Asked:
    """What is searched: a method from its settings ``start`` on a model, judged on concepts, seeds and phrasings."""

    method: str
    model: str
    concepts: tuple[tuple[Concept, ...], ...]
    measuring: Measuring
    start: Any = None
    """As `mu.grid.plan.new_cell` takes it: a preset, plain settings or None."""
    layer: Mapping[str, Any] = field(default_factory=dict)
    trials: int = 20
    evaluations: int | None = None
    seed: int = 0
    device: str = ""

    @cached_property
    def space(self) -> Mapping[str, Tunable]:
        """The settings that are searched: the method's, without those that the others leave without effect."""
        chosen = method(self.method)
        idle = chosen.config_class.parse(self.cells({})[0].settings).idle_below()
        for name in chosen.tunable:
            if name in idle:
                log.info("%s is not searched, it has no effect: %s", name, idle[name])
        return {name: where for name, where in chosen.tunable.items() if name not in idle}

    @property
    def identity(self) -> dict[str, Any]:
        """All that the trials depend on; budgets may grow later."""
        start = self.start.to_yaml(comments=False) if isinstance(self.start, BaseConfig) else self.start
        return {
            "method": self.method, "model": self.model, "concepts": [list(group) for group in self.concepts],
            "measuring": asdict(self.measuring), "start": start, "layer": dict(self.layer), "seed": self.seed,
            "space": {name: list(where) for name, where in self.space.items()},
        }  # fmt: skip

    def check(self) -> None:
        """Raise `ConfigError` if the method has no settings to search, or the suite's options are wrong."""
        from mu.evaluation.suites import check_options

        able = [name for name in ALGORITHMS if method(name).tunable]
        if not method(self.method).tunable:
            raise ConfigError(f"{self.method} names no settings to search; tunable methods: {', '.join(able)}")
        if not self.space:
            raise ConfigError(f"these settings of {self.method} leave nothing to search: start from another preset")
        check_options(self.measuring.suite, self.measuring.seeds, dict(self.measuring.options))
        for name in self.layer:
            if any(f"{each}.".startswith(f"{name}.") for each in self.space):
                raise ConfigError(f"{quoted(name)} is set, and the search would change it: leave it out")
        self.cells({})

    def cells(self, params: Mapping[str, Any]) -> list[Cell]:
        """The cells of one trial, one for each entry of the tuning concepts."""
        chosen = method(self.method)
        layer = {**self.layer, **params, **chosen.placed(None, self.device)}
        return [
            new_cell(
                chosen, group, self.model, start=self.start, layer=layer, changed=dict(params),
                measured=(self.measuring,), device=self.device,
            ) for group in self.concepts
        ]  # fmt: skip


class Trial(NamedTuple):
    """One proposal and what came of it; ``value`` is None if a cell failed, and then ``reason`` says why."""

    number: int
    params: dict[str, Any]
    value: float | None
    erased: float | None = None
    kept: float | None = None
    evaluations: int = 0
    seconds: float = 0.0
    reason: str = ""


class Tuned(NamedTuple):
    """The best trial of all, and the files that hold it."""

    best: Trial
    trials: list[Trial]
    settings: Path
    origin: Path


def tune_in(asked: Asked, home: Path, engine: Engine) -> Tuned:
    """Search in a folder of its own, under the method's name. Raises `OutputError` if another process works there."""
    asked.check()
    with locked(home):
        return tune(asked, GridFolder(home), asked.method, engine)


def for_tuning(measuring: Measuring) -> Measuring:
    """The measurement of trials: suite concept asks in phrasings that no report uses, and for no everyday prompts.

    The prompts of other suites are fixed, and only their seeds differ."""
    if measuring.suite != "concept":
        return measuring
    return Measuring("concept", measuring.seeds, {**measuring.options, "tuning": True, "everyday": 0})


def tune(asked: Asked, folder: GridFolder, name: str, engine: Engine) -> Tuned:
    """Search within the budget, and write the settings found. For who holds the folder's lock.

    The budget is ``trials``, and ``evaluations`` of the model: no trial begins that would exceed it if it cost as much
    as the dearest so far. Raises `OutputError` if ``name`` in this folder is another search, `DataError` if the first
    trial fails or the suite cannot judge, and `MissingDependency` without Optuna.
    """
    asked.check()
    places = {ending: folder.folder / f"{name}.{ending}" for ending in ("journal", "yaml", "json")}
    study = _Study(asked, places["journal"])
    done = study.finished()
    while len(done) < asked.trials and not _spent(asked, done):
        number, params = study.next()
        cells = asked.cells(params)
        ended = work_off(cells, folder, engine, f"{name}: trial {len(done) + 1} of {asked.trials}")
        reason = next((f"{cell.name}: {record.reason}" for cell, record in ended.failed), "")
        trial = _judged(number, params, cells, folder, reason)
        if trial.value is None and (not done or not ended.failed):  # so would all others be
            raise DataError(f"no settings can be judged so: {trial.reason}")
        study.tell(trial)
        done = study.finished()
    best = max((trial for trial in done if trial.value is not None), key=lambda trial: trial.value or 0.0)
    _write(asked, best, done, places["yaml"], places["json"])
    return Tuned(best, done, places["yaml"], places["json"])


def _spent(asked: Asked, done: Sequence[Trial]) -> bool:
    """Whether another trial may exceed the budget of model evaluations."""
    if asked.evaluations is None or not done:
        return False
    costs = [trial.evaluations for trial in done]
    return sum(costs) + max(costs) > asked.evaluations


def _judged(number: int, params: dict[str, Any], cells: Sequence[Cell], folder: GridFolder, reason: str) -> Trial:
    """The trial with the means over its cells."""
    found = [outcome(folder, cell, folder.record(cell.name).state, folder.record(cell.name)) for cell in cells]
    evaluations = sum(each.record.evaluations for each in found)
    seconds = round(sum(each.record.seconds for each in found), 1)
    reason = reason or next((_unjudged(each) for each in found if each.harmonic is None), "")
    if reason:
        return Trial(number, params, None, None, None, evaluations, seconds, reason)
    value, erased, kept = (
        fmean(v for each in found if (v := getattr(each, of)) is not None) for of in ("harmonic", "erased", "kept")
    )
    return Trial(number, params, value, erased, kept, evaluations, seconds)


def _unjudged(found: Outcome) -> str:
    doubt = next((m.doubt for m in found.measures if m.doubt), "the suite measures no erased and kept share of it")
    return f"whether {quoted(', '.join(found.cell.concepts))} is gone cannot be told: {doubt}"


class _Study:
    """Optuna's study in its journal. A proposal depends on the finished trials alone, so a kill changes nothing."""

    def __init__(self, asked: Asked, journal: Path):
        try:
            import optuna
        except ImportError:
            raise MissingDependency("optuna", "grid", "the search for settings") from None
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna, self.asked = optuna, asked
        self.states = optuna.trial.TrialState
        journal.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{journal}.lock").unlink(missing_ok=True)  # of a killed process: the folder's lock is held
        storage = JournalStorage(JournalFileBackend(str(journal)))
        key = digest(asked.identity)
        names = [study.study_name for study in storage.get_all_studies()]
        if names not in ([], [key]):
            raise OutputError(f"{journal} is of another search: choose another folder with --out")
        self.study = optuna.create_study(storage=storage, study_name=key, direction="maximize", load_if_exists=True)
        self.space = {name: self._distribution(where) for name, where in asked.space.items()}

    def _distribution(self, where: Tunable) -> Any:
        kinds = self.optuna.distributions
        if isinstance(where, Choice):
            return kinds.CategoricalDistribution(where.values)
        if isinstance(where, Range | LogRange):
            return kinds.FloatDistribution(where.low, where.high, log=isinstance(where, LogRange))
        return kinds.IntDistribution(where.low, where.high, log=True)

    def finished(self) -> list[Trial]:
        """The trials that were told, in order."""
        states = (self.states.COMPLETE, self.states.FAIL)
        told = self.study.user_attrs
        ended = [str(each.number) for each in self.study.get_trials(deepcopy=False, states=states)]
        return [Trial(**told[number]) for number in ended if number in told]

    def next(self) -> tuple[int, dict[str, Any]]:
        """The number and the settings of the next trial: the one that was interrupted, else a new proposal."""
        for each in self.study.get_trials(states=(self.states.RUNNING,)):
            if each.params.keys() == self.space.keys():
                return each.number, dict(each.params)
            self.study.tell(each.number, state=self.states.FAIL)  # killed while it was proposed
        done = len(self.finished())
        if not done and not self.study.get_trials(states=(self.states.WAITING,)):
            self.study.enqueue_trial(own_settings(self.asked))
        self.study.sampler = self.optuna.samplers.TPESampler(seed=self.asked.seed + done, n_startup_trials=STARTUP)
        trial = self.study.ask(fixed_distributions=self.space)
        return trial.number, dict(trial.params)

    def tell(self, trial: Trial) -> None:
        """Note the outcome. Its facts come first: a kill in between repeats a trial whose cells are all there."""
        self.study.set_user_attr(str(trial.number), trial._asdict())
        if trial.value is None:
            self.study.tell(trial.number, state=self.states.FAIL)
        else:
            self.study.tell(trial.number, trial.value)


def own_settings(asked: Asked) -> dict[str, Any]:
    """The method's own values of what is searched, each moved into its range."""
    cell = asked.cells({})[0]
    settings = method(asked.method).config_class.parse(cell.settings)
    own: dict[str, Any] = {}
    for name, where in asked.space.items():
        value: Any = settings
        for part in name.split("."):
            value = getattr(value, part)
        if isinstance(where, Choice):
            own[name] = value if value in where.values else where.values[0]
        else:
            own[name] = min(max(value, where.low), where.high)
    return own


def _write(asked: Asked, best: Trial, trials: Sequence[Trial], settings: Path, origin: Path) -> None:
    """Write the best settings as YAML for `mu erase --config`, and where they come from."""
    everything = tuple(dict.fromkeys(concept for group in asked.concepts for concept in group))
    chosen: type[Method] = method(asked.method)
    cell = new_cell(chosen, everything, asked.model, start=asked.start, layer={**asked.layer, **best.params})
    evaluations = sum(trial.evaluations for trial in trials)
    seeds = "the suite's own" if asked.measuring.seeds is None else ", ".join(map(str, asked.measuring.seeds))
    value = best.value or 0.0
    head = [
        f"# mu erase {asked.method} --config {settings.name} --concept CONCEPT",
        f"# Tuned on {asked.model}; {origin.name} has every trial.",
        f"# Harmonic mean of erased and kept: {100 * value:.1f} % (first trial, the method's own settings: "
        f"{_per_cent(trials[0].value)})",
        f"# Tuned on the concepts {', '.join(everything)} and the seeds {seeds} of suite {asked.measuring.suite}:",
        "# report on other concepts and seeds.",
        f"# {len(trials)} trials, {evaluations} model evaluations",
    ]
    values = {name: value for name, value in cell.settings.items() if name not in ("devices", "verbose")}
    write_text(settings, "\n".join(head) + "\n" + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    write_json(origin, {
        **asked.identity, "criterion": "harmonic", "budget": {"trials": asked.trials, "evaluations": asked.evaluations},
        "spent": {"trials": len(trials), "evaluations": evaluations}, "best": best._asdict(),
        "trials": [trial._asdict() for trial in trials], "command": command(), "versions": versions(),
    })  # fmt: skip


def _per_cent(value: float | None) -> str:
    return "failed" if value is None else f"{100 * value:.1f} %"


def tuned_cells(plan: Plan, folder: GridFolder, engine: Engine) -> tuple[list[Cell], dict[str, Any]]:
    """The cells of a grid with the settings that a search found for each entry of its methods on each model, and what
    they were tuned on. For who holds the folder's lock."""
    tune_, measuring = plan.config.tune, plan.tuning_of()
    assert tune_ is not None and measuring is not None
    home, found = GridFolder(folder.tuned), dict[tuple[str, str], Tuned]()
    cells: list[Cell] = []
    for cell in plan.cells:
        key = cell.label, cell.model
        if key not in found:
            asked = Asked(
                cell.method, cell.model, tuple(together(each) for each in tune_.concepts), for_tuning(measuring),
                _without_concepts(cell), {}, tune_.trials, tune_.evaluations, tune_.seed, cell.device,
            )  # fmt: skip
            found[key] = tune(asked, home, f"{cell.method}-{digest([*key, asked.identity])}", engine)
        cells.append(_with(cell, found[key].best.params))
    tuned = {
        "concepts": [concept for each in tune_.concepts for concept in together(each)], "seeds": list(tune_.seeds),
        "criterion": tune_.criterion, "trials": tune_.trials,
        "found": [
            {"method": label, "model": model, "settings": of.best.params, "value": of.best.value} for (label, model), of
            in found.items()
        ],
    }  # fmt: skip
    return cells, tuned


def _without_concepts(cell: Cell) -> dict[str, Any]:
    """The cell's settings but those that name its concepts: a search is the same for all concepts of a grid."""
    settings: dict[str, Any] = json.loads(json.dumps(cell.settings))
    for name in method(cell.method).set_by["--concept"]:
        *above, last = name.split(".")
        section = settings
        for part in above:
            section = section.get(part) or {}
        section.pop(last, None)
    return settings


def _with(cell: Cell, params: Mapping[str, Any]) -> Cell:
    """``cell`` with other settings, and so with another name."""
    return new_cell(
        method(cell.method), [Concept(each) for each in cell.concepts], cell.model, start=cell.settings, layer=params,
        changed={**cell.changed, **params}, preset=cell.preset, seed=cell.seed, measured=cell.measured,
        images=cell.images, device=cell.device,
    )  # fmt: skip
