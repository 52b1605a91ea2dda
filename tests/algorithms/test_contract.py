"""Laws that every method keeps: each runs over every row of `ALGORITHMS`, on every kind of model that the method
edits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file
from torch import Tensor, nn

from mu.algorithms import ALGORITHMS, algorithm
from mu.core.algorithm import Algorithm, citation
from mu.core.concept import Concept
from mu.core.config import BaseConfig
from mu.core.errors import ConfigError, DataError, ModelError, OutputError
from mu.core.evidence import read_evidence
from mu.data.canvas import every_scene, render
from mu.edits.edit import Edit, base_fingerprint
from mu.edits.files import open_edit
from mu.edits.low_rank import LowRankEdit
from mu.models import EMBEDDED, load
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel

KindName = Literal["diffusion", "clip"]


@dataclass(frozen=True)
class Kind:
    """What the laws need to know of a kind of model."""

    embedded: str
    """Its embedded model, whose preset a method for it has."""
    what: type
    modules: Callable[[Any], Sequence[nn.Module]]
    """All that holds its parameters."""
    asked: tuple[str, ...]
    """The model's methods that a search may ask."""
    output: Callable[[Any, str], Tensor]
    """What the model gives out for a prompt: what an edit is there to change."""
    kept: tuple[str, str]
    """Prompts without the target's style whose output should stay."""
    knows: Callable[[Any, str, Sequence[str]], bool]
    """Whether the model tells the target from what is kept."""


TARGET = "A star image in neon style."


def predicted_noise(model: DiffusionModel, prompt: str) -> Tensor:
    """(8, 4, h, w) for fixed latents at eight noise levels."""
    size = int(model.unet.config.sample_size)
    x = torch.randn(8, 4, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.predict_noise(x, torch.arange(100, 900, 100), model.encode([prompt] * len(x)))


def logits(model: ClipModel, prompt: str) -> Tensor:
    """(8, 1) of the prompt's images with the prompt."""
    return model.zero_shot(images(prompt), [prompt])


@cache
def images(prompt: str) -> Tensor:
    """(8, 3, h, w) in 0..1: what the prompt says, rendered."""
    (scene,) = (scene for scene in every_scene() if scene.prompt == prompt)
    rendered = np.stack([render(scene, (9, k)) for k in range(8)])
    return torch.from_numpy(rendered).permute(0, 3, 1, 2) / 255


def predictions_differ(model: DiffusionModel, target: str, kept: Sequence[str]) -> bool:
    return not any(torch.equal(predicted_noise(model, target), predicted_noise(model, prompt)) for prompt in kept)


def images_are_named(model: ClipModel, target: str, kept: Sequence[str]) -> bool:
    """Of the prompts, each one's own images fit it best."""
    prompts = [target, *kept]
    return all(bool((model.zero_shot(images(p), prompts).argmax(dim=1) == k).all()) for k, p in enumerate(prompts))


KINDS: dict[KindName, Kind] = {
    "diffusion": Kind(
        "canvas", DiffusionModel, lambda model: [*model.components.values()], ("predict_noise", "encode"),
        predicted_noise, ("A star image in watercolor style.", "A star image."), predictions_differ,
    ),
    "clip": Kind(
        "canvas-clip", ClipModel, lambda model: [model.model], ("encode_text", "encode_pixels"),
        logits, ("A star image in watercolor style.", "A house image in photo style."), images_are_named,
    ),
}  # fmt: skip

# What makes a method's search short enough for a law; a method that is short by nature needs no row.
ALTERNATING = {"batch_size": 4, "data": {"n_forget": 6, "n_retain": 10}, "train": {"epochs": 1, "lr": 1e-4}}
SHORT: dict[str, dict[str, Any]] = {
    "spm": {"train": {"iterations": 3, "max_denoising_steps": 4}},
    "slug": {
        "data": {"n_forget": 16, "n_retain": 16, "per_class": 1},
        "search": {"on": "clip"},
        "layers": {"names": ["*0.self_attn.out_proj.weight"], "exclude": ["*embedding*"]},
    },
    "cie": {"train": {"iterations": 3}, "data": {"images": 4, "steps": 2}},
    "sepce": {"train": {"iterations": 3}, "data": {"images": 4, "steps": 2}, "protect": {"others": ["photo", "star"]}},
    "esd": {"calibrate": {"on": False}, "train": {"iterations": 3}, "denoising_steps": 4},
    "ca": {"calibrate": {"on": False}, "train": {"iterations": 3}, "pictures": {"count": 2, "steps": 2}},
    "speed": {"filter": True},  # without it nothing is drawn, and no seed matters
    "fmn": {"train": {"iterations": 3}, "pictures": {"count": 2, "steps": 2}},
    "clip-ft": ALTERNATING | {"data": {"n_retain": 10}},
    "clip-ga": ALTERNATING | {"data": {"n_forget": 6}},
    "clip-gaft": ALTERNATING,
    "clip-salun": ALTERNATING,
    "clip-ssd": {"batch_size": 4, "data": {"n_forget": 6, "n_retain": 10}, "selection": 1.0, "forget_loss": "cosine"},
}


def kinds_of(name: str) -> list[KindName]:
    """The kinds of model that the method has a preset for, or on which it calibrates itself."""
    chosen = algorithm(name)
    itself = {"diffusion"} if chosen.default_preset == "calibrated" else set()
    return [kind for kind, each in KINDS.items() if kind in itself or each.embedded in chosen.presets]


CASES = [pytest.param(name, kind, id=f"{name}-on-{kind}") for name in ALGORITHMS for kind in kinds_of(name)]
FOREIGN = [
    pytest.param(name, kind, id=f"{name}-on-{kind}")
    for name in ALGORITHMS
    for kind in KINDS
    if kind not in kinds_of(name)
]


@pytest.fixture(scope="module")
def models(tiny: DiffusionModel) -> dict[KindName, Any]:
    """Small ones. The diffusion model's weights are random: what is asked of it here does not depend on what it
    knows."""
    return {"diffusion": tiny, "clip": load("canvas-clip", device="cpu")}


def method(name: str, kind: KindName, model: Any, **overrides: Any) -> Algorithm:
    chosen = algorithm(name)
    config = chosen.for_concepts(["neon style"], KINDS[kind].embedded).merged(SHORT.get(name, {}), overrides)
    return chosen(config, model=model)


def find(name: str, kind: KindName, model: Any, **overrides: Any) -> Edit:
    edit = method(name, kind, model, **overrides).find_edit()
    assert isinstance(edit, Edit)
    return edit


class State:
    """A model as it was found: all numbers bit for bit, what asks for a gradient, and what the model gives out."""

    def __init__(self, kind: KindName, model: Any, snapshot: Callable):
        self.kind, self.model, self.snapshot = KINDS[kind], model, snapshot
        self.output, self.weights, self.flags = self.kind.output(model, TARGET), self._weights(), self._flags()

    def _weights(self) -> list[str]:
        return [self.snapshot(module) for module in self.kind.modules(self.model)]

    def _flags(self) -> list[bool]:
        return [p.requires_grad for module in self.kind.modules(self.model) for p in module.parameters()]

    def changed(self) -> bool:
        return not torch.equal(self.kind.output(self.model, TARGET), self.output)

    def check(self) -> None:
        modules = self.kind.modules(self.model)
        assert self._weights() == self.weights
        assert self._flags() == self.flags
        assert all(p.grad is None for module in modules for p in module.parameters())
        assert not any(module.training for module in modules)
        assert not self.changed()


def equal(a: Edit, b: Edit) -> bool:
    mine, theirs = a.tensors(), b.tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_base_is_left_bit_for_bit_and_the_edit_comes_off(
    name: str, kind: KindName, models: dict[KindName, Any], snapshot: Callable
) -> None:
    model = models[kind]
    found = State(kind, model, snapshot)
    edit = find(name, kind, model)
    assert edit.info.concepts == method(name, kind, model).concepts() == ("neon style",)
    found.check()
    with edit.applied(model):
        assert found.changed()
    found.check()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_base_is_left_also_when_the_search_fails(
    name: str, kind: KindName, models: dict[KindName, Any], snapshot: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last thing that the search asks of the model, be it a prediction or an embedding."""
    model = models[kind]
    found = State(kind, model, snapshot)
    calls, last = 0, 0

    def counted(asked: Callable) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == last:
                raise KeyboardInterrupt
            return asked(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for asked in KINDS[kind].asked:
            patch.setattr(model, asked, counted(getattr(model, asked)))
        find(name, kind, model)
        calls, last = 0, calls
        if not last:
            pytest.skip("the search asks this model nothing")
        with pytest.raises(KeyboardInterrupt):
            find(name, kind, model)
    found.check()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_same_seed_same_edit(name: str, kind: KindName, models: dict[KindName, Any]) -> None:
    torch.manual_seed(1)
    first = find(name, kind, models[kind])
    torch.manual_seed(2)
    assert equal(find(name, kind, models[kind]), first)
    if "seed" in algorithm(name).config_class.model_fields:
        assert not equal(find(name, kind, models[kind], seed=1), first)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_saved_and_opened_it_is_the_same(
    name: str, kind: KindName, models: dict[KindName, Any], tmp_path: Path
) -> None:
    model, output = models[kind], KINDS[kind].output
    edit = find(name, kind, model)
    edit.save(tmp_path / "edit.safetensors")
    back = open_edit(tmp_path / "edit.safetensors")
    assert equal(edit, back)
    assert back.info == edit.info
    assert back.info.method == name
    assert back.info.concepts == ("neon style",)
    assert back.info.base == model.name
    assert back.info.fingerprint
    assert back.info.config
    with edit.applied(model):
        wanted = output(model, TARGET)
    with back.applied(model):
        assert torch.equal(output(model, TARGET), wanted)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_run_leaves_its_records_and_is_not_overwritten(
    name: str, kind: KindName, models: dict[KindName, Any], tmp_path: Path
) -> None:
    overrides = {
        key: str(tmp_path / key)
        for key in ("output_dir", "run_dir")
        if key in algorithm(name).config_class.model_fields
    }

    def work(**more: Any) -> Algorithm:
        return method(name, kind, models[kind], **overrides, **more)

    edit, run = work().run()
    again = algorithm(name).config_class.load(run.config)
    assert again.model_dump() == work().config.model_dump()
    assert run.read_environment()["method"] == name
    assert run.read_environment()["seconds"] >= 0
    noted = read_evidence(run).found
    assert noted and noted.base == base_fingerprint(models[kind]), "the weights of the base, after the search too"
    with edit.applied(models[kind]):
        assert isinstance(edit, LowRankEdit) or noted.base != base_fingerprint(models[kind]), "control"
    kept = load_file(run.edit)
    assert isinstance(edit, Edit) and equal(edit, open_edit(run.edit))
    with pytest.raises(OutputError, match="--overwrite"):
        work().run()
    if "seed" in again.model_fields_set | set(type(again).model_fields):
        with pytest.raises(OutputError, match=r"config\.yaml"):
            work(seed=9).run(resume=True)
    work().run(overwrite=True)
    assert all(torch.equal(value, kept[key]) for key, value in load_file(run.edit).items())


@pytest.mark.parametrize(("name", "kind"), FOREIGN)
def test_a_model_of_another_kind_is_refused(name: str, kind: KindName, models: dict[KindName, Any]) -> None:
    (own,) = kinds_of(name)
    with pytest.raises(ConfigError, match=r"is (none|not)") as refused:
        find(name, own, models[kind])
    assert name in str(refused.value).lower() and "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_concept_beyond_the_tokenizer_is_refused_before_the_search(
    name: str, kind: KindName, models: dict[KindName, Any]
) -> None:
    """Its beginning alone would be erased, which may be another concept. Control: a shorter one loads."""
    chosen, model = algorithm(name), models[kind]
    for length, fits in ((60, False), (6, True)):
        work = chosen(chosen.for_concepts(["xq" * length], KINDS[kind].embedded), model=model)
        if fits:
            work.load_model()
            continue
        with pytest.raises(ConfigError, match=r"^the concept 'xq.* tokens, and the text encoder of .* reads 14"):
            work.load_model()


TIME_ALONE = {
    "seed", "iterations", "epochs", "checkpoint_every", "per_steps", "lr_warmup_steps", "lr_scheduler_num_cycles",
    "clip_skip", "max_front", "leave", "mend", "max_base",
}  # fmt: skip
"""Settings whose number costs time or nothing: what is more than all is all."""


def whole_numbers(config: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in config.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from whole_numbers(kind, f"{prefix}{name}.")
        elif int in (kind, *get_args(kind)):
            yield prefix + name


@pytest.mark.parametrize("name", ALGORITHMS)
def test_numbers_that_memory_cannot_hold_are_refused(name: str) -> None:
    """Every whole number that is not `TIME_ALONE`, in every method; no number has more than 64 bits."""
    config = algorithm(name).config_class
    settings = [setting for setting in whole_numbers(config) if setting.rpartition(".")[2] not in TIME_ALONE]
    for setting in settings:
        with pytest.raises(ConfigError, match=setting):
            config().merged({setting: 10**9})
    for setting in whole_numbers(config):
        with pytest.raises(ConfigError, match=f"{setting}: .*beyond 64 bits"):
            config().merged({setting: 2**64})


def test_every_method_has_a_kind() -> None:
    assert {case.values[0] for case in CASES} == set(ALGORITHMS)
    assert {case.values[1] for case in CASES} == set(KINDS)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_it_is_cited_and_its_presets_are_valid(name: str, tmp_path: Path) -> None:
    chosen = algorithm(name)
    assert chosen.name == name
    assert citation(chosen).startswith("@")
    assert citation(chosen).rstrip().endswith("}")
    assert issubclass(chosen.config_class, BaseConfig)
    for preset in getattr(chosen, "presets", {}):
        config = chosen.for_concepts(["a", "b"], None, preset)
        (tmp_path / "c.yaml").write_text(config.to_yaml())
        assert chosen.config_class.load(tmp_path / "c.yaml").model_dump() == config.model_dump()
    field = next(iter(chosen.config_class.model_fields))
    with pytest.raises(ConfigError, match=f"'{field}x'.*'{field}'"):
        chosen.config_class.parse({f"{field}x": 1})


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'spm'"):
        algorithm("smp")


# Methods that are known not to forget with any setting tried: the law must say so of them, and say when that changes.
DO_NOT_FORGET = {
    "fmn": "no setting tried erases on canvas: docs/separable.md",
    "clip-ft": "it trains on the rest alone, as the control of the comparison",
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_target_moves_more_than_what_is_kept(name: str, kind: KindName, request: pytest.FixtureRequest) -> None:
    """On the trained model with the method's own settings. Control: before the edit the model knows the concept."""
    of = KINDS[kind]
    if not EMBEDDED[of.embedded].exists():
        pytest.skip("the embedded model's weights are not in this checkout")
    if name in DO_NOT_FORGET:
        request.applymarker(pytest.mark.xfail(strict=True, raises=AssertionError, reason=DO_NOT_FORGET[name]))
    model = load(of.embedded, device="cpu")
    if not (isinstance(model, of.what) and of.knows(model, TARGET, of.kept)):
        pytest.fail(f"{of.embedded} does not know the concept: nothing could be seen to go")
    chosen = algorithm(name)
    edit = chosen(chosen.for_concepts(["neon"], of.embedded), model=model).find_edit()
    assert isinstance(edit, Edit)
    before = {prompt: of.output(model, prompt) for prompt in (TARGET, *of.kept)}
    with edit.applied(model):
        moved = {prompt: float((of.output(model, prompt) - before[prompt]).norm()) for prompt in before}
    assert all(moved[TARGET] > 1.5 * moved[prompt] for prompt in of.kept), moved


def test_a_search_that_never_began_leaves_its_folder_free(tiny: DiffusionModel, tmp_path: Path) -> None:
    """A mistyped model must not block the folder for the corrected command."""
    places = {"output_dir": str(tmp_path), "run_dir": str(tmp_path / "run")}
    chosen = algorithm("spm")
    config = chosen.for_concepts(["neon"], "canvas").merged(SHORT["spm"], places)
    with pytest.raises(ModelError):
        chosen(config.merged({"pretrained_model": {"ckpt_path": "./nope.safetensors"}})).run()
    run = chosen(config, model=tiny).run().run
    assert run.edit.exists()
    with pytest.raises(OutputError, match="--overwrite"):
        chosen(config, model=tiny).run()


# -- concepts
# ---------------------------------------------------------------------------------------------------------------

SPELLINGS: list[tuple[list[Any], tuple[str, ...] | str]] = [
    (["foo_bar"], ("foo_bar",)),
    (["pop  art"], ("pop art",)),
    (["  Van \n Gogh "], ("Van Gogh",)),
    (["self-harm"], ("self-harm",)),
    (["NEON"], ("NEON",)),
    (["007"], ("007",)),
    (["a+b"], ("a+b",)),
    (["{}"], ("{}",)),
    (["null"], ("null",)),
    (["Neon style", "star", "neon_STYLE"], ("Neon style", "star")),
    (["foo_bar", "foo-bar"], ("foo_bar", "foo-bar")),
    (["a, b"], "has a comma"),
    (["_"], "is empty"),
    ([""], "is empty"),
    ([" \n"], "is empty"),
    (["neon", " "], "is empty"),
    ([5], "must be text"),
]


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize(("given", "wanted"), SPELLINGS)
def test_a_concept_has_one_spelling(given: list[Any], wanted: tuple[str, ...] | str, name: str, tmp_path: Path) -> None:
    """The same text from every method, also from the file of its settings, or the same refusal."""
    chosen = algorithm(name)
    if isinstance(wanted, str):
        with pytest.raises(DataError, match=wanted):
            chosen.for_concepts(given)
        return
    config = chosen.for_concepts(given)
    assert chosen(config).concepts() == chosen(chosen.for_concepts(config_concepts(config))).concepts() == wanted
    (tmp_path / "c.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert chosen(tmp_path / "c.yaml").concepts() == wanted
    assert all(type(each) is Concept for each in chosen(config).concepts())


def config_concepts(config: BaseConfig) -> list[str]:
    return [str(each) for each in getattr(config, "concepts", None) or (e.target for e in config.entries())]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_edit_holds_that_spelling(name: str, kind: KindName, models: dict[KindName, Any], tmp_path: Path) -> None:
    chosen = algorithm(name)
    config = chosen.for_concepts(["  Neon \n style"], KINDS[kind].embedded).merged(SHORT.get(name, {}))
    edit = chosen(config, model=models[kind]).find_edit()
    assert isinstance(edit, Edit)
    edit.save(tmp_path / "edit.safetensors")
    for each in (edit, open_edit(tmp_path / "edit.safetensors")):
        assert each.info.concepts == ("Neon style",) and each.concept() == "Neon style"


# -- settings
# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def validations(monkeypatch: pytest.MonkeyPatch) -> list[type[BaseConfig]]:
    """The settings that were validated as a whole, in order."""
    seen: list[type[BaseConfig]] = []
    parse = BaseConfig.parse.__func__  # type: ignore[attr-defined]

    def counted(cls: type[BaseConfig], *args: Any) -> BaseConfig:
        seen.append(cls)
        return parse(cls, *args)

    monkeypatch.setattr(BaseConfig, "parse", classmethod(counted))
    return seen


@pytest.mark.parametrize("name", ALGORITHMS)
def test_settings_are_validated_once(name: str, validations: list[type[BaseConfig]], tmp_path: Path) -> None:
    chosen = algorithm(name)
    config = chosen.for_concepts(["neon"], next(iter(chosen.presets)), None, {"devices": "cpu"}, {"output_dir": "x"})
    validations.clear()

    def counted(make: Callable[[], Algorithm]) -> int:
        validations.clear()
        made = make().config
        assert made.devices == "cpu"  # type: ignore[attr-defined]
        return validations.count(chosen.config_class)

    (tmp_path / "c.yaml").write_text(config.to_yaml())
    layers = ({"devices": "cpu"}, {"output_dir": "y"})
    assert counted(lambda: chosen(config)) == 0
    assert counted(lambda: chosen(config, output_dir="y")) == 1
    assert counted(lambda: chosen({"devices": "cpu"}, output_dir="y")) == 1
    assert counted(lambda: chosen(tmp_path / "c.yaml", output_dir="y")) == 1
    assert counted(lambda: chosen(chosen.for_concepts(["neon"], None, next(iter(chosen.presets)), *layers))) == 1
    assert counted(lambda: chosen(chosen.for_concepts(["neon"], None, config, *layers))) == 1
    assert counted(lambda: chosen(chosen.for_concepts(["neon"]).merged(*layers))) > 1  # control


@pytest.mark.parametrize("name", ["spm", "esd"])
@pytest.mark.parametrize("track", ["wandb", "tensorboard", None])
def test_losses_go_to_the_tracker_that_is_asked_for(
    name: str, track: str | None, tiny: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: dict[str, set[int]] = {"wandb": set(), "tensorboard": set()}
    tracker = SimpleNamespace(log=lambda row: steps["wandb"].add(row["step"]), finish=lambda: None)
    writer = SimpleNamespace(add_scalar=lambda what, value, step: steps["tensorboard"].add(step), close=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **how: tracker))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=lambda log_dir: writer))
    monkeypatch.setenv("WANDB_MODE", "offline")
    places = {
        key: str(tmp_path / key)
        for key in ("output_dir", "run_dir")
        if key in algorithm(name).config_class.model_fields
    }
    run = method(name, "diffusion", tiny, **places).run(track=track).run
    recorded = {row["step"] for row in run.read_metrics()}
    assert recorded == {0, 1, 2}
    assert steps == {kind: recorded if kind == track else set() for kind in steps}


@pytest.mark.parametrize(
    ("said", "environment", "asked"),
    [
        ({}, {"WANDB_MODE": "online"}, None),
        ({"use_sample": True}, {"WANDB_API_KEY": "k"}, None),
        ({"wandb_project": "p"}, {}, None),
        ({"wandb_project": "p"}, {"WANDB_MODE": "offline"}, "wandb"),
        ({"wandb_run": "r"}, {"WANDB_API_KEY": "k"}, "wandb"),
        ({"wandb_run": "r"}, {"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, None),
        ({"logging": {"use_wandb": True}}, {}, "wandb"),
    ],
)
def test_what_the_seed_documents_ask_of_wandb(
    said: dict[str, Any], environment: dict[str, str], asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tracking = algorithm("spm")(said).tracking()
    assert tracking.kind == asked
    assert tracking.project == said.get("wandb_project", "semipermeable_membrane_project")
