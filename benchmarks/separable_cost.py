"""What separable erasure costs beside its released code: null spaces, UNet evaluations a step, bytes of a concept.

    OMP_NUM_THREADS=1 python benchmarks/separable_cost.py --json docs/results/separable_cost.json

Null spaces: random rows like a text encoder's of 77, 231 and 691 tokens (width 768, float32), of which 231 are three
prompts. ``exact`` is Gauss-Jordan elimination in whole numbers (fraction-free, Bareiss), nothing rounded: what the
released code does with sympy, which rounds to 24 bits. It is measured up to 77 rows and drawn out from there by the
power of the last doubling. Evaluations are counted by a hook on the embedded model's UNet, in samples, with Stable
Diffusion's settings. Sizes are those of random factors of Stable Diffusion 1.x's shapes, written to a file.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _shared import keep_result, markdown
from torch import Tensor

import mu
from mu.algorithms import algorithm
from mu.algorithms.separable_concept_erasure.null_space import NullSpace, eliminated
from mu.edits.edit import EditInfo
from mu.edits.low_rank import LowRankEdit
from mu.edits.membrane import Factors
from mu.models.formats.architectures import new_component, stable_diffusion_1

WIDTH, TOKENS = 768, 77
ROWS = (77, 231, 691)
EXACT = (19, 38, 77)


# -- null spaces
# ------------------------------------------------------------------------------------------------------------


def token_rows(count: int, generator: torch.Generator) -> Tensor:
    """(count, 768) in multiples of 2^-20, which float32, float64 and whole numbers hold alike; later rows of a prompt
    are near each other, as padding's are."""
    first = torch.randn(-(-count // TOKENS), WIDTH, generator=generator, dtype=torch.float64).repeat_interleave(
        TOKENS, 0
    )
    spread = torch.where(torch.arange(len(first)) % TOKENS < 8, 1.0, 0.05).double()[:, None]
    rows = first + spread * torch.randn(first.shape, generator=generator, dtype=torch.float64)
    return ((rows[:count] * 2**20).round() / 2**20).float()


def exact(rows: Tensor) -> list[list[int]]:
    """A null-space basis of ``rows`` in whole numbers, one vector for each free column."""
    A = [[int(value) for value in row] for row in (rows.double() * 2**20).tolist()]
    pivots: list[int] = []
    last = 1
    for column in range(WIDTH):
        k = len(pivots)
        if k == len(A):
            break
        best = next((i for i in range(k, len(A)) if A[i][column]), None)
        if best is None:
            continue
        A[k], A[best] = A[best], A[k]
        pivot, top = A[k][column], A[k]
        for i, row in enumerate(A):
            if i != k:
                factor = row[column]
                A[i] = [(pivot * a - factor * b) // last for a, b in zip(row, top, strict=True)]
        last = pivot
        pivots.append(column)
    basis = []
    for free in (column for column in range(WIDTH) if column not in set(pivots)):
        vector = [0] * WIDTH
        vector[free] = last
        for i, column in enumerate(pivots):
            vector[column] = -A[i][free]
        basis.append(vector)
    return basis


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def residual(rows: Tensor, basis: Tensor) -> float:
    return float((rows.double() @ (basis / basis.norm(dim=1, keepdim=True)).double().T).abs().max())


def null_spaces() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    times: dict[int, float] = {}
    for count in sorted({*ROWS, *EXACT}):
        rows = token_rows(count, torch.Generator().manual_seed(count))
        row: dict[str, Any] = {"rows": count}
        if count in EXACT:
            times[count], basis = timed(lambda rows=rows: exact(rows))
            row["exact"] = times[count]
            whole = [int(value) for value in (rows[0].double() * 2**20).tolist()]
            assert len(basis) == WIDTH - count and sum(a * b for a, b in zip(whole, basis[-1], strict=True)) == 0
        else:
            power = math.log2(times[EXACT[-1]] / times[EXACT[-2]])
            row["exact, drawn out"] = times[EXACT[-1]] * (count / EXACT[-1]) ** power
        row["SVD"], space = timed(lambda rows=rows: NullSpace.of(rows))
        row["SVD, residual"], row["directions"] = residual(rows, space.directions), len(space.directions)
        row["QR"], q = timed(lambda rows=rows: torch.linalg.qr(rows.double().T, mode="complete").Q)
        row["QR, residual"] = residual(rows, q[:, count:].T)
        row["elimination"], basis = timed(lambda space=space: eliminated(space.span))
        row["elimination, residual"] = residual(rows, basis)
        row["elimination, float32"], basis = timed(lambda rows=rows: eliminated(rows))
        row["elimination, float32, residual"] = residual(rows, basis)
        found.append(row)
        print(row, flush=True)
    return found


# -- UNet evaluations
# -------------------------------------------------------------------------------------------------------

COUNTED = {
    "sepce": ({}, "4 (2 + 2)", "1 with, 2 without"),
    "sepce, stored": ({"data.stored_targets": 2}, "4 (2 + 2)", "1 with"),
    "cie": ({}, "4 (2 + 2)", "2 with, 2 without"),
    "cie, stored": ({"data.stored_targets": 2}, "4 (2 + 2)", "2 with"),
    "esd": ({"denoising_steps": 50}, "103 (1 + 102)", "1 with, 51 without on average"),
    "ca": ({"pictures.count": 4, "pictures.steps": 2}, "3 (2 + 1)", "2 with, 1 without"),
    "fmn": ({"pictures.count": 4, "pictures.steps": 2}, "1 (1 + 0)", "1 with"),
}
"""Settings; evaluations of the released code (with + without gradient); the fewest that give the same (both by count of
samples)."""


def evaluations(short: int = 8, long: int = 40) -> list[dict[str, Any]]:
    """Samples a step, with and without gradient: the difference of a long and a short run, so that images cancel
    out."""
    model, found = mu.load("canvas"), []
    for name, (settings, released, fewest) in COUNTED.items():
        method, counts = algorithm(name.partition(",")[0]), []
        for steps in (short, long):
            seen = {True: 0, False: 0}

            def count(_: Any, args: Any, kwargs: Any, seen: dict[bool, int] = seen) -> None:
                seen[torch.is_grad_enabled()] += len(args[0] if args else kwargs["sample"])

            separable = (
                {"data.images": 4, "data.steps": 2, "train.stop": "steps"} if "ie" in name or "sep" in name else {}
            )
            config = method.config_class.parse({"model": "canvas", "concepts": ["neon"]})
            work = method(config.merged(separable, settings, {"train.iterations": steps}), model=model)
            hook = model.unet.register_forward_pre_hook(count, with_kwargs=True)
            try:
                work.find_edit()
            finally:
                hook.remove()
            counts.append(seen)
        with_, without = ((counts[1][grad] - counts[0][grad]) / (long - short) for grad in (True, False))
        found.append({"method": name, "with": with_, "without": without, "released": released, "fewest": fewest})
        print(found[-1], flush=True)
    return found


# -- bytes
# ------------------------------------------------------------------------------------------------------------------


def sizes() -> dict[str, int]:
    """Of one concept with one prompt at Stable Diffusion 1.x's shapes, and of what the released code stores for it."""
    configs = stable_diffusion_1()
    with torch.device("meta"):
        parts = {name: new_component(configs[name]) for name in ("unet", "vae", "text_encoder")}
    numbers = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in parts.items()}
    shapes = {
        f"unet.{name}": parameter.shape
        for name, parameter in parts["unet"].named_parameters()
        if ".attn2.to_k." in name or ".attn2.to_v." in name
    }
    directions = TOKENS - 1
    down = torch.randn(directions, WIDTH)
    written = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in (torch.float32, torch.float16):
            factors = {
                name: Factors(down.to(dtype), torch.randn(rows, directions).to(dtype), float(directions))
                for name, (rows, _) in shapes.items()
            }
            path = Path(folder) / "concept.safetensors"
            LowRankEdit(factors, EditInfo("sepce", ("Van Gogh",))).save(path)
            written[str(dtype).removeprefix("torch.")] = path.stat().st_size
    return {
        "one concept, float32": written["float32"],
        "one concept, float16": written["float16"],
        "dense shift, float32": 4 * sum(math.prod(shape) for shape in shapes.values()),
        "coefficients of all 691 directions, float32": 4 * 691 * sum(shape[0] for shape in shapes.values()),
        "checkpoint and UNet of the released code, float32": 4 * (sum(numbers.values()) + numbers["unet"]),
    }


# -- tables
# -----------------------------------------------------------------------------------------------------------------


def seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 100 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.0f} h"


def tables(result: dict[str, Any]) -> str:
    null = [
        [
            str(row["rows"]),
            seconds(row["exact"]) if "exact" in row else f"({seconds(row['exact, drawn out'])})",
            *(
                f"{seconds(row[name])}, {row[f'{name}, residual']:.0e}"
                for name in ("SVD", "QR", "elimination", "elimination, float32")
            ),
        ]
        for row in result["null spaces"]
    ]
    steps = [
        [row["method"], row["released"], f"{row['with']:g}", f"{row['without']:.3g}", row["fewest"]]
        for row in result["evaluations"]
    ]
    size = [[name, f"{value / 1e6:.1f} MB"] for name, value in result["bytes"].items()]
    return "\n".join(
        [
            "Null space of rows of width 768; seconds and the largest entry of rows times basis (in "
            "brackets: drawn out):\n",
            markdown(
                ["rows", "exact elimination", "SVD (ours)", "QR", "elimination after SVD", "elimination in float32"],
                null,
            ),
            "UNet evaluations a step, in samples:\n",
            markdown(
                ["method", "released code (with + without gradient)", "with gradient", "without", "fewest"], steps
            ),
            "Bytes of one concept (Stable Diffusion 1.x):\n",
            markdown(["what", "size"], size),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_result(options.json, {"bytes": sizes(), "evaluations": evaluations(), "null spaces": null_spaces()}, tables)


if __name__ == "__main__":
    main()
