"""Every key of the original YAML files is honoured, refused, or answered in the log; overrides never leak."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from pydantic import BaseModel
from safetensors.torch import load_file

import mu
from mu.algorithms.semipermeable_membrane.algorithm import SemipermeableMembraneAlgorithm
from mu.algorithms.semipermeable_membrane.configs import (
    SemipermeableMembraneConfig,
    SemipermeableMembraneMethod,
    semipermiable_membrane_train_i2p,
    semipermiable_membrane_train_mu,
)
from mu.algorithms.semipermeable_membrane.configs.legacy import (
    LegacyConfig,
    LegacyPromptConfig,
    LegacyTrainConfig,
    LoggingConfig,
    OtherConfig,
)
from mu.core.config import BaseConfig, fields_of, values_set
from mu.core.errors import ConfigError, DataError
from mu.core.program import main
from mu.models import load
from mu.models.diffusion import DiffusionModel
from mu.models.formats import architectures
from tests.conftest import family_member

for_concepts = SemipermeableMembraneAlgorithm.for_concepts
PACKAGE = Path(mu.__file__).parent
SHIPPED = PACKAGE / "algorithms" / "semipermeable_membrane" / "configs" / "train_config.yaml"

# key of the seed document -> a value that is neither its default nor refused, and how it is answered ("checked": like
# honoured,
# where the setting only says what another one is: an unknown value is refused, and no number follows from it)
SEED_KEYS: dict[str, tuple[Any, str]] = {
    "pretrained_model.ckpt_path": ("canvas", "honoured"),
    "pretrained_model.v2": (True, "honoured"),
    "pretrained_model.v_pred": (True, "honoured"),
    "pretrained_model.clip_skip": (2, "honoured"),
    "network.rank": (4, "honoured"),
    "network.alpha": (2.0, "honoured"),
    "train.precision": ("float16", "honoured"),
    "train.noise_scheduler": ("ddpm", "honoured"),
    "train.iterations": (7, "honoured"),
    "train.batch_size": (2, "honoured"),
    "train.lr": (1e-3, "honoured"),
    "train.unet_lr": (5e-3, "refused"),
    "train.text_encoder_lr": (5e-5, "noted"),
    "train.optimizer_type": ("SGD", "honoured"),
    "train.lr_scheduler": ("constant", "honoured"),
    "train.lr_warmup_steps": (3, "honoured"),
    "train.lr_scheduler_num_cycles": (5, "honoured"),
    "train.max_denoising_steps": (9, "honoured"),
    "save.per_steps": (2, "honoured"),
    "save.precision": ("float16", "honoured"),
    "other.use_xformers": (True, "noted"),
    "wandb_project": ("p", "honoured"),
    "wandb_run": ("r", "honoured"),
    "use_sample": (True, "noted"),
    "dataset_type": ("i2p", "checked"),
    "template": ("object", "checked"),
    "template_name": ("self-harm", "honoured"),
    "prompt.target": ("dog", "honoured"),
    "prompt.positive": ("dog", "honoured"),
    "prompt.unconditional": ("bad", "honoured"),
    "prompt.neutral": ("cat", "honoured"),
    "prompt.action": ("erase", "honoured"),
    "prompt.guidance_scale": ("3.0", "honoured"),
    "prompt.resolution": (32, "honoured"),
    "prompt.batch_size": (2, "honoured"),
    "prompt.dynamic_resolution": (True, "honoured"),
    "prompt.la_strength": (10.0, "honoured"),
    "prompt.sampling_batch_size": (8, "honoured"),
    "devices": ("0,1", "honoured"),
    "output_dir": ("elsewhere", "honoured"),
    "verbose": (False, "honoured"),
}
ORIGINAL_KEYS: dict[str, tuple[Any, str]] = {
    "prompts_file": ("prompts.yaml", "honoured"),
    "pretrained_model.name_or_path": ("canvas", "honoured"),
    "train.optimizer_args": (["weight_decay=0.1"], "honoured"),
    "train.lr_scheduler_power": (2.0, "honoured"),
    "train.lr_scheduler_args": ("a=1", "honoured"),
    "train.max_grad_norm": (1e-6, "honoured"),
    "save.name": ("snoopy", "honoured"),
    "save.path": ("there", "honoured"),
    "logging.use_wandb": (True, "honoured"),
    "logging.run_name": ("r", "honoured"),
    "logging.verbose": (True, "noted"),
    "logging.interval": (500, "noted"),
    "logging.prompts": (["a dog"], "noted"),
    "logging.negative_prompt": ("bad", "noted"),
    "logging.anchor_prompt": ("dog", "noted"),
    "logging.anchor_prompts": ("dog", "noted"),
    "logging.width": (512, "noted"),
    "logging.height": (512, "noted"),
    "logging.num_inference_steps": (30, "noted"),
    "logging.guidance_scale": (7.5, "noted"),
    "logging.seed": (0, "noted"),
    "logging.generate_num": (2, "noted"),
    "logging.eval_num": (10, "noted"),
    "logging.intervals": (500, "refused"),
    "inference.use_wandb": (True, "noted"),
    "inference.seed": (3, "noted"),
    "inferences.seed": (3, "refused"),
    "prompt.dynamic_crops": (True, "honoured"),
    "prompt.use_template": (True, "honoured"),
    "prompt.seed": (3, "noted"),
    "prompt.case_number": (3, "noted"),
}


def value_of(config: BaseModel, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


ANSWERS = SEED_KEYS | ORIGINAL_KEYS
# What a setting needs beside it, to make a difference.
BESIDE: dict[str, dict[str, Any]] = {
    "wandb_project": {"logging.use_wandb": True},
    "wandb_run": {"logging.use_wandb": True},
    "logging.run_name": {"logging.use_wandb": True},
    "train.lr_scheduler_power": {"train.lr_scheduler": "polynomial"},
    "prompt.dynamic_resolution": {"prompt.resolution": 192},
    "prompt.dynamic_crops": {"pretrained_model.ckpt_path": "tiny_xl"},
}
SHORT = {
    "train.iterations": 4,
    "train.max_denoising_steps": 3,
    "train.lr": 1e-2,
    "train.lr_warmup_steps": 0,
    "train.optimizer_type": "AdamW",
}
Outcome = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize("key", ANSWERS)
def test_each_key_is_kept_refused_or_answered(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.yaml").write_text("- target: dog\n")
    value, answer = ANSWERS[key]
    if answer == "refused":
        with pytest.raises(ConfigError, match=key.split(".")[-1] if key.startswith("train") else key.split(".s")[0]):
            SemipermeableMembraneConfig.parse({}).merged({key: value})
        return
    config = SemipermeableMembraneConfig.parse({}).merged(BESIDE.get(key, {}) | {key: value})
    assert str(value_of(values_set(config), key)) == str(value)
    noted = any(re.search(rf"\b{key.split('.')[-1]}\b", note) for note in config.notes())
    assert noted == (answer in ("noted", "checked"))
    if answer == "checked":
        with pytest.raises(ConfigError, match=key):
            config.merged({key: "coco"})


@pytest.fixture
def outcome(
    tmp_path: Path,
    tiny: DiffusionModel,
    tiny_xl: DiffusionModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Outcome:
    """``outcome(settings)``: all that can be seen from outside of a short run of the program, but the copy of its
    settings."""
    asked: list[Any] = []

    def loaded(name: str, **how: Any) -> DiffusionModel:
        asked.append((name, how))
        return tiny_xl if name == "tiny_xl" else tiny

    def started(**run: Any) -> Any:
        asked.append((run["project"], run["name"]))
        return SimpleNamespace(log=lambda row: None, finish=lambda: None)

    def contents(path: Path) -> Any:
        return [(name, str(t.dtype), t.shape, t.numpy().tobytes()) for name, t in sorted(load_file(path).items())]

    monkeypatch.setattr("mu.algorithms.semipermeable_membrane.algorithm.load", loaded)
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=started))

    def run(settings: dict[str, Any]) -> dict[str, Any]:
        asked.clear()
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        Path("prompts.yaml").write_text("- target: dog\n")
        Path("settings.yaml").write_text(
            yaml.safe_dump(values_set(SemipermeableMembraneConfig.parse({}, SHORT, settings)))
        )
        with pytest.raises(SystemExit) as ended:
            main(SemipermeableMembraneAlgorithm, ["--config_path", "settings.yaml"])
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        files = {
            str(path): contents(path) if path.suffix == ".safetensors" else "" for path in sorted(Path().rglob("*"))
        }
        level = logging.getLogger("mu").level
        return {"code": ended.value.code, "told": told, "files": files, "asked": list(asked), "level": level}

    return run


@pytest.fixture(scope="module")
def without() -> dict[str, Any]:
    """Outcomes that several tests compare theirs with, by the settings they are of."""
    return {}


@pytest.mark.parametrize("key", [key for key, (_, answer) in ANSWERS.items() if answer == "honoured"])
def test_what_is_honoured_makes_a_difference(key: str, outcome: Outcome, without: dict[str, Any]) -> None:
    beside = BESIDE.get(key, {})
    base = without[str(beside)] = without.get(str(beside)) or outcome(beside)
    assert base["code"] == 0
    assert outcome(beside | {key: ANSWERS[key][0]}) != base


def test_control_what_is_not_honoured_makes_none(outcome: Outcome) -> None:
    """Were a setting read by nothing, this is what the test above would see."""
    others = {key: value for key, (value, answer) in ANSWERS.items() if answer in ("noted", "checked")}
    assert len(others) > 20
    assert outcome(others) == outcome({})


def test_the_shipped_file_holds_the_seeds_keys() -> None:
    def keys(values: dict[str, Any], prefix: str = "") -> set[str]:
        return set().union(
            *(keys(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k} for k, v in values.items())
        )

    assert keys(yaml.safe_load(SHIPPED.read_text())) == set(SEED_KEYS)


def test_numbers_as_yaml_reads_them() -> None:
    """``1e-4`` and ``5e-05`` are texts to YAML, and eta is a text in the original files."""
    config = SemipermeableMembraneConfig.load(SHIPPED)
    assert isinstance(yaml.safe_load("1e-4"), str)  # why this needs a test
    assert (config.train.lr, config.train.old.unet_lr, config.train.old.text_encoder_lr) == (1e-4, 1e-4, 5e-5)
    assert config.prompt.guidance_scale == 1.0
    assert SemipermeableMembraneConfig.parse({"prompt": {"guidance_scale": 2}}).prompt.guidance_scale == 2.0
    for wrong in (
        {"train": {"lr": "fast"}},
        {"train": {"lr": -1}},
        {"prompt": {"guidance_scale": "much"}},
        {"prompt": None},
        {"train": {"iterations": 0}},
    ):
        with pytest.raises(ConfigError) as caught:
            SemipermeableMembraneConfig.parse(wrong)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ({"train": {"iteration": 3}}, "iterations"),
        ({"templatename": "x"}, "template_name"),
        ({"prompt": {"la_strenght": 1}}, "la_strength"),
        ({"prompts": [{"targt": "x"}]}, "target"),
    ],
)
def test_an_unknown_key_names_the_nearest(wrong: dict[str, Any], meant: str) -> None:
    with pytest.raises(ConfigError, match=f"'{meant}'"):
        SemipermeableMembraneConfig.parse(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": {"positive": " "}},
        {"prompt": {"sampling_batch_size": 3, "batch_size": 2}},
        {"train": {"batch_size": 2, "latent_pool": 4}},
        {"train": {"batch_size": 2, "timesteps_per_trajectory": 2}},
        {"prompt": {"use_template": True, "templates": ["no place"]}},
        {"prompt": {"templates": []}},
        {"dataset_type": "coco"},
        {"train": {"noise_scheduler": "pndm"}},
        {"train": {"latent_pool": 4, "timesteps_per_trajectory": 2}},
    ],
)
def test_what_would_erase_nothing_or_contradicts_itself_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SemipermeableMembraneConfig.parse(wrong)


@pytest.mark.parametrize("wrong", [{"prompt": {"target": " "}}, {"template_name": ""}, {"template_name": "__"}])
def test_a_target_must_be_a_concept(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="the concept is empty"):
        SemipermeableMembraneConfig.parse(wrong)


SAME = [
    {"template_name": "Pop_Art", "prompt": {"neutral": "pop  art"}},
    {"prompt": {"target": "dog", "unconditional": "dog"}},
    {"prompts": [{"target": "cat"}, {"target": "dog", "neutral": "Dog "}]},
    {"prompt": {"target": "dog", "positive": "cat", "neutral": "dog", "guidance_scale": 0}},
]
OTHER = [
    {"template_name": "Pop_Art", "prompt": {"neutral": "art"}},
    {"prompt": {"target": "dog", "positive": "cat", "neutral": "dog"}},  # the dog moves away from the cat
    {"template_name": "dog", "prompt": {"neutral": "dog"}, "prompts": [{"target": "cat"}]},  # prompts replace prompt
    {"prompt": {"target": "dog", "unconditional": "dog", "neutral": ""}},
]


@pytest.mark.parametrize("wrong", SAME)
def test_a_neutral_prompt_that_is_the_target_is_refused(wrong: dict[str, Any]) -> None:
    """Eq. 4 would then ask the adapters for what the model predicts already."""
    with pytest.raises(ConfigError, match=r"prompt\.neutral"):
        SemipermeableMembraneConfig.parse(wrong)


@pytest.mark.parametrize("right", OTHER)
def test_a_neutral_prompt_beside_the_target_is_taken(right: dict[str, Any]) -> None:
    assert SemipermeableMembraneConfig.parse(right).entries()


# -- overrides
# --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset",
    [*SemipermeableMembraneMethod.presets.values(), semipermiable_membrane_train_mu, semipermiable_membrane_train_i2p],
)
def test_overrides_never_change_the_preset(preset: SemipermeableMembraneConfig) -> None:
    before = preset.model_dump_json()
    method = SemipermeableMembraneAlgorithm(
        preset, train={"iterations": 2}, template_name="Pop_Art", **{"prompt.la_strength": 3}
    )
    assert method.config.train.iterations == 2
    assert method.config.prompt.la_strength == 3
    assert method.config.train.lr == preset.train.lr
    method.config.train.iterations = 9
    method.config.prompt.target = "dog"
    assert preset.model_dump_json() == before


def test_settings_may_be_edited_by_attribute() -> None:
    """Also in a section that was never set: what pydantic calls unset must not be lost on the way to the run."""
    config = SemipermeableMembraneConfig()
    config.train.iterations = 7
    config.template_name = "Cubism"
    config.prompt.la_strength = 5
    method = SemipermeableMembraneAlgorithm(config, network={"rank": 2})
    assert method.config.train.iterations == 7
    assert method.config.prompt.la_strength == 5
    assert method.config.network.rank == 2
    assert method.config.concept == "Cubism"
    assert SemipermeableMembraneConfig().train.iterations == 3000
    with pytest.raises(ValueError, match="iteration"):
        config.train.iteration = 3  # type: ignore[attr-defined]


def test_settings_may_be_subclassed() -> None:
    class Mine(SemipermeableMembraneConfig):
        template_name: str = "Cubism"

    assert SemipermeableMembraneAlgorithm(Mine(), train={"iterations": 2}).config.entries()[0].target == "Cubism"


@pytest.mark.parametrize(
    ("name", "concept"), [("self-harm", "self-harm"), ("Pop_Art", "Pop Art"), ("any name at all", "any name at all")]
)
def test_template_name_changes_the_target_and_the_file(name: str, concept: str, tmp_path: Path) -> None:
    """Also where the file's alias has written the old name into the prompt section."""
    for base in (
        SHIPPED,
        semipermiable_membrane_train_mu,
        {"template_name": "Old_Name", "prompt": {"target": "Old_Name"}},
    ):
        method = SemipermeableMembraneAlgorithm(base, template_name=name, output_dir=str(tmp_path))
        entry = method.config.entries()[0]
        assert (entry.target, entry.positive) == (concept, concept)
        assert method.final_file == tmp_path / f"semipermeable_membrane_{name}_last.safetensors"
    method = SemipermeableMembraneAlgorithm(SHIPPED, template_name=name, prompt={"target": "a dog"})
    assert method.config.entries()[0].target == "a dog"  # what is said is said


def test_an_alias_of_template_name_is_the_concept(tmp_path: Path) -> None:
    """``template_name: &n Pop_Art`` with ``target: *n`` means what users type: with a space."""
    path = tmp_path / "config.yaml"
    path.write_text(SHIPPED.read_text().replace("Abstractionism", "Pop_Art"))
    entry = SemipermeableMembraneConfig.load(path).entries()[0]
    assert (entry.target, entry.positive) == ("Pop Art", "Pop Art")


def test_the_i2p_settings_name_their_concept() -> None:
    assert semipermiable_membrane_train_i2p.entries()[0].target == "self-harm"
    assert semipermiable_membrane_train_mu.entries()[0].target == "Abstractionism"


def test_concepts_become_settings() -> None:
    one = for_concepts(["van gogh"], "canvas")
    assert one.entries()[0].target == "van gogh"
    assert one.pretrained_model.name == "canvas"
    assert one.train.iterations == SemipermeableMembraneMethod.presets["canvas"].train.iterations
    two = for_concepts(["a", "b"], None, "styles")
    assert [entry.target for entry in two.entries()] == ["a", "b"]
    assert two.gate.factor == 2.0
    with pytest.raises(ConfigError, match="'nope'"):
        for_concepts(["a"], None, "nope")
    again = for_concepts(["dog"], preset=one)
    assert (again.entries()[0].target, again.entries()[0].positive, again.pretrained_model.name) == (
        "dog",
        "dog",
        "canvas",
    )
    with pytest.raises(ConfigError, match=r"\b2\b"):
        for_concepts(["dog"], preset=two)


def test_a_prompts_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text('- target: "snoopy"\n  guidance_scale: "1.0"\n- target: "mickey"\n  neutral: "mouse"\n')
    config = SemipermeableMembraneConfig.parse({"prompts_file": str(path)})
    assert [(e.target, e.positive, e.neutral) for e in config.entries()] == [
        ("snoopy", "snoopy", ""),
        ("mickey", "mickey", "mouse"),
    ]
    for wrong in ("- positive: x\n", "[]\n", "- 3\n", "- {target: x, nonsense: 1}\n"):
        path.write_text(wrong)
        with pytest.raises(ConfigError):
            config.entries()


def test_entries_of_a_prompts_file_are_held_to_what_prompts_are(tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text("- {target: dog, batch_size: 2, sampling_batch_size: 3}\n")
    config = SemipermeableMembraneConfig.parse({"prompts_file": str(path)})
    for ask in (config.entries, config.notes):
        with pytest.raises(ConfigError, match=r"prompts\.yaml.*sampling_batch_size"):
            ask()
    path.write_text("- {target: dog, neutral: dog}\n")
    with pytest.raises(ConfigError, match=r"prompts\.yaml.*prompt\.neutral"):
        config.entries()
    path.write_text("- {target: dog, batch_size: 2}\n- {target: cat, seed: 3}\n")
    assert [entry.sampling_batch_size for entry in config.entries()] == [4, 4]  # control
    assert sum("prompt.seed" in note for note in config.notes()) == 1
    path.write_text("- {target: dog}\n")
    assert not config.notes()


def test_a_file_of_the_original_project_loads_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "prompt.yaml").write_text('- target: "snoopy"\n  guidance_scale: "1.0"\n  use_template: false\n')
    (tmp_path / "config.yaml").write_text(f"""
prompts_file: {tmp_path / "prompt.yaml"}
pretrained_model: {{name_or_path: CompVis/stable-diffusion-v1-4, v2: false, v_pred: false, clip_skip: 1}}
train: {{iterations: 3000, lr: 0.0001, text_encoder_lr: 5e-05}}
save: {{name: snoopy, path: output/snoopy}}
logging: {{use_wandb: true, interval: 500, seed: 0, generate_num: 2, run_name: snoopy, verbose: false, prompts: [snoopy, "", dog]}}
inference: {{negative_prompt: bad}}
other: {{use_xformers: true}}
""")
    config = SemipermeableMembraneConfig.load(tmp_path / "config.yaml")
    assert config.entries()[0].target == "snoopy"
    notes = SemipermeableMembraneAlgorithm(config).config.notes()  # a copy: what was set stays set
    for key in (
        "logging.interval",
        "logging.seed",
        "logging.generate_num",
        "logging.prompts",
        "inference.negative_prompt",
    ):
        assert sum(key in note for note in notes) == 1, key
    assert not any("logging.width" in note for note in notes)


def test_settings_survive_their_own_yaml(tmp_path: Path) -> None:
    for comments in (True, False):
        for preset in SemipermeableMembraneMethod.presets.values():
            (tmp_path / "c.yaml").write_text(preset.to_yaml(comments))
            again = SemipermeableMembraneConfig.load(tmp_path / "c.yaml")
            assert again.model_dump() == preset.model_dump()


def test_a_loaded_model_that_contradicts_the_settings_is_refused(tiny: DiffusionModel) -> None:
    for wrong in ({"v2": True}, {"clip_skip": 2}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            SemipermeableMembraneAlgorithm(
                semipermiable_membrane_train_mu, model=tiny, pretrained_model=wrong
            ).load_model()
    assert (
        SemipermeableMembraneAlgorithm(
            semipermiable_membrane_train_mu, model=tiny, pretrained_model={"clip_skip": 1}
        ).load_model()
        is tiny
    )


def test_v2_is_held_against_the_models_text_width(tiny: DiffusionModel) -> None:
    unet = {
        "block_out_channels": [32, 64],
        "attention_head_dim": [2, 4],
        "norm_num_groups": 8,
        "upcast_attention": False,
    }
    text = {"hidden_size": 1024, "intermediate_size": 32, "num_hidden_layers": 1}
    v2 = family_member(architectures.stable_diffusion_2(), "sd2", unet=unet, text=text)
    for model, other in ((tiny, True), (v2, False)):
        for said in (None, not other):
            assert SemipermeableMembraneAlgorithm(model=model, pretrained_model={"v2": said}).load_model() is model
        with pytest.raises(ConfigError, match=rf"v2 .*{str(other).lower()}.*{model.name!r}"):
            SemipermeableMembraneAlgorithm(model=model, pretrained_model={"v2": other}).load_model()


def test_precision_and_device_of_a_loaded_model(
    tiny: DiffusionModel, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def taken(model: Any, base: Any = None, **overrides: Any) -> bool:
        return SemipermeableMembraneAlgorithm(base, model=model, **overrides).load_model() is model

    half = load(tiny_folder, device="cpu", precision="bfloat16")
    for model, said in ((half, "float32"), (tiny, "fp16")):
        with pytest.raises(ConfigError, match=rf"train\.precision.*\b{said}\b"):
            taken(model, train={"precision": said})
    with pytest.raises(ConfigError, match=r"train\.precision.*\bfloat32\b"):
        taken(half, SHIPPED)  # that file says float32
    with caplog.at_level("WARNING", "mu"):
        assert taken(half) and taken(half, train={"precision": "bf16"}) and taken(tiny, train={"precision": "fp32"})
        assert all(taken(half, preset) for preset in SemipermeableMembraneMethod.presets.values())
        assert taken(tiny, devices="cpu")
        assert not caplog.records
        monkeypatch.setattr("mu.core.compute.pick_device", lambda wanted: torch.device("cuda:1"))
        assert taken(tiny, SemipermeableMembraneMethod.presets["canvas"]) and not caplog.records  # auto is no wish
        assert taken(tiny, devices="1")
    (told,) = [record.getMessage() for record in caplog.records]
    assert re.search(r"(?=.*\bdevices\b)(?=.*\b1\b).*\bcpu\b", told)


def test_a_model_that_is_said_to_predict_v_is_not_changed(tiny: DiffusionModel) -> None:
    for said, found in ((None, "epsilon"), (True, "v_prediction")):
        read = SemipermeableMembraneAlgorithm(None, model=tiny, pretrained_model={"v_pred": said}).load_model()
        assert read.prediction_type == found
        assert tiny.prediction_type == "epsilon"
        assert read.unet is tiny.unet


def test_the_run_tells_the_model_that_it_used(tiny: DiffusionModel) -> None:
    config = semipermiable_membrane_train_mu
    assert SemipermeableMembraneAlgorithm(config).describe()["model"] == "CompVis/stable-diffusion-v1-4"
    assert SemipermeableMembraneAlgorithm(config, model=tiny).describe()["model"] == tiny.name


# -- every key has its answer -------------------------------------------------------------------------------------


def test_every_old_key_has_its_answer() -> None:
    """And is no live setting, and not printed as one."""
    old = {
        LegacyConfig: "",
        LegacyTrainConfig: "train.",
        LegacyPromptConfig: "prompt.",
        LoggingConfig: "logging.",
        OtherConfig: "other.",
    }
    keys = {f"{prefix}{name}" for kind, prefix in old.items() for name in kind.model_fields} - {
        "logging",
        "other",
        "inference",
    }
    assert len(keys) > 20 and keys <= set(ANSWERS)
    live = yaml.safe_load(SemipermeableMembraneConfig.load(SHIPPED).to_yaml())
    assert not set(live) & set(LegacyConfig.model_fields)
    assert not set(live["train"]) & set(LegacyTrainConfig.model_fields) and not set(live["prompt"]) & set(
        LegacyPromptConfig.model_fields
    )
    assert set(values_set(SemipermeableMembraneConfig.load(SHIPPED))) >= {
        "use_sample",
        "wandb_project",
    }  # control: it holds such


def test_old_keys_are_noted_in_python_too(tiny: DiffusionModel, caplog: pytest.LogCaptureFixture) -> None:
    """Once; those of a preset are no word of the user's."""
    chosen = SemipermeableMembraneAlgorithm
    for base, noted in (
        (chosen.for_concepts(["neon"], "canvas", "styles"), 0),
        ({"use_sample": True, "train": {"unet_lr": 1e-4}}, 2),
    ):
        caplog.clear()
        with caplog.at_level("INFO", "mu"):
            chosen(base, model=tiny, **SHORT, **{"prompt.dynamic_resolution": False}).find_edit()
        assert sum("has no effect" in record.message for record in caplog.records) == noted


def test_every_setting_says_what_it_does() -> None:
    def described(config: type[BaseModel]) -> None:
        for name, field in fields_of(config).items():
            assert field.description, f"{config.__name__}.{name}"
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseConfig):
                described(field.annotation)

    described(SemipermeableMembraneConfig)


def test_a_new_template_name_keeps_what_was_set_by_attribute() -> None:
    """The seed documents' way of working: sections are edited in place, then overrides come as keywords."""
    config = SemipermeableMembraneConfig()
    config.train.lr, config.train.iterations, config.gate.factor = 5e-3, 7, 2.0
    merged = config.merged({"template_name": "Cubism"})
    assert (merged.train.lr, merged.train.iterations, merged.gate.factor) == (5e-3, 7, 2.0)
    assert merged.entries()[0].target == "Cubism"


def test_template_neutral_without_templates_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?=.*use_template).*template_neutral"):
        SemipermeableMembraneConfig.parse({"prompt": {"template_neutral": True}})
