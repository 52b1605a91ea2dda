"""The plan of a grid: one YAML file of methods, concepts, models, seeds and suites, and the cells that it stands for.

A cell is one search and its measurements. Its name ends in a hash of all that determines the edit: the method, the
settings that depart from the defaults, the concepts and the model. So the same cell has the same name in every plan.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, PlainSerializer, PlainValidator, field_validator, model_validator
from typing_extensions import Self

from mu.algorithms import method
from mu.core.algorithm import Method
from mu.core.concept import Concept, folded
from mu.core.config import BaseConfig, faults, read_settings, refuse_twice, values_set
from mu.core.devices import check_device
from mu.core.errors import ConfigError, ConfigErrors, DataError, MuError, quoted, titled
from mu.core.files import fitting, slug

NOT_OF_THE_EDIT = ("output_dir", "run_dir", "devices", "verbose")
"""Settings that change no edit."""
OWN = ("tuning", "base_answers", "shard", "images", "base_images", "allow_missing")
"""Options of suites that the grid gives itself, or that are for images made elsewhere."""
FILES = ("prompts", "reference", "inception")
"""Options of suites that name files."""
MOST_CELLS = 100_000


def _together(value: Any) -> tuple[Concept, ...]:
    """One entry of ``concepts``. Raises `ValueError`, as validators do, for what is no concept."""
    try:
        concepts = tuple(Concept.of_setting(each) for each in (value if isinstance(value, list | tuple) else [value]))
    except DataError as error:
        raise ValueError(str(error)) from None
    if not concepts:
        raise ValueError("an empty list: name a concept, or several that one edit erases")
    return concepts


def _as_typed(concepts: tuple[Concept, ...]) -> str | list[str]:
    return str(concepts[0]) if len(concepts) == 1 else [*map(str, concepts)]


Together = Annotated[str | list[str], PlainValidator(_together), PlainSerializer(_as_typed)]
"""A concept, or several that are erased together: always a tuple of `Concept`, whatever was written."""


class MethodEntry(BaseConfig):
    """One method, with the settings to sweep."""

    method: str
    """The method's name: see `mu methods`."""
    preset: str | None = None
    """A preset of the method. Default: the one for the model."""
    config: str | None = None
    """A file of settings instead of a preset, such as one that `mu tune` wrote."""
    set: dict[str, Any] = {}
    """Settings of all cells of this entry, by dotted names."""
    sweep: dict[str, list[Any]] = {}
    """Settings by dotted names, each with a list of values: a cell for each combination."""

    @field_validator("sweep")
    @classmethod
    def _some_values(cls, sweep: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for name, values in sweep.items():
            if not values:
                raise ValueError(f"{quoted(name)} has no values: list some, or leave it out")
        return sweep

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.preset and self.config:
            raise ValueError("preset and config are both given: leave one out")
        if both := self.set.keys() & self.sweep.keys():
            raise ValueError(f"{quoted(min(both))} is in set and in sweep: leave it out of one")
        return self


class SuiteEntry(BaseConfig):
    """One suite. Other keys are its options, as `mu evaluate` has them."""

    suite: str
    """The suite's name: see `mu evaluate --help`."""
    seeds: list[int] | None = None
    """Seeds of the images. Default: the suite's own."""
    options: dict[str, Any] = {}
    """The suite's options: judge, retain, everyday, steps ..."""

    @model_validator(mode="before")
    @classmethod
    def _options(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            return values
        known = {key: value for key, value in values.items() if key in cls.model_fields}
        others = {key: value for key, value in values.items() if key not in cls.model_fields}
        given = known.get("options", {})
        return known | {"options": {**given, **others} if isinstance(given, Mapping) else given}


class TuneEntry(BaseConfig):
    """Search each method's settings first, on other concepts and seeds than those that are reported."""

    concepts: list[Together] = Field(min_length=1)
    """Concepts to tune on. None of them may be reported."""
    seeds: list[int] = Field(min_length=1)
    """Seeds of the images to tune on. None of them may be reported."""
    trials: int = Field(20, ge=1, le=10_000)
    """Settings that are tried for each method and model, the method's own first."""
    evaluations: int | None = Field(None, ge=1)
    """The most model evaluations of all trials of a method on a model. Default: no limit."""
    criterion: Literal["harmonic"] = "harmonic"
    """``harmonic``: the harmonic mean of the erased and the kept share, mean over the concepts."""
    suite: str | None = None
    """Which of the grid's suites measures. Default: the first."""
    seed: int = 0
    """The seed of the search."""


class GridConfig(BaseConfig):
    """A grid: a cell for each method, combination of settings, concept, model and seed."""

    methods: list[MethodEntry] = Field(min_length=1)
    """Methods by name, or entries with ``method``, ``preset`` or ``config``, ``set`` and ``sweep``."""
    concepts: list[Together] = Field(min_length=1)
    """Concepts to erase. A list of several in place of one: erased together, by one edit."""
    models: list[str] = Field(["canvas"], min_length=1)
    """Models, as `mu erase --model` takes them."""
    seeds: list[int] = []
    """Seeds of the search, the setting ``seed``. Default: each method's own. A method without a seed has one cell."""
    suites: list[SuiteEntry] = []
    """What is measured, by name or as entries with ``suite``, ``seeds`` and the options. Default: the model's suite."""
    images: bool = False
    """Also generate the run's images before and after, as `mu erase` does."""
    device: str = ""
    """cpu, cuda or mps. Default: the best available, each worker on a GPU of its own."""
    memory: float | None = Field(None, gt=0)
    """GiB that a cell needs. Default: an estimate from the size of the model's files."""
    tune: TuneEntry | None = None
    """Search each method's settings first. Default: the settings as they stand."""

    names: ClassVar[tuple[str, ...]] = ("methods", "suites")

    @model_validator(mode="before")
    @classmethod
    def _names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        known = dict(values)
        for key in cls.names:
            if isinstance(known.get(key), list):
                word = key.removesuffix("s")
                known[key] = [{word: each} if isinstance(each, str) else each for each in known[key]]
        return known


@dataclass(frozen=True)
class Measuring:
    """A suite with its seeds (None: its own) and options."""

    suite: str
    seeds: tuple[int, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A hash of all three: a result of another key is another measurement."""
        return digest({"suite": self.suite, "seeds": self.seeds, "options": self.options})


@dataclass(frozen=True)
class Cell:
    """One search and what is measured of its edit. ``settings`` are plain values, without the run's folder.

    ``changed`` holds the settings that its plan gives, by dotted names: what a table says of it.
    """

    name: str
    method: str
    concepts: tuple[str, ...]
    model: str
    settings: Mapping[str, Any]
    changed: Mapping[str, Any] = field(default_factory=dict)
    preset: str = ""
    seed: int | None = None
    measured: tuple[Measuring, ...] = ()
    images: bool = False
    device: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Cell:
        """The cell that `to_json` wrote."""
        measured = tuple(
            Measuring(one["suite"], None if one["seeds"] is None else tuple(one["seeds"]), one["options"])
            for one in content["measured"]
        )
        return cls(**{**content, "concepts": tuple(content["concepts"]), "measured": measured})

    @property
    def label(self) -> str:
        """The method with what its plan sets: ``uce canvas lamb=0.2``."""
        parts = [self.method, self.preset, *(f"{name}={told(value)}" for name, value in self.changed.items())]
        return " ".join(part for part in parts if part)


@dataclass(frozen=True)
class Plan:
    """The cells of a grid, in the order of its file."""

    cells: tuple[Cell, ...]
    config: GridConfig

    def tuning_of(self) -> Measuring | None:
        """What measures the trials of ``tune``; None without it. Its seeds are the tuning seeds."""
        tune = self.config.tune
        if tune is None:
            return None
        entry = next(each for each in self.config.suites if tune.suite in (None, each.suite))
        return Measuring(entry.suite, tuple(tune.seeds), entry.options)


def told(value: Any) -> str:
    """A setting's value in few letters."""
    return (
        f"{value:g}"
        if isinstance(value, float)
        else quoted(value).strip("'")
        if isinstance(value, str)
        else json.dumps(value)
    )


def digest(content: Any) -> str:
    """Eight hexadecimal digits of a hash of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def read_plan(path: Path | str) -> Plan:
    """Read a grid's YAML file and check all of it. Raises `ConfigErrors` with every error, before anything runs."""
    return plan_of(read_settings(path, GridConfig), str(path))


def plan_of(values: Mapping[str, Any], name: str = "grid") -> Plan:
    """The plan of a grid's plain ``values``. Raises `ConfigErrors`, each line beginning with ``name``."""
    values, wrong = dict(values), []
    if "attacks" in values:
        wrong.append("attacks: none exist yet, leave the key out")
        del values["attacks"]
    wrong += faults(GridConfig, values)
    if wrong:
        raise ConfigErrors(f"{name}: {line}" for line in wrong)
    config = GridConfig.parse(values)
    wrong = [*_repeated(config), *_wrong_suites(config), *_wrong_device(config), *_tuned_on(config)]
    cells = tuple(_cells(config, wrong, repeated=bool(wrong)))
    if wrong:
        raise ConfigErrors(f"{name}: {line}" for line in dict.fromkeys(wrong))
    return Plan(cells, config)


def measurings(config: GridConfig) -> tuple[Measuring, ...]:
    """The suites of a grid as its cells have them."""
    return tuple(
        Measuring(each.suite, None if each.seeds is None else tuple(each.seeds), each.options) for each in config.suites
    )


def together(entry: Any) -> tuple[Concept, ...]:
    """One entry of ``concepts``: what one edit erases."""
    return cast("tuple[Concept, ...]", entry)


def new_cell(
    chosen: type[Method], concepts: Sequence[Concept], model: str, *,
    start: str | BaseConfig | Mapping[str, Any] | None, layer: Mapping[str, Any], **told: Any,
) -> Cell:  # fmt: skip
    """The cell of a method's settings from ``start``, as `Method.for_concepts` takes it, with ``layer`` over them.

    Raises a `MuError` for settings that are wrong, and for files that they name and that are missing. ``told`` are the
    other fields of the cell.
    """
    from mu.models.places import check_name

    given = chosen.for_concepts(concepts, model, start, layer)
    check_name(given.model)  # type: ignore[attr-defined]
    chosen.check_files(given)
    plain = given.model_dump(mode="json", exclude_defaults=True)
    identity = {"method": chosen.name, "settings": {k: v for k, v in plain.items() if k not in NOT_OF_THE_EDIT}}
    names = "+".join(slug(concept) or "concept" for concept in concepts)
    stem = "-".join(fitting(part, 60) for part in (chosen.name, names, slug(Path(model).name) or "model"))
    settings = {k: v for k, v in _plain(values_set(given)).items() if k not in ("output_dir", "run_dir")}
    return Cell(f"{stem}-{digest(identity | {'model': model})}", chosen.name, tuple(concepts), model, settings, **told)


def _plain(values: Any) -> Any:
    """``values`` as JSON holds them."""
    return json.loads(json.dumps(values, default=str))


def _cells(config: GridConfig, wrong: list[str], repeated: bool) -> Iterator[Cell]:
    """The cells that can be; what is wrong with the others goes to ``wrong``.

    Not that one is there twice, if the plan's lists are ``repeated`` or wrong already."""
    known = set[str]()
    for k, entry in enumerate(config.methods):
        for made in _cells_of(entry, config, wrong, f"methods.{k}"):
            if made.name in known and not repeated:
                wrong.append(
                    f"methods.{k}: {made.label} of {', '.join(made.concepts)} is asked for twice: leave one out"
                )
            known.add(made.name)
            yield made


def _cells_of(entry: MethodEntry, config: GridConfig, wrong: list[str], place: str) -> Iterator[Cell]:
    """The cells of one entry of ``methods``."""
    chosen = start = None
    with _noting(wrong, place):
        chosen = method(entry.method)
        start = _start(entry, chosen)
    if chosen is None or (start is None and (entry.config or entry.preset)):
        return
    own = config.seeds if "seed" in chosen.config_class.model_fields else []
    seeds: Sequence[int | None] = own or [None]
    count = math.prod(map(len, (*entry.sweep.values(), config.concepts, config.models, seeds)))
    if count > MOST_CELLS:
        wrong.append(f"{place}: {count} cells are more than {MOST_CELLS}: sweep fewer values")
        return
    for values, concepts, model, seed in product(_combinations(entry), config.concepts, config.models, seeds):
        with _noting(wrong, place):
            yield _cell(chosen, start, together(concepts), model, seed, {**entry.set, **values}, entry, config)


def _cell(
    chosen: type[Method], start: Any, concepts: Sequence[Concept], model: str, seed: int | None,
    layer: Mapping[str, Any], entry: MethodEntry, config: GridConfig,
) -> Cell:  # fmt: skip
    given = {"concepts": "--concept", "models": "--model", "the grid": "--out"}
    own = {key: chosen.set_by[option] for key, option in given.items()}
    refuse_twice(chosen.config_class, layer, own | ({} if seed is None else {"seeds": ("seed",)}), "set or sweep")
    seeded = {} if seed is None else {"seed": seed}
    return new_cell(
        chosen, concepts, model, start=start, layer={**layer, **seeded, **chosen.placed(None, config.device)},
        changed=_plain(layer), preset=entry.preset or (Path(entry.config).stem if entry.config else ""), seed=seed,
        measured=measurings(config), images=config.images, device=config.device,
    )  # fmt: skip


def _start(entry: MethodEntry, chosen: type[Method]) -> Any:
    if entry.config:
        return read_settings(entry.config, chosen.config_class)
    return chosen.preset_name(entry.preset) if entry.preset else None


def _combinations(entry: MethodEntry) -> Iterator[dict[str, Any]]:
    for values in product(*entry.sweep.values()):
        yield dict(zip(entry.sweep, values, strict=True))


@contextmanager
def _noting(wrong: list[str], place: str) -> Iterator[None]:
    """Add to ``wrong`` what is refused inside the block, and go on after it."""
    try:
        yield
    except MuError as error:
        wrong.append(f"{place}: {error}")


def _repeated(config: GridConfig) -> Iterator[str]:
    lists: dict[str, list[Any]] = {
        "concepts": [" + ".join(sorted(map(folded, together(each)))) for each in config.concepts],
        "models": config.models,
        "seeds": config.seeds,
        "suites": [each.suite for each in config.suites],
    }
    for key, items in lists.items():
        for item in dict.fromkeys(item for item in items if items.count(item) > 1):
            yield f"{key}: {quoted(item)} is named twice: leave one out"


def _wrong_suites(config: GridConfig) -> list[str]:
    wrong: list[str] = []
    for k, entry in enumerate(config.suites):
        _check_suite(entry, wrong, f"suites.{k}")
    return wrong


def _check_suite(entry: SuiteEntry, wrong: list[str], place: str) -> None:
    from mu.evaluation.suites import check_options, taking

    before = len(wrong)
    with _noting(wrong, place):
        check_options(entry.suite, entry.seeds, {})
    if len(wrong) > before:
        return
    for name, value in entry.options.items():
        if name in OWN:
            wrong.append(f"{place}: {name} is not for a grid, which makes and shares all images itself: leave it out")
            continue
        with _noting(wrong, place):
            taking(entry.suite, [name])
            check_options(entry.suite, entry.seeds, {name: value})
        if name in FILES and not Path(str(value)).exists():
            wrong.append(f"{place}: {name}: {titled(value)} does not exist: check the name")


def _wrong_device(config: GridConfig) -> Iterator[str]:
    try:
        check_device(config.device)
    except ConfigError as error:
        yield f"device: {error}"


def _tuned_on(config: GridConfig) -> Iterator[str]:
    """A grid reports on no concept and no seed that it tunes on."""
    tune = config.tune
    if tune is None:
        return
    tuned = {folded(concept) for each in tune.concepts for concept in together(each)}
    for concept in (concept for each in config.concepts for concept in together(each)):
        if folded(concept) in tuned:
            yield f"tune.concepts: {quoted(str(concept))} is reported too: tune on other concepts than are reported"
    if not config.suites:
        yield "tune: name the suite that measures under suites, with its seeds"
        return
    names = [each.suite for each in config.suites]
    if tune.suite not in (None, *names):
        yield f"tune.suite: {quoted(tune.suite)} is not one of the grid's suites: {', '.join(names)}"
    yield from _seeds_tuned_on(config, tune)
    for k, entry in enumerate(config.methods):
        if entry.sweep:
            yield f"methods.{k}: tune searches the settings, and sweep lists some: leave one out"


def _seeds_tuned_on(config: GridConfig, tune: TuneEntry) -> Iterator[str]:
    from mu.evaluation.suites import SUITES

    for entry in config.suites:
        reported = entry.seeds or (SUITES[entry.suite].seeds if entry.suite in SUITES else ())
        if both := sorted({*tune.seeds} & {*reported}):
            yield f"tune.seeds: {both[0]} is a seed that suite {entry.suite} reports on: tune on other seeds"
