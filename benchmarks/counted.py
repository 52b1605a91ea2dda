"""What a large grid costs on SD 1.x: counted from shapes and protocols, and its schedule simulated.

    python benchmarks/counted.py --json docs/results/counted.json

Counted: floating-point operations of one evaluation of the UNet and of one decoding (by PyTorch on the meta device),
the images and evaluations of a cell by protocol, and the bytes of each kind of edit in float32. Simulated: the cells of
``CONCEPTS`` x ``METHODS`` on machines that take the next cell when they are free, after the base's images, which cells
share (all of them, or those of one concept); ``LOST`` of the cells lose their worker half-way and are done again. Not
counted: judges and transfers. ``SPEED`` is an assumption; all times scale with it.

A calibrated search is counted for the closed forms, from the constants of `mu.training`: what stands around the concept
(`surroundings`, every word felt), the probe, and its readings, if an anchor erases at the mildest pressure, and at
most. What a method that trains costs in these units is estimated: the count of UCE (``TIMED_EVALUATIONS``, of the
search that was timed) times the ratio of both methods' seconds in docs/results/generalise.json, on a model of 64 x 64 pixels.
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _shared import keep_result, markdown
from torch.utils.flop_counter import FlopCounterMode

from mu.algorithms.speed.algorithm import PRESSURES
from mu.algorithms.uce.algorithm import SCALES
from mu.data.prompt_lists import NEIGHBOUR_TEMPLATES, TARGET_TEMPLATES
from mu.evaluation.suites import concept, unlearncanvas
from mu.models.formats.architectures import blueprint, stable_diffusion_1
from mu.training import closed_form, kinship, probe, surroundings

CONCEPTS, METHODS = 1000, 10
MACHINES = (1, 8, 64, 512)
SPEED = 100.0
"""TFLOP per second that a machine does on average."""
LOST = 0.01
TIMED = Path(__file__).resolve().parent.parent / "docs" / "results" / "generalise.json"
"""Seconds of each method's searches."""
TIMED_EVALUATIONS = 9554
"""What a usual search of UCE cost when those seconds were taken, by this script at that revision."""


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


def around(words: int, compared: int, known: int) -> int:
    """Evaluations that ask the model for a concept's surroundings, and whether it knows the concept.

    ``words`` are measured alone, ``compared`` put beside others, and those ``known`` beside the references."""
    first = 2  # the steps to the state in which words are compared
    alone = kinship.IMAGES * (first + 1 + len(kinship.ALONE) * (1 + words))
    beside = min(kinship.BESIDE, compared) * compared
    references = 2 * min(kinship.REFERENCES, known) * (1 + known)
    agreed = 2 * (first + 2 * (1 + len(surroundings.ALONE) + len(surroundings.PROBED_ALONE)))
    return alone + kinship.IMAGES * (beside + references) + agreed


def probing(phrasings: int, peers: int) -> tuple[int, int, int]:
    """Evaluations of a probe's beginning, of one look at the concept's images, and of one at what should stay.

    There are twice as many images of what should stay. In the beginning there are also those without a word, and those
    of the ``peers`` that are looked at."""
    image = 2 * probe.STEPS
    return image * phrasings * (4 + peers), image * phrasings, 2 * image * phrasings


def searches(tflop: float) -> list[dict[str, Any]]:
    """The evaluations of a calibrated search for one concept, and their PFLOP, at ``tflop`` for each.

    Usual: the first peers stand in the concept's place, and the anchor whose images cost least at the mildest pressure
    is the best with what should stay, too; one more pressure brings nothing better. Most: all peers are looked at, and
    every anchor at every pressure."""
    asked = around(surroundings.MOST_WORDS, kinship.COMPARED, kinship.MOST_LEARNED)
    phrasings = len(surroundings.PROBED_ALONE) + surroundings.PROBED
    begun, glance, kept = probing(phrasings, probe.PEERS)
    begun_most = probing(phrasings, probe.TRIED)[0]
    anchors, reading = probe.PEERS + len(closed_form.ANCHORS), glance + kept
    rows = []
    for method, pressures in (("uce", len(SCALES)), ("speed", len(PRESSURES))):
        usual = asked + begun + anchors * glance + kept + reading
        most = asked + begun_most + reading * anchors * pressures
        rows.append({"method": method, "counted": True, "usual": usual, "most": most})
    times = seconds()
    for method in times.keys() - {"uce", "speed"}:
        share = times[method] / times["uce"]
        rows.append({"method": method, "counted": False, "usual": round(share * TIMED_EVALUATIONS), "most": None})
    rows.sort(key=lambda row: (not row["counted"], row["usual"]))
    return [{**row, "PFLOP": row["usual"] * tflop / 1000} for row in rows]


def seconds() -> dict[str, float]:
    """The mean seconds of each method's searches on the world of the committed result, of those that were timed."""
    (rows,) = json.loads(TIMED.read_text(encoding="utf-8"))["worlds"].values()
    rows = [row for row in rows if row["seconds"] is not None]
    return {
        method: statistics.mean(row["seconds"] for row in rows if row["method"] == method)
        for method in {row["method"] for row in rows}
    }


def schedule(hours: float, base: float, machines: int) -> float:
    """Hours until all cells, of ``hours`` each, are done on ``machines``, after the ``base``'s images on all of them."""
    draw = np.random.default_rng(0)
    waiting = [hours * (1.5 if lost else 1.0) for lost in draw.random(CONCEPTS * METHODS) < LOST]
    free = [base / machines] * machines
    for each in waiting:
        heapq.heappush(free, heapq.heappop(free) + each)
    return max(free)


def simulated(rows: list[dict[str, Any]], search: float) -> Iterator[dict[str, Any]]:
    """Each protocol on every number of machines, without searches and with one of ``search`` PFLOP in each cell."""
    for row, more in product(rows, (0.0, search)):
        images = row["PFLOP"] * 1000 / SPEED / 3600
        hours = images + more * 1000 / SPEED / 3600
        base = images * row["images of the base"] / row["images"]
        alone = schedule(hours, base, 1)
        for machines in MACHINES:
            taken = schedule(hours, base, machines)
            yield {
                "protocol": row["protocol"], "searches": bool(more), "machines": machines, "hours": taken,
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
        [
            r["protocol"],
            "yes" if r["searches"] else "no",
            str(r["machines"]),
            f"{r['hours']:,.1f}",
            f"{r['used']:.3f}",
            f"{r['images'] / 1e6:.1f}",
        ]
        for r in result["simulated"]
    ]
    cells = ["protocol", "images a cell", "images of the base, all cells", "evaluations an image"]
    grids = [
        "protocol",
        "with searches",
        "machines",
        "hours",
        "share of the machines' time that is used",
        "images, millions",
    ]
    cell = result["protocols"][0]
    of_searches = [
        [r["method"], "counted" if r["counted"] else "estimated", f"{r['usual']:,}", f"{r['most']:,}" if r["most"] else "",
         f"{r['PFLOP']:.1f}", f"{r['PFLOP'] / cell['PFLOP']:.1f}"]
        for r in result["searches"]
    ]  # fmt: skip
    search = [
        "calibrated search",
        "",
        "evaluations",
        "at most",
        "PFLOP",
        f"cells of {cell['protocol']} that cost as much",
    ]
    return "\n".join(
        [
            "# What a large grid costs on SD 1.x\n\nMade by `benchmarks/counted.py`, whose head says what is counted.\n",
            markdown([*cells, "TFLOP an evaluation", "PFLOP a cell"], of_cells),
            markdown(search, of_searches),
            f"{CONCEPTS:,} concepts x {METHODS} methods, at {SPEED:.0f} TFLOP a second and machine;\nwith searches, the mean of those above:\n",
            markdown(grids, of_grids),
            markdown(["an edit of", "MB"], [[name, f"{size:,.1f}"] for name, size in result["edits, MB"].items()]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here, and its table beside it")
    options = parser.parse_args()
    rows = protocols()
    found = searches(rows[0]["TFLOP of an evaluation"])
    mean = statistics.mean(row["PFLOP"] for row in found)
    result = {
        "protocols": rows,
        "searches": found,
        "simulated": list(simulated(rows, mean)),
        "edits, MB": edits(),
    }
    keep_result(options.json, result, table)


if __name__ == "__main__":
    main()
