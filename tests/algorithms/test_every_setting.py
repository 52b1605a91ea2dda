"""The walk over all settings of all methods: each changes what a search does, or is declared without effect.

Each method runs its smallest search, and again with one setting changed. What is seen of the two must differ: what is
loaded, what the loop is told, its rows, the edit, the run's files, or a refusal in one line. `ELSEWHERE` names what
only another test sees.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import torch
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from transformers import CLIPConfig, CLIPModel

import mu
from mu.algorithms import ALGORITHMS, algorithm
from mu.algorithms.single_layer_unlearning_gradient.configs import ImagesConfig
from mu.core import loop
from mu.core.config import BaseConfig, _models, _why_unused, fields_of, unused
from mu.core.errors import ConfigError, MuError
from mu.core.run import RunDirectory
from mu.models.canvas import architecture
from mu.models.clip import ClipModel, clip_processor
from mu.models.formats import architectures
from mu.training.calibration_config import CalibrateConfig
from mu.training.probe import Reading
from mu.training.surroundings import Surroundings
from tests.algorithms.test_spm_settings import ANSWERS
from tests.conftest import family_member

Values = dict[str, Any]
TESTS = Path(__file__).parent.parent


class Setting(NamedTuple):
    name: str
    """With the names of its sections, dotted."""
    owner: type[BaseModel]
    field: FieldInfo


def settings_of(config: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """Every setting, obsolete ones too."""
    for name, field in fields_of(config).items():
        below = _models(field.annotation)
        for each in below:
            yield from settings_of(each, f"{prefix}{name}.")
        if not below:
            yield Setting(prefix + name, config, field)


# -- the smallest searches --------------------------------------------------------------------------------------------

TWICE = {"train.iterations": 2}
ONE = {"concepts": ["neon"], "train.iterations": 1}
IMAGES = ONE | {"images.count": 1, "images.steps": 1, "anchors": ["moon"]}
ERASED = ONE | {"data.images": 1, "data.steps": 1, "train.stop": "steps", "train.lr": 0.01}
PAIRS = {"concepts": ["neon"], "batch_size": 2}
FORGET, RETAIN = {"data.forget": "canvas", "data.n_forget": 2}, {"data.retain": "canvas", "data.n_retain": 2}
PASS = {"train.epochs": 1, "train.lr": 1e-4}
SMALLEST: dict[str, Values] = {
    "spm": {
        "prompt.target": "neon", "prompt.sampling_batch_size": 1, "train.iterations": 1, "train.max_denoising_steps": 2,
        "train.optimizer_type": "AdamW", "train.lr_scheduler": "constant", "train.lr": 0.01,
    },
    "slug": FORGET | RETAIN | {
        "concepts": ["neon"], "data.tasks": ["canvas"], "data.per_class": 1, "gradients.batch_size": 2,
        "search.steps": 2, "search.rho_min": 0.5, "layers.names": ["text_encoder*0.self_attn.out_proj.weight"],
        "layers.exclude": [],
    },
    "cie": ERASED,
    "sepce": ERASED,
    "esd": ONE | {"seed": 3, "denoising_steps": 4, "train.lr": 0.01},
    "uce": {"concepts": ["neon"]},
    "speed": {"concepts": ["neon"], "filter": False, "augmentations": 1, "retain": ["dog", "cat"]},
    "ca": IMAGES,
    "fmn": IMAGES,
    "clip-ft": PAIRS | RETAIN | PASS,
    "clip-ga": PAIRS | FORGET | PASS,
    "clip-gaft": PAIRS | FORGET | RETAIN | PASS,
    "clip-salun": PAIRS | FORGET | RETAIN | PASS,
    "clip-ssd": PAIRS | FORGET | RETAIN | {"selection": 1.0},
}  # fmt: skip

CALIBRATED = {"calibrate.on": True}
BY_DEFAULT = {"filter": True, "augmentations": 10, "retain": []}  # what is set by hand replaces a calibrated search
ON_IMAGES = {"model": "canvas", "clip": "canvas-clip", "search.on": "model"}
ENDED = TWICE | {"train.stop": "correlation", "train.threshold": 1e9}
MANY = {"protect.others": ["dog", "cat", "moon", "fish", "house"], "protect.leave": 16}
MEASURED = [name for name in CalibrateConfig.model_fields if name != "on"]


def of_method(table: Mapping[str, Any], method: str, setting: str) -> Any:
    return table.get(f"{method}:{setting}", table.get(setting))


BESIDE: dict[str, Values] = {
    **{f"calibrate.{name}": CALIBRATED for name in MEASURED},
    "calibrate.left": CALIBRATED | {"calibrate.shown": 0.5},
    "calibrate.shown": CALIBRATED | {"calibrate.left": 0.5},
    "calibrate.every": CALIBRATED | {"calibrate.every": 1},
    "calibrate.weight": CALIBRATED | TWICE,
    "data.stored_targets": TWICE,
    "train.gradients": TWICE,
    "train.momentum": TWICE,
    "train.regulariser": TWICE,
    "train.stop": ENDED,
    "train.threshold": ENDED,
    "train.left": ENDED | {"train.stop": "held_out", "prompt.held_out": ["one {}"], "train.left": -1e9},
    "cie:prompt.template_anchor": {"prompt.templates": ["a {}"]},
    "sepce:prompt.template_anchor": {"prompt.templates": ["a {}"]},
    "protect.others": {"protect.leave": 16},
    "protect.null_tol": MANY,
    "protect.leave": MANY,
    "protect.templates": MANY,
    "protect.erased": {"concepts": ["neon", "star"]},
    "protect.sentences": {"concepts": ["neon", "star"]},
    "spm:train.latent_pool": TWICE,
    "spm:prompt.templates": {"prompt.use_template": True},
    "spm:prompt.template_neutral": {"prompt.use_template": True, "prompt.templates": ["a {}"]},
    "spm:prompt.anchors": TWICE,
    "spm:prompt.anchor_layout": TWICE | {"prompt.sampling_batch_size": 2},
    "spm:prompt.anchor_alpha": TWICE | {"prompt.anchors": "vocabulary", "prompt.sampling_batch_size": 2},
    "esd:latents_from": TWICE,
    "esd:joined": {"concepts": ["neon", "star"]},
    "fmn:words": {"objective": "attention"},
    "speed:augmentations": {"filter": True},
    "speed:seed": {"filter": True},
    "slug:clip": {"model": "small"},
    "slug:search.on": ON_IMAGES | {"search.on": "clip"},
    **{f"slug:search.images.{name}": ON_IMAGES for name in ImagesConfig.model_fields},
    "slug:layers.max_front": {"layers.names": [], "layers.max_front": 1, "layers.exclude": ["*embedding*"]},
    "slug:gradients.chunk": {"data.n_retain": 4},
    "slug:layers.compat": {"layers.names": ["text_encoder*0.self_attn.q_proj.weight"]},
    "clip-ga:n_retain": {"n_retain": 4, "data.n_forget": 4},
    "clip-ga:batch_size": {"data.n_forget": 4},
    "clip-salun:compat": {"data.n_forget": 3},
    "clip-ssd:compat": {"dampening": 1.0},
}
"""What a setting needs beside it to change something: of one method (``method:setting``), or of all."""
BESIDE |= {f"{method}:calibrate.weight": CALIBRATED for method in ("uce", "speed")}  # which train nothing
BESIDE |= {f"speed:calibrate.{name}": of_method(BESIDE, "speed", f"calibrate.{name}") | BY_DEFAULT for name in MEASURED}
BESIDE |= {"speed:calibrate.on": BY_DEFAULT}

VALUES: dict[str, Any] = {
    "train.threshold": -1e9,
    "train.left": 0.999,
    "protect.null_tol": 0.9,
    "basis.concept_tol": 0.9,
    "slug:layers.exclude": ["*out_proj*"],
    "slug:gradients.chunk": 1,
    "slug:gradients.compat": ["cumulative"],
    "slug:search.images.templates": {"style": ["a {}"]},
}
"""The value that a setting is changed to, where `others` has none that changes something, or only late ones."""

ELSEWHERE: dict[str, tuple[str, str]] = {
    "verbose": (
        "infos of the log, which the walk does not read",
        "algorithms/test_without_effect.py::test_verbose_decides_about_infos_and_never_about_warnings",
    ),
    "prompt.held_out": (
        "only the share that is left says which prompts it is of",
        "algorithms/test_separable.py::test_it_stops_by_prompts_never_trained_on",
    ),
    "protect.mend": (
        "needs a bank with another concept",
        "cli/test_separable_bank.py::test_older_shifts_can_be_left_as_they_are",
    ),
    "gradients.grad_sign": (
        "needs a gradient file without a sign",
        "cli/test_slug_errors.py::test_bad_input_is_one_line",
    ),
    **{
        name: (
            "by runs of the program, for all keys of SPM's files",
            "algorithms/test_spm_settings.py::test_what_is_honoured_makes_a_difference",
        )
        for name, (_, answer) in ANSWERS.items()
        if answer == "honoured"
    },
}
"""Settings that the walk leaves out: why, and the test that sees what each changes."""


def elsewhere(method: str, setting: str) -> bool:
    """Whether `ELSEWHERE` has the setting: those of the keys of SPM's files count for SPM alone."""
    return setting in ELSEWHERE and (method == "spm" or setting not in ANSWERS or setting == "verbose")


# -- what is seen of one ----------------------------------------------------------------------------------------------


class DifferentError(Exception):
    """What is seen is not what was seen before; no more need be."""


class Seen:
    """What is seen of a search, in order. With ``before``, of another, the first thing that differs ends the search."""

    def __init__(self, before: list[Any] | None = None):
        self.before, self.events = before, list[Any]()

    def __call__(self, *event: Any) -> None:
        k = len(self.events)
        self.events.append(event)
        if self.before is not None and (k >= len(self.before) or not same(self.before[k], event)):
            raise DifferentError


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(a.equal(b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


class Probe:
    """Reads the same of every edit: not quite gone, and not quite mild."""

    peers, evaluations = ("moon",), 0

    def __init__(self, model: Any, around: Surroundings, seed: int, clip: Any):
        self.model, self.around = model, around

    def glance(self) -> Reading:
        return Reading(left=0.15, shown=0.1, moved=0.2, spilled=0.2, strange=0.1)

    def read(self, glance: Reading | None = None) -> Reading:
        return self.glance()


def small_clip() -> ClipModel:
    tokenizer = architecture.new_tokenizer()
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, **special, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    vision = {**tower, "image_size": 64, "patch_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    return ClipModel(model, tokenizer, clip_processor(64), "small-clip")


@pytest.fixture(scope="module")
def models() -> Values:
    unet = {"block_out_channels": [8, 16], "attention_head_dim": 2, "norm_num_groups": 4, "cross_attention_dim": 64}
    text = {"hidden_size": 64, "intermediate_size": 16, "num_hidden_layers": 1}
    small = family_member(architectures.stable_diffusion_1(), "small", unet=unet, text=text)
    embedded = {name: mu.load(name, device="cpu") for name in ("canvas", "canvas-clip")}
    return {"small": small, "small-clip": small_clip(), **embedded}


Observe = Callable[..., list[Any]]


@pytest.fixture
def observe(models: Values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Observe:
    """``observe(method, settings)``: what is seen of the search. A third argument is `Seen.before`."""
    folder, train, encode = RunDirectory(tmp_path), loop.train, ClipModel.encode_pixels
    seen = Seen()

    def loading(usual: str) -> Callable[..., Any]:
        def load(name: str, **how: Any) -> Any:
            seen("loaded", name, how)
            return models.get(name, models[usual])

        return load

    def around(model: Any, concept: str, retain: list[str], beside: list[str]) -> Surroundings:
        seen("surroundings", concept, list(retain), list(beside))
        return Surroundings(concept, ("moon",), ("dog",), ("{}",), ("one {}",), ("moon", "dog"), tuple(beside))

    def trained(step: Any, optimizer: Any, iterations: int, **how: Any) -> None:
        """What is the loop's own affair is seen in tests/core/test_loop.py."""
        seen("trained", iterations, {name: how.get(name) for name in ("draws", "max_grad_norm", "checkpoint_every")})
        train(step, optimizer, iterations, **how)

    def encoded(self: ClipModel, pixels: torch.Tensor) -> torch.Tensor:
        seen("encoded", len(pixels))
        return encode(self, pixels)

    @contextmanager
    def compiled(self: Any) -> Iterator[None]:
        """What compiling does is seen in tests/diffusion/test_compiled.py, and takes minutes."""
        seen("compiled")
        yield

    def generated(model: Any, prompts: Any, *given: Any, **how: Any) -> torch.Tensor:
        seen("generated", list(prompts), given, how)
        return torch.zeros(len(prompts), 3, 64, 64)

    for name, put in {
        "training.diffusion_method.load_diffusion": loading("small"),
        "training.clip_method.load": loading("small-clip"),
        "algorithms.semipermeable_membrane.algorithm.load": loading("small"),
        "algorithms.single_layer_unlearning_gradient.algorithm.load": loading("canvas-clip"),
        "algorithms.single_layer_unlearning_gradient.probe.generate": generated,
        "algorithms.single_layer_unlearning_gradient.algorithm.write_json": lambda path, told: seen("written", told),
        "algorithms.separable_concept_erasure.trainer.train": trained,
        "algorithms.separable_concept_erasure.trainer.FIRST_STOP": 0,
        "training.calibration.load": loading("small-clip"),
        "training.calibration.surroundings": around,
        "training.calibration.learned": lambda model, concept: True,
        "training.calibration.Probe": Probe,
        "training.calibration.STRENGTHS": (1.0,),
        "training.kept_images.IMAGES": 1,
        "training.kept_images.STEPS": 1,
        "core.loop.train": trained,
        "models.clip.ClipModel.encode_pixels": encoded,
        "models.diffusion.DiffusionModel.compiled": compiled,
    }.items():
        monkeypatch.setattr(f"mu.{name}", put)
    monkeypatch.setattr(logging.getLogger("mu"), "disabled", True)

    def run(method: str, config: BaseConfig, before: list[Any] | None = None) -> list[Any]:
        nonlocal seen
        seen = Seen(before)
        work: Any = algorithm(method)(config)
        seen("folder", str(work.run_folder()))
        try:
            edit = work.find_edit(folder if method == "slug" else None, lambda row: seen("row", dict(row)))
        except MuError as error:
            seen("refused", str(error))
            return seen.events
        seen("edit", edit.tensors(), edit.info.concepts, edit.info.gate, edit.info.found)
        return seen.events

    return run


# -- the walk ---------------------------------------------------------------------------------------------------------


def others(value: Any, field: FieldInfo) -> Iterator[Any]:
    """Values of a setting other than ``value``, some of which it may not take."""

    def literals(kind: Any) -> list[str]:
        inner = [each for below in get_args(kind) for each in literals(below)]
        return [*(each for each in get_args(kind) if isinstance(each, str)), *inner]

    yield from ([each] if isinstance(value, list) else each for each in literals(field.annotation))
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value * 2, value + 1, value / 2)
    elif isinstance(value, str):
        yield "star"
    elif value is None:
        yield from (2, 0.5, "star", True, ["star"])
    else:
        yield from (["star"], ["a {}"], {"neon": "star"})


def changes(method: str, kind: type[BaseConfig], setting: Setting, observe: Observe, plain: dict[str, Any]) -> bool:
    """Whether some other value of ``setting`` changes what is seen, or is told to have no effect whatever is beside it.

    ``plain`` keeps what was seen without the change, by what stands beside."""
    beside = of_method(BESIDE, method, setting.name) or {}
    usual = kind.parse({}, SMALLEST[method], beside)
    before = plain.get(str(beside)) or plain.setdefault(str(beside), observe(method, usual))
    value: Any = usual
    for part in setting.name.split("."):
        value = getattr(value, part)
    given = of_method(VALUES, method, setting.name)
    for other in others(value, setting.field) if given is None else [given]:
        try:
            changed = kind.parse({}, SMALLEST[method], beside, {setting.name: other})
        except ConfigError:
            continue
        if other == value:
            continue
        if setting.name in changed.unused():
            return bool(beside)
        try:
            observe(method, changed, before)
        except DifferentError:
            return True
    return False


def silent(method: str, kind: type[BaseConfig], observe: Observe, only: str = "") -> list[str]:
    """The settings of ``kind`` that change nothing, and do not say so. A section that stands in two places counts once.

    ``only`` is part of the names to look at."""
    plain, found = dict[str, Any](), []
    places = {(each.owner, id(each.field)): each for each in reversed([*settings_of(kind)])}
    for setting in reversed(places.values()):
        passed = only not in setting.name or _why_unused(setting.field) or elsewhere(method, setting.name)
        if not passed and not changes(method, kind, setting, observe, plain):
            found.append(setting.name)
    observe(method, kind.parse({}, SMALLEST[method]), plain.get(str({})))  # control: the same settings show the same
    return found


@pytest.mark.parametrize("method", ALGORITHMS)
def test_every_setting_changes_something_or_says_that_it_has_no_effect(method: str, observe: Observe) -> None:
    assert silent(method, algorithm(method).config_class, observe) == []


def with_more(kind: Any, section: str) -> Any:
    """``kind`` with a setting more that nothing reads, and with one that says so; in a ``section``, if it names one."""
    home = kind.model_fields[section].annotation if section else kind

    class More(home):  # type: ignore[misc, valid-type]
        read_by_nothing: int = 1
        declared_by_nothing: int = unused(1, "a test adds it")

    if not section:
        return More
    return type("Whole", (kind,), {"__annotations__": {section: More}, section: More(), "__module__": __name__})


@pytest.mark.parametrize(
    ("method", "section"), [("uce", ""), ("clip-ft", "data"), ("cie", "calibrate"), ("spm", "gate")]
)
def test_control_a_setting_that_nothing_reads_is_found(method: str, section: str, observe: Observe) -> None:
    name = f"{section}.read_by_nothing".strip(".")
    kind = with_more(algorithm(method).config_class, section)
    assert silent(method, kind, observe, only="by_nothing") == [name]


def test_control_what_is_left_without_effect_whatever_is_beside_it_is_looked_at(
    observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings that others leave without effect are no declared ones: something must stand beside them."""
    kind = algorithm("uce").config_class
    assert silent("uce", kind, observe, only="calibrate.moved") == []
    monkeypatch.delitem(BESIDE, "calibrate.moved")
    assert silent("uce", kind, observe, only="calibrate.moved") == ["calibrate.moved"]


def test_what_the_walk_leaves_out_is_a_setting_that_another_test_sees() -> None:
    known = {setting.name for method in ALGORITHMS for setting in settings_of(algorithm(method).config_class)}
    assert {*ELSEWHERE} <= known
    for tables in (BESIDE, VALUES):
        assert {name.rpartition(":")[2] for name in tables} <= known
    for why, test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert why and re.search(rf"^def {name}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE), test


@pytest.mark.parametrize("method", ALGORITHMS)
def test_what_is_told_is_a_setting(method: str) -> None:
    """`idle` names no setting that does not exist, whatever the values of those it looks at."""
    kind = algorithm(method).config_class
    known = {setting.name for setting in settings_of(kind)} | set(kind.model_fields)
    for config in (kind.parse({}), *algorithm(method).presets.values()):
        assert {*config.idle_below()} <= known
