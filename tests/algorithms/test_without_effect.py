"""A setting that has no effect, always or beside others, is told to whom sets it. `test_every_setting` finds them."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import mu
from mu.algorithms import ALGORITHMS, algorithm
from mu.core.config import BaseConfig, OldKeys, Renewed, unused

PACKAGE = Path(mu.__file__).parent


class Section(BaseConfig):
    read: int = 1
    ignored: int = unused(3, "nobody asks", ge=0)
    """Replaced by the reason."""
    near: int = 0

    def idle(self) -> dict[str, str]:
        return {"near": "read is even"} if self.read % 2 == 0 else {}


class Old(OldKeys):
    former: dict[str, int] = unused({}, "it was never read")


class Settings(Renewed):
    legacy = Old

    section: Section = Section()
    several: list[Section] = []


def test_what_was_given_without_effect_is_told_with_its_reason() -> None:
    told = {
        "section.ignored": "nobody asks",
        "former.a": "it was never read",
        "former.b": "it was never read",
        "section.near": "read is even",
    }
    config = Settings.parse({"section": {"ignored": 3, "near": 2, "read": 2}, "former": {"a": 1, "b": 2}})
    assert config.unused() == told
    assert config.notes() == [
        "section.ignored has no effect: nobody asks",
        "section.near has no effect: read is even",
        "former.a, former.b have no effect: it was never read",
    ]
    assert Section.model_fields["ignored"].description == "No effect: nobody asks."
    config.section.ignored = 5  # by attribute too
    assert "section.ignored" in config.unused()


def test_control_what_was_not_given_or_has_an_effect_is_not_told() -> None:
    assert Settings.parse({}).notes() == []
    assert Settings.parse({"section": {"near": 2, "read": 3}}).notes() == []
    whole = Settings.parse({"section": {"near": 0, "read": 2}})  # as a run's config.yaml, which names all values
    assert whole.notes() == []


# -- what presets and other settings leave without effect --------------------------------------------------------------


@pytest.mark.parametrize(("name", "preset"), [(name, each) for name in ALGORITHMS for each in algorithm(name).presets])
def test_no_preset_sets_what_has_no_effect(name: str, preset: str) -> None:
    """A user who asks for a preset said nothing that could be in vain."""
    assert algorithm(name).for_concepts(["neon"], None, preset).notes() == []


IDLE: list[tuple[str, dict[str, Any], str]] = [
    ("spm", {"prompt": {"templates": ["a {}"]}}, "prompt.templates"),
    ("spm", {"calibrate": {"on": True}, "prompt": {"neutral": "moon"}}, "prompt.neutral"),
    ("spm", {"calibrate": {"on": True}, "prompts": [{"target": "neon", "neutral": "moon"}]}, "prompt.neutral"),
    ("spm", {"calibrate": {"on": True}, "train": {"lr_scheduler": "linear"}}, "train.lr_scheduler"),
    ("spm", {"calibrate": {"on": True}, "train": {"lr_warmup_steps": 7}}, "train.lr_warmup_steps"),
    ("spm", {"prompt": {"action": "erase", "la_strength": 3.0}}, "prompt.la_strength"),
    ("spm", {"prompt": {"action": "erase", "anchors": "vocabulary"}}, "prompt.anchors"),
    ("spm", {"prompt": {"la_strength": 0, "anchors": "vocabulary"}}, "prompt.anchors"),
    ("spm", {"prompt": {"la_strength": 0, "sampling_batch_size": 8}}, "prompt.sampling_batch_size"),
    (
        "spm",
        {"prompts": [{"target": "dog"}, {"target": "cat", "la_strength": 0, "anchor_alpha": 2.0}]},
        "prompt.anchor_alpha",
    ),
    ("spm", {"prompt": {"anchor_layout": "reference", "sampling_batch_size": 1}}, "prompt.anchor_layout"),
    ("spm", {"calibrate": {"on": True}, "prompt": {"anchors": "vocabulary"}}, "prompt.anchors"),
    *(
        (name, {"calibrate": {"on": True, "weight": 1.0}}, "calibrate.weight")
        for name in ("spm", "sepce", "cie", "fmn")
    ),
    *(
        (name, {"calibrate": {"on": True, key: 7}}, f"calibrate.{key}")
        for name in ("uce", "speed")
        for key in ("rate", "weight", "every")
    ),
    ("uce", {"calibrate": {"rate": 7}}, "calibrate.rate"),
    ("spm", {"prompt": {"la_strength": 3.0}, "prompts": [{"target": "dog"}]}, "prompt"),
    ("spm", {"prompts": [{"target": "dog", "anchor_alpha": 2.0}]}, "prompt.anchor_alpha"),
    ("spm", {"train": {"lr_scheduler": "constant", "lr_warmup_steps": 7}}, "train.lr_warmup_steps"),
    ("spm", {"save": {"path": "here"}, "output_dir": "there"}, "output_dir"),
    ("spm", {"gate": {"kind": "fixed", "metric": "tokenuni"}}, "gate.metric"),
    ("cie", {"data": {"folder": "images", "guidance": 3.0}}, "data.guidance"),
    ("cie", {"train": {"left": 0.5}}, "train.left"),
    ("sepce", {"train": {"stop": "steps", "threshold": 0.5}}, "train.threshold"),
    ("sepce", {"protect": {"leave": 32}}, "protect.leave"),
    ("sepce", {"basis": {"kind": "elimination", "concept_tol": 0.1}}, "basis.concept_tol"),
    ("slug", {"search": {"method": "reference", "rho_max": 2.0}}, "search.rho_max"),
    ("slug", {"search": {"images": {"steps": 5}}}, "search.images.steps"),
    ("slug", {"layers": {"names": ["*fc1*"], "max_front": 2}}, "layers.max_front"),
    ("slug", {"gradients": {"compat": ["batch_mean"], "chunk": 2}}, "gradients.chunk"),
    ("slug", {"data": {"per_class": 2}}, "data.per_class"),
    ("slug", {"data": {"forget": "f.safetensors", "n_forget": 9}}, "data.n_forget"),
    ("slug", {"data": {"retain": "r.pt", "n_retain": 9}}, "data.n_retain"),
    ("slug", {"data": {"retain": "r.pt"}, "gradients": {"precondition": 0.3}}, "gradients.precondition"),
    ("slug", {"gradients": {"grad_sign": "-"}}, "gradients.grad_sign"),
    ("slug", {"gradients": {"chunk": 2}, "data": {"forget": "f.pt", "retain": "r.pt"}}, "gradients.chunk"),
    ("ca", {"concepts": ["dog"], "images": {"sources": {"dog": "dogs"}, "steps": 5}}, "images.steps"),
    ("ca", {"target": "noise", "anchor_weight": 0.0, "anchors": ["art"]}, "anchors"),
    ("fmn", {"objective": "attention", "anchors": ["art"]}, "anchors"),
    ("fmn", {"words": "concept-and-end"}, "words"),
]


@pytest.mark.parametrize(("name", "values", "told"), IDLE)
def test_what_other_settings_leave_without_effect_is_told(name: str, values: dict[str, Any], told: str) -> None:
    assert list(algorithm(name).config_class.parse(values).unused()) == [told]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("spm", {"train": {"batch_size": 2}, "prompt": {"batch_size": 2}}),
        ("spm", {"train": {"batch_size": 1}, "prompt": {"batch_size": 2}}),
        ("spm", {"prompt": {"anchors": "vocabulary", "anchor_alpha": 2.0, "la_strength": 1e-9}}),
        ("spm", {"prompt": {"anchor_layout": "paper+empty", "sampling_batch_size": 1}}),
        ("spm", {"prompt": {"anchor_layout": "reference", "sampling_batch_size": 2}}),
        ("spm", {"calibrate": {"on": True}, "prompt": {"anchor_alpha": 2.0}}),
        ("spm", {"prompt": {"templates": ["a {}"], "use_template": True, "la_strength": 3.0}}),
        ("spm", {"prompts": [{"target": "dog", "anchor_alpha": 2.0, "anchors": "vocabulary"}]}),
        ("cie", {"data": {"guidance": 3.0}, "train": {"threshold": 0.5}}),
        ("sepce", {"protect": {"leave": 32, "others": ["dog"]}, "basis": {"concept_tol": 0.1}}),
        ("slug", {"search": {"rho_max": 2.0, "on": "model", "images": {"steps": 5}}, "layers": {"max_front": 2}}),
        ("slug", {"gradients": {"compat": ["batch_mean"], "precondition": 0.3, "chunk": 2}, "data.tasks": ["canvas"]}),
        ("slug", {"data": {"forget": "f.safetensors", "n_retain": 9}, "gradients": {"grad_sign": "-", "chunk": 2}}),
        ("slug", {"data": {"forget": "f.safetensors"}, "gradients": {"precondition": 0.3}}),
        ("ca", {"concepts": ["dog", "cat"], "images": {"sources": {"dog": "dogs"}, "steps": 5}}),
        ("ca", {"target": "noise", "anchor_weight": 0.0, "anchors": ["art"], "noised": "anchors"}),
        *((name, {"calibrate": {"on": True, "weight": 1.0}}) for name in ("esd", "ca")),
        ("uce", {"calibrate": {"on": True, "left": 0.2}}),
        ("fmn", {"anchors": ["art"]}),
        ("fmn", {"objective": "attention", "words": "concept-and-end"}),
    ],
)
def test_control_what_has_an_effect_is_not_told(name: str, values: dict[str, Any]) -> None:
    assert algorithm(name).config_class.parse({}, values).notes() == []


# -- what is known once the model or the bank is ---------------------------------------------------------------------


class Loaded(Exception):
    """Ends a search behind its notes."""


def told_of(name: str, values: dict[str, Any], model: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> list[str]:
    """The settings that a search for "neon" on ``model`` tells of; it ends when it has loaded the model."""
    chosen = algorithm(name)
    work = chosen(chosen.config_class.parse(values, {} if name == "spm" else {"concepts": ["neon"]}), model=model)

    def loaded(*_: Any) -> None:
        raise Loaded

    for home, first in (("semipermeable_membrane", "SemipermeableMembraneDataHandler"),
                        ("separable_concept_erasure", "SeparableConceptErasureDataHandler"),
                        ("single_layer_unlearning_gradient", "SingleLayerUnlearningGradientDataHandler")):  # fmt: skip
        monkeypatch.setattr(f"mu.algorithms.{home}.algorithm.{first}", loaded)
    caplog.clear()
    with pytest.raises(Loaded):
        work.find_edit()
    lines = [record.getMessage() for record in caplog.records if "no effect" in record.message]
    return [each for line in lines for each in line.split(" ha")[0].split(", ")]


@pytest.fixture(scope="module")
def clip() -> Any:
    return mu.load("canvas-clip", device="cpu")


@pytest.mark.parametrize(
    ("name", "values", "model", "told"),
    [
        ("slug", {"clip": "open_clip:ViT-B-32/openai"}, "clip", ["clip"]),
        ("slug", {"search": {"on": "model"}}, "clip", ["search.on"]),
        ("slug", {"search": {"on": "model", "images": {"steps": 5}}}, "clip", ["search.on", "search.images.steps"]),
        ("slug", {"model": "canvas-clip", "clip": "canvas-clip"}, "clip", []),
        ("spm", {"prompt": {"dynamic_crops": True}}, "tiny", ["prompt.dynamic_crops"]),
        ("spm", {"prompts": [{"target": "neon", "dynamic_crops": True}]}, "tiny", ["prompt.dynamic_crops"]),
        ("spm", {"prompt": {"dynamic_crops": True}}, "tiny_xl", []),
        ("spm", {"prompt": {"dynamic_resolution": True}}, "tiny", ["prompt.dynamic_resolution"]),
        (
            "spm",
            {"prompts": [{"target": "neon", "dynamic_resolution": True, "resolution": 96}]},
            "tiny_xl",
            ["prompt.dynamic_resolution"],
        ),
        ("spm", {"prompt": {"dynamic_resolution": True, "resolution": 128}}, "tiny", []),
        ("sepce", {"protect": {"sentences": 1.0}}, "tiny", ["protect.sentences"]),
        ("sepce", {"protect": {"mend": 5}}, "tiny", ["protect.mend"]),
        ("sepce", {"protect": {"gate": "never"}}, "tiny", ["protect.gate"]),
        ("sepce", {"protect": {"templates": ["a {}"]}}, "tiny", ["protect.templates"]),
        ("sepce", {"protect": {"erased": "nearly", "leave": 32}}, "tiny", ["protect.erased", "protect.leave"]),
        ("sepce", {"protect": {"others": ["dog"], "templates": ["a {}"], "leave": 32}}, "tiny", []),
    ],
)
def test_what_the_model_or_no_bank_leaves_without_effect_is_told(
    name: str, values: dict[str, Any], model: str, told: list[str], request: Any, monkeypatch: Any, caplog: Any
) -> None:
    assert told_of(name, values, request.getfixturevalue(model), monkeypatch, caplog) == told


@pytest.mark.parametrize(("concepts", "known"), [(["neon", "star"], []), (["neon"], ["moon"])])
def test_control_what_other_concepts_or_a_bank_need_is_not_told(concepts: list[str], known: list[str]) -> None:
    chosen: Any = algorithm("sepce")
    values = {"concepts": concepts, "protect": {"sentences": 1.0, "erased": "nearly", "templates": ["a {}"]}}
    work = chosen(values)
    work.restorable = known
    assert work.notes() == []
    work.restorable, work.config = [], work.config.merged({"concepts": ["neon"]})
    assert len(work.notes()) == 2


@pytest.mark.parametrize("preset", algorithm("sepce").presets)
def test_no_preset_of_sepce_is_told_that_one_concept_is_alone(preset: str) -> None:
    assert algorithm("sepce")(algorithm("sepce").for_concepts(["neon"], None, preset)).notes() == []


def test_what_nobody_gave_is_not_told_for_a_model_whose_preset_has_another_value() -> None:
    chosen: Any = algorithm("sepce")
    values = {"model": "canvas", "concepts": ["neon"]}
    assert chosen(chosen.config_class.parse({}, values)).notes() == []
    (told,) = chosen(chosen.config_class.parse({}, values | {"protect.sentences": 7.0})).notes()  # control
    assert told.startswith("protect.sentences has no effect")


# -- what changes the edit --------------------------------------------------------------------------------------------

SHORT = {"train.iterations": 1, "train.lr": 0.01}
GUIDED = SHORT | {"denoising_steps": 2}
IMAGES = SHORT | {"images.steps": 1, "images.count": 1, "anchors": ["moon"]}
RELEASED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("esd", GUIDED, {"sampler": "model"}),
    ("esd", GUIDED, {"train.counting": "index"}),
    ("esd", GUIDED, {"train.weight_decay": 0.5}),
    ("esd", GUIDED, {"train.max_grad_norm": 1e-9}),
    ("ca", IMAGES | {"train.iterations": 2}, {"target": "current"}),
    ("ca", IMAGES, {"parameters": "keys-and-values"}),
    ("ca", IMAGES, {"target": "noise"}),
    ("ca", IMAGES, {"noised": "anchors"}),
    ("ca", IMAGES, {"wording": "style"}),
    ("ca", IMAGES, {"start_token": "detached"}),
    ("ca", IMAGES, {"prior_weight": 1.0}),
    ("ca", IMAGES, {"train.batch_size": 2}),
    ("ca", IMAGES | {"target": "noise", "anchor_weight": 0.0, "noised": "anchors"}, {"anchors": ["photo"]}),
    ("fmn", IMAGES | {"objective": "attention"}, {"objective": "attention-norm"}),
    ("fmn", IMAGES | {"objective": "attention"}, {"words": "concept-and-end"}),
    ("fmn", IMAGES, {"parameters": "unet"}),
]


@cache
def edit_of(name: str, settings: frozenset[tuple[str, str]], model: Any) -> dict[str, Any]:
    """The tensors of an edit by ``settings``, each value as its repr."""
    values = {key: ast.literal_eval(value) for key, value in settings} | {"concepts": ["neon"]}
    chosen = algorithm(name)
    edit: Any = chosen(chosen.config_class.parse({}, values), model=model).find_edit()
    return edit.tensors()


@pytest.mark.parametrize(("name", "plain", "changed"), RELEASED)
def test_what_released_programs_do_otherwise_changes_the_edit(
    name: str, plain: dict[str, Any], changed: dict[str, Any], tiny: Any
) -> None:
    def found(values: dict[str, Any]) -> dict[str, Any]:
        return edit_of(name, frozenset((key, repr(value)) for key, value in values.items()), tiny)

    before, after = found(plain), found(plain | changed)
    assert before.keys() != after.keys() or any(not before[k].equal(after[k]) for k in before)


@pytest.mark.parametrize("name", ["esd", "ca"])
def test_control_the_same_settings_give_the_same_edit(name: str, tiny: Any) -> None:
    settings = frozenset((key, repr(value)) for key, value in next(p for n, p, _ in RELEASED if n == name).items())
    before, after = edit_of(name, settings, tiny), edit_of.__wrapped__(name, settings, tiny)
    assert before is not after and all(before[k].equal(after[k]) for k in before)


# -- where it is told -------------------------------------------------------------------------------------------------

QUICK = {"train": {"iterations": 1, "max_denoising_steps": 2, "optimizer_type": "AdamW"}}
SCRIPT = """
from mu.algorithms.semipermeable_membrane.algorithm import SemipermeableMembraneAlgorithm as SPM
settings = {"pretrained_model": {"ckpt_path": "canvas"}, "devices": "cpu", "train": {"iterations": 1,
            "max_denoising_steps": 2, "optimizer_type": "AdamW"}}
SPM(settings, output_dir="out", use_sample=True, other={"use_xformers": True}, wandb_run="mine").run()
"""


def test_a_script_without_any_set_up_shows_it_and_the_log_keeps_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    (log,) = tmp_path.rglob("log.txt")
    for told in (
        "use_sample has no effect: SPM needs only the concept's name and reads no dataset",
        "other.use_xformers has no effect: PyTorch's own memory-efficient attention is always used",
        "wandb_run has no effect: W&B is off",
    ):
        assert done.stderr.count(told) == 1 and log.read_text().count(told) == 1
    assert "unet_lr" not in done.stderr + log.read_text()  # control


@pytest.mark.parametrize("verbose", [True, False])
def test_verbose_decides_about_infos_and_never_about_warnings(verbose: bool, tmp_path: Path, tiny: Any) -> None:
    chosen = algorithm("cie")
    logger = logging.getLogger("mu")
    before = logger.level
    settings = {"concepts": ["neon"], "verbose": verbose, "data.steps": 2, "train.left": 0.5, "train.iterations": 1}
    run = chosen(chosen.config_class.parse({}, settings), model=tiny, output_dir=str(tmp_path / "run")).run().run
    told = run.log.read_text()
    assert logger.level == before
    assert ("momentum statistic" in told) == verbose
    assert "train.left has no effect: train.stop is correlation" in told


def test_each_method_tells_it_before_it_begins(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    """`mu.erase` and `find_edit` too; one that calls its parent's tells it once."""
    chosen = algorithm("sepce")

    class Further(chosen):  # type: ignore[misc, valid-type]
        def find_edit(self, run: Any = None, log: Any = None) -> Any:
            return super().find_edit(run, log)

    settings = {"concepts": ["neon"], "protect.leave": 32, "data.steps": 2, "train.iterations": 1}
    Further(chosen.config_class.parse({}, settings), model=tiny).find_edit()
    assert [record.levelname for record in caplog.records if "protect.leave" in record.message] == ["WARNING"]
