"""What many edits cost: the solve of SPEED, the verbs of a bank, and membranes while images are made.

    OMP_NUM_THREADS=1 python benchmarks/scale.py --json docs/results/scale.json

Seconds are processor time, so that other programs on the machine do not count; with one thread they are what a core of
its own takes, without waiting for the disk.

Three parts, of which ``--part`` names one. ``solve``: SPEED for 100 targets with 1,000 retained texts, on random rows
and random matrices of the cross-attentions' real shapes at widths 768 (SD 1.x), 1024 (SD 2.x), 2048 (SDXL) and 4096,
and one target left out again. ``bank``: the verbs of a bank of 1, 10 and 100 edits on a model of SD 1.x's UNet with
random weights; its text encoder has 2 layers of SD's width and 77 tokens, so that the bank is timed and not the
encoder. ``membranes``: seconds for a batch of mixed prompts on the embedded model with K edits on, over those without:
each round measures all K in turn, and the ratio is the median over rounds. Quote ratios of one run only.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _shared import keep_result, markdown, peak_memory
from diffusers import StableDiffusionPipeline
from torch import Tensor

import mu
from mu.algorithms.speed.algorithm import Speed, Targets
from mu.edits.bank import Bank
from mu.edits.bank_folder import BankFolder
from mu.edits.edit import Edit, EditInfo, described
from mu.edits.gates import FacilitatedTransport, FixedStrength, Gate
from mu.edits.joint import JointEdit, solved_together
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors
from mu.models import load
from mu.models.canvas import architecture
from mu.models.diffusion import DiffusionModel, face
from mu.models.formats.architectures import blueprint, new_component, stable_diffusion_1

WIDTHS = {
    768: (*[320] * 5, *[640] * 5, *[1280] * 6),
    1024: (*[320] * 5, *[640] * 5, *[1280] * 6),
    2048: (*[640] * 10, *[1280] * 60),
    4096: (*[1536] * 24,),
}
"""Outputs of the value matrices by width: those of SD 1.x, SD 2.x and SDXL, and 24 of a transformer."""
TARGETS, RETAINED = 100, 1000
BANKS = (1, 10, 100)
MEMBRANES = (1, 10, 100)
PROMPTS = (
    "A star image in neon style.",
    "A house image in photo style.",
    "A fish image.",
    "A tree image in pop art style.",
)


def rand(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seconds(work: Callable[[], Any]) -> float:
    """Processor time of all threads."""
    began = time.process_time()
    work()
    return time.process_time() - began


# -- the solve
# ------------------------------------------------------------------------------------------------------------


class _Bare:
    """A model as `Speed.solved` needs it: named weights."""

    def __init__(self, weights: dict[str, Tensor]):
        self.name = "random"
        modules = {name.split(".")[1]: torch.nn.Linear(*W.shape[::-1], bias=False) for name, W in weights.items()}
        for module, W in zip(modules.values(), weights.values(), strict=True):
            module.weight = torch.nn.Parameter(W)
        self.components = {"unet": torch.nn.ModuleDict(modules)}


def solves() -> list[dict[str, Any]]:
    return [solved_at(width, outs) for width, outs in WIDTHS.items()]


def solved_at(width: int, outs: Sequence[int]) -> dict[str, Any]:
    weights = {f"unet.v{k}.weight": rand(out, width, seed=k) / width**0.5 for k, out in enumerate(outs)}
    names = [f"name {k}" for k in range(TARGETS)]
    method = Speed({"concepts": names, "anchors": ["person"], "filter": False, "threshold": 1e-4, "retain_scale": 0.05})
    C, R, K = (rand(n, width, seed=n, dtype=torch.float64) for n in (TARGETS, RETAINED, 4))
    targets = Targets(C, rand(1, width, seed=9, dtype=torch.float64).expand(TARGETS, -1), (1,) * TARGETS)
    # Embeddings lie near a subspace: three quarters of the width at most.
    basis = torch.linalg.qr(rand(width, 3 * width // 4, seed=5, dtype=torch.float64)).Q
    R = R @ basis @ basis.T
    found: list[JointEdit] = []

    def solve() -> None:
        double = {name: W.double() for name, W in weights.items()}
        found[:] = [method.solved(_Bare(weights), double, targets, R, K, ["a"])]  # type: ignore[arg-type]

    with peak_memory() as peak:
        whole = min(seconds(solve) for _ in range(2))
    parts = found[0].parts()
    return {
        "width": width, "matrices": len(outs), "seconds": whole, "MiB": peak.MiB,
        "without one, seconds": min(seconds(lambda: solved_together(parts[1:])) for _ in range(3)),
        "MB of a file": sum(t.numel() * t.element_size() for t in parts[0].tensors().values()) / 1e6,
        "MB dense": 4e-6 * width * sum(outs),
    }  # fmt: skip


# -- the bank
# ------------------------------------------------------------------------------------------------------------


def of_real_shapes() -> DiffusionModel:
    """SD 1.x's UNet, a text encoder of its width with 2 layers, and a narrow autoencoder; random weights."""
    configs = stable_diffusion_1()
    tokenizer = architecture.new_tokenizer()
    tokenizer.model_max_length = 77
    configs["text_encoder"] |= {
        "vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0, "num_hidden_layers": 2,
    }  # fmt: skip
    configs["vae"] |= {"block_out_channels": [4, 8, 8, 8], "norm_num_groups": 4, "layers_per_block": 1}
    torch.manual_seed(0)
    unet = blueprint(configs.pop("unet")).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.uniform_(-0.02, 0.02)
    parts = {name: new_component(config) for name, config in configs.items()}
    pipeline = StableDiffusionPipeline(
        tokenizer=tokenizer, unet=unet, **parts, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    return face(pipeline, "sd-shaped")


def random_edit(model: DiffusionModel, k: int, names: Sequence[str], gate: Gate, size: float = 0.01) -> LowRankEdit:
    """Rank 1 on ``names``, with factors of its own for each."""
    parameters = {name: model.backbone.get_parameter(name.partition(".")[2]) for name in names}
    factors = {
        name: Factors(
            size * rand(1, *W.shape[1:], seed=1000 * k + j),
            size * rand(len(W), 1, *[1] * (W.dim() - 2), seed=999 * k + j),
            1.0,
        )
        for j, (name, W) in enumerate(parameters.items())
    }
    return LowRankEdit(factors, EditInfo("spm", (f"name {k}",), gate=gate, **described(model, list(names))))


def banks() -> list[dict[str, Any]]:
    model = of_real_shapes()
    names = [*model.parameters("text-keys"), *model.parameters("text-values")]
    rows = []
    for count in BANKS:
        concepts = [f"name {k}" for k in range(count)]
        settings = {"concepts": concepts, "anchors": ["person"], "filter": False, "threshold": 1e-4}
        rows.append(verbs("speed", model, Speed(settings, model=model).find_edit().parts()))
        rows.append(verbs("rank 1", model, [random_edit(model, k, names, FixedStrength()) for k in range(count)]))
    return rows


def verbs(kind: str, model: DiffusionModel, edits: Sequence[Edit]) -> dict[str, Any]:
    """Seconds of each verb on a bank of ``edits``."""
    with tempfile.TemporaryDirectory() as place:
        folder = BankFolder(Path(place) / "bank")
        works: dict[str, Callable[[], Any]] = {
            "add": lambda: folder.add(model, *edits),
            "list": folder.read,
            "restore": lambda: folder.restore("name 0"),
            "open": lambda: folder.open(model).on,
            "erase": lambda: folder.erase("name 0"),
            "check": lambda: folder.check(model),
            "merge": lambda: folder.merge(model, Path(place) / "merged.safetensors", "kohya"),
            "deltas": lambda: folder.open(model).deltas(),
        }
        with peak_memory() as peak:
            times = {verb: seconds(work) for verb, work in works.items()}
        size = sum(file.stat().st_size for file in folder.folder.iterdir()) / 1e6
    return {"edits": len(edits), "kind": kind, **times, "MiB": peak.MiB, "MB of the bank": size}


# -- membranes
# ------------------------------------------------------------------------------------------------------------


def kinds_of_edits(model: DiffusionModel, count: int) -> dict[str, tuple[list[Edit], bool]]:
    """``count`` edits by kind, and whether they are folded."""
    text = [*model.parameters("text-keys"), *model.parameters("text-values")]
    every = [name for name in model.layers("transformer")]
    return {
        "text, fixed": ([random_edit(model, k, text, FixedStrength()) for k in range(count)], False),
        "text, gated": ([random_edit(model, k, text, FacilitatedTransport()) for k in range(count)], False),
        "all layers, fixed": ([random_edit(model, k, every, FixedStrength()) for k in range(count)], False),
        "all layers, gated": ([random_edit(model, k, every, FacilitatedTransport()) for k in range(count)], False),
        "all layers, folded": ([random_edit(model, k, every, FixedStrength()) for k in range(count)], True),
    }


def ratios(model: DiffusionModel, work: Callable[[], Any], counts: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Seconds of ``work`` with edits over those without, in each of ``rounds``: the median, by kind and count."""
    cases = {(kind, K): each for K in counts for kind, each in kinds_of_edits(model, K).items()}
    times: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    base: list[float] = []
    work()
    for _ in range(rounds):
        base.append(seconds(work))
        for case, (edits, folded) in cases.items():
            with Bank(model, edits).applied(fold=folded):
                work()  # the gates of these prompts, and what is kept for them, are made in the first run
                times[case].append(seconds(work))
        base.append(seconds(work))
    around = [(a + b) / 2 for a, b in zip(base[::2], base[1::2], strict=True)]
    spread = max(max(a, b) / min(a, b) for a, b in zip(base[::2], base[1::2], strict=True))
    rows = [
        {
            "kind": kind, "edits": K, "seconds": statistics.median(found),
            "ratio": statistics.median(t / b for t, b in zip(found, around, strict=True)),
        }
        for (kind, K), found in times.items()
    ]  # fmt: skip
    return [{"kind": "none", "edits": 0, "seconds": statistics.median(around), "ratio": 1.0, "spread": spread}, *rows]


def membranes() -> dict[str, list[dict[str, Any]]]:
    small = load("canvas", device="cpu")
    assert isinstance(small, DiffusionModel)
    prompts = [text for text in PROMPTS for _ in range(2)]

    def images() -> None:
        mu.generate(small, prompts, seeds=range(len(prompts)), steps=5, guidance=4.0)

    found = {"embedded model, 8 images, 5 steps": ratios(small, images, MEMBRANES, 3)}
    large = of_real_shapes()
    conditioning = large.encode(["a star", "a house in rain"])
    x = rand(2, 4, 16, 16, seed=0)

    def evaluation() -> None:
        with torch.no_grad():
            for t in (900, 500):
                large.predict(x, t, conditioning)

    found["SD 1.x's UNet, 2 prompts, latents 16 x 16, 2 evaluations"] = ratios(large, evaluation, MEMBRANES[::2], 2)
    return found


# -- the table
# ------------------------------------------------------------------------------------------------------------


def exponent(rows: Sequence[dict[str, Any]], what: str) -> float:
    """p of seconds ~ edits^p between the last two counts."""
    a, b = rows[-2:]
    return math.log(b[what] / a[what]) / math.log(b["edits"] / a["edits"])


def table(result: dict[str, Any]) -> str:
    told = "# Scale\n\nMade by `benchmarks/scale.py`, whose head says what is measured.\n"
    if rows := result.get("solve"):
        told += f"\n## SPEED, {TARGETS} targets, {RETAINED} retained texts\n\n" + markdown(
            ["width", "matrices", "solve, s", "again without one, s", "peak MiB", "a target's file, MB", "a dense edit, MB"],
            [
                [str(r["width"]), str(r["matrices"]), f"{r['seconds']:.2f}", f"{r['without one, seconds']:.3f}",
                 str(r["MiB"]), f"{r['MB of a file']:.2f}", f"{r['MB dense']:.0f}"]
                for r in rows
            ],
        )  # fmt: skip
    if rows := result.get("bank"):
        columns = ("add", "list", "open", "restore", "erase", "check", "merge", "deltas")
        told += "\n## A bank of SD 1.x's shapes, seconds\n\n" + markdown(
            ["edits", "kind", *columns, "peak MiB", "bank, MB"],
            [
                [str(r["edits"]), r["kind"], *(f"{r[verb]:.2f}" for verb in columns), str(r["MiB"]),
                 f"{r['MB of the bank']:.1f}"]
                for r in rows
            ],
        )  # fmt: skip
        for kind in ("speed", "rank 1"):
            some = [row for row in rows if row["kind"] == kind]
            grown = ", ".join(f"{verb} {exponent(some, verb):.2f}" for verb in ("add", "open", "check", "merge"))
            told += f"\n{kind}: from 10 to 100 edits, seconds grow with edits to the power of: {grown}.\n"
    for where, rows in (result.get("membranes") or {}).items():
        told += f"\n## Membranes: {where}\n\n" + markdown(
            ["edits", "kind", "seconds", "times the base"],
            [[str(r["edits"]), r["kind"], f"{r['seconds']:.3f}", f"{r['ratio']:.3f}"] for r in rows],
        )
        told += f"\nTwo measurements of the base beside each other differed by up to {rows[0]['spread']:.2f} times.\n"
    return told


PARTS: dict[str, Callable[[], Any]] = {"solve": solves, "bank": banks, "membranes": membranes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="repeat for several; default: all")
    parser.add_argument("--json", type=Path, help="write the result here, and its table beside it")
    options = parser.parse_args()
    result: dict[str, Any] = {"threads": torch.get_num_threads()}
    keep_result(options.json, result | {part: PARTS[part]() for part in options.part or PARTS}, table)


if __name__ == "__main__":
    main()
