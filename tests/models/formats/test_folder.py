"""Folders of diffusers and transformers: no code that lies in one is run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import mu
from mu.core.errors import ModelError
from mu.evaluation.judges import open_judge
from mu.models.places import EMBEDDED, PIPELINE


def written(folder: Path, file: str, **changes: object) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | changes))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that a library asks on the terminal; each is answered with yes."""
    found: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text="": found.append(text) or "y")
    return found


def code(folder: Path, kind: str, ran: Path) -> None:
    """Code in ``folder`` that leaves the file ``ran``, named as the class for ``kind``."""
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: pass\n")
    for file in ("config.json", "tokenizer_config.json"):
        if (folder / file).exists():
            named = {kind: ["own.Own", None] if kind == "AutoTokenizer" else "own.Own"}
            written(folder, file, auto_map=named, model_type="own")


@pytest.mark.parametrize(("part", "kind"), [("text_encoder", "AutoModel"), ("tokenizer", "AutoTokenizer")])
def test_a_pipeline_s_own_code_is_refused(
    part: str, kind: str, tiny_folder: Path, tmp_path: Path, asked: list[str]
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    written(folder, PIPELINE, **{part: ["transformers", kind]})
    code(folder / part, kind, tmp_path / "ran")
    with pytest.raises(ModelError, match=part):
        mu.load(folder, device="cpu")
    assert not asked and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["NoSuchModel", "CLIPTextConfig", "load_file"])
def test_what_is_no_architecture_is_refused(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    mu.load(folder, device="cpu")  # control
    written(folder, PIPELINE, text_encoder=["transformers", name])
    with pytest.raises(ModelError, match="no such architecture"):
        mu.load(folder, device="cpu")


def test_a_classifier_s_own_code_is_not_run(tmp_path: Path, asked: list[str]) -> None:
    folder = shutil.copytree(EMBEDDED["canvas-judge"], tmp_path / "judge")
    code(folder, "AutoModelForImageClassification", tmp_path / "ran")
    with pytest.raises(ModelError, match="cannot be read"):
        open_judge(f"classifier:{folder}", "cpu")
    assert not asked and not (tmp_path / "ran").exists()


def test_the_refiner_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    lists = {"text_encoder": [None, None], "tokenizer": [None, None]}
    second = {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": ["transformers", "X"]}
    written(folder, PIPELINE, **lists, **second)
    with pytest.raises(ModelError, match="refiner"):
        mu.load(folder, device="cpu")
    written(folder, PIPELINE, text_encoder_2=[None, None])
    with pytest.raises(ModelError, match="does not say what its text_encoder is"):  # control
        mu.load(folder, device="cpu")
