"""What the project's first documents print works as printed: both snippets and all forms of the command line.

The model that they name is looked up as a folder first, so that a folder of that name stands for it here.
"""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from runpy import run_module

import pytest
from safetensors import safe_open

from mu.algorithms.semipermeable_membrane.algorithm import SemipermeableMembraneAlgorithm
from mu.core.program import main, parsed, parser

SNIPPET = """
from mu.algorithms.semipermeable_membrane.algorithm import (
    SemipermeableMembraneAlgorithm,
)
from mu.algorithms.semipermeable_membrane.configs import (
    semipermiable_membrane_train_{kind},
    SemipermeableMembraneConfig,
)

algorithm = SemipermeableMembraneAlgorithm(
    semipermiable_membrane_train_{kind},
    output_dir="{out}",
    train={{"iterations": 2}},
    use_sample = True{more}
)
algorithm.run()
"""
I2P = ',\n    dataset_type = "i2p",\n    template_name = "self-harm",'  # with the comma that the document forgot
TRAIN = "mu.algorithms.semipermeable_membrane.scripts.train"
QUICK = "--train.iterations 2 --train.max_denoising_steps 3 --prompt.resolution 64 --prompt.dynamic_resolution false".split()
ROOT = Path(__file__).parents[2]
Run = Callable[[list[str]], tuple[int, str, str]]


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path) -> Path:
    """A working directory as of somebody who has the model, and the repository's own folder ``mu``."""
    (tmp_path / "CompVis").mkdir()
    (tmp_path / "CompVis" / "stable-diffusion-v1-4").symlink_to(tiny_folder)
    (tmp_path / "mu").symlink_to(ROOT / "mu")
    return tmp_path


def erases(path: Path, concept: str) -> bool:
    """Whether the file names its concept and its factors are not the zeros that they start from."""
    with safe_open(path, "pt") as file:
        ups = [file.get_tensor(key) for key in file.keys() if key.endswith("lora_up.weight")]  # noqa: SIM118
        return file.metadata()["prompts"] == concept and bool(ups) and max(float(up.abs().max()) for up in ups) > 0


def in_a_process(words: list[str]) -> tuple[int, str, str]:
    """As typed: the exit code, what was printed, and what was told."""
    done = subprocess.run([sys.executable, "-m", TRAIN, *words], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def in_this_one(words: list[str]) -> tuple[int, str, str]:
    """What ``python -m`` does, without its seconds of imports."""
    logger, out, err = logging.getLogger("mu"), io.StringIO(), io.StringIO()
    handlers, level, arguments = list(logger.handlers), logger.level, sys.argv
    sys.argv = [TRAIN, *words]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            run_module(TRAIN, run_name="__main__")
    finally:
        sys.argv, logger.handlers, logger.level = arguments, handlers, level
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


@pytest.mark.parametrize(("kind", "more", "name"), [("mu", "", "Abstractionism"), ("i2p", I2P, "self-harm")])
def test_the_snippets(kind: str, more: str, name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("WANDB_MODE", "offline")
    # Without "prompt.resolution" the model is trained at its own size: the published settings draw from [size/2, size).
    exec(compile(SNIPPET.format(kind=kind, more=more, out=place / "outputs"), "my_trainer.py", "exec"), {})
    path = place / "outputs" / f"semipermeable_membrane_{name}_last.safetensors"
    assert erases(path, name)
    assert not erases(path, "another")


def test_a_file_of_zeros_would_be_caught(tmp_path: Path, tiny) -> None:  # type: ignore[no-untyped-def]
    import torch

    from mu.algorithms.semipermeable_membrane.model import fresh
    from mu.edits.edit import EditInfo
    from mu.edits.lora_files import spm_tensors
    from mu.edits.low_rank import LowRankEdit
    from mu.edits.tensor_file import write_tensors

    edit = LowRankEdit(
        fresh(tiny.layers("transformer"), 1, 1.0, torch.Generator()), EditInfo("spm", ("Abstractionism",))
    )
    write_tensors(tmp_path / "zeros.safetensors", *spm_tensors(edit))
    assert not erases(tmp_path / "zeros.safetensors", "Abstractionism")


@pytest.mark.parametrize(
    ("run", "folder", "flags", "out", "name"),
    [
        (in_a_process, "config", "", "outputs/semipermeable_membrane/finetuned_models", "Abstractionism"),
        (
            in_this_one,
            "configs",
            "--dataset_type unlearncanvas --template object --template_name self-harm --devices 0,1 --output_dir outputs/experiment_1 --use_sample",
            "outputs/experiment_1",
            "self-harm",
        ),
    ],
)
def test_the_command_line(
    run: Run, folder: str, flags: str, out: str, name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delitem(sys.modules, TRAIN, raising=False)  # another test may have imported it
    path = f"mu/algorithms/semipermeable_membrane/{folder}/train_config.yaml"
    code, printed, told = run(["--config_path", path, *flags.split(), *QUICK])
    assert code == 0, told
    final = f"{out}/semipermeable_membrane_{name}_last.safetensors"
    assert printed.strip() == final
    assert erases(place / final, name)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--config_path nowhere.yaml", "nowhere.yaml"),
        ("--train.iterations some", "train.iterations"),
        ("--template colour", "template"),
        ("--nonsense 3", "--nonsense"),
    ],
)
def test_wrong_flags_are_one_clear_line(flags: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(SemipermeableMembraneAlgorithm, flags.split())
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_flags_are_read_as_printed() -> None:
    def config(flags: str):  # type: ignore[no-untyped-def]
        options = vars(parser(SemipermeableMembraneAlgorithm).parse_args(flags.split()))
        for own in ("config_path", "resume", "overwrite", "track"):
            options.pop(own)
        return SemipermeableMembraneAlgorithm(
            None, **parsed(SemipermeableMembraneAlgorithm.config_class, options)
        ).config

    assert config("--use_sample").old.use_sample is True
    assert config("--use_sample false --devices 0,1").old.use_sample is False
    assert config("--devices 0,1").devices == "0,1"
    assert config("--devices 0").devices == "0"
    assert config("--template_name 007").template_name == "007"
    assert config("--prompt.target null").prompt.target == "null"
    assert config("--train.lr 1e-3 --prompt.guidance_scale 1.0").train.lr == 1e-3
    assert config("--prompt.dynamic_resolution").prompt.dynamic_resolution is True
    assert config("--train.optimizer_args [weight_decay=0.1]").train.optimizer_args == ["weight_decay=0.1"]
