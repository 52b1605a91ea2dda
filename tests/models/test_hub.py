"""Models by hub id: what the repository holds decides, with a cache and a hub that are folders here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import CLIPImageProcessorPil

import mu
from mu.core.errors import ModelError
from mu.evaluation.judges import open_judge
from mu.models import hub
from mu.models.canvas import architecture
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel
from mu.models.formats.folder import variant_of
from mu.models.judge import Judge
from mu.models.places import EMBEDDED
from mu.models.vision_language import VisionLanguageModel

CLIP, LLAVA, PIPELINE = "openai/clip-vit-base-patch32", "llava-hf/llava-1.5-7b-hf", "CompVis/stable-diffusion-v1-4"
COMMIT = "0" * 40


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[str, Path]:
    """The three kinds with random weights, as their repositories hold them."""
    home = tmp_path_factory.mktemp("published")
    clip, llava = home / "clip", home / "llava"
    processor = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer, chat = architecture.new_tokenizer(), architecture.new_chat_tokenizer(["USER: ASSISTANT: a star"])
        model = architecture.new_clip(tokenizer)
        for folder, parts in (
            (clip, (model, tokenizer)),
            (llava, (architecture.new_vision_language(model.config, chat), chat)),
        ):
            for part in (*parts, processor):
                part.save_pretrained(folder)
    return {CLIP: clip, LLAVA: llava, PIPELINE: tiny_folder}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def put(cache: Path, name: str, folder: Path) -> Path:
    """``folder`` as the cache's snapshot of the repository ``name``."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(folder, repository / "snapshots" / COMMIT))


KINDS: dict[str, type] = {CLIP: ClipModel, LLAVA: VisionLanguageModel, PIPELINE: DiffusionModel}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_cached_loads_without_a_network_as_what_it_is(
    name: str, cache: Path, published: dict[str, Path]
) -> None:
    with pytest.raises(ModelError) as caught:
        mu.load(name, device="cpu")
    assert repr(name) in str(caught.value) and "'canvas'" in str(caught.value), "control: the cache was empty"
    assert "\n" not in str(caught.value)
    put(cache, name, published[name])
    found = mu.load(name, device="cpu")
    assert isinstance(found, KINDS[name])
    assert found.name == name, "an edit says by this name what it was found on"


@pytest.mark.parametrize("name", [CLIP, LLAVA])
def test_from_the_hub_comes_what_transformers_reads_and_no_more(
    name: str, cache: Path, published: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights stand in such a repository for several libraries, gigabytes each."""
    others = [
        "README.md",
        "pytorch_model.bin",
        "tf_model.h5",
        "flax_model.msgpack",
        "onnx/model.onnx",
        ".gitattributes",
    ]
    own = [path.name for path in published[name].iterdir()]
    asked: list[str] = []

    def snapshot_download(repository: str, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(put(cache, repository, published[name]))

    files = [SimpleNamespace(rfilename=file) for file in (*others, *own)]
    monkeypatch.setattr(
        hub, "HfApi", lambda: SimpleNamespace(model_info=lambda *_, **__: SimpleNamespace(siblings=files))
    )
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert isinstance(mu.load(name, device="cpu"), KINDS[name])
    assert sorted(asked) == sorted(own)


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (["config.json", "pytorch_model.bin", "tf_model.h5"], ["pytorch_model.bin"]),
        (
            ["config.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors", "pytorch_model.bin"],
            ["model-1-of-2.safetensors", "model-2-of-2.safetensors"],
        ),
        (
            ["config.json", "open_clip_config.json", "model.safetensors", "open_clip_model.safetensors"],
            ["model.safetensors"],
        ),
        (
            ["open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"],
            ["open_clip_model.safetensors"],
        ),
    ],
)
def test_the_weights_are_taken_in_one_form(files: list[str], weights: list[str]) -> None:
    assert [file for file in hub._needed(files) if not file.endswith(".json")] == weights


def test_what_is_neither_is_one_line(cache: Path, tmp_path: Path, published: dict[str, Path]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    put(cache, "google/bert", other)
    with pytest.raises(ModelError, match=r"google/bert.*'bert'"):
        mu.load("google/bert", device="cpu")
    cut = put(cache, CLIP, published[CLIP])
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="openai--clip-vit-base-patch32"):
        mu.load(CLIP, device="cpu")


@pytest.mark.parametrize("place", ["notes.txt", "models/notes.txt", "models/list.csv"])
def test_a_local_file_is_never_taken_for_a_hub_id(
    place: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        mu.load(place, device="cpu")
    assert "a text file" not in str(caught.value), "control: it is not there"
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).write_text("prompt\na star in neon style\n")
    with pytest.raises(ModelError, match=r"a text file, not a model") as caught:
        mu.load(place, device="cpu")
    assert repr(place) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_canvas(name: str, cache: Path) -> None:
    with pytest.raises(ModelError, match="name is empty"):
        mu.load(name, device="cpu")


@pytest.mark.parametrize(
    ("files", "variant"),
    [
        (["model.fp16.safetensors", "config.json"], "fp16"),
        (["model.safetensors", "model.fp16.safetensors"], None),
        (["diffusion_pytorch_model.non_ema.bin"], "non_ema"),
        (["diffusion_pytorch_model.fp16-00001-of-00002.safetensors"], "fp16"),
        (["diffusion_pytorch_model.safetensors.index.fp16.json"], "fp16"),
        (["diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model.fp16.bin"], None),
        (["pytorch_model.bin", "model.fp16.safetensors"], None),
        (["config.json"], None),
    ],
)
def test_the_variant_follows_from_the_names(files: list[str], variant: str | None) -> None:
    assert variant_of(files, "a folder") == variant


def test_a_repository_of_one_variant_loads_whole(
    cache: Path, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hub id: the hub's list of files decides what is asked for, and the snapshot is loaded with its weights."""
    halves = Path(shutil.copytree(tiny_folder, tmp_path / "halves"))
    for part in ("unet", "vae", "text_encoder"):
        for file in (halves / part).glob("*.safetensors"):
            file.rename(file.with_suffix(".fp16.safetensors"))
    asked: list[Any] = []

    def download(name: str, **how: Any) -> str:
        asked.append(how)
        return str(put(cache, name, halves))

    names = [path.relative_to(halves).as_posix() for path in halves.rglob("*") if path.is_file()]
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
    index = json.loads((halves / "model_index.json").read_text())
    with monkeypatch.context() as patch:
        patch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=lambda *_, **__: info))
        patch.setattr("diffusers.DiffusionPipeline.load_config", lambda *_, **__: index)
        patch.setattr("diffusers.DiffusionPipeline.download", download)
        found = mu.load(PIPELINE, device="cpu")
    assert asked == [{"variant": "fp16"}]
    plain = mu.load(tiny_folder, device="cpu")
    for part, module in plain.components.items():
        loaded = found.components[part].state_dict()
        assert all(torch.equal(value, loaded[name]) for name, value in module.state_dict().items())
    again = mu.load(PIPELINE, device="cpu")  # from the cache, without a list of files
    assert torch.equal(again.unet.conv_in.weight, plain.unet.conv_in.weight)


def test_a_failed_download_says_why(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> str:
        raise OSError("No space left on device")

    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename="config.json")])
    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=lambda *_, **__: info))
    monkeypatch.setattr(hub, "snapshot_download", full)
    with pytest.raises(ModelError, match=r"clip-vit-base-patch32' .*\(No space left on device\)"):
        mu.load(CLIP, device="cpu")


def test_a_classifier_comes_from_the_hub_as_other_models_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, own = "someone/judge", EMBEDDED["canvas-judge"]
    with pytest.raises(ModelError) as caught:
        Judge.open(name)
    told = str(caught.value)
    assert repr(name) in told and "machine with network, and name a folder" in told and "disk" not in told

    def snapshot_download(repository: str, allow_patterns: list[str]) -> str:
        assert sorted(allow_patterns) == ["config.json", "model.safetensors", "preprocessor_config.json"]
        return str(put(cache, repository, own))

    files = [SimpleNamespace(rfilename=path.name) for path in own.iterdir()]
    with monkeypatch.context() as patch:
        info = SimpleNamespace(siblings=[*files, SimpleNamespace(rfilename="tf_model.h5")])
        patch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=lambda *_, **__: info))
        patch.setattr(hub, "snapshot_download", snapshot_download)
        classes = Judge.open(name).classes
    assert classes == Judge.open(own).classes == Judge.open(name).classes  # the last from the cache
    assert "Loading" not in capsys.readouterr().err


JUDGE = "someone/judge"
OPENED = {
    "the model": lambda: mu.load(CLIP, device="cpu"),
    f"clip:{CLIP}": lambda: open_judge(f"clip:{CLIP}", "cpu"),
    f"classifier:{JUDGE}": lambda: open_judge(f"classifier:{JUDGE}", "cpu"),
    "mu classifier score": lambda: Judge.open(JUDGE),
}


@pytest.mark.parametrize("what", OPENED)
def test_models_and_judges_do_not_wait_for_a_hub_that_does_not_answer_where_the_cache_has_them(
    what: str, cache: Path, published: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def silent(name: str, timeout: float) -> Any:
        waited.append(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=silent))
    with pytest.raises(ModelError, match=r"not in the local cache .*network.*\(timed out\)") as caught:
        OPENED[what]()
    assert "\n" not in str(caught.value) and waited == [hub.WAIT], "control: the cache was empty"
    put(cache, CLIP, published[CLIP])
    put(cache, JUDGE, EMBEDDED["canvas-judge"])
    waited.clear()
    assert OPENED[what]()
    assert waited == [hub.WAIT_CACHED] and hub.WAIT_CACHED <= 2
