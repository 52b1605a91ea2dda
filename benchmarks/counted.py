"""What a large grid costs on SD 1.x: counted from shapes and protocols, and its schedule simulated.

    python benchmarks/counted.py --json docs/results/counted.json

Counted: floating-point operations of one evaluation of the UNet and of one decoding (by PyTorch on the meta device),
the images and evaluations of a cell by protocol, and the bytes of each kind of edit in float32. Simulated: the cells of
``CONCEPTS`` x ``METHODS`` on machines that take the next cell when they are free, after the base's images, which cells
share (all of them, or those of one concept); ``LOST`` of the cells lose their worker half-way and are done again. Not
counted: searches, judges and transfers. ``SPEED`` is an assumption; all times scale with it.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _shared import keep_result, markdown
from torch.utils.flop_counter import FlopCounterMode

from mu.data.prompt_lists import NEIGHBOUR_TEMPLATES, TARGET_TEMPLATES
from mu.evaluation.suites import concept, unlearncanvas
from mu.models.formats.architectures import blueprint, stable_diffusion_1

CONCEPTS, METHODS = 1000, 10
MACHINES = (1, 8, 64, 512)
SPEED = 100.0
"""TFLOP per second that a machine does on average."""
LOST = 0.01


def operations() -> dict[str, float]:
    """TFLOP of one evaluation of the UNet at 512 x 512 for one prompt, and of one decoding."""
    configs, latents = stable_diffusion_1(), torch.empty(1, 4, 64, 64, device="meta")
    unet, vae = blueprint(configs["unet"]), blueprint(configs["vae"])
    with FlopCounterMode(display=False) as of_unet:
        unet(latents, torch.empty(1, device="meta"), torch.empty(1, 77, 768, device="meta"))
    with FlopCounterMode(display=False) as of_vae:
        vae.decode(latents)
    return {"evaluation": of_unet.get_total_flops() / 1e12, "decoding": of_vae.get_total_flops() / 1e12}


def edits() -> dict[str, float]:
    """MB of an edit of SD 1.x in float32, by what it changes."""
    unet = blueprint(stable_diffusion_1()["unet"])
    cross = {name: W for name, W in unet.named_parameters() if ".attn2." in name}
    text = {name: W for name, W in cross.items() if ".to_k." in name or ".to_v." in name}
    linear = [W for name, W in unet.named_parameters() if ".attn" in name and W.dim() == 2]
    return {
        "whole UNet (esd, objects as published)": 4e-6 * sum(W.numel() for W in unet.parameters()),
        "cross-attention (ca, published)": 4e-6 * sum(W.numel() for W in cross.values()),
        "keys and values (esd and ca, calibrated)": 4e-6 * sum(W.numel() for W in text.values()),
        "rank 1 of all attention layers": 4e-6 * sum(sum(W.shape) for W in linear),
        "rank 1 of keys and values": 4e-6 * sum(sum(W.shape) for W in text.values()),
    }


def protocols() -> list[dict[str, Any]]:
    """Images of one cell, and evaluations of each with guidance."""
    own = len(TARGET_TEMPLATES["styles"]) + concept.NEIGHBOURS * len(NEIGHBOUR_TEMPLATES["styles"])
    own *= len(concept.SEEDS)
    answers = len(unlearncanvas.STYLES) * len(unlearncanvas.OBJECTS) * len(unlearncanvas.SEEDS)
    found = {
        concept.PROTOCOL: (own + concept.EVERYDAY, own * CONCEPTS + concept.EVERYDAY, 2 * concept.STEPS),
        unlearncanvas.PROTOCOL: (answers, answers, 2 * unlearncanvas.STEPS),
    }
    of = operations()
    return [
        {
            "protocol": name, "images": images, "images of the base": base, "evaluations": evaluations,
            "TFLOP of an evaluation": of["evaluation"],
            "PFLOP": images * (evaluations * of["evaluation"] + of["decoding"]) / 1000,
        }
        for name, (images, base, evaluations) in found.items()
    ]  # fmt: skip


def schedule(hours: float, base: float, machines: int) -> float:
    """Hours until all cells, of ``hours`` each, are done on ``machines``, after the ``base``'s images on all of them."""
    draw = np.random.default_rng(0)
    waiting = [hours * (1.5 if lost else 1.0) for lost in draw.random(CONCEPTS * METHODS) < LOST]
    free = [base / machines] * machines
    for each in waiting:
        heapq.heappush(free, heapq.heappop(free) + each)
    return max(free)


def simulated(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        hours = row["PFLOP"] * 1000 / SPEED / 3600
        base = hours * row["images of the base"] / row["images"]
        alone = schedule(hours, base, 1)
        for machines in MACHINES:
            taken = schedule(hours, base, machines)
            yield {
                "protocol": row["protocol"], "machines": machines, "hours": taken,
                "used": alone / taken / machines,
                "images": row["images"] * CONCEPTS * METHODS + row["images of the base"],
            }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    of_cells = [
        [r["protocol"], str(r["images"]), f"{r['images of the base']:,}", str(r["evaluations"]),
         f"{r['TFLOP of an evaluation']:.2f}", f"{r['PFLOP']:.0f}"]
        for r in result["protocols"]
    ]  # fmt: skip
    of_grids = [
        [r["protocol"], str(r["machines"]), f"{r['hours']:,.1f}", f"{r['used']:.3f}", f"{r['images'] / 1e6:.1f}"]
        for r in result["simulated"]
    ]
    cells = ["protocol", "images a cell", "images of the base, all cells", "evaluations an image"]
    grids = ["protocol", "machines", "hours", "share of the machines' time that is used", "images, millions"]
    return "\n".join(
        [
            "# What a large grid costs on SD 1.x\n\nMade by `benchmarks/counted.py`, whose head says what is counted.\n",
            markdown([*cells, "TFLOP an evaluation", "PFLOP a cell"], of_cells),
            f"{CONCEPTS:,} concepts x {METHODS} methods, at {SPEED:.0f} TFLOP a second and machine:\n",
            markdown(grids, of_grids),
            markdown(["an edit of", "MB"], [[name, f"{size:,.1f}"] for name, size in result["edits, MB"].items()]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here, and its table beside it")
    options = parser.parse_args()
    rows = protocols()
    result = {"protocols": rows, "simulated": list(simulated(rows)), "edits, MB": edits()}
    keep_result(options.json, result, table)


if __name__ == "__main__":
    main()
