"""Bad input ends with code 2 and one line; Ctrl-C with 130; a defect keeps its traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mu.models import EMBEDDED

ROOT = Path(__file__).resolve().parents[2]

# What is typed (`{tiny}`, `{run}`, `{tmp}` are folders), and what the line must say.
BAD_INPUT = {
    "unknown method": ("erase smp --concept x", "'spm'"),
    "unknown model": ("erase spm --concept x --model canvs --preset canvas --out {tmp}/r", "'canvas'"),
    "unknown preset": ("erase spm --concept x --preset canvs", "canvas"),
    "unknown preset to print": ("config spm --preset canvs", "'canvas'"),
    "unknown setting": ("erase spm --concept x --set train.iteratons=3", "'iterations'"),
    "setting of another type": ("erase spm --concept x --set train.iterations=few", "train.iterations"),
    "setting without a value": ("erase spm --concept x --set train.iterations", "--set"),
    "empty concept": ("erase spm --concept= ", "concept"),
    "no concept": ("erase spm", "--concept"),
    "settings file and model": ("erase spm --config a.yaml --model canvas", "--set"),
    "missing settings file": ("erase spm --config {tmp}/none.yaml", "{tmp}/none.yaml"),
    "finished run": ("erase spm --concept x --model {tiny} --preset canvas --out {run}", "{run}"),
    "missing edit": ("generate --prompt x --model {tiny} --edit {tmp}/none.safetensors", "{tmp}/none.safetensors"),
    "truncated edit": ("generate --prompt x --model {tiny} --edit {tmp}/cut.safetensors", "{tmp}/cut.safetensors"),
    "truncated edit shown": ("info {tmp}/cut.safetensors", "{tmp}/cut.safetensors"),
    "no prompt column": ("generate --prompts {tmp}/words.csv --model {tiny}", "'prompt'"),
    "no prompt": ("generate --model {tiny}", "--prompts"),
    "two kinds of prompts": ("generate --prompt x --prompts {tmp}/words.csv", "--prompts"),
    "too many strengths": ("generate --prompt x --model {tiny} --edit {run} --strength 1 --strength 2", "2"),
    "strength without edit": ("generate --prompt x --model {tiny} --strength 1", "1"),
    "strength is no number": ("generate --prompt x --strength much", "--strength"),
    "unknown gate": ("generate --prompt x --gate non", "'facilitated_transport'"),
    "factor without its gate": ("generate --prompt x --factor 2", "--gate facilitated_transport"),
    "size that is none": ("generate --prompt x --size big", "512x768"),
    "size that does not fit": ("generate --prompt x --model {tiny} --size 63x64 --out {tmp}/p", "63"),
    "unknown precision": ("generate --prompt x --model {tiny} --precision float12", "float16"),
    "unknown device": ("generate --prompt x --model {tiny} --device tpux", "'tpux'"),
    "pictures that exist": ("generate --prompt x --model {tiny} --out {tmp}/pictures", "{tmp}/pictures/0_0.png"),
    "unknown suite": ("evaluate {run} --suite canvs --model {tiny}", "'canvas'"),
    "seeds that are none": ("evaluate {run} --seeds 1,b", "--seeds"),
    "evaluate without a run": ("evaluate {tmp}/none", "{tmp}/none"),
    "report without a run": ("report {tmp}/none", "{tmp}/none"),
    "report without a name": ("report", "RUN"),
    "unknown format": ("merge {run} --model {tiny} --format koya --out {tmp}/x.safetensors", "kohya"),
    "merge onto a file": (
        "merge {run} --model {tiny} --format kohya --out {tmp}/cut.safetensors",
        "{tmp}/cut.safetensors",
    ),
    "cite nothing known": ("cite spn", "'spm'"),
    "unknown stage": ("canvas train --stages clip,unit --out {tmp}/c", "'unet'"),
    "steps of an unknown stage": ("canvas train --steps unit=3 --out {tmp}/c", "'unet'"),
    "unknown layout": ("canvas render coco {tmp}/c", "'celeba'"),
    "full folder": ("canvas render celeba {tmp}", "{tmp}"),
    "negative seed": ("canvas render celeba {tmp}/new --seed -1", "-1"),
    "model that is a text": ("generate --prompt x --model {tmp}/words.csv", "{tmp}/words.csv"),
    "settings in a folder": ("erase spm --config {tmp}", "{tmp}"),
    "size of nothing": ("generate --prompt x --model {tiny} --size 0x64", "512x768"),
    "more steps than there are": ("generate --prompt x --model {tiny} --steps 2000 --out {tmp}/p", "2000"),
    "strength that is no number": (
        "merge {run} --model {tiny} --format kohya --strength nan --out {tmp}/x.safetensors",
        "nan",
    ),
    "guidance that is no number": ("generate --prompt x --model {tiny} --guidance nan --out {tmp}/p", "nan"),
    "pictures into a file": ("generate --prompt x --model {tiny} --out {tmp}/words.csv", "{tmp}/words.csv"),
    "the same edit twice": (
        "merge {run} {run} --model {tiny} --format kohya --out {tmp}/x.safetensors",
        "'neon style'",
    ),
    "damaged records": ("evaluate {tmp}/odd", "environment.json"),
    "bank that is a file": ("bank list --bank {tmp}/words.csv", "bank.json"),
    "compare without a run": ("compare {tmp}/none", "{tmp}/none"),
    "gradients into a file": ("gradients --retain canvas --out {tmp}/words.csv/x.safetensors", "{tmp}/words.csv"),
    "classifier into a file": (
        "classifier train --train {tmp}/sets --eval {tmp}/sets --out {tmp}/words.csv",
        "{tmp}/words.csv",
    ),
    "classifier that is none": ("classifier score {tmp}/sets {tmp}/sets", "{tmp}/sets"),
    "an option and its setting": ("erase esd --concept x --set concepts=[y]", "--concept and --set concepts=['y']"),
    "an option and its setting, of SPM": ("erase spm --concept x --set template_name=y", "--set template_name='y'"),
    "two folders": ("erase uce --concept x --out {tmp}/r --set output_dir=s", "--out and --set output_dir="),
    "two folders of SPM": ("erase spm --concept x --out {tmp}/r --set run_dir=s", "--out and --set run_dir="),
    "two models": (
        "erase spm --concept x --model {tiny} --set pretrained_model={{ckpt_path:\u00a0y}}",
        "--model and --set",
    ),
    "two precisions": (
        "erase esd --concept x --precision float16 --set train={{precision:\u00a0float32}}",
        "--precision and --set train.precision='float32'",
    ),
    "two devices": ("erase fmn --concept x --device cpu --set devices=0", "--device and --set devices='0'"),
    "two forget sets": (
        "gradients --forget canvas --concept x --out {tmp}/g.safetensors --set data.forget=y",
        "--forget and --set data.forget='y'",
    ),
    "a setting twice": ("erase spm --concept x --set seed=1 --set seed=2", "'seed' twice"),
    "a last seed that is too high": (
        "generate --prompt x --model {tiny} --seed 18446744073709551615 --n 2 --out {tmp}/p",
        "seed 18446744073709551615 ",
    ),
    "a last seed of a forget set that is too high": (
        "data forget-set --name x --model {tiny} --seed 18446744073709551600 --n-imgs 17 --out {tmp}/p",
        "--seed 18446744073709551600 ",
    ),
    "unknown verb": ("eras spm", "'eras'"),
    "unknown option": ("--loud", "--loud"),
}


@pytest.fixture
def places(tmp_path: Path, tiny_folder: Path, finished: Path) -> dict[str, Path]:
    (tmp_path / "cut.safetensors").write_bytes((finished / "edit.safetensors").read_bytes()[:300])
    (tmp_path / "words.csv").write_text("words,seed\nneon star,1\n", encoding="utf-8")
    for name in ("pictures", "odd", "sets/star", "sets/fish"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(finished / "edit.safetensors", tmp_path / "odd")
    (tmp_path / "odd" / "environment.json").write_text("[]", encoding="utf-8")
    for name in ("star", "fish"):
        (tmp_path / "sets" / name / "0.png").write_bytes(b"a picture")
    (tmp_path / "pictures" / "0_0.png").write_bytes(b"kept")
    return {"tmp": tmp_path, "tiny": tiny_folder, "run": finished}


@pytest.mark.parametrize(("typed", "told"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line(typed: str, told: str, places: dict[str, Path], cli: Any, as_kept: Any) -> None:
    ended = cli(*(word.format(**places).replace("\u00a0", " ") for word in typed.split(" ") if word))
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.exit_code == 2, ended.output
    assert len(errors) == 1 and told.format(**places) in errors[0], ended.stderr
    assert "Traceback" not in ended.output
    assert ended.stderr.endswith(errors[0] + "\n") and ended.stdout == ""
    as_kept(typed, errors[0], places)


def test_what_was_refused_is_untouched(places: dict[str, Path], cli: Any) -> None:
    kept = places["tmp"] / "pictures" / "0_0.png"
    cli("generate", "--prompt", "x", "--model", places["tiny"], "--out", kept.parent)
    assert kept.read_bytes() == b"kept"
    assert [path.name for path in kept.parent.iterdir()] == ["0_0.png"]


TRAIN = "--train {tmp}/sets --eval {tmp}/sets"
# What is typed where `{out}` is a place that takes no files.
WRITING = {
    "generate": "generate --prompt x --model {tiny} --steps 1 --out {out}",
    "one LoRA": "merge {run} --model {tiny} --format kohya --out {out}/x.safetensors",
    "merged folder": "merge {run} --model {tiny} --format diffusers --out {out}/x",
    "merged file": "merge {run} --model {tiny} --format unet --out {out}/x.ckpt",
    "erase": "erase spm --concept x --model {tiny} --preset canvas --out {out}",
    "report": "report {run} --out {out}/x.html",
    "bank": "bank add {run} --model {tiny} --bank {out}",
    "forget set": "data forget-set --name x --model {tiny} --steps 1 --n-imgs 1 --out {out}",
    "render": "canvas render celeba {out} --n 1",
    "classifier": f"classifier train {TRAIN} --out {{out}}",
}


@pytest.mark.parametrize("typed", WRITING.values(), ids=WRITING)
def test_what_cannot_be_written_is_told_in_one_wording(
    typed: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "a partial file that nobody named")

    for name in ("mkstemp", "mkdtemp"):
        monkeypatch.setattr(f"tempfile.{name}", refused)
    out = places["tmp"] / "locked"
    ended = cli(*(word.format(**places, out=out) for word in typed.split(" ")))
    assert ended.exit_code == 2, ended.output
    last = ended.stderr.splitlines()[-1]
    assert re.fullmatch(rf"error: .*{re.escape(str(out))}\S*.* Permission denied", last), ended.stderr


def test_what_is_read_only_is_told_before_the_work(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    """Hours may lie between the command and the writing."""
    monkeypatch.setattr("os.access", lambda path, mode, **_: mode != os.W_OK)
    for typed in (
        WRITING["generate"],
        "gradients --retain canvas --out {out}/x.safetensors",
        "evaluate {run} --model {tiny}",
    ):
        ended = cli(*(word.format(**places, out=places["tmp"] / "locked") for word in typed.split(" ")))
        assert ended.exit_code == 2 and len(ended.stderr.splitlines()) == 1, ended.stderr
        assert ended.stderr.startswith("error: ") and str(places["tmp" if "{out}" in typed else "run"]) in ended.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_device_is_told_only_where_there_is_a_model(places: dict[str, Path], cli: Any) -> None:
    common = (
        "merge",
        places["run"],
        "--format",
        "kohya",
        "--device",
        "cuda",
        "--out",
        places["tmp"] / "x.safetensors",
        "--model",
    )
    refused = cli(*common, places["tmp"] / "cut.safetensors")
    assert refused.exit_code == 2 and len(refused.stderr.splitlines()) == 1, refused.stderr
    assert "'cuda'" in cli(*common, places["tiny"]).stderr  # control


def test_an_edit_of_another_kind_of_model_is_refused_before_the_base_is_measured(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    if not EMBEDDED["canvas-clip"].exists():
        pytest.skip("the embedded model's weights are not in this checkout")
    ended = cli("evaluate", places["run"], "--model", "canvas-clip")
    assert ended.exit_code == 2 and len(ended.stderr.splitlines()) == 1
    assert "'canvas-clip'" in ended.stderr


def test_in_a_process_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mu", "cite", "spn"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: ") and "'spm'" in done.stderr


def test_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Any) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mu.demo.run", stopped)
    ended = cli("demo", "--out", tmp_path)
    assert ended.exit_code == 130
    assert len(ended.stderr.splitlines()) == 1 and ended.stderr.startswith("interrupted:")


def test_interrupted_process_keeps_what_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "faces"
    running = subprocess.Popen(
        [sys.executable, "-m", "mu", "canvas", "render", "celeba", str(out), "--n", "1000"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not list(out.glob("*/0*.jpg")) and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=300)
    assert running.returncode == 130
    assert "interrupted: " in told and "Traceback" not in told
    recipe = json.loads((out / "canvas.json").read_text(encoding="utf-8"))
    assert recipe["layout"] == "celeba" and list(out.glob("*/0*.jpg"))


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cli: Any) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("mu.demo.run", broken)
    ended = cli("demo", "--out", tmp_path)
    assert isinstance(ended.exception, ZeroDivisionError)
    assert ended.exit_code == 1 and "error:" not in ended.stderr
