"""Closed forms in a calibrated search: rows of prompt embeddings, least squares, the choice of anchor and pressure.

A closed form replaces rows c of the concepts by rows a of their anchors and keeps rows k. The rows of all positions of
all phrasings are taken, and scaled so that their sums are means: no weight then depends on the number of prompts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from mu.core import parallel
from mu.core.concept import says
from mu.core.errors import ConfigError, quoted
from mu.edits.edit import shifted
from mu.models.diffusion import DiffusionModel
from mu.training.calibration import Calibration, check_finite
from mu.training.probe import Reading

log = logging.getLogger("mu")

ANCHORS = ("", "art", "person")
"""Anchors that are tried beside a concept's peers."""
ENOUGH = 0.75
"""The cost of a trial at which no other anchor is pressed harder."""
TRIAL = 1.0
"""The weight of the concept's rows, beside the retained ones, in the edit that tries an anchor for another method."""

Solved = Callable[[Tensor, Tensor, float], Mapping[str, Tensor]]
"""``solved(C, A, pressure)``: the delta of every edited parameter."""


def rows(model: DiffusionModel, texts: Sequence[str]) -> Tensor:
    """The rows of all positions of the prompt embeddings of ``texts``, (n, width), in float64; their sums are means."""
    found = model.encode(texts).sequence.flatten(0, 1).cpu().double()
    return found / max(len(found), 1) ** 0.5


def pair_rows(model: DiffusionModel, pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Rows c and a (n, width) of every phrasing with the concept and with its anchor, where the two differ."""
    c, a = (rows(model, side) for side in zip(*pairs, strict=True))
    differ = (c - a).abs().amax(1) > 1e-6 * c.abs().max()
    share = (len(c) / max(int(differ.sum()), 1)) ** 0.5
    return c[differ] * share, a[differ] * share


def kept_texts(calibrations: Sequence[Calibration]) -> list[str]:
    """What any of ``calibrations`` keeps, once each; none says a concept, as each knows the others."""
    return list(dict.fromkeys(text for each in calibrations for text in each.around.kept))


def least_squares(C: Tensor, A: Tensor, K: Tensor, erase_scale: float, preserve_scale: float, lamb: float) -> Tensor:
    """X (width, width) for rows C and A (n, width) and K (m, width), in float64: W + W X minimises UCE's Eq. 7.

    With R = erase_scale sum (a - c) c^T and M = erase_scale sum c c^T + preserve_scale sum k k^T + lamb I it is R M^-1,
    the same for every matrix W (Gandikota et al., Unified Concept Editing).
    """
    R = erase_scale * (A - C).T @ C
    M = erase_scale * C.T @ C + preserve_scale * K.T @ K + lamb * torch.eye(C.shape[1], dtype=C.dtype)
    return torch.linalg.solve(M, R.T).T


@torch.no_grad()
def keys_and_values(model: DiffusionModel, X: Tensor) -> dict[str, Tensor]:
    """The delta W X of every key and value matrix, in float32 or finer."""
    weights = model.parameters("text-keys") | model.parameters("text-values")
    return {
        name: (W.cpu().double() @ X).to(torch.promote_types(W.dtype, torch.float32)).to(model.device)
        for name, W in weights.items()
    }


def by_least_squares(model: DiffusionModel, calibrations: Sequence[Calibration]) -> Solved:
    """The least squares on means of rows; lamb is a hundredth of the retained rows' mean square in one direction."""
    K = torch.linalg.qr(rows(model, kept_texts(calibrations)), mode="r").R  # as few rows with the same sums
    lamb = 1e-2 * float(K.square().sum()) / K.shape[1]
    return lambda C, A, scale: keys_and_values(model, least_squares(C, A, K, scale, 1.0, lamb))


def choose(
    model: DiffusionModel,
    calibrations: Sequence[Calibration],
    given: Sequence[str],
    pressures: Sequence[float],
    solved: Solved,
    beyond: Sequence[str] = ANCHORS,
) -> None:
    """Give each concept the anchor and the pressure at which, erased alone, its probe reads the lowest cost.

    All anchors are tried at each of ``pressures``, the mildest first, until one erases with little harm (a cost below
    `ENOUGH`), and that one at the higher ones while they bring something better. They are peers, and those ``beyond``.
    Harm only adds to the cost, so images of what should stay are made only while the concept's own do not cost more
    than the best trial. Anchors ``given`` by the user, one for all or one for each, are taken. Raises `ConfigError` if
    no anchor differs from its concept.
    """
    for k, each in enumerate(calibrations):
        anchors = [given[k % len(given)]] if given else candidates(each, beyond)
        pairs = {anchor: pair_rows(model, each.pairs(anchor)) for anchor in anchors}
        anchors = [anchor for anchor in anchors if len(pairs[anchor][0])]
        if not anchors:
            raise ConfigError(
                f"the text encoder gives {quoted(each.concept)} and its anchor the same embedding, which erases "
                "nothing: name another anchor"
            )
        best: list[tuple[float, str, float, Reading]] = []
        for pressure in pressures:

            def on(anchor: str) -> AbstractContextManager[None]:
                return shifted(model, solved(*pairs[anchor], pressure))  # noqa: B023

            seen, whole = trials(each, on, anchors, min(best)[0] if best else None)
            best += [(each.cost(reading), anchor, pressure, reading) for anchor, reading in whole.items()]
            each.tried += [trial_facts(anchor, pressure, seen[anchor], whole.get(anchor)) for anchor in anchors]
            if min(best)[0] < ENOUGH:
                if min(best)[2] < pressure:
                    break
                anchors = [min(best)[1]]
        _, each.anchor, each.pressure, each.reading = min(best)
        check_finite(each.reading)
        log.info("%r becomes %r", each.concept, each.anchor)


def trials(
    calibration: Calibration,
    on: Callable[[str], AbstractContextManager[None]],
    anchors: Sequence[str],
    lowest: float | None,
) -> tuple[dict[str, Reading], dict[str, Reading]]:
    """The glance at every anchor's edit, and the whole reading of those that may cost less than all others.

    ``on`` puts an anchor's edit on; ``lowest`` is what the best trial so far costs, if there is one.
    """
    probe, cost = calibration.probe, calibration.cost
    seen: dict[str, Reading] = {}
    whole: dict[str, Reading] = {}
    for anchor in anchors:
        with on(anchor):
            seen[anchor] = parallel.from_first(probe.glance)
    for anchor, glance in sorted(seen.items(), key=lambda each: cost(each[1])):
        if lowest is not None and cost(glance) >= lowest:
            break
        with on(anchor):
            reading = whole[anchor] = parallel.from_first(lambda: probe.read(glance))  # noqa: B023
        lowest = cost(reading) if lowest is None else min(lowest, cost(reading))
    return seen, whole


def trial_facts(anchor: str, pressure: float, glance: Reading, whole: Reading | None) -> dict[str, Any]:
    """What ``tried`` says of one trial: without what should stay, if the concept's images alone had ruled it out."""
    found = (whole or glance)._asdict()
    facts = found if whole else {name: found[name] for name in ("left", "shown", "strange")}
    return {"anchor": anchor, "pressure": pressure, **{k: v for k, v in facts.items() if math.isfinite(v)}}


def candidates(calibration: Calibration, beyond: Sequence[str] = ANCHORS) -> list[str]:
    """The probe's peers and those ``beyond``; `ANCHORS`, if there are none.

    None of them says the concept, or one that is erased together with it.
    """
    around = calibration.around
    erased = (around.concept, *around.beside)
    names = dict.fromkeys([*filter(None, calibration.probe.peers), *beyond])
    return [a for a in names if not any(says(a, each) for each in erased)] or [*ANCHORS]


def anchored(model: DiffusionModel, calibrations: Sequence[Calibration], given: Sequence[str] = ()) -> None:
    """Give each concept of a search that trains its anchor: the ``given`` one, or the best of a least-squares edit.

    Peers are tried, and only without any "", "art" and "person": training towards a prompt without the word moves too
    little. Costs as many readings of the probe as anchors are tried. A word's images say little of its use as an
    anchor: the farthest from the concept is often of another kind, and a style whose place a wrench takes is hardly
    erased.
    """
    if calibrations and not given:
        choose(model, calibrations, (), (TRIAL,), by_least_squares(model, calibrations), beyond=())
    for k, each in enumerate(calibrations):
        each.anchor, each.pressure = given[k % len(given)] if given else each.anchor, 0.0


def facts(calibrations: Sequence[Calibration], name: str) -> dict[str, Any]:
    """What `EditInfo.found` says of each concept, with the edit on; ``name`` is that of the pressure's setting.

    A concept erased alone was read by `choose` with this very edit on, and is not read again.
    """
    alone = calibrations[0].reading if len(calibrations) == 1 else None
    return {each.concept: each.found(alone or each.probe.read(), **{name: each.pressure}) for each in calibrations}
