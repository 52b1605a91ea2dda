"""Writes the reference files of file-format version 1, those of the folder ``v1``. It has run once, and never again.

    python tests/reference/make.py NEW_FOLDER

The committed files are NEVER remade: they are what version 1 wrote, and what users hold on their disks. `test_formats`
opens them with the code of today. Where it cannot, the code is to be mended, and not the files. A new format gets a
folder of its own beside ``v1``, made by a script of its own. The script refuses a folder that exists, so that it cannot
write over them. Where the package moves on so far that this script no longer runs, the script goes and the files stay.

All numbers in edits follow `ramp`, which is exact in float32 and float16.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from mu.edits.gradient_files import GradientInfo, described_model, write_gradients
from mu.evaluation.pictures import before_after
from torch import Tensor, nn

import mu
from mu.algorithms.esd import ESD
from mu.core.files import write_json
from mu.core.run import RunDirectory
from mu.core.scores import Score
from mu.edits.bank_folder import BankFolder
from mu.edits.edit import EditInfo, described
from mu.edits.files import spm_tensors, write_tensors
from mu.edits.gates import FacilitatedTransport, gate_to_json
from mu.edits.low_rank import Factors, LowRankEdit
from mu.edits.weights import WeightEdit
from mu.models.clip import ClipModel
from mu.models.diffusion import DiffusionModel
from mu.models.parameters import find_parameter, select

ATTENTION = "unet.mid_block.attentions.0.transformer_blocks.0.attn2"
KEYS, VALUES, BIAS = (f"{ATTENTION}.{end}" for end in ("to_k.weight", "to_v.weight", "to_out.0.bias"))
CONV = "unet.mid_block.attentions.0.proj_in.weight"
NORM = "text_encoder.final_layer_norm.weight"


def ramp(*shape: int, start: int = 0) -> Tensor:
    """Multiples of 1/64 between -15/64 and 15/64 that go up and down, from the place ``start`` on."""
    count = torch.Size(shape).numel()
    return (((torch.arange(count) + start) * 7 % 31 - 15) / 64).reshape(shape)


def factors(model: DiffusionModel, name: str, rank: int, alpha: float, down: Tensor | None = None) -> Factors:
    out, *inner = find_parameter(model, name).shape
    up = ramp(out, rank, *[1] * (len(inner) - 1), start=1)
    return Factors(ramp(rank, *inner) if down is None else down, up, alpha)


def info(model: DiffusionModel, names: list[str], concepts: tuple[str, ...], **facts: Any) -> EditInfo:
    known = {"method": "spm", "seed": 7, "citation": "@article{key,\n  title={Größer}\n}", **facts}
    return EditInfo(concepts=concepts, **described(model, names), **known)


def low_rank(model: DiffusionModel) -> LowRankEdit:
    """Two layers with one ``down`` in common, one layer with its own, and every fact that an edit can tell."""
    shared = ramp(1, 192)
    parts = {
        KEYS: factors(model, KEYS, 1, 1.0, shared),
        VALUES: factors(model, VALUES, 1, 0.5, shared.clone()),
        CONV: factors(model, CONV, 2, 3.0),
    }
    return LowRankEdit(parts, info(
        model, list(parts), ("pop art", "neon, blue"), gate=gate_to_json(FacilitatedTransport()),
        config={"train": {"iterations": 3, "lr": 1e-4}, "erased": ["pop art", "neon, blue"], "preset": None},
        protects=("", "a photo of a tree"), spares=("a dog, a hat", "日本"),
        found={"updates": 3, "updates_at_most": 300, "correlation": None, "norm": 0.25, "width": 192, "free": 24},
    ))  # fmt: skip


def dense(model: DiffusionModel) -> WeightEdit:
    """One shift in float32, and one in float16."""
    shifts = {BIAS: ramp(128), NORM: ramp(192, start=2).half()}
    return WeightEdit(shifts, info(model, list(shifts), ("sketch",), method="uce", seed=None, spares=("a photo",)))


def spm(model: DiffusionModel) -> LowRankEdit:
    parts = {name: factors(model, name, 2, 1.0) for name in (KEYS, CONV)}
    return LowRankEdit(parts, info(model, list(parts), ("van gogh", "neon")))


def write_spm(model: DiffusionModel, folder: Path) -> None:
    """As ``mu erase`` writes it, and as the original tool does: half precision, and its own three keys alone."""
    tensors, metadata = spm_tensors(spm(model))
    write_tensors(folder / "spm.safetensors", tensors, metadata)
    halves = {name: tensor if name.endswith(".alpha") else tensor.half() for name, tensor in tensors.items()}
    legacy = {key: metadata[key] for key in ("prompts", "rank", "alpha")}
    write_tensors(folder / "spm_original.safetensors", halves, legacy)


def write_bank(model: DiffusionModel, folder: Path) -> None:
    bank = BankFolder(folder)
    gate = FacilitatedTransport(factor=0.5, metric="tokenuni", arithmetic="reference")
    van_gogh = LowRankEdit(
        {VALUES: factors(model, VALUES, 1, 1.0)}, info(model, [VALUES], ("van gogh",), gate=gate_to_json(gate))
    )
    bank.add(model, van_gogh, strength=0.75, reason="asked for by its heirs")
    bank.add(model, WeightEdit({BIAS: ramp(128)}, info(model, [BIAS], ("Ada Stone",), method="esd")), reason="a trial")
    bank.restore("Ada Stone", reason="the trial is over")


def write_gradient(clip: ClipModel, path: Path) -> None:
    names = ["text_encoder.final_layer_norm.bias", "vision_model.post_layernorm.weight"]
    gradients = {name: ramp(*find_parameter(clip, name).shape) for name in names}
    facts = described_model(clip, names)
    write_gradients(path, gradients, GradientInfo("forget", "cosine", 9, captions="own", concept="Ada Stone", **facts))


class SmallESD(ESD):
    __doc__ = ESD.__doc__

    def parameters(self, model: DiffusionModel) -> dict[str, nn.Parameter]:
        return select(model, BIAS)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "platform": platform.system()}


def write_run(model: DiffusionModel, folder: Path) -> None:
    """A run of three steps, its pictures at two denoising steps, and made-up scores."""
    settings = SmallESD.for_concepts(["neon"], "canvas").merged({
        "output_dir": folder.as_posix(), "devices": "cpu", "train": {"iterations": 3}, "denoising_steps": 2, "seed": 5,
    })  # fmt: skip
    run: RunDirectory = SmallESD(settings, model=model).run()
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    bank = mu.Bank(model, [mu.open_edit(run.folder)])
    before_after(run, model, bank, ["a star in neon style"], ["a dog"], seeds=[188], steps=2)
    write_json(run.folder / "panels.json", [{
        "title": "One edit", "columns": ["base", "edited", "restored"],
        "rows": [{"label": "a dog", "images": ["before/1_0.png", "after/1_0.png", None]}],
    }])  # fmt: skip
    run.write_scores({
        "base": [
            Score("UA", 0.03125, 64, "higher", "canvas/1", {"neon": 0.03125}),
            Score("IRA", 0.96875, 96, "higher", "canvas/1", {"photo": 1.0, "Größe": 0.9375}),
            Score("Fréchet distance", 12.5, 96, "lower", "judge/1"),
        ],
        "edited": [
            Score("UA", 0.9375, 64, "higher", "canvas/1", {"neon": 0.9375}),
            Score("IRA", 0.953125, 96, "higher", "canvas/1", {"photo": 1.0, "Größe": 0.90625}),
            Score("Fréchet distance", 13.875, 96, "lower", "judge/1"),
        ],
    })  # fmt: skip


def main(folder: Path) -> None:
    folder.mkdir()
    os.chdir(folder)
    model, clip = mu.load("canvas", device="cpu"), mu.load("canvas-clip", device="cpu")
    low_rank(model).save("low_rank.safetensors")
    dense(model).save("dense.safetensors")
    write_spm(model, Path())
    write_bank(model, Path("bank"))
    write_gradient(clip, Path("gradient.safetensors"))
    write_run(model, Path("run"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
